"""`python -m warmclip_jax plot EXPR ...`: what a schedule looks like, in the terminal or as a picture."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from warmclip_jax._parsing import parse
from warmclip_jax._pictures._chart import chart
from warmclip_jax._pictures._plot import plot, sampled
from warmclip_jax._schedules._schedule import Schedule


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage and a line."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status; a bad argument is one line on standard error and status 2."""
    parser = _Parser(prog="python -m warmclip_jax", description="Look at learning-rate schedules, drawn over each other.")
    parser.add_argument("command", choices=["plot"], help="what to do")
    parser.add_argument(
        "expressions",
        nargs="+",
        metavar="EXPR",
        help="the call that builds a schedule: 'linear_warmup(peak_value=1e-3, warmup_steps=100)'. It is read, never run.",
    )
    parser.add_argument("--steps", type=int, help="how far to draw (default: the longest schedule and a tenth more)")
    parser.add_argument("--out", metavar="FILE", help="a picture, .png, .svg or .pdf (default: a chart in the terminal)")
    parser.add_argument("--log", action="store_true", help="a logarithmic scale for the rates")
    given = parser.parse_intermixed_args(arguments)
    try:
        schedules = _named([parse(expression) for expression in given.expressions])
        if given.out is None:
            print(chart(sampled(schedules, given.steps), log_scale=given.log))
        else:
            plot(schedules, steps=given.steps, log_scale=given.log).savefig(given.out, dpi=150)
            print(given.out)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


def _named(schedules: list[Schedule]) -> dict[str, Schedule]:
    """By kind, and by number where a kind comes twice: a whole call is too long for a legend."""
    kinds = [schedule.kind for schedule in schedules]
    names = [kind if kinds.count(kind) == 1 else f"{kind} {kinds[: place + 1].count(kind)}" for place, kind in enumerate(kinds)]
    return dict(zip(names, schedules, strict=True))


if __name__ == "__main__":
    sys.exit(main())
