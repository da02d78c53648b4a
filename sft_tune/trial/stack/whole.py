"""Models of K trials as one: `torch.vmap` over their trained weights and the buffers they change.

What is frozen is there once, for all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import TextSplit, gather, prepare
from sft_tune.trial.data.rows import sent
from sft_tune.trial.device import autocast, exact, is_out_of_memory
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.seeding import random_states
from sft_tune.trial.stack.likeness import apart, compare, gradients_of, same_states
from sft_tune.trial.stack.member import Member
from sft_tune.trial.stack.modules import Replaced, same_tensors, stacked, take_fixed, trained_of
from sft_tune.trial.stack.shared import NotStackableError, Passes
from sft_tune.trial.trainee import Trainee, set_up

TRIED = 8
"""Examples that each of two models is tried on."""

# What a module raises that does something vmap cannot do; its messages say what.
REFUSED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class Whole:
    """Data and frozen weights, kept from the first trial of a stack for those after it."""

    def __init__(self, config: TrialConfig, device: torch.device, cache: Path) -> None:
        """Read the data of ``config``.

        Raises:
            DataError: as `run_trial`.
        """
        self._device = device
        self._data = prepare(config.task, config.data, config.model, cache=cache)
        self._template: BuiltModel | None = None
        self._dtype = torch.float32
        self._changing: tuple[str, ...] = ()
        self._square: bool | None = None
        """Whether attention masks are given as such (see `_squared`); None before it is known."""

    def trainee(self, config: TrialConfig) -> Trainee:
        """See `Shared`; raises ModelError, too."""
        return set_up(config, self._data, self._device)

    def join(self, trainee: Trainee) -> None:
        """See `Shared`. Its model is tried in the stack, against the module alone."""
        try:
            changing = self._changed(trainee)
            if self._template is None:
                self._template = same_tensors(trainee.model)
                self._changing, self._dtype = changing, trainee.dtype
            if changing != self._changing:
                raise NotStackableError("its batch norm is not trained as that of the stack")
            take_fixed(trainee.model.module, self._template.module, changing)
            with exact(self._device):
                self._try_in_some_way(trainee)
        except REFUSED as error:
            if is_out_of_memory(error):
                raise
            raise NotStackableError(_first_line(error)) from error

    def passes(self, members: Sequence[Member]) -> Passes:
        """See `Shared`. The buffers of ``members`` become rows of the stack's."""
        buffers = stacked([member.trainee.model.module for member in members], self._changing)

        def passed(
            parameters: Mapping[str, Tensor], places: Sequence[Tensor]
        ) -> tuple[Tensor, Tensor]:
            sizes = [len(place) for place in places]
            if min(sizes) == max(sizes):
                return self._passed(parameters, buffers, places)
            return self._by_size(parameters, buffers, places, sizes)

        return passed

    def outputs(self, member: Member, batch_size: int) -> None:
        """See `Shared`: its module has its weights at a rung, and is evaluated as it is alone."""

    def _by_size(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        places: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Pass those with batches of one size together: what fills up others is no example."""
        logits, targets = {}, {}
        for size in sorted(set(sizes)):
            rows = [k for k, own in enumerate(sizes) if own == size]
            index = sent(torch.tensor(rows), self._device)
            some = {name: part.index_select(0, index) for name, part in parameters.items()}
            kept = {name: part.index_select(0, index) for name, part in buffers.items()}
            found, truth = self._passed(some, kept, [places[k] for k in rows])
            for name, part in buffers.items():
                part.index_copy_(0, index, kept[name])
            missing = max(sizes) - size
            for k, one, other in zip(rows, found, truth, strict=True):
                logits[k] = functional.pad(one, (0, 0, 0, missing))
                targets[k] = functional.pad(other, (0, missing))
        order = range(len(places))
        return torch.stack([logits[k] for k in order]), torch.stack([targets[k] for k in order])

    def _passed(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        places: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        inputs, targets = self._examples(places)
        return self._logits(parameters, buffers, inputs, self._dtype), targets

    def _examples(self, places: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs [k, b, ...] and targets [k, b] of the training examples ``places``."""
        normalize = self._model.normalize
        batch = gather(self._data.train, torch.cat(list(places)), self._device, normalize=normalize)
        inputs = {
            name: part.view(len(places), -1, *part.shape[1:]) for name, part in batch.inputs.items()
        }
        if self._square:
            inputs = _squared(inputs)
        return inputs, batch.targets.view(len(places), -1)

    def _inputs(self, place: Tensor, model: BuiltModel) -> dict[str, Tensor]:
        """Return the inputs of ``model`` alone."""
        return gather(self._data.train, place, self._device, normalize=model.normalize).inputs

    def _logits(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: dict[str, Tensor],
        dtype: torch.dtype,
    ) -> Tensor:
        """Return the logits [k, b, classes] of k models, whose ``buffers`` are changed in place."""
        model = Replaced(self._model)

        def alone(
            own: Mapping[str, Tensor], kept: Mapping[str, Tensor], given: dict[str, Tensor]
        ) -> Any:
            return model.called({**own, **kept}, given)

        with autocast(self._device, dtype), _quiet():
            found: Tensor = torch.vmap(alone, randomness="error")(parameters, buffers, inputs)
        return found

    @property
    def _model(self) -> BuiltModel:
        if self._template is None:
            raise RuntimeError("the stack is empty")
        return self._template

    def _two_batches(self) -> list[Tensor]:
        count = len(self._data.train)
        size = min(TRIED, count)
        return [torch.arange(size), torch.arange(size, 2 * size) % count]

    @torch.no_grad()
    def _changed(self, trainee: Trainee) -> tuple[str, ...]:
        """Return the names of the buffers that training changes.

        Raises:
            NotStackableError: when it draws random numbers, which are each trial's own.
        """
        model = trainee.model
        before = random_states(self._device)
        buffers = {name: part.clone() for name, part in model.module.named_buffers()}
        given = self._inputs(self._two_batches()[0], model)
        with autocast(self._device, trainee.dtype):
            Replaced(model).called(buffers, given)
        if not same_states(before, random_states(self._device)):
            raise NotStackableError("its model draws random numbers, as dropout does")
        owners = {
            name.rpartition(".")[0]
            for name, part in model.module.named_buffers()
            if not torch.equal(part, buffers[name])
        }
        # Batch norm over maps that are all zero changes its count alone.
        return tuple(name for name in buffers if name.rpartition(".")[0] in owners)

    def _try_in_some_way(self, trainee: Trainee) -> None:
        """See `_try`; the first model finds out which masks it takes."""
        if self._square is None and isinstance(self._data.train, TextSplit):
            self._square = False
            try:
                self._try(trainee)
            except (*REFUSED, NotStackableError) as error:
                if is_out_of_memory(error):
                    raise
                self._square = True
        self._try(trainee)
        if self._dtype is not torch.float32:
            self._try(trainee, self._dtype)

    def _try(self, trainee: Trainee, dtype: torch.dtype = torch.float32) -> None:
        """Compare logits, gradients and buffers of the stack with those of the module alone.

        The stack is of its weights, and of others. Gradients in a lower precision are not
        compared: those through batch norm were seen to be 40 % rounding.

        Raises:
            NotStackableError: when they differ by more than rounding.
        """
        model = trainee.model
        trained = dict(trained_of(model.module))
        known = {name: part.shape for name, part in trained_of(self._model.module)}
        if {name: part.shape for name, part in trained.items()} != known:
            raise NotStackableError("other weights of it are trained than in the stack")
        kept = dict(model.module.named_buffers())
        rows = {
            name: torch.stack([part, apart(part)]).detach().requires_grad_()
            for name, part in trained.items()
        }
        buffers = {name: torch.stack([kept[name]] * 2) for name in self._changing}
        batches = self._two_batches()
        inputs, _ = self._examples(batches)
        found = self._logits(rows, buffers, inputs, dtype)
        gradients = gradients_of(found, rows)
        for k in range(2):
            own = {name: part.detach()[k].requires_grad_() for name, part in rows.items()}
            changed = {name: kept[name].clone() for name in self._changing}
            given = self._inputs(batches[k], model)
            with autocast(self._device, dtype):
                expected = Replaced(model).called({**own, **changed}, given)
            compare([found[k]], [expected], dtype)
            if dtype is torch.float32:
                their = gradients_of(expected, own)
                compare([gradients[n][k] for n in own], [their[n] for n in own], dtype)
            # Of what is counted, not measured, the numbers may be large.
            names = [name for name, part in changed.items() if part.is_floating_point()]
            compare([buffers[n][k] for n in names], [changed[n] for n in names], dtype)


def _squared(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``inputs`` with an attention mask [k, b, 1, length, length] of booleans.

    Models of transformers take it as it is. Of one that is [b, length] they ask whether anything
    is masked at all, which is no question to K trials at once.
    """
    mask = inputs["attention_mask"].bool()[:, :, None, None, :]
    square = mask.expand(-1, -1, 1, mask.shape[-1], -1)
    return {**inputs, "attention_mask": square}


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of operations that vmap does one by one: whether it is fast is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
