"""What two forms of one model are compared by: logits of a few examples, metrics of a split."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import Prepared, Split, gather
from sft_tune.trial.data.batches import Normalize
from sft_tune.trial.device import resolve_precision
from sft_tune.trial.evaluate import evaluate
from sft_tune.trial.models import BuiltModel

EXAMPLES = 32

Example = Mapping[str, Tensor]
"""The inputs of a few examples, as a model takes them."""


def example_of(split: Split, normalize: Normalize, device: torch.device) -> Example:
    """Return the first examples of ``split``, at most `EXAMPLES`, as inputs of a model."""
    rows = torch.arange(min(EXAMPLES, len(split)))
    return gather(split, rows, device, normalize=normalize).inputs


@torch.inference_mode()
def logits_of(model: BuiltModel, example: Example) -> Tensor:
    """Return the logits of ``example`` in single precision; the module is set to evaluation."""
    model.module.to(next(iter(example.values())).device).eval()
    return model.logits(dict(example)).float()


def validation_metrics(
    model: BuiltModel,
    config: TrialConfig,
    data: Prepared,
    device: torch.device,
    batch_size: int,
) -> dict[str, float]:
    """Return the metrics of ``model`` on the validation split, as the trial measured them."""
    model.to(device)
    return evaluate(
        model,
        data.validation,
        [config.objective.metric],
        device=device,
        dtype=resolve_precision(config.training.precision, device),
        batch_size=batch_size,
    )
