"""How many gradient trees each clip corrupts: `python -m tests.benchmarks.robustness [--trees N] [--json FILE]`.

The same stream of random and adversarial trees, each with a bound, goes through this package,
`optax.clip_by_global_norm`, `torch.nn.utils.clip_grad_norm_` and `tf.clip_by_global_norm` (the last
two where they are installed). The JAX ones are jitted, as in a training step, with the bound as a
weakly typed scalar, which is what a Python number is there; the others run eagerly.

What comes back is held against `g * max_norm / max(norm, max_norm)`, computed in float64. It counts
as corrupted when

- entries are finite and something raises, or changes a dtype or a shape;
- entries are finite and the norm is not over the bound, and an entry is not equal to what it was
  (below the smallest normal number of float32 and bfloat16 it may be zero);
- entries are finite and the norm is over the bound, and an entry is off by more than four roundings
  to the coarsest dtype of the tree (norm, coefficient, quotient and product may each be rounded to
  it), plus 1e-5 of itself (the sums of 4096 entries in float32, and PyTorch's 1e-6 beside a norm of
  0.1 and more), plus two of the smallest normal numbers of its dtype (float16 has its subnormals:
  two of the smallest of those);
- an entry is NaN or inf, and a finite entry comes back that is not what went in. All NaN,
  everything as it was and an exception are all allowed, since each is loud; zeros or scaled entries
  hide the bad step.

Norms within 1e-5 of the bound are not drawn, and bounds are 0 or normal float32 numbers. The 1e-6
that PyTorch adds to a norm is no rounding where norms are small: there it counts as what it does.
Trees of float64 and of complex numbers are left out, since not every library here takes them.
"""

import argparse
import collections
import importlib
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import platform
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

from tests import reference

BF16 = ml_dtypes.bfloat16
DTYPES = (np.float16, BF16, np.float32)


class Case(NamedTuple):
    """One gradient tree, the bound to clip it to, and what is hard about it."""

    kind: str
    leaves: list[np.ndarray]
    max_norm: float


#: A clip that is compared: leaves and bound to leaves.
Clip = Callable[[list[np.ndarray], float], list[np.ndarray]]


# The stream.

#: Few, so that each compiles a few times at most.
SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((3,), (2, 2), ()),
    ((64, 32), (32,)),
    ((4096,),),
)


def stream(trees: int, seed: int = 0) -> Iterator[Case]:
    """`trees` cases, kind after kind in turn."""
    rng = np.random.default_rng(seed)
    kinds = list(KINDS.items())
    for index in range(trees):
        kind, make = kinds[index % len(kinds)]
        case = Case(kind, *make(rng))
        while _is_close(case):
            case = Case(kind, *make(rng))
        yield case


def _is_close(case: Case) -> bool:
    """Whether a rounding may decide on which side of the bound the norm is."""
    mantissa, power = reference.scaled_norm(case.leaves)
    return (
        mantissa > 0 and abs(math.ldexp(case.max_norm, -power) / mantissa - 1) <= 1e-5
        if _is_finite(case.leaves)
        else False
    )


def _tree(
    rng: np.random.Generator, dtypes: tuple[Any, ...], low: float, high: float
) -> list[np.ndarray]:
    """Leaves with magnitudes between the powers of two `low` and `high`."""
    shapes = SHAPES[rng.integers(len(SHAPES))]
    return [
        (np.exp2(rng.uniform(low, high, shape)) * rng.choice([-1.0, 1.0], shape)).astype(
            dtypes[index % len(dtypes)]
        )
        for index, shape in enumerate(shapes)
    ]


def _bound(
    rng: np.random.Generator, leaves: list[np.ndarray], low: float = 1e-3, high: float = 10.0
) -> float:
    """A normal float32 number between `low` and `high` times the norm."""
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(np.float32(min(max(reference.global_norm(leaves) * ratio, 2.0**-126), 3e38)))


def _ordinary(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (np.float32,), -4, 2)
    return leaves, _bound(rng, leaves)


