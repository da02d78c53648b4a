"""The page around a report: its style, its one script, and how text and figures get into it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from sft_tune.view.plots.style import Drawing

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
"""What the page may load: nothing from anywhere; a browser holds it to that."""

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --quiet: #5f6b76; --rule: #e3e7ea; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 28px 22px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--rule);
  overflow-wrap: anywhere; }
p { margin: 6px 0; overflow-wrap: anywhere; } .quiet { color: var(--quiet); font-size: 0.9rem; }
.lead { font-size: 1.12rem; margin: 14px 0 6px; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px;
  margin: 18px 0; }
.facts div { border: 1px solid var(--rule); border-radius: 6px; padding: 8px 12px; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; line-height: 1.3; }
.facts span { color: var(--quiet); font-size: 0.82rem; }
nav { font-size: 0.9rem; margin: 14px 0 0; } nav a { color: var(--blue); margin-right: 14px;
  text-decoration: none; white-space: nowrap; display: inline-block; padding: 3px 0; }
/* Where more of a table lies beside the screen there is a shadow at that edge. */
.scroll { overflow-x: auto;
  background: linear-gradient(to right, #fff 40%, transparent) 0 0 / 40px 100% local no-repeat,
    linear-gradient(to left, #fff 40%, transparent) 100% 0 / 40px 100% local no-repeat,
    linear-gradient(to right, #0003, transparent) 0 0 / 12px 100% scroll no-repeat,
    linear-gradient(to left, #0003, transparent) 100% 0 / 12px 100% scroll no-repeat; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--quiet); font-weight: 500; vertical-align: bottom; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
.wrapped td { white-space: normal; overflow-wrap: anywhere; } tr.best td { font-weight: 650; }
td.c { white-space: nowrap; }
pre { background: #f6f8f9; border: 1px solid var(--rule); border-radius: 6px; padding: 12px;
  overflow-x: auto; font-size: 0.82rem; line-height: 1.45; }
summary { cursor: pointer; color: var(--blue); margin: 8px 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; margin: 6px 0; } li { margin: 8px 0; overflow-wrap: anywhere; }
.plot { width: 100%; } .js-off { color: var(--quiet); }
@media (max-width: 560px) { main { padding: 18px 14px 40px; } body { font-size: 15px; }
  h2 { margin-top: 32px; } table { font-size: 0.8rem; } th, td { padding-right: 8px; }
  td.c { white-space: normal; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
@media print { main { max-width: none; padding: 0; } nav { display: none; }
  .part { break-inside: avoid; } h2 { break-after: avoid; } pre { white-space: pre-wrap; }
  .scroll { overflow: visible; } table { font-size: 0.8rem; } #trials table { font-size: 0.66rem; }
  th, td { padding-right: 6px; } tr, li { break-inside: avoid; }
  h2 + p, p:has(+ .scroll) { break-after: avoid; } }
@page { margin: 14mm; }
"""

# A figure is drawn when it comes near the screen, all of them before the page is printed.
SCRIPT = """
(function () {
  "use strict";
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var paper = 660;
  function draw(node) {
    if (node.dataset.drawn) { return; }
    node.dataset.drawn = "1";
    var told = JSON.parse(document.getElementById(node.id + "-data").textContent);
    node.textContent = "";
    if (node.clientWidth < 560) { narrow(told.layout); }
    Plotly.newPlot(node, told.data, told.layout, { displayModeBar: false, responsive: true });
  }
  function narrow(layout) {
    layout.font.size = 11;
    layout.dragmode = false;
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis/.test(key)) { layout[key].fixedrange = true; }
    });
  }
  if ("IntersectionObserver" in window) {
    var near = new IntersectionObserver(function (seen) {
      seen.forEach(function (one) { if (one.isIntersecting) { draw(one.target); } });
    }, { rootMargin: "600px" });
    plots.forEach(function (node) { near.observe(node); });
  } else { plots.forEach(draw); }
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (node) { node.open = true; });
    plots.forEach(function (node) { draw(node); Plotly.relayout(node, { width: paper }); });
  });
  window.addEventListener("afterprint", function () {
    plots.forEach(function (node) { Plotly.relayout(node, { width: null, autosize: true }); });
  });
})();
"""


def text(value: object) -> str:
    """Return ``value`` as text of the page, whatever is in it."""
    return html.escape(str(value), quote=True)


def prose(value: str) -> str:
    """Return ``value`` as text of the page, with what stands between backticks as code."""
    parts = value.split("`")
    if len(parts) % 2 == 0:  # one without its other half is itself
        return text(value)
    return "".join(f"<code>{text(p)}</code>" if i % 2 else text(p) for i, p in enumerate(parts))


def figure_html(drawing: Drawing, name: str) -> str:
    """Return the place of a figure and its numbers; the script of the page draws it."""
    # Within <script> only `<` can end it or begin a comment.
    data = str(drawing.figure.to_json()).replace("<", "\\u003c")
    height = drawing.figure.layout.height or 380
    return (
        f'<div class="plot" id="plot-{text(name)}" style="min-height:{int(height)}px" '
        f'role="img" aria-label="{text(drawing.title)}"></div>'
        f'<script type="application/json" id="plot-{text(name)}-data">{data}</script>'
    )


def table_html(
    titles: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: Sequence[int] = (0,),
    best: int | None = None,
    wrapped: bool = False,
) -> str:
    """Return a table that scrolls by itself where it is wider than the screen.

    Args:
        titles: of the columns.
        rows: their cells.
        left: columns of words; the others are of numbers, to the right.
        best: index of the row that is set off.
        wrapped: long cells take several lines, so that a narrow screen shows them all.
    """

    def cell(tag: str, column: int, value: object) -> str:
        kind = "c" if column in left else "n"
        told = text(value)
        if tag == "th":
            # A long name may break there, so that its column gets no wider than its numbers.
            told = told.replace("_", "_<wbr>").replace(".", ".<wbr>")
        return f'<{tag} class="{kind}">{told}</{tag}>'

    head = "".join(cell("th", i, title) for i, title in enumerate(titles))
    body = "".join(
        f"<tr{' class=best' if place == best else ''}>"
        + "".join(cell("td", i, value) for i, value in enumerate(row))
        + "</tr>"
        for place, row in enumerate(rows)
    )
    return (
        f'<div class="{"wrapped" if wrapped else "scroll"}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def page(title: str, body: str) -> str:
    """Return the whole page; plotly is in it once."""
    from plotly.offline import get_plotlyjs

    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        '<noscript><p class="quiet">The figures need JavaScript; the tables do not.</p></noscript>'
        f"\n</main>\n<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
