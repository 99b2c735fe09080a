"""Trains a small byte-level transformer with warm-up, decay and global-norm clipping, and shows what each of them did.

    python colabs/train_byte_lm.py                           # reads the Python standard library's own source
    python colabs/train_byte_lm.py --text FOLDER --compare   # your text; and again without warm-up and clipping
    python colabs/train_byte_lm.py --checkpoint runs/mine    # stop it whenever you like, the same command goes on

The part to take home is short: `make_optimizer` and `make_step`, just below. The rest is a model, some text and bookkeeping.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm
from byte_lm_report import Run, draw, prepare_figure, table
from flax import nnx

import warmclip_jax as wc

HEAD_WIDTH = 32
HELD_OUT = 0.1  # the share of the text that training never sees
EVALUATED_BATCHES = 32
RECIPE, BARE = "warm-up and clipping", "neither"
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
    text: str = ""  # a fingerprint


class UsageError(Exception):
    """What the person at the keyboard can put right; the message is one line."""


# The recipe


def make_optimizer(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """AdamW behind a clip, at a rate that warms up and then decays to zero. A bad step (NaN or inf) is skipped and counted."""
    schedule = wc.warmup_polynomial_decay(peak_value=settings.peak, total_steps=settings.steps, warmup_fraction=settings.warmup)
    return wc.pipeline(optax.adamw, schedule, max_norm=settings.max_norm)


def make_step(optimizer: optax.GradientTransformation, loss_of: Callable[..., jax.Array]) -> Callable[..., Any]:
    # The parameters and the state come out in the place of those that went in, so they can have their memory.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, windows: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_of)(params, windows)
        params, opt_state = wc.apply_gradients(optimizer, params, opt_state, grads=grads)
        return params, opt_state, {"bits_per_byte": loss / math.log(2), **wc.metrics(opt_state)}

    return step


# The model


class Block(nnx.Module):
    """Causal self-attention and a perceptron, each added to the stream."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.mix = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.perceptron_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, stream: jax.Array) -> jax.Array:
        batch, length, width = stream.shape
        heads = self.queries_keys_values(self.attention_norm(stream)).reshape(batch, length, -1, HEAD_WIDTH)
        queries, keys, values = jnp.split(heads, 3, axis=2)
        seen = jax.nn.dot_product_attention(rotated(queries), rotated(keys), values, is_causal=True)
        stream = stream + self.mix(seen.reshape(batch, length, width))
        return stream + self.contract(jax.nn.gelu(self.expand(self.perceptron_norm(stream))))