def _one_dtype(dtype: Any) -> Callable[[np.random.Generator], tuple[list[np.ndarray], float]]:
    def make(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
        leaves = _tree(rng, (dtype,), -8, 1)
        return leaves, _bound(rng, leaves)

    return make


def _mixed(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, tuple(rng.permutation(np.array(DTYPES, object))), -8, 1)
    return leaves, _bound(rng, leaves)


def _many_bfloat16_leaves(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = [(np.ones(1) * rng.uniform(0.5, 2)).astype(BF16) for _ in range(400)]
    return leaves, _bound(rng, leaves, 0.01, 0.9)


def _overflow_float16(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (np.float16,), 8, 15)
    return leaves, _bound(rng, leaves, 1e-4, 0.9)


def _overflow_float32(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (DTYPES[rng.integers(1, 3)],), 66, 120)
    return leaves, _bound(rng, leaves, 1e-30, 0.9)


def _norm_not_representable(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = [
        np.full(shape, 3e38 * rng.uniform(0.5, 1), np.float32)
        for shape in SHAPES[rng.integers(len(SHAPES))]
    ]
    return leaves, float(np.float32(10 ** rng.uniform(-3, 38)))


def _underflow_float16(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (np.float16,), -24, -14)
    return leaves, _bound(rng, leaves, 0.01, 0.9)


def _underflow_float32(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (DTYPES[rng.integers(1, 3)],), -110, -66)
    return leaves, _bound(rng, leaves, 0.01, 0.9)


def _below(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (DTYPES[rng.integers(3)],), -8, 1)
    return leaves, float(math.ceil(reference.global_norm(leaves)) + rng.integers(1, 100))


def _zero_gradients(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    shapes, dtype = SHAPES[rng.integers(len(SHAPES))], DTYPES[rng.integers(3)]
    return [np.zeros(shape, dtype) for shape in shapes], float(rng.choice([0.0, 1.0, 1e-30]))


def _zero_bound(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    return _tree(rng, (DTYPES[rng.integers(3)],), -8, 8), 0.0


def _extreme_bound(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, (np.float32,), -120, 120)
    return leaves, float(np.float32(10 ** rng.uniform(-37, 38)))


def _not_finite(*bad: float) -> Callable[[np.random.Generator], tuple[list[np.ndarray], float]]:
    def make(rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
        leaves = _tree(rng, (DTYPES[rng.integers(3)],), -4, 2)
        leaf = leaves[rng.integers(len(leaves))].reshape(-1)
        leaf[rng.integers(leaf.size)] = rng.choice(bad)
        return leaves, float(rng.choice([0.1, 1.0, 100.0]))

    return make


#: What each kind is hard for, in the order of the table.
KINDS: dict[str, Callable[[np.random.Generator], tuple[list[np.ndarray], float]]] = {
    "ordinary float32": _ordinary,
    "ordinary bfloat16": _one_dtype(BF16),
    "ordinary float16": _one_dtype(np.float16),
    "float16, bfloat16 and float32 in one tree": _mixed,
    "400 bfloat16 leaves of one entry": _many_bfloat16_leaves,
    "float16 entries whose squares overflow": _overflow_float16,
    "float32 or bfloat16 entries whose squares overflow": _overflow_float32,
    "finite float32 entries whose norm is not representable": _norm_not_representable,
    "float16 entries whose squares underflow": _underflow_float16,
    "float32 or bfloat16 entries whose squares underflow": _underflow_float32,
    "norm below an integer bound": _below,
    "all gradients zero": _zero_gradients,
    "a bound of zero": _zero_bound,
    "entries and bounds over the whole float32 range": _extreme_bound,
    "a NaN entry": _not_finite(math.nan),
    "an inf entry": _not_finite(math.inf, -math.inf),
}


# The judge.


def exact(case: Case) -> list[np.ndarray]:
    """The formula in float64, rounded once to the dtype of each leaf; all NaN where an entry is not
    finite.
    """
    if not _is_finite(case.leaves):
        return [np.full_like(leaf, math.nan) for leaf in case.leaves]
    products = (parts[0] for parts in reference.clip(case.leaves, case.max_norm))
    return [product.astype(leaf.dtype) for product, leaf in zip(products, case.leaves, strict=True)]


def verdict(case: Case, result: list[np.ndarray] | Exception) -> str | None:
    """What is wrong with a result; None where it is allowed."""
    finite = _is_finite(case.leaves)
    if isinstance(result, Exception):
        return f"raises {type(result).__name__}" if finite else None
    pairs = list(zip(result, case.leaves, strict=True))
    if any(got.dtype != leaf.dtype or got.shape != leaf.shape for got, leaf in pairs):
        return "changes dtype or shape"
    wide = [(got.astype(np.float64), leaf.astype(np.float64)) for got, leaf in pairs]
    if not finite:
        hidden = any(np.any(np.isfinite(got) & (got != leaf)) for got, leaf in wide)
        return "finite entries in a bad step" if hidden else None
    if not all(np.all(np.isfinite(got)) for got, _ in wide):
        return "NaN from finite entries"
    if not reference.is_over(case.leaves, case.max_norm):
        same = all(
            np.all((got == leaf) | ((got == 0) & (np.abs(leaf) < reference.floor(was))))
            for (got, leaf), was in zip(wide, case.leaves, strict=True)
        )
        return None if same else "changes below the bound"
    relative = 4 * max(float(reference.limits(leaf).eps) / 2 for leaf in case.leaves) + 1e-5
    right = all(
        np.all(np.abs(got - want) <= relative * np.abs(want) + _smallest(leaf))
        for (got, _), (want,), leaf in zip(
            wide, reference.clip(case.leaves, case.max_norm), case.leaves, strict=True
        )
    )
    return None if right else _diagnosis(case, result)


def _smallest(leaf: np.ndarray) -> float:
    info = reference.limits(leaf)
    return 2 * float(info.smallest_subnormal if leaf.dtype == np.float16 else info.tiny)


def _diagnosis(case: Case, result: list[np.ndarray]) -> str:
    """How a clip above the bound is wrong."""
    if all(np.all(got == 0) for got in result):
        return "all zeros"
    if all(np.all(got == leaf) for got, leaf in zip(result, case.leaves, strict=True)):
        return "not clipped"
    ratio = reference.global_norm(result) / case.max_norm if case.max_norm else math.inf
    return (
        "norm over the bound"
        if ratio > 1.02
        else "norm under the bound"
        if ratio < 0.98
        else "some entries wrong"
    )


def _is_finite(leaves: list[np.ndarray]) -> bool:
    return all(np.all(np.isfinite(leaf.astype(np.float64))) for leaf in leaves)


def planted(case: Case, right: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    """Wrong results, each by one corruption that shows in this case, to try the judge on."""
    if not _is_finite(case.leaves):
        yield "all zeros", [np.zeros_like(leaf) for leaf in right]
        yield (
            "zeros beside NaN",
            [np.where(np.isfinite(leaf), np.zeros_like(leaf), leaf) for leaf in case.leaves],
        )
        return
    yield "an exception", TypeError()
    yield "one NaN", _with_first(right, math.nan)
    yield "one inf", _with_first(right, math.inf)
    yield "another dtype", [leaf.astype(np.float64) for leaf in right]
    yield "another shape", [leaf[None] for leaf in right]
    if (
        max(float(np.max(np.abs(leaf.astype(np.float64)))) / _smallest(leaf) for leaf in right)
        > 100
    ):
        yield "all zeros", [np.zeros_like(leaf) for leaf in right]
        yield "signs flipped", [-leaf for leaf in right]
        yield (
            "3 % too long",
            [(leaf.astype(np.float64) * 1.03).astype(leaf.dtype) for leaf in right],
        )
        yield (
            "3 % too short",
            [(leaf.astype(np.float64) * 0.97).astype(leaf.dtype) for leaf in right],
        )
    if reference.is_over(case.leaves, 2 * case.max_norm):
        yield "not clipped", case.leaves


def _with_first(leaves: list[np.ndarray], value: float) -> list[np.ndarray]:
    first = leaves[0].copy()
    first.reshape(-1)[:1] = value
    return [first, *leaves[1:]]


# The contestants. Each is imported only where it is asked for: not all of them are installed
# everywhere.


def _jitted(clip_by_global_norm: Callable[[Any], Any]) -> Clip:
    import jax

    @jax.jit
    def clip(leaves: list[Any], max_norm: Any) -> Any:
        transformation = clip_by_global_norm(max_norm)
        return transformation.update(leaves, transformation.init(leaves))[0]

    return lambda leaves, max_norm: [np.asarray(leaf) for leaf in clip(leaves, max_norm)]


def _ours() -> Clip:
    return _jitted(importlib.import_module("warmclip_jax").clip_by_global_norm)


def _optax() -> Clip:
    return _jitted(importlib.import_module("optax").clip_by_global_norm)


def _torch() -> Clip:
    torch: Any = importlib.import_module("torch")

    def clip(leaves: list[np.ndarray], max_norm: float) -> list[np.ndarray]:
        parameters = []
        for leaf in leaves:
            # PyTorch reads no bfloat16 of NumPy's; the bits are the same.
            tensor = (
                torch.tensor(leaf.view(np.int16)).view(torch.bfloat16)
                if leaf.dtype == BF16
                else torch.tensor(leaf)
            )
            parameters.append(torch.nn.Parameter(torch.zeros_like(tensor)))
            parameters[-1].grad = tensor
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        grads = [parameter.grad for parameter in parameters]
        return [
            grad.view(torch.int16).numpy().view(BF16)
            if grad.dtype == torch.bfloat16
            else grad.numpy()
            for grad in grads
        ]

    return clip


def _tensorflow() -> Clip:
    tensorflow: Any = importlib.import_module("tensorflow")

    def clip(leaves: list[np.ndarray], max_norm: float) -> list[np.ndarray]:
        clipped, _ = tensorflow.clip_by_global_norm(
            [tensorflow.constant(leaf) for leaf in leaves], max_norm
        )
        return [leaf.numpy() for leaf in clipped]

    return clip


#: Module, name in the table, and how it clips.
CONTESTANTS: tuple[tuple[str, str, Callable[[], Clip]], ...] = (
    ("warmclip_jax", "warmclip_jax", _ours),
    ("optax", "optax.clip_by_global_norm", _optax),
    ("torch", "torch.nn.utils.clip_grad_norm_", _torch),
    ("tensorflow", "tf.clip_by_global_norm", _tensorflow),
)


# The run.


def compare(trees: int, seed: int = 0) -> dict[str, Any]:
    """The whole comparison: versions, trees of each kind, and what each contestant does wrong in
    them.
    """
    clips = {
        name: build()
        for module, name, build in CONTESTANTS
        if importlib.util.find_spec(module) is not None
    }
    wrong = {name: {kind: collections.Counter() for kind in KINDS} for name in clips}
    of_kind = collections.Counter()
    for case in tqdm(stream(trees, seed), total=trees, unit="tree"):
        of_kind[case.kind] += 1
        for name, clip in clips.items():
            try:
                result = clip([leaf.copy() for leaf in case.leaves], case.max_norm)
            except Exception as error:
                # Whatever a library raises is what its user gets.
                result = error
            found = verdict(case, result)
            if found is not None:
                wrong[name][case.kind][found] += 1
    versions = {
        module: _version(module) for module in ("jax", *(module for module, *_ in CONTESTANTS))
    }
    return {
        "trees": trees,
        "seed": seed,
        "python": platform.python_version(),
        "versions": versions,
        "kinds": of_kind,
        "wrong": wrong,
    }


def _version(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "not installed"
    return getattr(
        importlib.import_module(module), "__version__", None
    ) or importlib.metadata.version(module)


def table(results: dict[str, Any]) -> str:
    """The comparison as a markdown table: trees corrupted of each kind, and most often how."""
    names = list(results["wrong"])
    lines = [
        "| " + " | ".join(["kind of tree", "trees", *(f"`{name}`" for name in names)]) + " |",
        "|---|---:|" + "---|" * len(names),
    ]
    for kind, count in results["kinds"].items():
        lines.append(
            "| "
            + " | ".join(
                [kind, str(count), *(_cell(results["wrong"][name][kind]) for name in names)]
            )
            + " |"
        )
    totals = (
        sum(sum(counter.values()) for counter in results["wrong"][name].values()) for name in names
    )
    lines.append(
        "| "
        + " | ".join(["**all**", str(results["trees"]), *(f"**{total}**" for total in totals)])
        + " |"
    )
    return "\n".join(lines)


def _cell(found: dict[str, int]) -> str:
    if not found:
        return "0"
    return f"{sum(found.values())}: {max(found, key=lambda what: found[what])}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Count the gradient trees that each clip corrupts."
    )
    parser.add_argument(
        "--trees",
        type=int,
        default=10_000,
        metavar="N",
        help="how many trees (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="also write all counts to this file"
    )
    options = parser.parse_args()
    results = compare(options.trees)
    for module, name, _ in CONTESTANTS:
        if results["versions"][module] == "not installed":
            print(f"{name}: left out, {module} is not installed")
    print(
        ", ".join(f"{module} {version}" for module, version in results["versions"].items()),
        "on CPU\n",
    )
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
