"""The training example, run as a person runs it, on a model and a text that take seconds."""

import argparse
import dataclasses
import pathlib
import re
import resource
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import warmclip_jax as wc

# As python does for a script: what lies beside it can be imported.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "colabs"))
from colabs import byte_lm_text
from colabs import train_byte_lm as script

#: Most runs of the script train by one program.
TINY = ["--steps=12", "--batch=4", "--length=16", "--width=32", "--layers=1", "--save-every=5"]
TINY += ["--no-inject"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with real source in it, a hidden file and a file that is no text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "below").mkdir()
    (folder / "below" / "parser.py").write_bytes(pathlib.Path(argparse.__file__).read_bytes())
    (folder / "expressions.py").write_bytes(pathlib.Path(re.__file__).read_bytes())
    (folder / ".hidden").write_text("no part of the text" * 1000)
    (folder / "binary").write_bytes(bytes(100_000))
    return folder


@pytest.fixture
def start(text, tmp_path, capsys):
    """Starts the script in this process; gives its exit status and what it wrote to stdout and
    stderr.
    """

    def main(*arguments):
        status = run_script("--text", text, "--figure", tmp_path / "figure.png", *arguments)
        return status, *capsys.readouterr()

    return main


def run_script(*arguments):
    try:
        return script.main([*TINY, *map(str, arguments)])
    except SystemExit as error:
        return error.code


def assert_one_clear_line(started, said):
    status, out, err = started
    assert (status, out) == (2, "")
    assert re.fullmatch(r".+: error: .+\n", err)
    assert said in err


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    figure, runs = folder / "figure.png", folder / "runs"
    assert run_script("--text", text, "--figure", figure, "--checkpoint", runs) == 0
    assert figure.exists()
    return runs


def final_state(folder):
    """Every array in the last checkpoint, by path: parameters, optimizer state and history."""
    with ocp.CheckpointManager(folder.absolute() / script.RECIPE.replace(" ", "-")) as checkpoints:
        assert checkpoints.latest_step() == 12
        state = checkpoints.restore(12, args=ocp.args.Composite(state=ocp.args.StandardRestore()))[
            "state"
        ]
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    assert any("queries_keys_values" in path and array.any() for path, array in left.items())
    for path, array in left.items():
        assert array.dtype == right[path].dtype, path
        assert array.tobytes() == right[path].tobytes(), path


@pytest.fixture
def during_step(monkeypatch):
    """Lets something happen while a step is on its way, once."""

    def arrange(number, event):
        original = script.training_batch

        def training_batch(corpus, settings, step):
            if step == number - 1:
                monkeypatch.setattr(script, "training_batch", original)
                event()
            return original(corpus, settings, step)

        monkeypatch.setattr(script, "training_batch", training_batch)

    return arrange


def test_a_run_that_was_interrupted_and_crashed_has_the_bits_of_an_uninterrupted_one(
    start, during_step, tmp_path, whole
):
    def crash():
        raise RuntimeError("the power is gone")

    during_step(4, lambda: signal.raise_signal(signal.SIGINT))
    status, out, err = start("--checkpoint", tmp_path / "parts")
    assert (status, out) == (130, "")
    assert (
        err.splitlines()[-1]
        == f"stopped after step 4; the parameters are in {tmp_path / 'parts'}: the same command goes on"
    )
    during_step(8, crash)
    with pytest.raises(RuntimeError, match="the power is gone"):
        start("--checkpoint", tmp_path / "parts")
    status, _, err = start("--checkpoint", tmp_path / "parts")
    assert status == 0
    assert "5/12" in err  # The last multiple of --save-every.
    assert_same_bits(final_state(whole), final_state(tmp_path / "parts"))


def test_a_signal_is_noted_once_and_then_acts_as_it_did_before():
    number, came_before = signal.SIGTERM, []
    original = signal.signal(number, lambda *_: came_before.append(number))
    try:
        with script.postponed_signals() as signals:
            signal.raise_signal(number)
            assert (signals, came_before) == ([number], [])
            signal.raise_signal(number)
            assert (signals, came_before) == ([number], [number])
        signal.raise_signal(number)
        assert came_before == [number] * 2
    finally:
        signal.signal(number, original)


