"""The text of a training run: read from files, split into a part for training and one that is held
out, cut into windows.
"""

import hashlib
import math
import pathlib
import sysconfig
from typing import NamedTuple

import numpy as np
from byte_lm_settings import Settings, UsageError

HELD_OUT = 0.1  # the share of the text that training never sees


class Corpus(NamedTuple):
    train: np.ndarray
    held_out: np.ndarray
    fingerprint: str

    def unigram_entropy(self) -> float:
        """Bits per byte of the held-out text for the best model that looks at no context."""
        counts = np.bincount(self.held_out)
        shares = counts[counts > 0] / len(self.held_out)
        return float(-(shares * np.log2(shares)).sum())


def read_corpus(path: pathlib.Path | None, settings: Settings) -> Corpus:
    try:
        texts = read_texts(path)
    except OSError as error:
        raise UsageError(
            f"cannot read {error.filename or path}: {error.strerror or error}"
        ) from error
    # Shuffled by file, so that the end, which is held out, is like the rest.
    order = np.random.default_rng(0).permutation(len(texts))
    text = np.frombuffer(b"\n".join(texts[index] for index in order), np.uint8)
    cut = len(text) - int(HELD_OUT * len(text))
    corpus = Corpus(text[:cut], text[cut:], hashlib.sha256(text.tobytes()).hexdigest()[:16])
    if len(corpus.held_out) <= settings.length:
        least = math.ceil((settings.length + 1) / HELD_OUT)
        raise UsageError(
            f"--length {settings.length} needs a text of {least} bytes or more; this one has "
            f"{len(text)}"
        )
    if settings.batch * settings.length > len(corpus.train):
        most = len(corpus.train) // settings.length
        raise UsageError(
            f"--batch {settings.batch} is more text than there is: {most} at most with --length "
            f"{settings.length}"
        )
    return corpus


def read_texts(path: pathlib.Path | None) -> list[bytes]:
    if path is None:
        root, pattern, left_out = (
            pathlib.Path(sysconfig.get_path("stdlib")),
            "*.py",
            {"site-packages", "test", "tests"},
        )
    else:
        root, pattern, left_out = path, "*", set[str]()
    if root.is_file():
        files = [root]
    elif root.is_dir():
        parts = {
            file: file.relative_to(root).parts
            for file in sorted(root.rglob(pattern))
            if file.is_file()
        }
        files = [
            file
            for file, at in parts.items()
            if not left_out & set(at) and not any(part[0] == "." for part in at)
        ]
    else:
        raise UsageError(f"--text {root} is neither a file nor a folder")
    # Text is what has no zero byte in it: git's rule.
    texts = [text for text in (file.read_bytes() for file in files) if text and b"\0" not in text]
    if not texts:
        raise UsageError(
            f"no text in {root}" + ("; say where there is some with --text" if path is None else "")
        )
    return texts


def windows_at(text: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return text[starts[..., None] + np.arange(length + 1)].astype(np.int32)


def training_batch(corpus: Corpus, settings: Settings, step: int) -> np.ndarray:
    """A pure function of the seed and the step, so that a resumed run sees what the interrupted one
    would have.
    """
    rng = np.random.default_rng((settings.seed, step))
    starts = rng.integers(len(corpus.train) - settings.length, size=settings.batch)
    return windows_at(corpus.train, starts, settings.length)
