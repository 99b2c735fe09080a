"""Whether every norm and clip of this package is right: `python -m tests.benchmarks.fuzzing [--trees N] [--from SEED]`.

A seed makes 32 trees: one of each kind of `robustness.py`, and as many of the structures of
`tests/test_properties.py`, with float64 and complex leaves among them; every 64th seed makes one
more, whose largest leaf lies in two shards of up to 2^25 entries. What is held against sums in
float64 is the global norm, the norm of each of two groups and of each leaf, and what is clipped, by
the one norm and by groups. A tree that fails is printed with its seed, and goes on as
`--from SEED --trees 1`.

Trees are made and forgotten one after the other: 2 GB of memory, whatever their number.
"""

import argparse
import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

# Before jax is imported: it reads them once. Two devices for the shards, where nobody asks for more.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import warmclip_jax as wc
from tests import reference, test_properties, trees
from tests.benchmarks import robustness
from tests.benchmarks.robustness import is_finite
from warmclip_jax._clipping._coding import decoded

OF_EACH = len(robustness.KINDS)
LARGE_EVERY = 64
#: Entries of one shard of a large tree, and its repeating block of random numbers.
SHARD, BLOCK = (2**20, 2**23, 2**25), 65_521
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
#: Powers of two of the entries of large trees: ordinary, over and under the range of squares, mixed.
POWERS = ((-4, 2), (66, 110), (-110, -66), (-30, 30))


class Tree(NamedTuple):
    """A list of gradients, and the bound to clip it to."""

    kind: str
    leaves: list[np.ndarray]
    max_norm: float


def small_trees(seed: int) -> Iterator[Tree]:
    for case in robustness.stream(OF_EACH, seed):
        yield Tree(*case)
    rng = np.random.default_rng([seed, 1])
    for _ in range(OF_EACH):
        structure = int(rng.integers(len(test_properties.STRUCTURES)))
        kinds = rng.choice(test_properties.KINDS, len(test_properties.STRUCTURES[structure][0]))
        drawn = test_properties.Tree(structure, tuple(kinds), int(rng.integers(2**32)))
        info = np.finfo(drawn.dtype)
        norm = min(reference.global_norm(drawn.leaves), float(info.max) / 16)
        bound = drawn.dtype(max(norm * math.exp(rng.uniform(-7, 2)), float(info.tiny)))
        yield Tree(f"structure {structure}, {', '.join(kinds)}", drawn.leaves, float(bound))


# What is asked of each.


def asked(leaves: Any, bound: Any) -> Any:
    clips: Any = (
        wc.clip_by_global_norm(bound, record_leaves=True),
        wc.clip_by_group_norm(bound, in_two, record_leaves=True),
    )
    results = [clip.update(leaves, clip.init(leaves)) for clip in clips]
    clipped = [(got, state.grad_norm, state.leaves.leaf_norms) for got, state in results]
    return wc.global_norm(leaves), *clipped


def in_two(leaves: list[Any]) -> list[str]:
    return ["ab"[place % 2] for place in range(len(leaves))]


program = jax.jit(asked)


def check(tree: Tree) -> None:
    """Raises an AssertionError that says what is wrong."""
    leaves = tree.leaves
    is_long = any(leaf.dtype in (np.float64, np.complex128) for leaf in leaves)
    dtype = np.float64 if is_long else np.float32
    with jax.enable_x64(True) if is_long else contextlib.nullcontext():
        bound = dtype(tree.max_norm)
        norm, one, two = jax.tree.map(np.asarray, program(leaves, bound))
    groups = [leaves[start::2] for start in range(min(2, len(leaves)))]
    each = [[leaf] for leaf in leaves]
    for got in (norm, decoded(one[1])):
        assert_norm(got, leaves, dtype)
    for _, _, of_leaves in (one, two):
        for got, leaf in zip(decoded(of_leaves), each, strict=True):
            assert_norm(got, leaf, np.float32)
    for got, group in zip(decoded(two[1]), groups, strict=True):
        assert_norm(got, group, dtype)
    assert_clipped(one[0], leaves, tree.max_norm)
    if is_finite(leaves):
        for start, group in enumerate(groups):
            assert_clipped(two[0][start::2], group, tree.max_norm)


def assert_norm(got: Any, leaves: list[np.ndarray], dtype: Any) -> None:
    info = np.finfo(dtype)
    error, largest, smallest = 6 * float(info.eps), float(info.max), float(info.tiny)
    if not is_finite(leaves):
        assert not np.isfinite(got), f"norm {got} in spite of NaN or inf"
        return
    want = reference.global_norm(leaves)
    if want >= largest * (1 - error):
        # A state keeps no number so close to the end of the range.
        assert got == math.inf or got >= largest * (1 - 2.0**-5), f"norm {got} for {want}"
    elif want < smallest:
        assert got <= smallest, f"norm {got} for {want}"
    else:
        kept = test_properties.kept(dtype)
        assert abs(got - want) <= error * want or (want > kept and got >= kept), (
            f"norm {got} for {want}, off by {abs(got / want - 1):.1e}"
        )


