"""The entries of an array, one by one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from warmclip_jax._norms._entries import entries


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (4, 3)])
@pytest.mark.parametrize("first", [0.0, -1.0, np.nan])
def test_they_are_the_entries_along_the_first_axis(shape, first):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array[:1] = first
    for function in (entries, jax.jit(entries)):
        found = function(jnp.asarray(array))
        assert len(found) == len(array)
        for got, want in zip(found, array, strict=True):
            np.testing.assert_array_equal(got, want)


def test_they_may_be_vmapped_and_derived():
    array = jnp.arange(12.0).reshape(3, 4)
    for place, got in enumerate(jax.vmap(entries)(array)):
        np.testing.assert_array_equal(got, array[:, place])
    gradient = jax.jit(
        jax.grad(lambda row: sum(weight * entry for weight, entry in enumerate(entries(row))))
    )(array[0])
    np.testing.assert_array_equal(gradient, [0, 1, 2, 3])


def test_loops_that_read_one_entry_each_are_alike_on_cpu():
    def scaled(numbers, leaves):
        return [entry * leaf for entry, leaf in zip(entries(numbers), leaves, strict=True)]

    text = str(jax.jit(scaled).lower(jnp.ones(3), [jnp.ones((8, 8))] * 3).compile().as_text())
    # A slice would have its place inside.
    loops = re.findall(r"\n%\S+ \([^\n]*-> f32\[8,8\] \{\n.*?\n\}", text, re.DOTALL)
    assert len(loops) == 3
    for loop in loops:
        assert " slice(" not in loop
        assert " dynamic-slice(" in loop
