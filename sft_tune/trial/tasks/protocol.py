"""What a task is to the training loop: a module with these four functions.

How its inputs and targets become arrays is in `sft_tune.trial.data`, which models do it in
`sft_tune.trial.models`, what a study file may say of it in `sft_tune.spec.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Batch, Prepared, Split

# What is kept of a model's outputs for the metrics, by name; each [n, ...], in the split's order.
Outputs = dict[str, Tensor]


class TrialTask(Protocol):
    """A task. Its loss is a sum of shares, so that micro-batches add up to exactly their batch."""

    def weight(self, batch: Batch) -> int | Tensor:
        """Return what the mean loss of ``batch`` is divided by: how many of its targets count.

        As a tensor where only the device knows.
        """

    def share_of_loss(
        self, outputs: Any, batch: Batch, total: Any, training: TrainingSpec
    ) -> Tensor:
        """Return what these examples add to the mean loss of their batch.

        Args:
            outputs: of the model for ``batch``: logits, or what `BuiltModel.outputs` has.
            batch: some examples, with their targets.
            total: the `weight` of the whole batch, these examples included.
            training: the settings, among them those of the loss.
        """

    def keep(self, outputs: Any, batch: Batch) -> Outputs:
        """Return what `metrics` needs of the model's ``outputs`` for ``batch``.

        A tensor may be wider for one batch than for another: it is filled up with `IGNORED`.
        """

    def metrics(
        self, names: Iterable[str], kept: Outputs, split: Split, data: Prepared
    ) -> dict[str, float]:
        """Return ``loss`` (without label smoothing), the usual metrics of the task, and ``names``.

        Args:
            names: metrics of the task.
            kept: of all examples of ``split``, on the CPU.
            split: the examples.
            data: the data set that the split is of.
        """