def assert_clipped(clipped: list[Any], leaves: list[np.ndarray], max_norm: float) -> None:
    if not is_finite(leaves):
        assert all(np.isnan(part).all() for leaf in clipped for part in reference.real_parts(leaf))
        return
    error = trees.coefficient_error(leaves)
    if reference.is_over(leaves, max_norm * (1 + error)):
        trees.assert_clipped(clipped, leaves, max_norm)
    elif not reference.is_over(leaves, max_norm * (1 - error)):
        trees.assert_same_bits(clipped, leaves)


# Large trees.


@functools.cache
def shards() -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("shards",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@functools.cache
def large_program() -> Any:
    specs = [P("shards"), P()]
    out = (P(), (specs, P(), P()), (specs, P(), P()))
    return jax.jit(jax.shard_map(asked, mesh=shards(), in_specs=(specs, P()), out_specs=out))


def check_large(seed: int, sizes: tuple[int, ...] = SHARD) -> None:
    """A kernel in two shards and a bias that both devices have, like `check`."""
    rng = np.random.default_rng([seed, 2])
    shard, dtype = int(rng.choice(sizes)), DTYPES[rng.integers(len(DTYPES))]
    powers = POWERS[rng.integers(len(POWERS))] if dtype is not np.float16 else (-8, 8)
    block = np.exp2(rng.uniform(*powers, BLOCK)) * rng.choice([-1.0, 1.0], BLOCK)
    block = block.astype(dtype)
    bias = block[:9].copy()
    entries = 2 * shard
    squares = np.square(block.astype(np.float64))
    times, rest = divmod(entries, BLOCK)
    of_kernel = math.sqrt(times * math.fsum(squares) + math.fsum(squares[:rest]))
    of_bias = math.sqrt(math.fsum(squares[:9]))
    norm = math.hypot(of_kernel, of_bias)
    bound = np.float32(norm * math.exp(rng.uniform(-7, -0.1)))
    whole = np.resize(block, (2, shard))
    kernel = jax.device_put(whole, NamedSharding(shards(), P("shards")))
    got_norm, one, two = jax.tree.map(
        np.asarray, large_program()([kernel, jnp.asarray(bias)], bound)
    )
    np.testing.assert_allclose([got_norm, decoded(one[1])], norm, rtol=6 * 2.0**-23)
    np.testing.assert_allclose(decoded(two[1]), [of_kernel, of_bias], rtol=6 * 2.0**-23)
    for (clipped, _, of_leaves), norms in ((one, (norm, norm)), (two, (of_kernel, of_bias))):
        np.testing.assert_allclose(decoded(of_leaves), [of_kernel, of_bias], rtol=6 * 2.0**-23)
        for leaf, was, of_it in zip(clipped, (whole, bias), norms, strict=True):
            # The coefficient of a whole leaf is that of its first block with a bound like this.
            first = was.reshape(-1)[:BLOCK]
            own = float(bound) * reference.global_norm([first]) / of_it
            flat = leaf.reshape(-1)
            assert_clipped([flat[:BLOCK]], [first], own)
            for start in range(BLOCK, flat.size, BLOCK):
                part = flat[start : start + BLOCK]
                assert part.tobytes() == flat[: part.size].tobytes(), f"entries from {start} differ"


def failures(first: int, seeds: int, sizes: tuple[int, ...] = SHARD) -> Iterator[str]:
    """What is wrong in the trees of some seeds; between two, an empty text for each seed done."""
    for seed in range(first, first + seeds):
        large = [None] if seed % LARGE_EVERY == 0 else []
        for tree in (*small_trees(seed), *large):
            try:
                check(tree) if tree else check_large(seed, sizes)
            except AssertionError as error:
                what = f"{tree.kind}, bound {tree.max_norm!r}" if tree else "large"
                yield f"seed {seed}, {what}: {error}"
        yield ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Hold norms and clips of many trees against float64."
    )
    parser.add_argument("--trees", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the seed to go on with")
    options = parser.parse_args(arguments)
    seeds = -(-options.trees // (2 * OF_EACH))
    wrong, start = 0, time.process_time()
    with tqdm(total=seeds, unit="seed") as progress:
        for failure in failures(options.first, seeds):
            if not failure:
                progress.update()
                continue
            wrong += 1
            progress.write(failure)
    last = options.first + seeds
    large = sum(seed % LARGE_EVERY == 0 for seed in range(options.first, last))
    print(
        f"seeds {options.first} to {last - 1}: {wrong} wrong of {seeds * 2 * OF_EACH + large:,} "
        f"trees, {large} of them large; {time.process_time() - start:.0f} seconds of processor; go "
        f"on with --from {last}"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
