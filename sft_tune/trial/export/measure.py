"""What two forms of one model are compared by: logits of a few examples, metrics of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import TASKS
from sft_tune.trial.data import Prepared, Split, gather
from sft_tune.trial.data.batches import Normalize
from sft_tune.trial.device import exact, resolve_precision, use_tf32
from sft_tune.trial.evaluate import evaluate
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.models_language import generation_settings, writing_of
from sft_tune.trial.tasks import task_of

EXAMPLES = 32
# Of language models, whose logits are as many as tokens times a vocabulary.
EXAMPLES_WRITTEN = 4

Example = Mapping[str, Tensor]
"""The inputs of a few examples, as a model takes them."""


def example_of(
    split: Split, normalize: Normalize, device: torch.device, most: int = EXAMPLES
) -> Example:
    """Return the first examples of ``split``, at most ``most``, as inputs of a model."""
    rows = torch.arange(min(most, len(split)))
    return gather(split, rows, device, normalize=normalize).inputs


def compared(config: TrialConfig) -> int:
    """Return of how many examples the logits of a model of ``config`` are compared, at most."""
    return EXAMPLES_WRITTEN if TASKS[config.task].writes else EXAMPLES


@torch.inference_mode()
def logits_of(model: BuiltModel, example: Example) -> Tensor:
    """Return the logits of ``example`` in full single precision; the module is set to evaluation.

    Of a detector they are its losses, and what it finds, of each image [b, ...].
    """
    device = next(iter(example.values())).device
    model.module.to(device).eval()
    with exact(device):
        outputs = model.outputs(dict(example))
    if isinstance(outputs, Tensor):
        return outputs.float()
    return torch.cat([part.float().flatten(1) for part in _rows(outputs)], dim=1)


def _rows(outputs: Mapping[str, Tensor]) -> list[Tensor]:
    return [part[:, None] if part.ndim == 1 else part for part in outputs.values()]


def validation_metrics(
    model: BuiltModel,
    config: TrialConfig,
    data: Prepared,
    device: torch.device,
    batch_size: int,
) -> dict[str, float]:
    """Return the metrics of ``model`` on the validation split, as the trial measured them.

    The outputs of a regression are in the units of the targets.
    """
    use_tf32(config.training.precision, device)
    model.to(device)
    model.writing = writing_of(config)
    if model.writing is not None:
        source = config.model.name.partition(":")[2]
        model.module.generation_config = generation_settings(source, model.module.config)
    if "deviation" in data.stats:
        parts = (model.module, model.head, model.normalize, model.config, model.extra)
        mean, deviation = data.stats["mean"], data.stats["deviation"]
        model = _Standardized(*parts, mean=mean, deviation=deviation)
    return evaluate(
        task_of(config.task, config.data),
        model,
        data.validation,
        [config.objective.metric],
        data,
        device=device,
        dtype=resolve_precision(config.training.precision, device),
        batch_size=batch_size,
    )


@dataclass
class _Standardized(BuiltModel):
    """A regression whose outputs are as those that training sees."""

    mean: float = 0.0
    deviation: float = 1.0

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        return (super().logits(inputs).float() - self.mean) / self.deviation
