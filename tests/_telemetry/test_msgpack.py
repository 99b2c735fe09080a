"""The outline of a msgpack file: every kind of value is passed over without being read."""

import io
from typing import Any

import jax
import msgpack
import numpy as np
import pytest
from flax import serialization

from warmclip_jax._telemetry._msgpack import outline

#: Lengths on both sides of where each kind of header grows.
LENGTHS = (0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536)
VALUES: dict[str, Any] = {
    "numbers": [0, 127, 128, 2**16, 2**32, 2**63, -1, -32, -33, -200, -(2**15), -(2**31), -(2**63)],
    "constants": [None, True, False, 1.5],
    "texts": ["a" * length for length in LENGTHS],
    "bytes": [b"a" * length for length in LENGTHS],
    "types": [msgpack.ExtType(1, b"a" * length) for length in (*LENGTHS, 2, 4, 8)],
    "lists": [[None] * length for length in LENGTHS],
    "float of 4 bytes": msgpack.packb(1.5, use_single_float=True),
}


def test_every_value_is_where_the_outline_says():
    numbered = {f"{name} {i}": v for name, vs in VALUES.items() for i, v in enumerate(vs)}
    dicts = {
        str(length): {"k" * length: {str(i): i for i in range(length)}}
        for length in (0, 15, 16, 255, 65_536)
    }
    tree = numbered | dicts
    packed: Any = msgpack.packb(tree)
    got = jax.tree.map(
        lambda part: msgpack.unpackb(packed[part], strict_map_key=False),
        outline(io.BytesIO(packed)),
    )
    assert got == tree


def test_arrays_are_passed_over():
    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.count += size if size and size > 0 else 10**9
            return super().read(size)

    tree = {"params": {str(i): np.ones(10**5) for i in range(20)}, "calls": np.int32(3)}
    file = Counting(serialization.to_bytes(tree))
    assert jax.tree.structure(outline(file)) == jax.tree.structure(tree)
    assert file.count < 500


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_what_follows_a_value_or_is_missing_is_an_error(cut: int):
    packed: Any = msgpack.packb({"a": {"b": 1}, "c": "text"})
    outline(io.BytesIO(packed))
    for wrong in (packed[:-cut], packed + b"\0" * cut, b"\x81\x01" + packed):
        with pytest.raises(ValueError, match=r"no dict of flax|in the middle|no text"):
            outline(io.BytesIO(wrong))
