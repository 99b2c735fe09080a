"""The front page and the guide: their code runs, their links lead somewhere, and nothing public is missing."""

import pathlib
import re
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import warmclip_jax as wc

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("README.md", "colabs/README.md", ".github/CONTRIBUTING.md", "tests/benchmarks/README.md")
README, GUIDE, *_ = TEXTS = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
BLOCKS = r"^```(\w+)\n(.*?)^```$"


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(BLOCKS, text, flags=re.MULTILINE | re.DOTALL)
    return [code for kind, code in found if kind == language]


def run(text: str) -> dict[str, Any]:
    """The names that the Python blocks of a page leave behind, run in order as they are pasted."""
    names: dict[str, Any] = {}
    exec("import jax, jax.numpy as jnp, optax\nimport warmclip_jax as wc", names)
    with jax.numpy_rank_promotion("allow"):
        for code in blocks(text, "python"):
            exec(code, names)
    return names


def test_the_first_code_survives_its_bad_batch_and_the_report_names_it(capsys: Any):
    names = run(README)
    said = re.findall(r'print\(wc\.report\(opt_state\)\)  # "(.*) \.\.\."', README)
    assert said[0] in capsys.readouterr().out
    assert abs(names["params"]["w"]).max() < 3.0
    assert names["call"] == 999


def test_the_guides_code_runs_and_its_bad_batch_is_in_the_report(capsys: Any):
    names = run(GUIDE)
    assert "Last call with NaN or inf: call 37, step 37, skipped." in capsys.readouterr().out
    for name in ("params", "ema"):
        assert np.isfinite(names[name]["w"]).all()
    assert int(names["measured"]["skipped_count"]) == 1


def test_the_front_page_is_a_doorway():
    lines = README.splitlines()
    start = lines.index("```python")
    assert (len(lines) <= 130, start < 45, lines.index("```", start) < 80) == (True,) * 3


def test_the_gate_runs_the_test_command_of_the_readme():
    (pattern,) = re.findall(r"grep -E '(.*)' README.md", (ROOT / ".ci/run").read_text("utf-8"))
    (command,) = [line for line in README.splitlines() if re.search(pattern, line)]
    assert command.endswith("python -m pytest -q -n auto")


