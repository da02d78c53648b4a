"""The report's parts that judge: are the finalists' leads real, and what to change next."""

from __future__ import annotations

from sft_tune.view.advice import Advice
from sft_tune.view.finalists import Standings
from sft_tune.view.finalists_tables import DIFFERENCES, difference_cells, score_cells, score_titles
from sft_tune.view.finalists_words import in_words
from sft_tune.view.judgement import advice_of, standings_of
from sft_tune.view.material import Material
from sft_tune.view.report_page import prose, table_html, text


def finalists_html(material: Material) -> str:
    """Return how the finalists stand, as HTML; of a study without any, how to get some."""
    found = standings_of(material)
    if found is None:
        told = "No configuration was trained again over fresh seeds"
        name = material.study.name
        if not material.study.managed:
            return f"<p>{text(told)}.</p>"
        return (
            f"<p>{text(told)}: how much of the best score is luck is not known.</p>"
            f"<pre>{text(f'sft-tune confirm {name} --top 3 --seeds 5')}</pre>"
        )
    return _standings(found)


def _standings(found: Standings) -> str:
    lines = "".join(f"<p>{prose(line)}</p>" for line in in_words(found))
    return (
        f"{lines}<p><b>{text(found.metric)} over fresh seeds, mean and 95 % interval</b></p>"
        f"{table_html(score_titles(found), score_cells(found), best=0)}"
        "<p><b>Differences on validation, seed by seed</b></p>"
        f"{table_html(DIFFERENCES, difference_cells(found), best=0)}"
        '<p class="quiet">Intervals are Student\'s t; best: the probability that the true mean is '
        "the best of these, by the posterior means over the same seeds; luck: what the search's "
        "score was above the mean over fresh seeds.</p>"
    )


def advice_html(material: Material) -> str:
    """Return what to change next, as HTML."""
    found = advice_of(material)
    if not found:
        return "<p>Nothing stands out from chance.</p>"
    return f"<ul>{''.join(_piece(piece) for piece in found)}</ul>"


def _piece(piece: Advice) -> str:
    line = ""
    if piece.line is not None:
        gone = f"   # and without {', '.join(piece.removes)}" if piece.removes else ""
        line = f"<pre>{text(f'{piece.section}:')}\n{text(f'  {piece.line}{gone}')}</pre>"
    return f"<li>{prose(piece.text)}{line}</li>"
