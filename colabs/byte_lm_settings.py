"""What decides a training run: its settings, and the command line that says them."""

import argparse
import dataclasses
import math
import pathlib
from typing import NoReturn

HEAD_WIDTH = 32
RECORDED = ("bits_per_byte", "learning_rate", "grad_norm", "clipped_count", "skipped_count")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides what a run computes. A checkpoint keeps it, and goes on with nothing else."""

    steps: int
    batch: int
    length: int
    width: int
    layers: int
    peak: float
    warmup: float
    max_norm: float
    seed: int
    inject: bool = True
    text: str = ""  # a fingerprint

    @property
    def parameters(self) -> int:
        """The parameters of the model."""
        return self.layers * (12 * self.width**2 + 9 * self.width) + 514 * self.width + 256

    @property
    def bytes(self) -> int:
        """The size of a checkpoint: the parameters, their two moments, the history and the record
        of every step.
        """
        return 12 * self.parameters + (4 * len(RECORDED) + 40) * self.steps


class UsageError(Exception):
    """What the person at the keyboard can put right; the message is one line."""


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def whole(text: str) -> int:
    # Longer than this is no int32 and no int64 either, and Python itself refuses to read thousands
    # of digits.
    if not text.strip().isdecimal() or len(text) > 10 or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {2**31 - 1}; got {text!r}"
        )
    return int(text)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return number


def command_line(description: str) -> OneLineParser:
    text = argparse.ArgumentDefaultsHelpFormatter
    parser = OneLineParser(description=description, formatter_class=text)
    parser.add_argument(
        "--text",
        type=pathlib.Path,
        help="a file or a folder (default: the standard library's own source)",
    )
    parser.add_argument(
        "--steps", type=whole, default=400, help="optimizer steps, the warm-up included"
    )
    parser.add_argument("--batch", type=whole, default=8, help="windows of text in a step")
    parser.add_argument("--length", type=whole, default=128, help="bytes in a window")
    parser.add_argument(
        "--width", type=whole, default=160, help=f"of the model, a multiple of {HEAD_WIDTH}"
    )
    parser.add_argument("--layers", type=whole, default=3, help="of the model")
    parser.add_argument(
        "--peak", type=positive, default=3e-3, help="learning rate at the end of the warm-up"
    )
    parser.add_argument("--warmup", type=float, default=0.1, help="its share of the steps")
    parser.add_argument(
        "--max-norm", type=positive, default=1.0, help="threshold of the clip; inf only measures"
    )
    parser.add_argument(
        "--seed", type=whole, default=1, help="of the parameters and of the order of the text"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="train again, at the same peak, without warm-up and clipping",
    )
    parser.add_argument(
        "--inject",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a NaN into one gradient after a third of the steps, a spike into another after two",
    )
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        metavar="DIR",
        help="save there, and go on from what is there",
    )
    parser.add_argument(
        "--save-every", type=whole, default=100, metavar="STEPS", help="between two checkpoints"
    )
    parser.add_argument(
        "--figure",
        type=pathlib.Path,
        default=pathlib.Path("runs/byte_lm.png"),
        help="where it is drawn",
    )
    return parser