def test_a_finished_run_starts_again_only_to_report(start, whole, monkeypatch):
    monkeypatch.setattr(script, "training_batch", lambda *_: pytest.fail("trained again"))
    status, out, _ = start("--checkpoint", whole)
    assert status == 0
    assert re.search(r"^held-out loss, bits per byte +\d\.\d+$", out, re.MULTILINE)
    assert re.search(r"^steps per second +-$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peak", "0.5"], "--peak 0.003, not 0.5"),
        (["--max-norm", "inf"], "--max-norm 1.0, not inf"),
        ([], "another text"),
    ],
)
def test_a_checkpoint_of_other_settings_or_another_text_is_one_clear_line(
    start, text, whole, arguments, said
):
    other = arguments or ["--text", text / "expressions.py"]
    assert_one_clear_line(start("--checkpoint", whole, *other), said)


def test_a_checkpoint_that_cannot_be_read_is_one_clear_line(start, tmp_path):
    broken = tmp_path / "runs" / script.RECIPE.replace(" ", "-") / "5" / "state"
    broken.mkdir(parents=True)
    said = f"cannot read the checkpoint of step 5 in {tmp_path / 'runs'}"
    assert_one_clear_line(start("--checkpoint", tmp_path / "runs"), said)


def test_the_table_compares_both_runs_and_the_report_finds_what_was_injected(start, tmp_path):
    status, out, err = start("--compare", "--inject", "--steps", 150, "--peak", "0.01")
    assert status == 0
    assert "Traceback" not in err
    lines = out.splitlines()
    rows = {line[:32].strip(): [float(cell) for cell in line[32:].split()] for line in lines[1:8]}
    assert lines[0].split() == [*script.RECIPE.split(), *script.BARE.split()]
    assert lines[-1] == f"figure: {tmp_path / 'figure.png'}"
    assert all(len(cells) == 2 for cells in rows.values())
    assert rows["held-out loss, bits per byte"][0] < rows["unigram entropy, bits per byte"][0] - 0.2
    assert rows["train loss, bits per byte"][0] < rows["unigram entropy, bits per byte"][0] - 0.2
    assert rows["train loss, bits per byte"][0] != rows["train loss, bits per byte"][1]
    assert rows["steps"] == [150, 150]
    assert 0 < rows["steps clipped"][0] < 150
    assert rows["steps clipped"][1] == 0
    assert rows["steps skipped"] == [2, 2]
    assert min(rows["steps per second"]) > 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    found = "call 50, step 50, skipped.\n  Leaves with NaN, 1 of 15: unembed/kernel\n"
    assert out.count(f"Last call with NaN or inf: {found}") == 2
    ranked = out.partition("Last spike: call 100, step 99,")[2].splitlines()
    assert ranked[2].endswith(" blocks/0/mix/kernel")


def test_the_recorded_history_is_the_schedule_the_threshold_and_the_counts(whole):
    state = final_state(whole)
    history = {name: state[f"[2]['{name}']"] for name in script.RECORDED}
    schedule = wc.warmup_polynomial_decay(peak_value=3e-3, total_steps=12, warmup_fraction=0.1)
    np.testing.assert_allclose(history["learning_rate"], schedule(np.arange(12)), rtol=1e-6)
    np.testing.assert_array_equal(
        np.diff(history["clipped_count"], prepend=0), history["grad_norm"] > 1.0
    )
    np.testing.assert_array_equal(history["skipped_count"], np.zeros(12))


def test_what_a_step_reports_is_what_metrics_reads_out_of_its_state():
    settings = script.Settings(9, 1, 1, 32, 1, peak=0.5, warmup=0.0, max_norm=1.0, seed=1)
    optimizer = script.make_optimizer(settings)
    step = script.make_step(optimizer, lambda params, windows: (params * windows).sum())
    params = jnp.ones(2)
    opt_state = optimizer.init(params)
    for windows in (jnp.array([3.0, 4.0]), jnp.array([np.nan, 1.0])):
        params, opt_state, reported = step(params, opt_state, windows)
        read = wc.metrics(opt_state)
        assert read.keys() == reported.keys() - {"bits_per_byte"}
        for name, value in read.items():
            np.testing.assert_array_equal(reported[name], value, err_msg=name)
    assert (read["clipped_count"], read["skipped_count"]) == (1, 1)
    assert np.all(np.isfinite(params))


