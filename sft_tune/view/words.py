"""Numbers, times and names as a person reads them; pure text, no rich."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_tune.spec.urls import is_url

if TYPE_CHECKING:
    from sft_tune.spec.space import Value
    from sft_tune.view.statistics import Interval

NOTHING = "–"
"""What stands in a table's empty cell."""

BLOCKS = "▁▂▃▄▅▆▇█"

REASONS = {
    "completed": "completed",
    "early_stopped": "stopped early",
    "pruned": "pruned",
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "crashed": "crashed",
    "stalled": "stalled",
    "stopped": "stopped",
    "duplicate": "duplicate",
    "running": "running",
    "waiting": "waiting",
}
"""The words for why a trial ended, and for one that has not."""

GOOD = ("completed", "early_stopped", "duplicate")


def number(value: float | int | None, digits: int = 4) -> str:
    """Return ``value`` with ``digits`` significant digits: ``3.2e-05``, ``0.01``, ``1.235e+04``.

    Integers stand in full, ``nan`` and ``inf`` as such, None as a dash.
    """
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return str(value)
    return f"{value:.{digits}g}"


def score(value: float | None) -> str:
    """Return a metric's ``value`` for a column of such: four decimals, ``0.8933``."""
    if value is None:
        return NOTHING
    if not math.isfinite(value) or (value and not 1e-3 <= abs(value) < 1e4):
        return number(value)
    return f"{value:.4f}"


def folds(flags: Mapping[str, Any] | None) -> str | None:
    """Return what the folds of a trial with ``flags`` gave: ``0.9000, 0.9200, deviation 0.0141``.

    None where it had none.
    """
    found = (flags or {}).get("folds")
    if found is None:
        return None
    values = ", ".join(score(value) for value in found["values"])
    spread = found["deviation"]
    return values if spread is None else f"{values}, deviation {score(spread)}"


def gain(value: float | None) -> str:
    """Return a difference of two scores with its sign: ``+0.0312``, ``-0.0007``."""
    if value is None:
        return NOTHING
    return f"{value:+.4f}" if not value or 5e-5 <= abs(value) < 1e4 else f"{value:+.4g}"


def plus_minus(interval: Interval | None) -> str:
    """Return ``0.9312 ± 0.0041``, or ``0.9312 (0.8102 to 1)`` where an end is cut off.

    The mean alone where there is no interval.
    """
    return NOTHING if interval is None else f"{score(interval.mean)}{_ends(interval, '')}"


def signed(interval: Interval | None) -> str:
    """Return a difference as ``+0.0123 ± 0.0040``, or ``+0.0123 (-1 to +0.3001)``."""
    return NOTHING if interval is None else f"{gain(interval.mean)}{_ends(interval, '+')}"


def _ends(interval: Interval, sign: str) -> str:
    if interval.low is None or interval.high is None:
        return ""
    if interval.half is not None:
        return f" ± {score(interval.half)}"
    low, high = (
        f"{end:{sign}g}" if float(end).is_integer() else f"{end:{sign}.4f}"
        for end in (interval.low, interval.high)
    )
    return f" ({low} to {high})"


def chance(probability: float | None) -> str:
    """Return a probability that was estimated: ``57%``; never a certain one: ``>99%``, ``<1%``.

    Rounded down, so that it never seems to reach a threshold that it has not.
    """
    if probability is None:
        return NOTHING
    if probability > 0.99:
        return ">99%"
    return "<1%" if probability < 0.01 else f"{math.floor(100 * probability + 1e-9)}%"


def setting(value: object, digits: int = 4) -> str:
    """Return a hyperparameter's ``value`` as the study file writes it, in short.

    Numbers have ``digits`` digits; of an absolute path its last part is left.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value, digits)
    return re.sub(r"(^|:)/(?:[^/]+/)+(?=[^/])", r"\1…/", str(value))


def settings(params: Mapping[str, Value], *, without: Iterable[str] = ()) -> str:
    """Return ``params`` on one line: ``learning_rate=3.2e-05, schedule=cosine``.

    Without spaces inside a pair, so that a narrow screen breaks the line between two.
    """
    left_out = set(without)
    parts = [f"{name}={setting(v)}" for name, v in params.items() if name not in left_out]
    return ", ".join(parts)


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units: ``0.41s``, ``8.2s``, ``1m 23s``, ``2h 05m``."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 1:
        return f"{max(seconds, 0.0):.2f}s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"


def moment(when: datetime | None) -> str:
    """Return ``when`` (aware) as local time to the minute: ``2026-03-01 14:05``."""
    return NOTHING if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: float | None) -> str:
    """Return a count of bytes: ``512 B``, ``43.1 MB``."""
    if count is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def amount(count: int | None) -> str:
    """Return a large ``count``: ``812``, ``11.2M``."""
    if count is None:
        return NOTHING
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (limit if unit != 'k' else 1e3):.1f}{unit}"
    return str(count)


def rate(value: float) -> str:
    """Return how many of something there are in a unit of time: ``0.25``, ``43.1``, ``17,000``."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def plural(count: int, noun: str) -> str:
    """Return ``1 trial``, ``3 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def reasons(counts: Mapping[str, int]) -> str:
    """Return how trials ended: ``12 completed, 7 pruned``; the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {REASONS.get(reason, reason)}" for reason, count in ranked if count)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last ``width`` of ``values`` as bars from their least to their greatest.

    A value that is not finite is a gap; equal values stand at half height.
    """
    shown = list(values)[-width:] if width > 0 else []
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * len(shown)
    low, high = min(finite), max(finite)
    top = len(BLOCKS) - 1

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return " "
        share = (value - low) / (high - low) if high > low else 0.5
        return BLOCKS[min(top, round(share * top))]

    return "".join(bar(value) for value in shown)


def short_path(path: str | Path, base: Path | None = None) -> str:
    """Return ``path`` as a person types it: relative to ``base`` (the working directory) if below.

    A path below the home directory begins with ``~``; a URL stays as it is.
    """
    if is_url(str(path)):
        return str(path)
    absolute = Path(path)
    for root, prefix in ((base or Path.cwd(), ""), (Path.home(), "~/")):
        if absolute.is_relative_to(root) and absolute != root:
            return prefix + absolute.relative_to(root).as_posix()
    return str(absolute)
