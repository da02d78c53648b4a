"""The report and the comparison in a real browser, wide and on a phone, without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sft_tune.view.comparison import compared, marginal_html
from sft_tune.view.finalists import standings
from sft_tune.view.judgement import evidence_of
from sft_tune.view.marginal import marginal
from sft_tune.view.material import Material
from sft_tune.view.report import report_html
from tests.view.examples import DEFAULT, pruned_row, rung_row, study_spec, trial_row
from tests.view.materials import curve, material, study_record
from tests.view.test_finalists import run

NAME = "a-study-with-a-long-name-that-no-phone-has-room-for-on-one-line"
LONG = "/home/someone/" + "a_folder_whose_name_has_no_space_in_it/" * 4
PATIENCE = 60.0


def searched(name: str, best: float, runs: bool) -> Material:
    """Return a study with names and paths that are too long for a phone."""
    rows = [
        trial_row(0, 0.5, params=DEFAULT, config={"model": {}, "training": {}}),
        trial_row(1, best, params={"learning_rate": 2e-3, "model.weights": f"{LONG}w.safetensors"}),
        *(
            trial_row(n, 0.6 + n / 100, params={**DEFAULT, "learning_rate": n / 1e3})
            for n in (2, 3)
        ),
        *(pruned_row(n, value=0.4, params={**DEFAULT, "learning_rate": n / 1e4}) for n in (4, 5)),
        trial_row(6, None, state="FAIL", reason="crashed", note=f"no more disk: {LONG}"),
    ]
    rungs = [*curve(0, [0.4, 0.5]), *curve(1, [0.6, best]), rung_row(2, 50, 0.6, 1.0)]
    record = study_record(study_spec(), text=f"name: {name}\n# {LONG}\n", path=f"{LONG}s.yaml")
    found = [run(n, s, v + s / 100) for n, v in ((1, best), (0, 0.5)) for s in range(3)]
    made = material(rows, rungs, name=name)
    return made._replace(record=record, runs=found if runs else ())


def report_page() -> tuple[str, tuple[str, ...], int]:
    page = report_html(searched(NAME, 0.8765, True), {"sft_tune": "0.1.0"})
    return page, ("Trial 1 reached accuracy 0.8765", "0.8865 ± 0.0248", "no more disk", "s.yaml"), 9


def compare_page() -> tuple[str, tuple[str, ...], int]:
    both = [searched(NAME, 0.8765, True), searched(f"{NAME}-2", 0.7654, False)]
    stand = [standings(study_spec(), one.trials, one.runs) for one in both]
    page = compared(both, [one.study.name for one in both], stand).to_html()
    return page, (f"{NAME} found accuracy 0.8765; {NAME}-2 0.7654.", "0.8865 ± 0.0248"), 3


def marginal_page() -> tuple[str, tuple[str, ...], int]:
    found = marginal(evidence_of(searched(NAME, 0.8765, False)), "learning_rate")
    return marginal_html(found), ("accuracy by learning_rate", "0.8765"), 1


@pytest.mark.parametrize("make", [report_page, compare_page, marginal_page])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_page_opens_without_a_network_and_fits_the_screen(
    browser: Any, tmp_path: Path, make: Any, width: int, height: int
) -> None:
    page, texts, figures = make()
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf8")
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.get_log("browser")
    browser.get(file.as_uri())
    assert draw_all(browser) == figures
    text = browser.execute_script("return document.body.innerText")
    for part in texts:
        assert part in text, part
    # A phone widens its page to what does not fit: then it is wider than the screen, too.
    sizes = "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    needed, there = browser.execute_script(sizes)
    assert needed <= there <= width == browser.execute_script("return window.innerWidth")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


def draw_all(browser: Any) -> int:
    """Scroll through the page as a reader does; return how many figures have been drawn."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    for place in range(0, height, 700):
        browser.execute_script(f"window.scrollTo(0, {place})")
        time.sleep(0.05)
    missing = "return [...document.querySelectorAll('.plot')].filter(p => !p.querySelector('svg'))"
    until = time.monotonic() + PATIENCE
    while browser.execute_script(f"{missing}.length") and time.monotonic() < until:
        time.sleep(0.2)
    drawn = "return document.querySelectorAll('.plot:has(svg.main-svg)').length"
    return int(browser.execute_script(drawn))