def test_batches_depend_on_the_seed_and_the_step_alone(text):
    settings = script.Settings(9, 4, 16, 32, 1, peak=0.5, warmup=0.0, max_norm=1.0, seed=1)
    corpus = script.read_corpus(text, settings)
    third = script.training_batch(corpus, settings, 3)
    assert third.shape == (4, 17)
    np.testing.assert_array_equal(script.training_batch(corpus, settings, 3), third)
    assert (script.training_batch(corpus, settings, 4) != third).any()
    assert (script.training_batch(corpus, dataclasses.replace(settings, seed=2), 3) != third).any()


def test_a_folder_is_read_without_its_hidden_files_and_its_files_that_are_no_text(text):
    settings = script.Settings(9, 4, 16, 32, 1, peak=0.5, warmup=0.0, max_norm=1.0, seed=1)
    corpus = script.read_corpus(text, settings)
    together = corpus.train.tobytes() + corpus.held_out.tobytes()
    parts = [(text / name).read_bytes() for name in ("below/parser.py", "expressions.py")]
    assert together in (b"\n".join(parts), b"\n".join(parts[::-1]))
    assert len(corpus.held_out) == len(together) // 10


def test_the_unigram_entropy_of_two_bytes_in_equal_shares_is_one_bit():
    nothing, halves = np.zeros(9, np.uint8), np.array([0, 255, 0, 255], np.uint8)
    assert script.Corpus(nothing, halves, "").unigram_entropy() == 1.0


def test_the_defaults_are_the_standard_library_and_one_to_three_million_parameters():
    texts = byte_lm_text.read_texts(None)
    assert pathlib.Path(argparse.__file__).read_bytes() in texts
    assert sum(map(len, texts)) > 1_000_000
    defaults = script.command_line("").parse_args([])
    model = nnx.eval_shape(lambda: script.ByteLM(defaults.width, defaults.layers, nnx.Rngs(0)))
    assert 1e6 <= sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) <= 3e6


