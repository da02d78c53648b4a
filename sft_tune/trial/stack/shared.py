"""What the trials of a stack share: of each kind of stack there is one implementation.

`Common` is that of heads on cached features, `Whole` that of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial.stack.member import Member
from sft_tune.trial.tasks import Outputs
from sft_tune.trial.trainee import Trainee

Passes = Callable[[Mapping[str, Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]
"""Logits [k, b, classes] and targets [k, b] of k trials: of their trained weights by name,
[k, ...], and the indices of their training examples. Trials with fewer examples than others have
some at the end that stand for none."""


class NotStackableError(ModelError):
    """A trial that cannot be trained in the stack, but alone."""


class Shared(Protocol):
    """Made for the first trial of a stack, and kept for those after it."""

    def trainee(self, config: TrialConfig) -> Trainee:
        """Return the trainee of ``config`` before its first step.

        Raises:
            NotStackableError: when its head is another than that of the stack.
        """

    def join(self, trainee: Trainee) -> None:
        """Let ``trainee``, as it is to train on, share what is the same for all.

        Raises:
            NotStackableError: when it is not the same, or its trial needs what no stack gives.
        """

    def passes(self, members: Sequence[Member]) -> Passes:
        """Return the way of ``members`` through the model, until one enters or leaves.

        When this fails, the way that there was before goes on being good.
        """

    def outputs(self, member: Member, batch_size: int) -> Callable[[Tensor | None], Outputs] | None:
        """Return what gives outputs for validation, or for rows of it; None: the module does."""
