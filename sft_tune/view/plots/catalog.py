"""Every plot by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sft_tune.errors import UserError
from sft_tune.view.material import Material
from sft_tune.view.plots import style
from sft_tune.view.plots.draw_course import draw_curves, draw_history
from sft_tune.view.plots.draw_default import draw_default
from sft_tune.view.plots.draw_parallel import draw_parallel
from sft_tune.view.plots.draw_space import draw_contour, draw_importances, draw_slices
from sft_tune.view.plots.draw_time import draw_cost, draw_timeline
from sft_tune.view.plots.space_rows import chosen

PAGE = ".html"
PICTURES = (".png", ".svg", ".pdf", ".webp", ".jpg")

_COUNTS = {"slice": 2, "contour": 2}


class Plot(NamedTuple):
    """A plot: what it shows, and how it is drawn of a study and hyperparameters."""

    shows: str
    draw: Callable[[Material, Sequence[str]], style.Drawing]


PLOTS: dict[str, Plot] = {
    "history": Plot("each trial's value and the best so far", lambda m, _: draw_history(m)),
    "curves": Plot("learning curves, pruned ones faint", lambda m, _: draw_curves(m)),
    "importances": Plot("how much each hyperparameter matters", lambda m, _: draw_importances(m)),
    "slice": Plot("the objective along hyperparameters", draw_slices),
    "contour": Plot("the objective over two hyperparameters", draw_contour),
    "parallel": Plot("all hyperparameters side by side", lambda m, _: draw_parallel(m)),
    "cost": Plot("quality against time on the device", lambda m, _: draw_cost(m)),
    "timeline": Plot("which trial ran where and when", lambda m, _: draw_timeline(m)),
    "default": Plot("default against tuned, by metric", lambda m, _: draw_default(m)),
}


def draw_plot(material: Material, name: str, params: Sequence[str] = ()) -> style.Drawing:
    """Draw the plot ``name`` of a study.

    Args:
        material: the study.
        name: a key of `PLOTS`.
        params: hyperparameters for ``slice`` (any number) and ``contour`` (two). Default: the
            two most important.

    Raises:
        UserError: there is no such plot or hyperparameter, or the plot takes none.
    """
    if name not in PLOTS:
        raise UserError(f"no plot is called {name!r}; use one of {', '.join(PLOTS)}")
    if params and name not in _COUNTS:
        raise UserError(f"--param: only {' and '.join(_COUNTS)} are of certain hyperparameters")
    if name == "contour" and len(params) not in (0, 2):
        raise UserError(f"--param: contour needs two hyperparameters (got {len(params)})")
    names = chosen(material, params, _COUNTS[name]) if name in _COUNTS else []
    return PLOTS[name].draw(material, names)


def needs_importances(name: str, params: Sequence[str]) -> bool:
    """Tell whether a plot is of importances, or chooses by them what it is of."""
    return name in ("importances", "parallel") or (name in _COUNTS and not params)


def save_plot(drawing: style.Drawing, path: Path, name: str) -> None:
    """Write ``drawing`` to ``path``: a page (.html), or a picture by plotly's kaleido.

    Raises:
        UserError: an ending that is neither, or nothing is installed that draws pictures.
    """
    ending = path.suffix.lower()
    if ending == PAGE:
        path.write_text(style.as_html(drawing, name), encoding="utf8")
        return
    if ending not in PICTURES:
        raise UserError(
            f"--save: a plot is a page ({PAGE}) or a picture ({', '.join(PICTURES)}), "
            f"by its ending (got {path})"
        )
    _save_picture(drawing, path)


def _save_picture(drawing: style.Drawing, path: Path) -> None:
    try:
        import kaleido  # noqa: F401 (plotly looks for it itself; here it can be told of)
    except ImportError:
        raise UserError(
            f"--save {path.name}: pictures need kaleido: pip install 'sft_tune[pictures]'; "
            f"or save a page: --save {path.stem}{PAGE}"
        ) from None
    figure = style.titled(drawing, toolbar=False)
    try:
        figure.write_image(path, width=1000, height=figure.layout.height, scale=2)
    except Exception as error:
        # Its own and its browser driver's exceptions have no common base.
        if "chrome" not in f"{type(error).__name__} {error}".lower():
            raise
        raise UserError(
            f"--save {path.name}: pictures need Chrome or Chromium, which is not found; install "
            f"it (Debian: apt-get install chromium), or save a page: --save {path.stem}{PAGE}"
        ) from None
