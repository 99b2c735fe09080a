"""`python -m warmclip_jax plot EXPR ...`: draws schedules in the terminal or into a picture file."""

import argparse
import inspect
import io
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from warmclip_jax._pictures import chart, plot, sampled
from warmclip_jax._schedules import Schedule
from warmclip_jax._values import factories, parse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, without the usage."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; for a bad argument, one line on standard error and status 2."""
    parser = _Parser(
        prog="python -m warmclip_jax",
        description="Look at learning-rate schedules, drawn over each other.",
    )
    parser.add_argument("command", choices=["plot"], help="what to do")
    parser.add_argument(
        "expressions",
        nargs="*",
        metavar="EXPR",
        help="the call that builds a schedule: 'linear_warmup(peak_value=1e-3, warmup_steps=100)'. It is read, never run. "
        "Without one, the schedules are listed with their arguments.",
    )
    parser.add_argument(
        "--steps", type=int, help="how far to draw (default: the longest schedule and a tenth more)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="a picture: .png, .svg, .pdf (default: a chart in the terminal)",
    )
    parser.add_argument("--log", action="store_true", help="a logarithmic scale for the rates")
    given = parser.parse_intermixed_args(arguments)
    try:
        schedules = [parse(expression) for expression in given.expressions]
        if given.out is not None:
            out = _picture_path(given.out)
            _save(plot(schedules, steps=given.steps, log_scale=given.log), out)
            _print(str(out))
        elif schedules:
            _print(chart(sampled(schedules, given.steps), log_scale=given.log))
        else:
            calls = {
                name: inspect.signature(factory) for name, factory in factories(Schedule).items()
            }
            _print(
                "\n".join(
                    f"{name}{call.replace(return_annotation=call.empty)}"
                    for name, call in calls.items()
                )
            )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    return 0


def _picture_path(text: str) -> pathlib.Path:
    """The file to write; without a suffix, a PNG."""
    path = pathlib.Path(text)
    if path.is_dir():  # Also for "", the current folder.
        raise ValueError(f"--out must name a file, such as lr.png; got {text!r}")
    return path if path.suffix.strip(".") else path.with_name(path.name.rstrip(".") + ".png")


def _save(figure: Any, path: pathlib.Path) -> None:
    """Draws before it opens the file, so that a failure leaves no file behind."""
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    except Exception as error:  # Each backend fails in its own way: .pgf needs LaTeX.
        raise ValueError(f"cannot draw {path}: {error}") from error
    path.write_bytes(picture.getvalue())


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # Otherwise Python flushes again at exit and prints a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # `| head -1` has read all that it wants.
        if not isinstance(error, BrokenPipeError):
            raise


if __name__ == "__main__":
    sys.exit(main())
