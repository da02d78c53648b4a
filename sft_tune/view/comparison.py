"""What `sft_tune.compare` returns: a comparison for notebooks and programs."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_tune.errors import UserError
from sft_tune.view import contest_tables as tables
from sft_tune.view import words
from sft_tune.view.contest import Contest, contest
from sft_tune.view.contest_cost import AXES
from sft_tune.view.marginal import Marginal, marginal_cells, marginal_words
from sft_tune.view.report_page import figure_html, page, table_html, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from plotly.graph_objects import Figure

    from sft_tune.view.contest_tables import Cells
    from sft_tune.view.finalists import Standings
    from sft_tune.view.material import Material
    from sft_tune.view.plots.style import Drawing

HEADINGS = {"trials": "By trials", "seconds": "By time on the device", "wall": "By wall time"}


@dataclass(frozen=True, repr=False)
class Comparison:
    """Studies side by side, as pandas frames, pictures and a page.

    Attributes:
        result: every number, as tuples.
    """

    result: Contest

    def __repr__(self) -> str:
        """Say in a line what is compared; every trial of the studies is in `result`."""
        found = (
            f"{entrant.label!r} {words.score(entrant.spent.best)}"
            for entrant in self.result.entrants
        )
        return f"<Comparison by {self.result.metric}: {', '.join(found)}>"

    @property
    def studies(self) -> pd.DataFrame:
        """A row a study: what it spent and found, and what with the same budget."""
        return _frame(tables.study_records(self.result)).set_index("study")

    @property
    def steps(self) -> pd.DataFrame:
        """A row a trial that ended: what its study had spent by then, and its best so far."""
        return _frame(tables.step_records(self.result))

    @property
    def shares(self) -> pd.DataFrame:
        """A row for each study and part of the same budget: found, expected, 95 % of orders."""
        return _frame(tables.chance_records(self.result))

    @property
    def winners(self) -> pd.DataFrame:
        """Settings in which the best configurations differ: a row a setting, a column a study."""
        names = [entrant.label for entrant in self.result.entrants]
        return _frame(
            [dict(zip(names, values, strict=True)) for values in self.result.differing.values()],
            columns=names,
        ).set_axis(list(self.result.differing), axis="index")

    def plot(self, axis: str = "seconds") -> Figure:
        """Return the best value against the budget as a figure of plotly.

        Args:
            axis: ``trials``, ``seconds`` (on the device) or ``wall``.

        Raises:
            UserError: there is no such axis.
        """
        from sft_tune.view.plots.draw_contest import draw_best_so_far
        from sft_tune.view.plots.style import titled

        if axis not in AXES:
            raise UserError(f"no axis is called {axis!r}; use one of {', '.join(AXES)}")
        return titled(draw_best_so_far(self.result, axis))

    def _repr_html_(self) -> str:
        heads = "".join(_cells_html(cells) for cells in tables.tables(self.result))
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in tables.in_words(self.result))
        return f"<div>{lines}{heads}</div>"

    def to_html(self) -> str:
        """Return the comparison as one page that fetches nothing, like the report."""
        from sft_tune.view.plots.draw_contest import draw_best_so_far

        names = " against ".join(entrant.label for entrant in self.result.entrants)
        aim = f"{'maximize' if self.result.maximize else 'minimize'} {self.result.metric}"
        told = tables.in_words(self.result)
        head = (
            f'<h1>{text(names)}</h1>\n<p class="quiet">{text(aim)} on validation</p>\n'
            f'<p class="lead">{text(told[0])}</p>\n'
            + "".join(f"<p>{text(line)}</p>" for line in told[1:])
        )
        drawn = [(axis, draw_best_so_far(self.result, axis)) for axis in AXES]
        figures = "".join(figure_section(drawing, axis, HEADINGS[axis]) for axis, drawing in drawn)
        heads = "".join(
            f'<section class="part">{_cells_html(cells)}</section>'
            for cells in tables.tables(self.result)
        )
        return page(f"{names}: comparison", f"{head}\n{figures}\n{heads}")


def compared(
    materials: Sequence[Material], labels: Sequence[str], standings: Sequence[Standings | None]
) -> Comparison:
    """Return the studies side by side; see `contest.contest`."""
    return Comparison(contest(materials, labels, standings))


def figure_section(drawing: Drawing, name: str, heading: str) -> str:
    """Return a part of a page with a figure, its title and how to read it."""
    return (
        f'<section class="part"><h2>{text(heading)}</h2><p><b>{text(drawing.title)}.</b></p>'
        f'<p class="quiet">{text(drawing.note)}</p>{figure_html(drawing, name)}</section>'
    )


def marginal_html(found: Marginal) -> str:
    """Return the effect of one hyperparameter as a page that fetches nothing."""
    from sft_tune.view.plots.draw_contest import draw_marginal

    cells = marginal_cells(found)
    drawing = draw_marginal(found)
    lines = "".join(f"<p>{text(line)}</p>" for line in marginal_words(found))
    body = (
        f"<h1>{text(found.study)}: {text(found.name)}</h1>\n{lines}"
        f"{figure_section(drawing, 'marginal', found.metric)}{_cells_html(cells)}"
    )
    return page(f"{found.study}: {found.name}", body)


def _cells_html(cells: Cells) -> str:
    note = f'<p class="quiet">{text(cells.note)}</p>' if cells.note else ""
    table = table_html(cells.titles, cells.rows, wrapped=cells.wrapped)
    return f"<h2>{text(cells.heading)}</h2>{note}{table}"


def _frame(records: Sequence[dict[str, Any]], columns: list[str] | None = None) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame.from_records(list(records), columns=columns)
