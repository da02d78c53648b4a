"""Smoke tests: every plot of studies of every kind is drawn, and says what is seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sft_tune.cli.plot import Name
from sft_tune.errors import UserError
from sft_tune.store.importances import Importances
from sft_tune.view.material import Material
from sft_tune.view.plots import style
from sft_tune.view.plots.catalog import PLOTS, draw_plot, save_plot
from sft_tune.view.plots.marks import time_unit
from sft_tune.view.plots.style import titled
from tests.view.examples import DEFAULT, pruned_row, running_row, trial_row
from tests.view.materials import curve, material


def searched(count: int) -> Material:
    rows: list[Any] = [trial_row(0, 0.5, params=DEFAULT)]
    for n in range(1, count):
        params = {
            "learning_rate": 10.0 ** -(2 + n % 4),
            "model.weights": ["none", "DEFAULT"][n % 2],
        }
        if n % 3 == 0:
            params["decay_factor"] = 0.5 + (n % 5) / 10
        make = trial_row if n % 4 == 1 else pruned_row
        rows.append(make(n, value=0.4 + (n % 97) / 200, params=params))
    rungs = [rung for row in rows for rung in curve(row.number, [0.3, 0.4, 0.5])]
    shares = Importances((("learning_rate", 0.8), ("model.weights", 0.2)), count, count // 2)
    return material(rows, rungs, importances=shares)


STRANGE = material(
    [
        trial_row(0, math.nan, params={"<b>x</b>": None, "y": math.inf}),
        trial_row(1, math.inf, params={"<b>x</b>": "</script>", "y": 1}),
        trial_row(2, 1e300, params={"<b>x</b>": True, "y": -1}, seconds=None),
        pruned_row(3, value=None, params={}),
        trial_row(4, None, state="FAIL", reason="crashed", started=None),
        running_row(5),
    ],
    curve(1, [math.nan, math.inf, 2.0]),
    managed=False,
)
STUDIES = {
    "nothing": material(),
    "one trial": searched(1),
    "none completed": material([pruned_row(0), pruned_row(1)], curve(0, [0.1])),
    "a few": searched(30),
    "strange values": STRANGE,
}


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("kind", STUDIES)
def test_every_plot_of_every_study_is_drawn_and_titled(name: str, kind: str) -> None:
    drawing = draw_plot(STUDIES[kind], name)
    assert drawing.title
    text = titled(drawing).to_json()
    assert "<b>x</b>" not in text  # plotly would take it for bold
    assert len(text) < 100_000


@pytest.mark.parametrize("name", PLOTS)
def test_ten_thousand_trials_stay_below_a_megabyte(name: str) -> None:
    study = STUDIES.setdefault("ten thousand", searched(10_000))
    assert len(draw_plot(study, name).figure.to_json()) < 1_000_000


def test_titles_say_what_is_seen() -> None:
    rows = [trial_row(0, 0.5, params=DEFAULT), trial_row(1, 0.9)]
    study = material(rows)
    assert draw_plot(study, "history").title == (
        "Trial 1 reached accuracy 0.9000, 0.4000 above the default configuration"
    )
    assert draw_plot(study, "cost").title == (
        "accuracy 0.9000 took 10s on the device (trial 1); the default's 0.5000 took 10s"
    )
    assert draw_plot(study, "default").title == "accuracy 0.5000 → 0.9000 (+0.4000)"
    assert draw_plot(material(rows[:1]), "history").title.endswith(
        "nothing tried beats the default configuration"
    )


def test_no_mark_is_cut_in_half_or_lost() -> None:
    history = draw_plot(STUDIES["a few"], "history").figure
    low, high = history.layout.xaxis.range
    assert low < 0 and high > 29
    contour = draw_plot(STUDIES["a few"], "contour", ["learning_rate", "decay_factor"]).figure
    pruned = next(trace for trace in contour.data if trace.name == "pruned")
    assert (pruned.marker.color, pruned.marker.line.color) == ("#ffffff", style.INK)


def test_the_toolbar_lies_on_no_title() -> None:
    drawing = draw_plot(STUDIES["a few"], "slice")
    page, picture = titled(drawing), titled(drawing, toolbar=False)
    assert page.layout.title.pad.t - picture.layout.title.pad.t == 22
    assert page.layout.height - picture.layout.height == 22


def test_few_trials_are_said_to_rank_importances_badly() -> None:
    assert "may change" in draw_plot(searched(12), "importances").note
    assert "may change" not in draw_plot(searched(40), "importances").note


def test_nothing_is_said_to_matter_most_that_chance_explains() -> None:
    """The quickstart once had label_smoothing in bold, of which `compare --by` said 0 %."""
    study = searched(24)
    assert "do not tell from chance" in draw_plot(study, "importances").title
    other = study._replace(seen=("model.weights",))
    assert draw_plot(other, "importances").title.startswith("Beyond chance only model.weights")
    assert "along model.weights and learning_rate" in draw_plot(other, "slice").title
    first = study._replace(seen=("learning_rate",))
    assert draw_plot(first, "importances").title == "learning_rate matters most (80%)"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("pie",), "use one of history, curves"),
        (("history", ["a"]), "only slice and contour"),
        (("contour", ["learning_rate"]), "needs two"),
        (("slice", ["x"]), "no hyperparameter 'x'"),
    ],
)
def test_a_plot_that_is_not_there_is_the_users_to_change(args: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        draw_plot(STUDIES["a few"], *args)


def test_the_command_knows_every_plot() -> None:
    assert set(Name.__args__) == set(PLOTS)  # type: ignore[attr-defined]


def test_a_page_has_plotly_once_and_fetches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    save_plot(draw_plot(STUDIES["a few"], "history"), path, "<i>")
    text = path.read_text(encoding="utf8")
    assert text.count("plotly.js v") == 1
    assert "<title>&lt;i&gt;</title>" in text
    assert "<script src" not in text


def test_an_ending_that_is_no_picture_is_refused() -> None:
    with pytest.raises(UserError, match=r"by its ending \(got x.txt\)"):
        save_plot(draw_plot(STUDIES["a few"], "history"), Path("x.txt"), "x")
    with pytest.raises(UserError, match=r"\(got \.\)"):
        save_plot(draw_plot(STUDIES["a few"], "history"), Path("."), "x")


@pytest.mark.parametrize(
    ("seconds", "unit"), [(1, "seconds"), (119, "seconds"), (120, "minutes"), (1e6, "days")]
)
def test_times_have_the_unit_in_which_they_are_read_best(seconds: float, unit: str) -> None:
    assert time_unit(seconds)[1] == unit