def anchors(path: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize(("page", "text"), [*zip(PAGES, TEXTS, strict=True)], ids=PAGES)
def test_every_link_leads_to_a_file_and_its_heading(page: str, text: str):
    here, wrong = (ROOT / page).parent, []
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        file = here / path if path else ROOT / page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            wrong.append(link)
    named = set(re.findall(r"(?:tests|colabs|warmclip_jax)/[\w/.]+\.\w+", text))
    assert (wrong, [path for path in sorted(named) if not (ROOT / path).is_file()]) == ([], [])


def test_every_public_name_is_in_the_guide():
    assert [name for name in wc.__all__ if not re.search(rf"\b{name}\b", GUIDE)] == []


#: The names of the recipes.
lr, end, T, W, now = 0.1, 0.01, 100, 10, 40
NAMES = {"wc": wc, "lr": lr, "end": end, "T": T, "W": W, "now": now}
NAMES["schedule"] = wc.warmup_cosine_decay(peak_value=lr, total_steps=T, warmup_steps=W)
#: The names of what other systems do: those of the package, and those that the guide tells of.
THERE: dict[str, Any] = {name: getattr(wc, name) for name in wc.__all__}
THERE |= {"peak": lr, "low": end, "T": T, "W": W}
THERE["triangle"] = eval(re.findall(r"`triangle` is\n`(.*)`,", GUIDE)[0], dict(THERE))
THERE["share"] = wc.warmup_stable_decay(
    peak_value=1.0, total_steps=T, warmup_steps=0, decay_fraction=0.6
)
THERE["stages"] = wc.piecewise_constant(values=[1.0, 1.52, 1.73], boundaries=[34, 67])


def cosine(share: Any) -> Any:
    return (1 + np.cos(np.pi * np.clip(share, 0, 1))) / 2


def warmed(t: Any) -> Any:
    return np.where(t < W, lr * t / W, lr * cosine((t - W) / (T - W)))


def triangle(t: Any) -> Any:
    """Smith 2017, figure 2: from 0 to 1 in W steps and back."""
    cycle = np.floor(1 + t / (2 * W))
    return np.maximum(0, 1 - np.abs(t / W - 2 * cycle + 1))


def wsd_s(t: Any) -> Any:
    """Wen et al. 2024: periods that decay over their last 20 steps, each from the peak."""
    share = np.maximum(t % 100 - 80, 0) / 20
    # Between the peak and a tenth of it, linear in the inverse of the rate.
    return np.minimum(t / W, 1) / ((1 - share) / lr + share / (0.1 * lr))


def granite(t: Any) -> Any:
    """Shen et al. 2024: min(peak, beta * a * n ** -0.51), n tokens in, beta the batch in sequences."""
    tokens = np.maximum(t, 1) * 128 * 4096
    return np.minimum(lr, 128 * 4.6 * tokens**-0.51) * np.minimum(t / W, 1)


def olmo_power(t: Any) -> Any:
    """OLMo-core's PowerLR with b = -0.51 and a linear tail of 50 steps."""
    start = T - 50
    tail = lr * (start / W) ** -0.51 * np.maximum(T - t, 0) / 50
    power = lr * (np.maximum(t, W) / W) ** -0.51
    return np.select([t <= W, t < start, t >= start], [lr * t / W, power, tail])


def modded_nanogpt(t: Any) -> Any:
    """Its rate grows with the batch in stages, and mixes with a tenth over the last 60 %."""
    x = np.minimum(t / T, 1)
    stage = np.array([1.0, 1.52, 1.73])[np.minimum(3 * x, 2).astype(int)]
    share = np.minimum((1 - x) / 0.6, 1)
    return stage * share + 0.1 * (1 - share)


RECIPES: dict[str, Any] = {
    "cool down from here": lambda t: np.where(
        t < now, warmed(t), warmed(now) * np.clip((T - t) / (T - now), 0, 1)
    ),
    "warm up again after a restart": lambda t: np.where(
        t < W, warmed(now) * t / W, warmed(now + t - W)
    ),
    "restarts that grow": lambda t: np.select(
        [t < T, t < 3 * T, t >= 3 * T],
        [lr * cosine(t / T), lr * cosine((t - T) / (2 * T)), lr * cosine((t - 3 * T) / (4 * T))],
    ),
    "restarts that fall": lambda t: lr * cosine(t % T / T) * 0.5 ** (t // T),
    "one cycle": lambda t: np.where(
        t < W,
        lr / 25 + (lr - lr / 25) * t / W,
        lr / 1e4 + (lr - lr / 1e4) * cosine((t - W) / (T - W)),
    ),
    "its momentum, the other way round": lambda t: np.where(
        t < W, 0.95 - 0.1 * t / W, 0.95 - 0.1 * cosine((t - W) / (T - W))
    ),
    "triangles (CyclicLR)": lambda t: end + (lr - end) * triangle(t),
    "a learning-rate range test": lambda t: np.minimum(1e-7 * 1e8 ** (t / T), 10.0),
    "steps down, as DeepSeek": lambda t: np.select(
        [t < W, t < 80, t < 90, t >= 90], [lr * t / W, lr, 0.316 * lr, 0.1 * lr]
    ),
    "weight decay that follows the rate (AdamC)": lambda t: 0.1 * warmed(t) / lr,
}
ELSEWHERE: dict[str, Any] = {
    "Cyclical rates: triangular": lambda t: end + (lr - end) * triangle(t),
    "Cyclical rates: triangular2": (
        lambda t: end + (lr - end) * triangle(t) * 0.5 ** (t // (2 * W))
    ),
    "Cyclical rates: exp_range": lambda t: end + (lr - end) * triangle(t) * 0.994**t,
    "nanochat: the rate": lambda t: lr * np.clip((T - t) / 80, 0, 1),
    "nanochat: Muon's momentum": lambda t: 0.85 + 0.1 * np.minimum(t / 300, 1),
    "nanochat: the weight decay": lambda t: 0.2 * np.maximum(1 - t / T, 0),
    "WSD-S: the peak again after each decay": wsd_s,
    "Granite's power scheduler": granite,
    "OLMo-core, PowerLR": olmo_power,
    "OLMo-core, InvSqrtWithWarmup with a floor": lambda t: np.where(
        t < W, lr * t / W, lr * (0.1 + 0.9 * np.sqrt(W / np.maximum(t, 1)))
    ),
    "Keras, InverseTimeDecay(decay_steps=30, decay_rate=0.5)": lambda t: lr / (1 + 0.5 * t / 30),
    "Keras, InverseTimeDecay(decay_steps=30, decay_rate=0.5, staircase=True)": (
        lambda t: lr / (1 + 0.5 * (t // 30))
    ),
    "Hands-on ML's power scheduling, lr / (1 + t / s) ** c": lambda t: lr / (1 + t / 40) ** 1.5,
    "modded-nanogpt's mixture of stages and a floor, as a factor": modded_nanogpt,
    "An EMA's decay, min(d, (1 + t) / (10 + t))": lambda t: np.minimum(0.999, (1 + t) / (10 + t)),
    "An EMA's decay, 1 - (1 + t / g) ** -p": lambda t: 1 - (1 + t / 2) ** -0.75,
    "BYOL's EMA, from 0.996 to 1": lambda t: 1 - 0.004 * cosine(t / T),
    "Adafactor's b2, 1 - (t + 1) ** -0.8": lambda t: 1 - (t + 1) ** -0.8,
}


def table_of(heading: str) -> dict[str, str]:
    """The first two cells of each row of the guide's table that begins so."""
    table = GUIDE.partition(heading)[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| ([^|]*) \| `(.*)` \|$", table, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "formulas", "names"),
    [("| recipe | you write |", RECIPES, NAMES), ("| as in | you write,", ELSEWHERE, THERE)],
    ids=["recipes", "other systems"],
)
def test_a_recipe_is_its_formula_over_the_whole_run(heading: str, formulas: Any, names: Any):
    written, counts = table_of(heading), np.arange(4 * T)
    assert [name for name in written if name != "a floor, a ceiling"] == [*formulas]
    for name, formula in formulas.items():
        values, exact = eval(written[name], names)(counts), formula(counts)
        allowed = 4 * np.spacing(np.float32(exact.max()))
        if "range test" in name:  # Powers of 1e8 take the rounding of their exponent along.
            allowed = 2e-5 * exact
        assert np.all(np.abs(np.asarray(values, float) - exact) <= allowed), name


def test_each_group_has_its_factor_times_one_schedule():
    factors = {"old": 0.1, "new": 10.0}
    optimizer: Any = wc.pipeline(
        lambda rate: optax.partition(
            {label: optax.sgd(factor * rate) for label, factor in factors.items()},
            wc.label_by_path({"old": "w", "new": "b"}),
        ),
        NAMES["schedule"],
        max_norm=None,
    )
    grads = {"w": jnp.ones(3), "b": jnp.ones(2)}
    opt_state, update = optimizer.init(grads), jax.jit(optimizer.update)
    for step in range(3):
        updates, opt_state = update(grads, opt_state, grads)
        rate = float(NAMES["schedule"](step))
        np.testing.assert_allclose(updates["w"], -0.1 * rate, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], -10.0 * rate, rtol=1e-6)


@pytest.fixture(scope="module")
def in_use(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cells of tables speak of: parameters, an optimizer, its state, a checkpoint of it."""
    params = {"moe": {"kernel": jnp.ones(2)}, "head": jnp.ones(3)}
    optimizer: Any = wc.pipeline(optax.adamw, NAMES["schedule"], record=4, record_leaves=True)
    opt_state = optimizer.init(params)
    path = tmp_path_factory.mktemp("run") / "state.msgpack"
    path.write_bytes(flax.serialization.to_bytes(opt_state))
    trees = dict.fromkeys(("params", "grads", "ema", "new_ema", "new", "old", "updates"), params)
    optimizers = {"optimizer": optimizer, "opt_state": opt_state, "step": 0, "path": path, "k": 2}
    return NAMES | trees | optimizers | {"jax": jax, "jnp": jnp, "optax": optax}


#: What frameworks.ipynb runs, and what needs a model.
MODELS = GUIDE.partition("## In your framework")[2].partition("## Use many devices")[0]
PAGES_OF_ROWS = {"README.md": README, "colabs/README.md": GUIDE.replace(MODELS, "")}


@pytest.mark.parametrize("page", PAGES_OF_ROWS)
def test_what_a_table_says_to_write_runs(page: str, in_use: dict[str, Any]):
    """Each cell with a call of this package: options by a call of `dict`, `...` as the optimizer."""
    rows = [line for line in PAGES_OF_ROWS[page].splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in re.findall(r"`([^`]*\bwc\.[^`]*)`", row)]
    assert len(cells) > 8
    for cell in cells:
        code = cell.replace("wc.pipeline(...)", "optimizer").replace("=…", "=8")
        code = code.replace("(…", "(epochs=8, dataset_size=8, batch_size=8")
        if re.match(r"\w+=", code):
            code = f"dict({code})"
        run_cell(code, in_use | {"power": 2.0, "end": end})


def run_cell(code: str, names: dict[str, Any]) -> None:
    loops = code.startswith("if ")
    exec(f"for _ in range(1):\n    {code}" if loops else code, names)
