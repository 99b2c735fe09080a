"""The night of the front page: the script that draws it says what stands there."""

import pathlib
import re

import jax
import matplotlib.image
import numpy as np
import pytest

from colabs import night

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
