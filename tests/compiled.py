"""What a compiled program does with the arrays it is given, and what XLA for CPUs did otherwise
before jax 0.10.2.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax

#: Before, XLA for CPUs writes the squares of a leaf to memory, in float32, and adds them up from
#: there.
WRITES_SQUARES = jax.__version_info__ < (0, 10, 2)


def readers(compiled: Any, parameter: str) -> list[str]:
    """What reads a parameter of the main computation, other than to hand it to a branch."""
    program = compiled.as_text()
    main = program[program.index("\nENTRY ") :]
    names = re.findall(rf"%(\S+) = .* parameter\(\d+\).*op_name=\"{re.escape(parameter)}", main)
    assert len(names) == 1, main
    using = re.compile(rf" = .*? ([a-z-]+)\(.*%{re.escape(names[0])}\b")
    return [
        found[1]
        for line in main.splitlines()
        if (found := using.search(line)) and found[1] != "tuple"
    ]


def temporaries(compiled: Any, measured: Iterable[Any]) -> int:
    """The bytes of temporaries of a program, but for the squares of the gradients that it measures
    where XLA writes those.
    """
    size: int = compiled.memory_analysis().temp_size_in_bytes
    if not WRITES_SQUARES:
        return size
    shapes = [leaf.shape for leaf in measured]
    squares = 4 * sum(map(math.prod, shapes))
    assert size >= squares, "this XLA writes no squares: WRITES_SQUARES must not name its version"
    return (
        size
        - squares
        - 4 * sum(math.prod(partial) for shape in shapes for partial in _partial_sums(shape))
    )


def _partial_sums(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shapes of the partial sums of an array: of windows of 32 entries along each dimension,
    until none is longer.
    """
    while max(shape, default=1) > 32:
        shape = tuple(-(-size // 32) for size in shape)
        yield shape


def summation_error(shape: tuple[int, ...]) -> float:
    """What the norm of a float32 leaf may be off by, relatively, where XLA for CPUs adds the squares that it has written.

    It adds the entries of a window one after the other. Each addition rounds by 2^-24 of the sum at
    most; the root halves that.
    """
    if not WRITES_SQUARES:
        return 0.0
    shapes = [shape, *_partial_sums(shape)]
    return sum(math.prod(min(size, 32) for size in each) for each in shapes) * 2.0**-25
