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
lr, end, T, W, now = 0.5, 0.05, 100, 10, 40
NAMES = {"wc": wc, "lr": lr, "end": end, "T": T, "W": W, "now": now}
NAMES["schedule"] = wc.warmup_cosine_decay(peak_value=lr, total_steps=T, warmup_steps=W)


def cosine(share: Any) -> Any:
    return (1 + np.cos(np.pi * np.clip(share, 0, 1))) / 2


def warmed(t: Any) -> Any:
    return np.where(t < W, lr * t / W, lr * cosine((t - W) / (T - W)))


def triangle(t: Any) -> Any:
    return end + (lr - end) * (1 - np.abs(t % (2 * W) / W - 1))


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
    "triangles (CyclicLR)": triangle,
    "a learning-rate range test": lambda t: np.minimum(1e-7 * 1e8 ** (t / T), 10.0),
    "steps down, as DeepSeek": lambda t: np.select(
        [t < W, t < 80, t < 90, t >= 90], [lr * t / W, lr, 0.316 * lr, 0.1 * lr]
    ),
    "weight decay that follows the rate (AdamC)": lambda t: 0.1 * warmed(t) / lr,
}


def recipe(name: str) -> Any:
    (code,) = re.findall(rf"^\| {re.escape(name)} \| `(.*)` \|$", GUIDE, flags=re.MULTILINE)
    return eval(code, NAMES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_formula_over_the_whole_run(name: str):
    counts = np.arange(4 * T)
    # Powers of 1e8 take the rounding of their exponent along.
    rtol = 2e-5 if "range test" in name else 4e-6
    np.testing.assert_allclose(recipe(name)(counts), RECIPES[name](counts), rtol=rtol, atol=1e-7)


def test_the_table_of_recipes_holds_those_that_are_tested_and_floor_and_ceiling():
    table = GUIDE.partition("| recipe | you write |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]*) \| `", table, flags=re.MULTILINE)
    assert rows == [*RECIPES, "a floor, a ceiling"]


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
ELSEWHERE = GUIDE.partition("## In your framework")[2].partition("## Use many devices")[0]
PAGES_OF_ROWS = {"README.md": README, "colabs/README.md": GUIDE.replace(ELSEWHERE, "")}


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
