from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sft_tune.view.report import MOST_ROWS, ranked, report_html
from tests.view.examples import DEFAULT, pruned_row, running_row, trial_row
from tests.view.materials import curve, material, study_record
from tests.view.test_finalists import run

VERSIONS = {"sft_tune": "0.1.0"}
EVIL = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'


class Page(HTMLParser):
    """What a browser would see: text, scripts and whatever would be fetched."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.fetched: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")
        self.fetched += [v or "" for k, v in attrs if k in ("src", "data", "srcset")]
        self.fetched += [v or "" for k, v in attrs if k == "href" and not (v or "").startswith("#")]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data
        self.text.append(data)


def searched() -> Any:
    rows = [
        trial_row(0, 0.5, params=DEFAULT, config={"model": {}, "training": {}}),
        trial_row(1, 0.9, config={"model": {}, "training": {}}),
        pruned_row(2, value=0.4),
        running_row(3),
        trial_row(4, None, state="FAIL", reason="crashed", note="no more disk\nand so on"),
    ]
    return material(rows, [*curve(0, [0.4, 0.5]), *curve(1, [0.6, 0.9])])


def test_a_report_has_every_part_and_fetches_nothing() -> None:
    page = Page(report_html(searched(), VERSIONS))
    text = " ".join(page.text)
    for part in (
        "Trial 1 reached accuracy 0.9000 on validation",
        "0.5000 (+0.4000)",
        "measured on 100 validation examples".capitalize(),
        "Best configuration: trial 1",
        "Default against tuned",
        "Learning curves",
        "What matters",
        "Timeline",
        "trial 4 says: no more disk",
        "name: s",
        "2.14.0",
        "sft_tune 0.1.0",
    ):
        assert part in text, part
    assert page.fetched == []
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_finalists_and_advice_are_in_the_report() -> None:
    study = searched()
    runs = [run(n, seed, v + seed / 100) for n, v in ((1, 0.85), (0, 0.5)) for seed in range(3)]
    text = " ".join(Page(report_html(study._replace(runs=runs), VERSIONS)).text)
    assert "Confirmed: trial 1 is the best of the 2 with a probability of" in text
    assert "0.8600 ± 0.0248" in text and "+0.3500 ±" in text and "0 (default)" in text
    assert "sft-tune confirm s --top 3 --seeds 5" in " ".join(
        Page(report_html(study, VERSIONS)).text
    )
    assert "Nothing stands out from chance." in text
    close = material([trial_row(0, 0.90), trial_row(1, 0.91)])
    assert "<code>sft-tune confirm s</code> before" in report_html(close, VERSIONS)
    text = " ".join(Page(report_html(close, VERSIONS)).text)
    assert "trial 1 leads by 0.0100" in text and "confirm:\n  seeds: 5" in text
    foreign = report_html(material([trial_row(0, 0.9)], managed=False), VERSIONS)
    assert "sft-tune confirm" not in foreign


def test_each_figure_is_strict_json_with_a_place_of_its_own() -> None:
    source = report_html(searched(), VERSIONS)
    places = re.findall(r'<div class="plot" id="([\w-]+)"', source)
    assert len(places) == len(set(places)) == 9
    for place in places:
        found = re.search(rf'id="{place}-data">(.*?)</script>', source, flags=re.S)
        assert found is not None
        json.loads(found[1], parse_constant=lambda name: pytest.fail(name))


def test_nothing_in_a_study_becomes_a_tag() -> None:
    row = trial_row(0, 0.9, params={EVIL: EVIL, "x": 1}, note=EVIL, metrics={EVIL: 0.1})
    other = trial_row(1, 0.8, params={EVIL: "y", "x": 2}, host=EVIL, device=EVIL)
    failed = trial_row(2, None, state="FAIL", reason=EVIL, note=EVIL, params={})
    study = material([row, other, failed], name=EVIL, metric=EVIL)
    study = study._replace(record=study_record(text=EVIL, path=EVIL, versions={EVIL: EVIL}))
    page = Page(report_html(study, {EVIL: EVIL}))
    assert "img" not in page.tags
    assert not [script for script in page.scripts if script.strip().startswith("alert")]
    assert page.tags.count("script") == 11  # nine figures, plotly and ours
    assert EVIL in " ".join(page.text)


@pytest.mark.parametrize(
    "study",
    [
        material(),
        material(managed=False),
        material([pruned_row(0)]),
        material([trial_row(0, float("nan"))], managed=False),
    ],
)
def test_a_study_with_little_in_it_has_a_report_too(study: Any) -> None:
    assert "No trial has completed yet." in report_html(study, VERSIONS)


def test_the_report_of_a_study_that_failed_leads_with_the_error() -> None:
    rows = [
        trial_row(n, None, state="FAIL", reason="crashed", note="RuntimeError: boom")
        for n in range(5)
    ]
    source = report_html(material(rows), VERSIONS)
    assert "Every trial failed (5 crashed): RuntimeError: boom." in source
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings == ["What to change next", "Trials", "How it was made"]
    assert "sft-tune show s 0" in source and "sft-tune confirm" not in source


def test_of_very_many_trials_the_table_has_the_best() -> None:
    rows = [trial_row(n, n / 1000, params={"a": n}) for n in range(500)]
    text = " ".join(Page(report_html(material(rows, managed=False), VERSIONS)).text)
    assert f"{MOST_ROWS} of 500" in text
    assert " 499 " in text


def test_trials_are_ranked_completed_first_and_without_a_value_last() -> None:
    rows = [
        pruned_row(0, value=0.99),
        trial_row(1, 0.5),
        trial_row(2, float("nan")),
        trial_row(3, 0.9),
        running_row(4),
    ]
    assert [r.number for r in ranked(material(rows))] == [3, 1, 2, 0, 4]
    least = material(rows, direction="minimize")
    assert [r.number for r in ranked(least)] == [1, 3, 2, 0, 4]
