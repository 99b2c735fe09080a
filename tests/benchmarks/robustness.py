"""How many gradient trees each clip corrupts: `python -m tests.benchmarks.robustness [--trees N]`.

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
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import optax
from tqdm import tqdm

import warmclip_jax as wc
from tests import reference
from tests.benchmarks import machine

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
    if not is_finite(case.leaves):
        return False
    mantissa, power = reference.scaled_norm(case.leaves)
    return mantissa > 0 and abs(math.ldexp(case.max_norm, -power) / mantissa - 1) <= 1e-5


Rng = np.random.Generator
#: What makes the leaves and the bound of a case.
Make = Callable[[Rng], tuple[list[np.ndarray], float]]


def _shapes(rng: Rng) -> tuple[tuple[int, ...], ...]:
    return SHAPES[rng.integers(len(SHAPES))]


def _one_of(*dtypes: Any) -> Callable[[Rng], tuple[Any, ...]]:
    """Draws the dtype of all leaves; of a single one nothing is drawn."""
    return lambda rng: (dtypes[rng.integers(len(dtypes))],) if len(dtypes) > 1 else dtypes


def _mixed(rng: Rng) -> tuple[Any, ...]:
    return tuple(rng.permutation(np.array(DTYPES, object)))


def _tree(
    rng: Rng, draw: Callable[[Rng], tuple[Any, ...]], low: float, high: float
) -> list[np.ndarray]:
    """Leaves with magnitudes between the powers of two `low` and `high`, their dtypes in turn."""
    dtypes = draw(rng)
    return [
        (np.exp2(rng.uniform(low, high, shape)) * rng.choice([-1.0, 1.0], shape)).astype(
            dtypes[index % len(dtypes)]
        )
        for index, shape in enumerate(_shapes(rng))
    ]


def _bound(rng: Rng, leaves: list[np.ndarray], low: float = 1e-3, high: float = 10.0) -> float:
    """A normal float32 number between `low` and `high` times the norm."""
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(np.float32(min(max(reference.global_norm(leaves) * ratio, 2.0**-126), 3e38)))


def _of(draw: Callable[[Rng], tuple[Any, ...]], low: float, high: float, *of_norm: float) -> Make:
    """A tree between two powers of two, with a bound between two shares of its norm."""

    def make(rng: Rng) -> tuple[list[np.ndarray], float]:
        leaves = _tree(rng, draw, low, high)
        return leaves, _bound(rng, leaves, *of_norm)

    return make


def _many_bfloat16_leaves(rng: Rng) -> tuple[list[np.ndarray], float]:
    leaves = [(np.ones(1) * rng.uniform(0.5, 2)).astype(BF16) for _ in range(400)]
    return leaves, _bound(rng, leaves, 0.01, 0.9)


def _norm_not_representable(rng: Rng) -> tuple[list[np.ndarray], float]:
    leaves = [np.full(shape, 3e38 * rng.uniform(0.5, 1), np.float32) for shape in _shapes(rng)]
    return leaves, float(np.float32(10 ** rng.uniform(-3, 38)))


def _below(rng: Rng) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, _one_of(*DTYPES), -8, 1)
    return leaves, float(math.ceil(reference.global_norm(leaves)) + rng.integers(1, 100))


def _zero_gradients(rng: Rng) -> tuple[list[np.ndarray], float]:
    shapes, dtype = _shapes(rng), DTYPES[rng.integers(3)]
    return [np.zeros(shape, dtype) for shape in shapes], float(rng.choice([0.0, 1.0, 1e-30]))


def _extreme_bound(rng: Rng) -> tuple[list[np.ndarray], float]:
    leaves = _tree(rng, _one_of(np.float32), -120, 120)
    return leaves, float(np.float32(10 ** rng.uniform(-37, 38)))


def _not_finite(*bad: float) -> Make:
    def make(rng: Rng) -> tuple[list[np.ndarray], float]:
        leaves = _tree(rng, _one_of(*DTYPES), -4, 2)
        leaf = leaves[rng.integers(len(leaves))].reshape(-1)
        leaf[rng.integers(leaf.size)] = rng.choice(bad)
        return leaves, float(rng.choice([0.1, 1.0, 100.0]))

    return make


#: What each kind is hard for, in the order of the table.
KINDS: dict[str, Make] = {
    "ordinary float32": _of(_one_of(np.float32), -4, 2),
    "ordinary bfloat16": _of(_one_of(BF16), -8, 1),
    "ordinary float16": _of(_one_of(np.float16), -8, 1),
    "float16, bfloat16 and float32 in one tree": _of(_mixed, -8, 1),
    "400 bfloat16 leaves of one entry": _many_bfloat16_leaves,
    "float16 entries whose squares overflow": _of(_one_of(np.float16), 8, 15, 1e-4, 0.9),
    "float32 or bfloat16 entries whose squares overflow": _of(
        _one_of(BF16, np.float32), 66, 120, 1e-30, 0.9
    ),
    "finite float32 entries whose norm is not representable": _norm_not_representable,
    "float16 entries whose squares underflow": _of(_one_of(np.float16), -24, -14, 0.01, 0.9),
    "float32 or bfloat16 entries whose squares underflow": _of(
        _one_of(BF16, np.float32), -110, -66, 0.01, 0.9
    ),
    "norm below an integer bound": _below,
    "all gradients zero": _zero_gradients,
    "a bound of zero": lambda rng: (_tree(rng, _one_of(*DTYPES), -8, 8), 0.0),
    "entries and bounds over the whole float32 range": _extreme_bound,
    "a NaN entry": _not_finite(math.nan),
    "an inf entry": _not_finite(math.inf, -math.inf),
}


# The judge.


def verdict(case: Case, result: list[np.ndarray] | Exception) -> str | None:
    """What is wrong with a result; None where it is allowed."""
    finite = is_finite(case.leaves)
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


def is_finite(leaves: list[np.ndarray]) -> bool:
    return all(np.isfinite(part).all() for leaf in leaves for part in reference.real_parts(leaf))


# The contestants.


def _jitted(clip_by_global_norm: Callable[[Any], Any]) -> Clip:
    @jax.jit
    def clip(leaves: list[Any], max_norm: Any) -> Any:
        transformation = clip_by_global_norm(max_norm)
        return transformation.update(leaves, transformation.init(leaves))[0]

    return lambda leaves, max_norm: [np.asarray(leaf) for leaf in clip(leaves, max_norm)]


def _torch(leaves: list[np.ndarray], max_norm: float) -> list[np.ndarray]:
    torch: Any = importlib.import_module("torch")
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
        grad.view(torch.int16).numpy().view(BF16) if grad.dtype == torch.bfloat16 else grad.numpy()
        for grad in grads
    ]


def _tensorflow(leaves: list[np.ndarray], max_norm: float) -> list[np.ndarray]:
    tensorflow: Any = importlib.import_module("tensorflow")
    tensors = [tensorflow.constant(leaf) for leaf in leaves]
    return [leaf.numpy() for leaf in tensorflow.clip_by_global_norm(tensors, max_norm)[0]]


#: By their modules: the last two are imported where they are installed.
CONTESTANTS: dict[str, Clip] = {
    "warmclip_jax": _jitted(wc.clip_by_global_norm),
    "optax": _jitted(optax.clip_by_global_norm),
    "torch": _torch,
    "tensorflow": _tensorflow,
}


# The run.


def table(trees: int) -> str:
    """The comparison in Markdown: trees corrupted of each kind, and most often how."""
    names = [name for name in CONTESTANTS if machine.is_installed(name)]
    of_kind = collections.Counter[str]()
    wrong = collections.defaultdict[Any, collections.Counter[str]](collections.Counter)
    for case in tqdm(stream(trees), total=trees, unit="tree"):
        of_kind[case.kind] += 1
        for name in names:
            try:
                result = CONTESTANTS[name]([leaf.copy() for leaf in case.leaves], case.max_norm)
            except Exception as error:
                # Whatever a library raises is what its user gets.
                result = error
            if found := verdict(case, result):
                wrong[name, case.kind][found] += 1
    rows = [["kind of tree", "trees", *names], ["---", "---:", *["---"] * len(names)]]
    rows += [
        [kind, str(count), *(_cell(wrong[name, kind]) for name in names)]
        for kind, count in of_kind.items()
    ]
    totals = (sum(wrong[name, kind].total() for kind in of_kind) for name in names)
    rows.append(["**all**", str(trees), *(f"**{total}**" for total in totals)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(found: collections.Counter[str]) -> str:
    return f"{found.total()}: {found.most_common(1)[0][0]}" if found else "0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Count the gradient trees that each clip corrupts."
    )
    parser.add_argument("--trees", type=int, default=10_000, help="how many (default: %(default)s)")
    print(table(parser.parse_args().trees))
    for name in ("jax", *CONTESTANTS):
        print(name, machine.version(name.replace("_", "-")) or "is not installed, and left out")


if __name__ == "__main__":
    main()
