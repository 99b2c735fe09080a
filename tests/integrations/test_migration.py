"""The guide's table for those who come from another system: its calls are run, and each difference
that it tells of is there.
"""

import inspect
import pathlib
import re
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc
from tests._schedules import elsewhere
from tests._schedules.elsewhere import END, PEAK, T, W

GUIDE = (pathlib.Path(__file__).parents[2] / "colabs/README.md").read_text(encoding="utf-8")
NAMES: dict[str, Any] = {
    "wc": wc,
    "optax": optax,
    "lr": PEAK,
    "W": W,
    "T": T,
    "end": END,
    "power": 2.0,
}
STEPS = np.arange(2 * T)
#: What the last place of float32 at the peak is worth, four times.
CLOSE = 4 * float(np.spacing(np.float32(PEAK)))


def cells(system: str) -> tuple[str, str, str]:
    (row,) = [
        line for line in GUIDE.splitlines() if re.match(rf"\| {re.escape(system)}(: | \|)", line)
    ]
    there, here, changes = row.strip("| ").split(" | ")
    return there, here.strip("`"), changes


def ours(system: str) -> tuple[optax.GradientTransformation, wc.Schedule]:
    """The pipeline of a row, built from the text as it stands there, and the schedule inside of it."""
    call = cells(system)[1]
    schedule = re.fullmatch(r"wc\.pipeline\(optax\.\w+, (.*?)(?:, max_norm=[\w.]+)?\)", call)
    assert schedule is not None
    return eval(call, NAMES), eval(schedule[1], NAMES)


def rates(theirs: Any) -> np.ndarray:
    return np.array([theirs(int(step)) for step in STEPS])


def test_optax_computes_the_same_on_ordinary_gradients_and_loses_no_step_to_a_nan_here():
    call = re.findall(r"`(.*)`", cells("optax")[0])[0]
    theirs: Any = eval(call, {**vars(optax), **NAMES})
    pipeline, _ = ours("optax")
    mine: Any = pipeline
    params = other = jnp.array([0.5, -1.0])
    state, other_state = mine.init(params), theirs.init(params)
    for step in range(30):
        grads = jnp.array([3.0, -4.0]) / (1 + step)
        params, state = wc.apply_gradients(mine, params, state, grads=grads)
        other, other_state = wc.apply_gradients(theirs, other, other_state, grads=grads)
    chex.assert_trees_all_close(params, other, rtol=1e-6)
    assert not np.array_equal(params, jnp.array([0.5, -1.0]))
    bad = jnp.array([jnp.nan, 1.0])
    np.testing.assert_array_equal(wc.apply_gradients(mine, params, state, grads=bad)[0], params)
    assert not np.isfinite(wc.apply_gradients(theirs, other, other_state, grads=bad)[0]).all()


def test_tensorflow_decays_the_same_but_to_another_default_and_changes_gradients_below_the_bound():
    pipeline, schedule = ours("TensorFlow")
    theirs = rates(lambda step: elsewhere.tensorflow(step, cycle=False))
    np.testing.assert_allclose(schedule(STEPS), theirs, rtol=0, atol=CLOSE)
    assert schedule.arguments["end_value"] == END
    assert wc.polynomial_decay(init_value=PEAK, decay_steps=T).arguments["end_value"] == 0.0
    mine: Any = pipeline
    # Above the bound the two agree; 49 * (1 / 49) is not 1, so below one of 49 theirs moves what
    # ours leaves.
    clipped, _ = mine.update(jnp.array([3.0, 4.0]), mine.init(jnp.zeros(2)))
    expected = -PEAK * np.array(elsewhere.tensorflow_clip([3.0, 4.0], 1.0))
    np.testing.assert_allclose(clipped, expected, rtol=1e-6)
    assert elsewhere.tensorflow_clip([3.0], 49.0) != [3.0]
    assert wc.clip_tree(jnp.array([3.0]), 49.0)[0].tolist() == [3.0]


def test_transformers_rises_again_after_the_end_and_ours_stays():
    _, schedule = ours("transformers")
    theirs = rates(elsewhere.hf_cosine)
    np.testing.assert_allclose(schedule(STEPS)[: T + 1], theirs[: T + 1], rtol=0, atol=CLOSE)
    assert theirs[-1] > PEAK / 2
    assert not np.any(schedule(STEPS)[T:])
    linear = wc.warmup_polynomial_decay(peak_value=PEAK, total_steps=T, warmup_steps=W)
    np.testing.assert_allclose(linear(STEPS), rates(elsewhere.hf_linear), rtol=0, atol=CLOSE)


def test_pytorch_has_the_same_rates_and_another_default_of_weight_decay():
    pytorch_power = {**NAMES, "power": 0.9}
    schedule = eval(
        re.findall(r"wc\.pipeline\(optax\.adamw, (.*)\)", cells("PyTorch")[1])[0], pytorch_power
    )
    np.testing.assert_allclose(schedule(STEPS), rates(elsewhere.pytorch), rtol=0, atol=CLOSE)
    assert isinstance(ours("PyTorch")[0], optax.GradientTransformation)
    assert inspect.signature(optax.adamw).parameters["weight_decay"].default == 1e-4


@pytest.mark.parametrize("norm", [1.0, 5.0, 500.0])
def test_what_pytorch_clips_is_smaller_by_its_epsilon_over_the_norm(norm: float):
    grads = np.array([0.6, 0.8]) * norm
    mine, _ = wc.clip_tree(jnp.asarray(grads, jnp.float32), 1.0)
    theirs = np.array(elsewhere.pytorch_clip(grads.tolist(), 1.0))
    np.testing.assert_allclose(mine, theirs * (1 + 1e-6 / norm), rtol=3e-7)
    with_nothing_added = grads / norm
    np.testing.assert_allclose(with_nothing_added / theirs - 1, 1e-6 / norm, rtol=1e-5)


def test_pytorch_itself_clips_so_and_decays_weights_so():
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    np.testing.assert_allclose(
        parameter.grad.numpy(), elsewhere.pytorch_clip([3.0, 4.0], 1.0), rtol=3e-7
    )
    assert torch.optim.AdamW([parameter]).defaults["weight_decay"] == 1e-2


@pytest.mark.parametrize(
    ("row", "theirs"),
    [
        ("flax's lm1b and gemma", elsewhere.flax_rsqrt),
        ("big_vision", lambda step: max(0.0, elsewhere.big_vision_cooldown(step, 20))),
        ("Levanter", elsewhere.levanter_cosine),
        ("MaxText", elsewhere.maxtext),
        ("EasyLM", elsewhere.easylm_rate),
        ("purejaxrl", lambda step: max(0.0, elsewhere.purejaxrl(step, 4, 3, T // 12))),
    ],
)
def test_the_curve_of_a_codebase_is_the_one_in_its_row(row: str, theirs: Any):
    _, schedule = ours(row)
    np.testing.assert_allclose(schedule(STEPS), rates(theirs), rtol=4 * 2.0**-23, atol=CLOSE)


def test_a_codebase_that_does_not_clip_has_a_row_that_does_not():
    assert "max_norm=None" in cells("flax's lm1b and gemma")[1]
    assert "max_norm=0.5" in cells("purejaxrl")[1]
