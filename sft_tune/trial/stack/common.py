"""What the trials of a stack have in common: data, features, and one backbone for all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import prepare
from sft_tune.trial.data.rows import sent
from sft_tune.trial.device import autocast, exact
from sft_tune.trial.features import use_features
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.stack.head import Layer, dropouts, forward, layers_of
from sft_tune.trial.stack.member import Member
from sft_tune.trial.stack.rows import Row
from sft_tune.trial.stack.shared import NotStackableError, Passes
from sft_tune.trial.tasks import Outputs
from sft_tune.trial.trainee import Trainee, set_up

TRIED = 4


class Common:
    """Data, features and backbone, kept from the first trial of a stack for those after it."""

    def __init__(
        self, config: TrialConfig, device: torch.device, cache: Path, batch_size: int
    ) -> None:
        """Make what a trial of ``config`` needs.

        Args:
            config: of the first trial.
            device: of all.
            cache: folder of prepared data.
            batch_size: examples at once where features are made.

        Raises:
            NotStackableError: when features cannot be kept, or the head is more than known layers.
            DataError, ModelError: as `run_trial`.
        """
        self._device = device
        self.data = prepare(config.task, config.data, config.model, cache=cache)
        trainee = set_up(config, self.data, device)
        fresh = _copy(trainee.model)
        note = use_features(trainee, cache, batch_size)
        if not trainee.features:
            raise NotStackableError(note or "the head is more than a chain of its modules")
        self._features = trainee.features
        self._chain = trainee.model.chain
        layers = layers_of(trainee.model)
        if layers is None:
            raise NotStackableError("the head has layers that are not known to the stack")
        self.layers = layers
        train = self._features["train"]
        self.inputs = torch.from_numpy(train.features.copy()).to(device)
        self.targets = torch.from_numpy(train.targets.copy()).to(device)
        validation = self._features["validation"].features
        self._validation = torch.from_numpy(validation.copy()).to(device)
        self._dtype = trainee.dtype
        self._check(trainee.model)
        self._fresh: dict[ModelSpec, tuple[BuiltModel, Callable[[nn.Module], None] | None]] = {
            config.model: (fresh, _redrawing(fresh, config.seed))
        }

    def join(self, trainee: Trainee) -> None:
        """Do nothing: `trainee` gives no other."""

    def passes(self, members: Sequence[Member]) -> Passes:
        """See `Shared`."""
        masks = masks_of(
            [member.trainee.model for member in members],
            self.layers,
            [member.draw for member in members],
            self._device,
        )

        def passed(
            parameters: Mapping[str, Tensor], places: Sequence[Tensor]
        ) -> tuple[Tensor, Tensor]:
            sizes = [len(place) for place in places]
            if min(sizes) == max(sizes):
                indices = torch.stack(list(places))
            else:
                indices = torch.nn.utils.rnn.pad_sequence(list(places), batch_first=True)
            inputs, targets = self.examples(indices)
            with autocast(self._device, self._dtype):
                return forward(self.layers, parameters, inputs, masks(sizes)), targets

        return passed

    def outputs(self, member: Member, batch_size: int) -> Callable[[Tensor | None], Outputs]:
        """See `Shared`."""
        return lambda rows: self.validation_outputs(member.row, rows, batch_size)

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [k, b, ...] and targets [k, b] of the training examples [k, b]."""
        rows = sent(indices.reshape(-1), self._device)
        # Four times faster than indexing with the matrix.
        inputs = self.inputs.index_select(0, rows).view(*indices.shape, *self.inputs.shape[1:])
        return inputs, self.targets.index_select(0, rows).view(indices.shape)

    @torch.inference_mode()
    def validation_outputs(self, row: Row, rows: Tensor | None, batch_size: int) -> Outputs:
        """Return the logits [n, classes] for validation by the head ``row``, on the CPU.

        Args:
            row: the weights.
            rows: only these examples, in this order; None: all.
            batch_size: examples at once.
        """
        weights = {name: part[None] for name, part in row.parts().items()}
        features = self._validation
        if rows is not None:
            features = features[rows.to(self._device)]
        found = []
        for some in torch.split(features, batch_size):
            with autocast(self._device, self._dtype):
                found.append(forward(self.layers, weights, some[None], lambda _, given: given)[0])
        return {"logits": torch.cat(found).float().cpu()}

    def trainee(self, config: TrialConfig) -> Trainee:
        """Return the trainee of ``config``, with the common backbone and a head of its own.

        Raises:
            NotStackableError: when its head is another chain of layers.
        """
        known = self._fresh.get(config.model)
        if known is None:
            trainee = set_up(config, self.data, self._device)
            fresh = _copy(trainee.model)
            self._share(trainee.model)
            self._share(fresh)
            # The first for its backbone, the last for the next trial.
            first = next(iter(self._fresh.items()))
            self._fresh = dict([first, (config.model, (fresh, _redrawing(fresh, config.seed)))])
        elif known[1] is None:
            trainee = set_up(config, self.data, self._device)
            self._share(trainee.model)
        else:
            model = _copy(known[0])
            torch.manual_seed(config.seed)
            known[1](model.module)
            trainee = set_up(config, self.data, self._device, model)
        trainee.features, trainee.model.chain = self._features, self._chain
        layers = layers_of(trainee.model)
        if layers is None or [one.signature for one in layers] != [
            one.signature for one in self.layers
        ]:
            raise NotStackableError("its head has other layers than that of the stack")
        return trainee

    @torch.inference_mode()
    def _check(self, model: BuiltModel) -> None:
        """Compare the layers with the modules that they were read from, on real features.

        Raises:
            NotStackableError: when they make something else of them.
        """
        module = model.module
        weights = {n: p[None] for n, p in module.named_parameters() if model.in_head(n)}
        used = {layer.name for layer in self.layers}
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        if {name.rpartition(".")[0] for name in trained} - used or trained != weights.keys():
            raise NotStackableError("parts of the head are not known to the stack")
        inputs = self.inputs[:TRIED]
        module.eval()
        with exact(self._device):
            expected = model.head_logits(self._chain, inputs)
            found = forward(self.layers, weights, inputs[None], lambda _, given: given)[0]
        if found.shape != expected.shape or not torch.allclose(
            found, expected, rtol=1e-4, atol=1e-5
        ):
            raise NotStackableError("the head's layers make something else than its modules")

    def _share(self, model: BuiltModel) -> None:
        """Let ``model``, of another dropout, have the backbone of the first trial."""
        first = next(iter(self._fresh.values()))[0].module
        for name, tensor in _fixed(model):
            owner, _, key = name.rpartition(".")
            ours = dict(_tensors(first.get_submodule(owner)))[key]
            part = model.module.get_submodule(owner)
            if tensor.shape == ours.shape:
                place: dict[str, Any] = part.__dict__[
                    "_parameters" if key in part._parameters else "_buffers"
                ]
                place[key] = ours