def test_the_size_that_is_checked_is_the_size_of_what_is_kept():
    settings = script.Settings(50, 1, 1, 160, 3, peak=0.5, warmup=0.0, max_norm=1.0, seed=1)
    model = nnx.eval_shape(lambda: script.ByteLM(160, 3, nnx.Rngs(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    state: Any = script.make_optimizer(settings).init(jnp.zeros(2))
    ring = state.ring
    assert settings.bytes == (
        3 * 4 * parameters
        + len(script.RECORDED) * 4 * 50
        + ring.ring_counts.nbytes
        + ring.ring_numbers.nbytes
    )


def test_a_byte_changes_no_earlier_prediction_and_every_later_one():
    model = nnx.jit(script.ByteLM(32, 1, nnx.Rngs(0)))
    text = jnp.arange(16)[None]
    other = text.at[0, 10].set(200)
    now, then = np.asarray(model(text)), np.asarray(model(other))
    np.testing.assert_array_equal(now[:, :10], then[:, :10])
    assert (now[:, 10:] != then[:, 10:]).any(axis=-1).all()


BAD = {
    "no such path": (["--text", "{tmp}/nothing"], "neither a file nor a folder"),
    "a text too short": (
        ["--length", "100000"],
        "--length 100000 needs a text of 1000010 bytes or more",
    ),
    "a batch larger than the text": (
        ["--batch", "1000000"],
        "--batch 1000000 is more text than there is",
    ),
    "a width that heads do not divide": (
        ["--width", "33"],
        "--width must be a multiple of 32; got 33",
    ),
    "a seed of thousands of digits": (["--seed", 9999 * "1"], "--seed: must be a whole number"),
    "more steps than memory": (
        ["--width=1048576", "--steps=2147483647"],
        "--steps 2147483647 need 1",
    ),
    "a threshold that stops all": (
        ["--max-norm", "0"],
        "--max-norm: must be a number above 0; got '0'",
    ),
    "a rate that is no number": (["--peak", "nan"], "--peak: must be a number above 0; got 'nan'"),
    "a warm-up as long as the run": (["--warmup", "1"], "warmup_fraction must be"),
    "a figure in no known format": (["--figure", "{tmp}/figure.doc"], "must end in one of"),
    "a figure that needs what is not here": (
        ["--figure", "{tmp}/figure.pgf"],
        "cannot draw in {tmp}/figure.pgf: 'xelatex'",
    ),
    "a figure that is a folder": (
        ["--figure", "{tmp}/folder.png"],
        "cannot draw in {tmp}/folder.png",
    ),
    "checkpoints under a file": (
        ["--checkpoint", "{text}/binary"],
        "cannot keep checkpoints in {text}/binary",
    ),
    "a misspelt option": (["--stepz", "3"], "unrecognized arguments: --stepz 3"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_line_and_exit_status_2(
    start, text, tmp_path, monkeypatch, arguments, said
):
    monkeypatch.setenv("PATH", "")  # Here is no LaTeX.
    (tmp_path / "folder.png").mkdir()
    started = start(*(argument.format(tmp=tmp_path, text=text) for argument in arguments))
    assert_one_clear_line(started, said.format(tmp=tmp_path, text=text))


def test_an_unreadable_file_is_one_clear_line_and_exit_status_2(start, text, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(
        pathlib.Path, "read_bytes", refuse
    )  # Permissions do not stop the superuser, who may run this.
    said = f"cannot read {text / 'below' / 'parser.py'}: Permission denied"
    assert_one_clear_line(start(), said)


def test_a_batch_that_fills_the_memory_is_one_clear_line_and_exit_status_2(start, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 99999999999 bytes."
        )

    monkeypatch.setattr(script, "training_batch", exhausted)
    status, out, err = start()
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith(
        "error: a step with --batch 4, --length 16 and --width 32 does not fit into memory"
    )


@pytest.fixture
def nearly_full():
    """Lets no file grow past a size, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_too_full_for_the_checkpoints_is_one_clear_line_before_the_training(
    start, tmp_path, nearly_full, monkeypatch
):
    monkeypatch.setattr(script, "train", lambda *_: pytest.fail("trained"))
    nearly_full(100_000)
    folder = tmp_path / "runs" / "warm-up-and-clipping"
    said = f"error: cannot keep checkpoints in {folder}: File too large"
    assert_one_clear_line(start("--checkpoint", tmp_path / "runs"), said)


def test_both_folders_of_a_comparison_are_looked_at_before_the_training(
    start, tmp_path, monkeypatch
):
    monkeypatch.setattr(script, "train", lambda *_: pytest.fail("trained"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "neither").write_text("a file")
    said = f"cannot keep checkpoints in {tmp_path / 'runs' / 'neither'}"
    assert_one_clear_line(start("--compare", "--checkpoint", tmp_path / "runs"), said)


def test_a_disk_that_fills_during_the_training_is_one_clear_line_that_says_what_is_left(
    start, during_step, tmp_path, nearly_full
):
    during_step(8, lambda: nearly_full(100_000))
    status, out, err = start("--checkpoint", tmp_path / "runs")
    folder = tmp_path / "runs" / "warm-up-and-clipping"
    said = f"cannot save step 10 in {folder}: File too large; the checkpoint of step 5 is whole"
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith(f"error: {said}")
    assert "Traceback" not in err


def test_a_figure_that_fails_after_the_training_costs_neither_the_table_nor_the_parameters(
    start, whole, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(script, "draw", full)
    status, out, err = start("--checkpoint", whole)
    assert status == 2
    assert "held-out loss" in out
    assert err.splitlines()[-1].endswith(
        f"No space left on device; the parameters are in {whole}: the same command goes on"
    )


def test_the_command_refuses_bad_input_without_a_warning_or_a_traceback(text, tmp_path):
    command = [sys.executable, "-W", "error", script.__file__, "--text", text, "--batch", "0"]
    bad = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = "argument --batch: must be a whole number from 1 to 2147483647; got '0'"
    assert_one_clear_line((bad.returncode, bad.stdout, bad.stderr), said)
