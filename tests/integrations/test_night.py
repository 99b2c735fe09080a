"""The night of the front page and those of the guide: the scripts say what stands there."""

import pathlib
import re

import jax
import matplotlib.image
import numpy as np
import pytest

import warmclip_jax as wc
from colabs import night, nights

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?)"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pathlib.Path]:
    out = tmp_path_factory.mktemp("night") / "night.png"
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setattr("builtins.print", lambda *words: printed.extend(map(str, words)))
        night.main(["--out", str(out)])
    return "\n".join(printed), out


def test_the_front_page_shows_lines_of_its_report_in_their_order(told: tuple[str, pathlib.Path]):
    report, shown = told[0].splitlines(), README.partition("```text\n")[2].partition("```")[0]
    lines = iter(report)
    for wanted in shown.splitlines():
        words = re.split(NUMBER, wanted)
        line = next(
            (each for each in lines if re.split(NUMBER, each)[::2] == words[::2]), f"no {wanted}"
        )
        numbers = re.split(NUMBER, line)[1::2]
        # Another XLA rounds another way, and 164 updates come before the last spike.
        np.testing.assert_allclose(
            np.array(numbers, float), np.array(words[1::2], float), rtol=0.05
        )
    assert shown.count("\n") == 8


def test_the_picture_of_the_front_page_is_of_the_size_that_the_script_draws(
    told: tuple[str, pathlib.Path],
):
    committed, drawn = (
        matplotlib.image.imread(path) for path in (ROOT / "colabs/night.png", told[1])
    )
    assert committed.shape == drawn.shape
    assert "(colabs/night.png)" in README


#: Calls, leaves and rates as the scripts put them, in sentences of the report.
CAUSES = {
    "log_of_zero": ("NaN or inf: call 77, ", "The loss was finite too"),
    "slow_growth": ("calls were skipped: nothing is being learnt", "with a lower learning rate"),
    "poisoned_inputs": ("Last spike: call 199, ", "Skipped: 49, 99, 149, 199, every 50 calls."),
    "poisoned_labels": ("Last spike of the loss: call 199, ", "Last spike: call 199, "),
    "resumed": ("No call had a NaN or inf.", "if the schedule is not meant to"),
    "float16_updates": ("first of that run: call 1, ", "which updates in float16 can make"),
    "outside": ("first of that run: call 120, ", "in running averages that a skipped call changed"),
}
#: How many times its usual norm a leaf has in the spike, at least and at most, as the guide says.
LEAVES = {
    "poisoned_inputs": {"hidden/bias": (0, 1), "head/kernel": (5, 100)},
    "poisoned_labels": dict.fromkeys(("hidden/bias", "gate/scale", "head/kernel"), (200, 2000)),
}
GUIDE = (ROOT / "colabs/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", nights.NIGHTS)
def test_the_report_of_a_night_holds_what_its_row_of_the_guide_says(name: str):
    with jax.numpy_rank_promotion("allow"):
        opt_state = nights.NIGHTS[name]()
    report = wc.report(opt_state)
    assert [sentence for sentence in CAUSES[name] if sentence not in report] == []
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(f"| `{name}` |")]
    shown = re.findall(r'"(.*?)"', row)
    assert shown, row
    assert [sentence for sentence in shown if sentence not in report] == []
    ratios = {
        leaf: float(ratio) for ratio, leaf in re.findall(r"  +(\S+) +\S+  (\w+/\w+)\n", report)
    }
    for leaf, (least, most) in LEAVES.get(name, {}).items():
        assert least < ratios[leaf] < most
    # A sentence of growth is told of one that grew, and that of sound checkpoints not.
    assert ("Updates taken in the trouble" in report) == (name == "slow_growth")
    assert "suspect the machine" not in report
