"""Models of K trials as one: `torch.vmap` over their trained weights and the buffers they change.

What is frozen is there once, for all of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.device import autocast, is_out_of_memory
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.seeding import random_states
from sft_tune.trial.stack.likeness import apart, compare, gradients_of, same_states
from sft_tune.trial.stack.member import Member
from sft_tune.trial.stack.shared import NotStackableError, Passes
from sft_tune.trial.step import Trainee, set_up

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

    def trainee(self, config: TrialConfig) -> Trainee:
        """See `Shared`; raises ModelError, too."""
        return set_up(config, self._data, self._device)

    def join(self, trainee: Trainee) -> None:
        """See `Shared`. Its model is tried in the stack, against the module alone."""
        try:
            changing = self._changed(trainee)
            if self._template is None:
                self._template = _template(trainee.model)
                self._changing, self._dtype = changing, trainee.dtype
            if changing != self._changing:
                raise NotStackableError("its batch norm is not trained as that of the stack")
            _take_fixed(trainee.model.module, self._template.module, changing)
            self._try(trainee)
        except REFUSED as error:
            if is_out_of_memory(error):
                raise
            raise NotStackableError(_first_line(error)) from error

    def passes(self, members: Sequence[Member]) -> Passes:
        """See `Shared`. The buffers of ``members`` become rows of the stack's."""
        modules = [member.trainee.model.module for member in members]
        buffers = {name: _stacked(modules, name) for name in self._changing}

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
            index = torch.tensor(rows, device=self._device)
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
        return self._logits(parameters, buffers, inputs), targets

    def _examples(self, places: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return inputs [k, b, ...] and targets [k, b] of the training examples ``places``."""
        normalize = self._model.normalize
        batch = gather(self._data.train, torch.cat(list(places)), self._device, normalize=normalize)
        inputs = {
            name: part.view(len(places), -1, *part.shape[1:]) for name, part in batch.inputs.items()
        }
        return inputs, batch.targets.view(len(places), -1)

    def _logits(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: dict[str, Tensor],
    ) -> Tensor:
        """Return the logits [k, b, classes] of k models, whose ``buffers`` are changed in place."""
        model = _Module(self._model)

        def alone(
            own: Mapping[str, Tensor], kept: Mapping[str, Tensor], given: dict[str, Tensor]
        ) -> Any:
            return model.called({**own, **kept}, given)

        with autocast(self._device, self._dtype), _quiet():
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
        batch = gather(
            self._data.train, self._two_batches()[0], self._device, normalize=model.normalize
        )
        with autocast(self._device, trainee.dtype):
            _Module(model).called(buffers, batch.inputs)
        if not same_states(before, random_states(self._device)):
            raise NotStackableError("its model draws random numbers, as dropout does")
        owners = {
            name.rpartition(".")[0]
            for name, part in model.module.named_buffers()
            if not torch.equal(part, buffers[name])
        }
        # Batch norm over maps that are all zero changes its count alone.
        return tuple(name for name in buffers if name.rpartition(".")[0] in owners)

    def _try(self, trainee: Trainee) -> None:
        """Compare logits, gradients and buffers of the stack with those of the module alone.

        The stack is of its weights, and of others.

        Raises:
            NotStackableError: when they differ by more than rounding.
        """
        model = trainee.model
        trained = dict(_trained(model.module))
        known = {name: part.shape for name, part in _trained(self._model.module)}
        if {name: part.shape for name, part in trained.items()} != known:
            raise NotStackableError("other weights of it are trained than in the stack")
        kept = dict(model.module.named_buffers())
        rows = {
            name: torch.stack([part, apart(part)]).detach().requires_grad_()
            for name, part in trained.items()
        }
        buffers = {name: torch.stack([kept[name]] * 2) for name in self._changing}
        inputs, _ = self._examples(self._two_batches())
        found = self._logits(rows, buffers, inputs)
        gradients = gradients_of(found, rows)
        for k in range(2):
            own = {name: part.detach()[k].requires_grad_() for name, part in rows.items()}
            changed = {name: kept[name].clone() for name in self._changing}
            with autocast(self._device, self._dtype):
                given = {name: part[k] for name, part in inputs.items()}
                expected = _Module(model).called({**own, **changed}, given)
            compare([found[k]], [expected], self._dtype)
            their = gradients_of(expected, own)
            compare([gradients[n][k] for n in own], [their[n] for n in own], self._dtype)
            # Of what is counted, not measured, the numbers may be large.
            names = [name for name, part in changed.items() if part.is_floating_point()]
            compare([buffers[n][k] for n in names], [changed[n] for n in names], self._dtype)


class _Module(nn.Module):
    """A model as a module whose tensors can be others."""

    def __init__(self, model: BuiltModel) -> None:
        super().__init__()
        self._model = model
        self.module = model.module

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._model.logits(inputs)

    def called(self, tensors: Mapping[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits of ``inputs`` with ``tensors`` in place of those of their names."""
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        found: Tensor = functional_call(self, named, (inputs,))
        return found


def _template(model: BuiltModel) -> BuiltModel:
    """Return ``model`` with modules of its own, and the same tensors."""
    tensors = [*model.module.parameters(), *model.module.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return replace(model, module=copy.deepcopy(model.module, memo))


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, part) for name, part in module.named_parameters() if part.requires_grad)


def _take_fixed(module: nn.Module, template: nn.Module, changing: Sequence[str]) -> None:
    """Let ``module`` have the tensors of ``template`` that no trial changes.

    Raises:
        NotStackableError: when its own are others.
    """
    fixed, ours = (
        {
            **{name: part for name, part in one.named_parameters() if not part.requires_grad},
            **{name: part for name, part in one.named_buffers() if name not in changing},
        }
        for one in (module, template)
    )
    if fixed.keys() != ours.keys():
        raise NotStackableError("other weights of it are frozen than in the stack")
    for name, part in fixed.items():
        if part is ours[name]:
            continue
        if part.shape != ours[name].shape or not torch.equal(part, ours[name]):
            raise NotStackableError("its frozen weights are others than those of the stack")
        _put(module, name, ours[name])


def _stacked(modules: Sequence[nn.Module], name: str) -> Tensor:
    """Return the buffers ``name`` of ``modules`` as one tensor, of which they become rows."""
    found = torch.stack([module.get_buffer(name) for module in modules])
    for k, module in enumerate(modules):
        _put(module, name, found[k])
    return found


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, key = name.rpartition(".")
    part = module.get_submodule(owner)
    place: dict[str, Any] = part._parameters if key in part._parameters else part._buffers
    place[key] = tensor


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of operations that vmap does one by one: whether it is fast is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