class ByteLM(nnx.Module):
    """Bytes in, the logits of each next byte out."""

    def __init__(self, width: int, layers: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(256, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.unembed = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        stream = self.embed(text)
        for block in self.blocks:
            stream = block(stream)
        return self.unembed(self.norm(stream))


def rotated(heads: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021): attention sees how far apart two bytes are."""
    length, half = heads.shape[1], HEAD_WIDTH // 2
    angles = np.outer(np.arange(length), 10_000.0 ** -(np.arange(half) / half)).astype(np.float32)[None, :, None, :]
    even, odd = jnp.split(heads, 2, axis=-1)
    turned = even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)
    return jnp.concatenate(turned, axis=-1)


# The text


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
        raise UsageError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    # Shuffled by file, so that the end, which is held out, is like the rest.
    order = np.random.default_rng(0).permutation(len(texts))
    text = np.frombuffer(b"\n".join(texts[index] for index in order), np.uint8)
    cut = len(text) - int(HELD_OUT * len(text))
    corpus = Corpus(text[:cut], text[cut:], hashlib.sha256(text.tobytes()).hexdigest()[:16])
    if len(corpus.held_out) <= settings.length:
        least = math.ceil((settings.length + 1) / HELD_OUT)
        raise UsageError(f"--length {settings.length} needs a text of {least} bytes or more; this one has {len(text)}")
    if settings.batch * settings.length > len(corpus.train):
        most = len(corpus.train) // settings.length
        raise UsageError(f"--batch {settings.batch} is more text than there is: {most} at most with --length {settings.length}")
    return corpus


def read_texts(path: pathlib.Path | None) -> list[bytes]:
    if path is None:
        root, pattern, left_out = pathlib.Path(sysconfig.get_path("stdlib")), "*.py", {"site-packages", "test", "tests"}
    else:
        root, pattern, left_out = path, "*", set[str]()
    if root.is_file():
        files = [root]
    elif root.is_dir():
        parts = {file: file.relative_to(root).parts for file in sorted(root.rglob(pattern)) if file.is_file()}
        files = [file for file, at in parts.items() if not left_out & set(at) and not any(part[0] == "." for part in at)]
    else:
        raise UsageError(f"--text {root} is neither a file nor a folder")
    # Text is what has no zero byte in it: git's rule.
    texts = [text for text in (file.read_bytes() for file in files) if text and b"\0" not in text]
    if not texts:
        raise UsageError(f"no text in {root}" + ("; say where there is some with --text" if path is None else ""))
    return texts


def windows_at(text: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return text[starts[..., None] + np.arange(length + 1)].astype(np.int32)


def training_batch(corpus: Corpus, settings: Settings, step: int) -> np.ndarray:
    """A pure function of the seed and the step, so that a resumed run sees what the interrupted one would have."""
    rng = np.random.default_rng((settings.seed, step))
    starts = rng.integers(len(corpus.train) - settings.length, size=settings.batch)
    return windows_at(corpus.train, starts, settings.length)


# Training


class StoppedError(Exception):
    """A signal came: its number, and the steps that were done."""


def train(name: str, settings: Settings, corpus: Corpus, folder: pathlib.Path | None, save_every: int) -> Run:
    try:
        optimizer = make_optimizer(settings)
    except (TypeError, ValueError) as error:  # The library's own words: which argument, its rule, what came.
        raise UsageError(str(error)) from error
    graph, params = nnx.split(ByteLM(settings.width, settings.layers, nnx.Rngs(settings.seed)))

    def loss_of(params: Any, windows: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    step = make_step(optimizer, loss_of)
    opt_state = optimizer.init(params)
    history = {key: np.full(settings.steps, np.nan, np.float32) for key in RECORDED}
    began, before = 0.0, 0
    with open_checkpoints(folder, save_every) as checkpoints, postponed_signals() as signals:
        start, (params, opt_state, history) = resume(checkpoints, settings, (params, opt_state, history))
        with tqdm.tqdm(desc=name, initial=start, total=settings.steps, unit="step", dynamic_ncols=True) as bar:
            for count in range(start, settings.steps):
                params, opt_state, metrics = step(params, opt_state, training_batch(corpus, settings, count))
                for key in RECORDED:
                    history[key][count] = metrics[key]
                if count == start:  # From here on, without compilation.
                    began, before = time.perf_counter(), start + 1
                last = signals or count + 1 == settings.steps
                if checkpoints:
                    save(checkpoints, count + 1, settings, (params, opt_state, history), force=bool(last))
                show(bar, count, history)
                if signals:
                    raise StoppedError(signals[0], count + 1)
        seconds = time.perf_counter() - began
    evaluate = jax.jit(loss_of)

    def bits_per_byte(text: np.ndarray) -> float:
        starts = np.linspace(0, len(text) - settings.length - 1, EVALUATED_BATCHES * settings.batch).astype(int)
        batches = windows_at(text, starts.reshape(EVALUATED_BATCHES, -1), settings.length)
        return float(np.mean([evaluate(params, batch) for batch in batches])) / math.log(2)

    speed = (settings.steps - before) / seconds if 0 < before < settings.steps else None
    return Run(settings.max_norm, history, bits_per_byte(corpus.train), bits_per_byte(corpus.held_out), speed)


def show(bar: tqdm.tqdm, count: int, history: dict[str, np.ndarray]) -> None:
    now = {key: values[count] for key, values in history.items()}
    bar.set_postfix(
        {
            "bits/byte": f"{now['bits_per_byte']:.2f}",
            "rate": f"{now['learning_rate']:.1e}",
            "norm": f"{now['grad_norm']:.2f}",
            "clipped": f"{now['clipped_count'] / (count + 1):.0%}",
        },
        refresh=False,
    )
    bar.update()


@contextlib.contextmanager
def postponed_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the step to end: in its middle there is nothing to save. A second one does not wait."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Checkpoints


def open_checkpoints(
    folder: pathlib.Path | None, save_every: int
) -> contextlib.AbstractContextManager[ocp.CheckpointManager | None]:
    if folder is None:
        return contextlib.nullcontext()
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=save_every,
        preservation_policy=ocp.checkpoint_managers.LatestN(2),
        # The next step takes the memory of what is being saved.
        enable_async_checkpointing=False,
    )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except OSError as error:
        raise UsageError(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from error


def save(checkpoints: ocp.CheckpointManager, step: int, settings: Settings, state: Any, *, force: bool) -> None:
    parts = {"settings": ocp.args.JsonSave(dataclasses.asdict(settings)), "state": ocp.args.StandardSave(state)}
    checkpoints.save(step, args=ocp.args.Composite(**parts), force=force)


def resume(checkpoints: ocp.CheckpointManager | None, settings: Settings, state: Any) -> tuple[int, Any]:
    """The steps done and the state after them: those of the last checkpoint, or 0 and `state` as it is."""
    step = checkpoints.latest_step() if checkpoints else None
    if checkpoints is None or step is None:
        return 0, state
    saved = restore(checkpoints, step, settings=ocp.args.JsonRestore())
    for name, value in dataclasses.asdict(settings).items():
        if saved.get(name) != value:
            other = "another text" if name == "text" else f"--{name.replace('_', '-')} {saved.get(name)}, not {value}"
            raise UsageError(f"the checkpoint in {checkpoints.directory} is of a run with {other}: take another folder")
    return step, restore(checkpoints, step, state=ocp.args.StandardRestore(state))


def restore(checkpoints: ocp.CheckpointManager, step: int, **part: Any) -> Any:
    (name,) = part
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**part))[name]
    except Exception as error:  # Orbax and what it is built on have many words for a damaged file.
        folder = checkpoints.directory
        raise UsageError(f"cannot read the checkpoint of step {step} in {folder}: move it away, or take another") from error


# The command line


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; got {text!r}")
    return int(text)


def command_line() -> OneLineParser:
    text = argparse.ArgumentDefaultsHelpFormatter
    parser = OneLineParser(description=(__doc__ or "").split("\n", 1)[0], formatter_class=text)
    parser.add_argument("--text", type=pathlib.Path, help="a file or a folder (default: the standard library's own source)")
    parser.add_argument("--steps", type=positive, default=500, help="optimizer steps, the warm-up included")
    parser.add_argument("--batch", type=positive, default=8, help="windows of text in a step")
    parser.add_argument("--length", type=positive, default=128, help="bytes in a window")
    parser.add_argument("--width", type=positive, default=160, help=f"of the model, a multiple of {HEAD_WIDTH}")
    parser.add_argument("--layers", type=positive, default=3, help="of the model")
    parser.add_argument("--peak", type=float, default=3e-3, help="learning rate at the end of the warm-up")
    parser.add_argument("--warmup", type=float, default=0.1, help="its share of the steps")
    parser.add_argument("--max-norm", type=float, default=1.0, help="threshold of the clip; inf only measures")
    parser.add_argument("--seed", type=positive, default=1, help="of the parameters and of the order of the text")
    parser.add_argument("--compare", action="store_true", help="train again, at the same peak, without warm-up and clipping")
    parser.add_argument("--checkpoint", type=pathlib.Path, metavar="DIR", help="save there, and go on from what is there")
    parser.add_argument("--save-every", type=positive, default=100, metavar="STEPS", help="between two checkpoints")
    parser.add_argument("--figure", type=pathlib.Path, default=pathlib.Path("runs/byte_lm.png"), help="where it is drawn")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line()
    options = parser.parse_args(argv)
    try:
        return run(options)
    except UsageError as error:
        parser.error(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = f"--batch {options.batch}, --length {options.length} and --width {options.width}"
        parser.error(f"a step with {sizes} does not fit into memory")
    except StoppedError as error:
        number, step = error.args
        left = f"{options.checkpoint} has all of it: the same command goes on" if options.checkpoint else "nothing is saved"
        print(f"stopped after step {step}; {left}", file=sys.stderr)
        return 128 + number


def run(options: argparse.Namespace) -> int:
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__ if name != "text"})
    if settings.width % HEAD_WIDTH:
        raise UsageError(f"--width must be a multiple of {HEAD_WIDTH}; got {settings.width}")
    try:
        prepare_figure(options.figure)
    except ValueError as error:
        raise UsageError(str(error)) from error
    corpus = read_corpus(options.text, settings)
    settings = dataclasses.replace(settings, text=corpus.fingerprint)
    chosen = {RECIPE: settings}
    if options.compare:
        chosen[BARE] = dataclasses.replace(settings, warmup=0.0, max_norm=math.inf)
    runs: dict[str, Run] = {}
    for name, each in chosen.items():
        folder = options.checkpoint and options.checkpoint / name.replace(" ", "-")
        runs[name] = train(name, each, corpus, folder, options.save_every)
    entropy = corpus.unigram_entropy()
    print(table(runs, entropy))
    draw(runs, entropy, options.figure)
    print(f"figure: {options.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
