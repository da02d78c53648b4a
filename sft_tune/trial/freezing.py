"""Which parameters are trained when: nothing of it is state, all of it follows from the step."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_tune.errors import ModelError
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.blocks import Blocks


def lowest_trained(training: TrainingSpec, progress: float, blocks: Blocks) -> int:
    """Return the depth (see `Blocks`) from which on parameters are trained.

    ``head_first``: the head alone until ``unfreeze_at``, then everything. ``gradual``: the head
    alone at first, then in even steps what is below it, block by block; everything from
    ``unfreeze_at`` on (Howard and Ruder 2018, section 3.3, in progress instead of epochs).

    Args:
        training: the settings.
        progress: share of the horizon that is done, 0 to 1.
        blocks: of the model.

    Raises:
        ModelError: when more blocks are to be frozen than there are.
    """
    if training.freeze == "none":
        return 0
    if training.freeze == "backbone":
        return blocks.top
    if training.freeze == "blocks":
        if training.freeze_blocks > blocks.count:
            raise ModelError(
                f"training.freeze_blocks: the model has {blocks.count} blocks; lower it "
                f"(got {training.freeze_blocks})"
            )
        return training.freeze_blocks + 1
    if progress >= training.unfreeze_at:
        return 0
    if training.freeze == "head_first":
        return blocks.top
    return blocks.top - math.floor(progress / training.unfreeze_at * blocks.top)


class Freezing:
    """Opens and closes the parameters of a module as the trial goes on.

    What is frozen is in evaluation, too: its dropout is off and its batch-norm statistics stay.
    """

    def __init__(self, module: nn.Module, blocks: Blocks, training: TrainingSpec) -> None:
        """Open all that is ever trained; a parameter that is closed now stays so."""
        self._module = module
        self._blocks = blocks
        self._training = training
        self._trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.lowest = 0
        self._open(lowest_trained(training, 1.0, blocks))

    @property
    def only_head(self) -> bool:
        """Whether nothing but the head is trained now."""
        return self.lowest == self._blocks.top

    @property
    def head_alone(self) -> float:
        """The share of the horizon, from its beginning, in which only the head is trained."""
        training = self._training
        if training.freeze == "backbone":
            return 1.0
        if training.freeze == "head_first":
            return training.unfreeze_at
        return training.unfreeze_at / self._blocks.top if training.freeze == "gradual" else 0.0

    def enter(self, progress: float) -> bool:
        """Open what is trained at ``progress``, close the rest; tell whether that is news."""
        lowest = lowest_trained(self._training, progress, self._blocks)
        if lowest == self.lowest:
            return False
        self._open(lowest)
        self.set_training_mode()
        return True

    def set_training_mode(self) -> None:
        """Set the module to training, what is frozen of it to evaluation."""
        self._module.train(not self.only_head)
        if self.only_head:
            for name in self._blocks.head:
                self._module.get_submodule(name).train()
        elif self.lowest > 0:
            self._close_modules()
        if self._training.freeze_batch_norm:
            for part in self._module.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()

    def _open(self, lowest: int) -> None:
        self.lowest = lowest
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(self._blocks.depths[name] >= lowest)

    def _close_modules(self) -> None:
        """Set frozen blocks, and other modules whose own parameters are frozen, to evaluation."""
        depths = self._blocks.depths
        for group in self._blocks.names[: self.lowest - 1]:
            for name in group:
                self._module.get_submodule(name).eval()
        for name, part in self._module.named_modules():
            own = [f"{name}.{key}".lstrip(".") for key, _ in part.named_parameters(recurse=False)]
            if own and all(depths.get(key, self.lowest) < self.lowest for key in own):
                part.training = False
