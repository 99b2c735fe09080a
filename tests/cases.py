"""Names the case of a loop in which an assertion fails, so that cases can share one compiled
program in one test.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def case(**named: Any) -> Iterator[None]:
    """`with case(dtype=dtype, bound=bound):` around what is asserted of one case."""
    try:
        yield
    except Exception as error:
        error.add_note("case: " + ", ".join(f"{name}={value!r}" for name, value in named.items()))
        raise
