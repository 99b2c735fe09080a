"""`python -m warmclip_jax plot EXPR ...` draws schedules, `report PATH` tells of a checkpoint."""

import argparse
import inspect
import io
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax

from warmclip_jax._pictures import chart, plot, sampled
from warmclip_jax._schedules import Schedule
from warmclip_jax._telemetry import (
    listing,
    metrics_as_json,
    plot_records,
    read_state,
    report,
    rows_as_csv,
)
from warmclip_jax._values import factories, parse

_NAME = "python -m warmclip_jax"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, without the usage."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 2, after one line of why, where it fails."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog=_NAME, description="Look at schedules, and at runs.")
    parser.add_argument(
        "command", choices=_COMMANDS, help=f"what to do; `{_NAME} COMMAND --help` says how"
    )
    if not given:
        _print(parser.format_help())
        return 0
    run = _COMMANDS[parser.parse_args(given[:1]).command]
    try:
        run(given[1:])
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    return 0


def _plot(arguments: Sequence[str]) -> None:
    parser = _Parser(prog=f"{_NAME} plot", description="Draws schedules over each other.")
    parser.add_argument(
        "expressions",
        nargs="*",
        metavar="EXPR",
        help="the call that builds a schedule: 'linear_warmup(peak_value=1e-3, warmup_steps=100)'. "
        "It is read, never run. Without one, the schedules are listed with their arguments.",
    )
    parser.add_argument(
        "--steps", type=float, help="how far to draw (default: to where the last stops changing)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="a picture: .png, .svg, .pdf (default: a chart in the terminal)",
    )
    parser.add_argument("--log", action="store_true", help="a logarithmic scale for the values")
    given = parser.parse_intermixed_args(arguments)
    schedules = [parse(expression) for expression in given.expressions]
    if given.out is not None:
        out = _picture_path(given.out)
        _save(plot(schedules, steps=given.steps, log_scale=given.log), out)
        _print(str(out))
    elif schedules:
        _print(chart(sampled(schedules, given.steps), log_scale=given.log))
    else:
        for name, factory in factories(Schedule).items():
            call = inspect.signature(factory)
            _print(f"{name}{call.replace(return_annotation=call.empty)}")


def _report(arguments: Sequence[str]) -> None:
    parser = _Parser(
        prog=f"{_NAME} report",
        description="Tells what a checkpoint holds of a run, without the code that trained it.",
    )
    parser.add_argument("path", help="a folder of orbax, the root of several, or a file of flax")
    parser.add_argument("--step", type=int, help="which step of a root (default: the newest)")
    parser.add_argument("--list", action="store_true", help="what is recorded in each step")
    parser.add_argument("--json", action="store_true", help="the metrics in place of the report")
    parser.add_argument("--csv", metavar="FILE", help="also write the recorded calls, one a line")
    parser.add_argument("--out", metavar="FILE", help="also draw them: a .png, .svg or .pdf")
    given = parser.parse_args(arguments)
    # The accelerators may be in use, by the run that is looked at.
    jax.config.update("jax_platforms", "cpu")
    if given.list:
        _print(listing(given.path))
        return
    state = read_state(given.path, step=given.step)
    text = metrics_as_json(state) if given.json else report(state)
    rows = None if given.csv is None else rows_as_csv(state)
    if given.out is not None:
        _save(plot_records(state), _picture_path(given.out))
    if rows is not None:
        pathlib.Path(str(given.csv)).write_text(rows, encoding="utf-8", newline="")
    _print(text)


#: Each takes the arguments after its name, and raises where it fails.
_COMMANDS = {"plot": _plot, "report": _report}


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
    """Prints `text`; what the terminal's encoding lacks is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # Otherwise Python flushes again at exit and prints a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # `| head -1` has read all that it wants.
        if not isinstance(error, BrokenPipeError):
            raise


if __name__ == "__main__":
    sys.exit(main())