def masks_of(
    models: list[BuiltModel],
    layers: tuple[Layer, ...],
    draws: list[torch.Generator],
    device: torch.device,
) -> Callable[[list[int]], Callable[[int, Tensor], Tensor]]:
    """Return what makes the dropout of a step, of the sizes of the trials' batches.

    Each trial's masks are those that torch draws for it alone on the CPU; a GPU draws others.
    """
    shares = [dropouts(model, layers) for model in models]
    kept = 1 - torch.tensor(shares, dtype=torch.float64)
    kept = kept.float().T.to(device)

    def of_step(sizes: list[int]) -> Callable[[int, Tensor], Tensor]:
        def drop(place: int, given: Tensor) -> Tensor:
            if not any(share[place] for share in shares):
                return given
            mask = torch.ones_like(given)
            for k, (share, size, draw) in enumerate(zip(shares, sizes, draws, strict=True)):
                if share[place]:
                    mask[k, :size].bernoulli_(1 - share[place], generator=draw)
            mask /= kept[place].view(-1, *[1] * (given.ndim - 1))
            return given * mask

        return drop

    return of_step


def _redrawing(fresh: BuiltModel, seed: int) -> Callable[[nn.Module], None] | None:
    """Return what draws the head anew just as building ``fresh`` with ``seed`` did; None: nothing.

    It is tried: a head whose way of being drawn is not known is built each time.
    """
    parts = [
        name
        for name, part in fresh.module.named_modules()
        if fresh.in_head(name) and any(True for _ in part.parameters(recurse=False))
    ]

    def by_library(module: Any) -> None:
        for name in parts:
            part = module.get_submodule(name)
            with _on_the_cpu(part):
                module._init_weights(part)

    def by_layers(module: nn.Module) -> None:
        for name in parts:
            part: Any = module.get_submodule(name)
            if hasattr(part, "reset_parameters"):
                with _on_the_cpu(part):
                    part.reset_parameters()

    ways: list[Callable[[nn.Module], None]] = [by_layers]
    if callable(getattr(fresh.module, "_init_weights", None)):
        ways.append(by_library)
    for draw in ways:
        tried = _copy(fresh)
        for name, parameter in tried.module.named_parameters():
            if tried.in_head(name):
                nn.init.zeros_(parameter)
        torch.manual_seed(seed)
        draw(tried.module)
        same = zip(tried.module.parameters(), fresh.module.parameters(), strict=True)
        if all(one is other or torch.equal(one, other) for one, other in same):
            return draw
    return None


@contextmanager
def _on_the_cpu(part: nn.Module) -> Iterator[None]:
    """Have ``part`` on the CPU inside: with its generator models are made, not with a GPU's."""
    device = next(part.parameters()).device
    part.to("cpu")
    yield
    part.to(device)


def _copy(model: BuiltModel) -> BuiltModel:
    """Return ``model`` with a head of its own and the same tensors and modules for a backbone."""
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in _fixed(model)}
    on_the_way = {*_within(model.head), ""}
    for name, part in model.module.named_modules():
        if not model.in_head(name) and name not in on_the_way:
            memo[id(part)] = part
    module = copy.deepcopy(model.module, memo)
    return replace(model, module=module, chain=())


def _within(names: Iterable[str]) -> Iterator[str]:
    """Return ``names`` of modules and those of what they are in."""
    for name in names:
        while name:
            yield name
            name = name.rpartition(".")[0]


def _fixed(model: BuiltModel) -> list[tuple[str, Tensor]]:
    return [(name, part) for name, part in _tensors(model.module) if not model.in_head(name)]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
