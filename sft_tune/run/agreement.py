"""Whether two measurements of the same weights agree, but for rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sft_tune.spec.tasks import METRICS, TASKS

LOSS = 1e-4
"""How much the loss may differ in single precision, relative to it (at least to 1): sums in
another order, on another device, differ by some 1e-6; any wrong tensor by 1e-2 and more."""

LOSS_REDUCED = 2e-2
"""The same where matrix products run in bf16, fp16 or TF32."""

LOGITS = 1e-4
"""How much a logit may differ, relative to the largest; always in single precision."""

ONNX_LOGITS = 1e-3
"""The same where another runtime computes, with kernels of its own."""

COUNTED = {
    name
    for task in ("image-classification", "token-classification", "causal-lm", "seq2seq")
    for name in TASKS[task].metrics
    if name not in ("loss", "perplexity")
}
"""Scores that are made of counts of right answers."""

TINY = 1e-9
"""What the subtraction of two decimal fractions may be off."""


def disagreements(
    measured: Mapping[str, float],
    recorded: Mapping[str, float],
    *,
    examples: int,
    reduced: bool,
) -> list[str]:
    """Return in words where ``measured`` differs from ``recorded`` beyond rounding.

    The loss is the sensitive one. A score that counts right answers may differ as much as two
    examples on the border between classes make, for their class may flip with the last bit.

    Args:
        measured: metrics of the exported files.
        recorded: metrics of the trial.
        examples: in the split.
        reduced: whether matrix products ran in less than single precision.
    """
    found = []
    for name, wanted in recorded.items():
        got = measured.get(name, math.nan)
        if name in COUNTED:
            share = max(2 / max(examples, 1), LOSS_REDUCED if reduced else 0.0)
            allowed = share * (METRICS[name].high or 1.0)
        else:
            allowed = (LOSS_REDUCED if reduced else LOSS) * max(1.0, abs(wanted))
        # Written so that a nan on either side is a difference.
        if not abs(got - wanted) <= allowed + TINY:
            found.append(f"{name} {got:.6g}, recorded {wanted:.6g}")
    return found
