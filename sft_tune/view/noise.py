"""How sure a score is that was measured on so many examples."""

from __future__ import annotations

import math

from sft_tune.view import words

PROPORTIONS = ("accuracy", "f1_micro")
"""The metrics that are a share of the examples (F1 of single labels, micro-averaged, is one)."""

Z = 1.96
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""


def measured(metric: str, value: float, examples: int) -> str:
    """Return in words on how many validation examples ``value`` was measured, and how sure it is.

    Of metrics that are no proportion only the number of examples is known.
    """
    told = f"measured on {words.plural(examples, 'validation example')}"
    if metric not in PROPORTIONS:
        return told
    low, high = interval(value, examples)
    return f"{told}: {words.score(low)} to {words.score(high)} with 95 % confidence"


def interval(share: float, examples: int) -> tuple[float, float]:
    """Return the 95 % interval of a ``share`` of ``examples``: Wilson's, within 0 and 1.

    E. B. Wilson, Journal of the American Statistical Association 22 (158), 1927.
    """
    spread = Z * Z / examples
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / examples + spread / (4 * examples)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def is_noise(metric: str, value: float, other: float, examples: int) -> bool:
    """Tell whether chance alone may make two values on ``examples`` differ so much, at 95 %.

    Taken as of two samples: which examples each got right, a sharper test of pairs, is not kept.
    Of metrics that are no proportion it is not known, and the answer no.
    """
    if metric not in PROPORTIONS:
        return False
    variance = (value * (1 - value) + other * (1 - other)) / examples
    return abs(value - other) <= Z * math.sqrt(variance)
