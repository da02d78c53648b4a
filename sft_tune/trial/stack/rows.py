"""The weights of K trials as one matrix, a row each, and optimizer steps with settings of each row.

The rules are those of torch's optimizers (`torch.optim.SGD`, `Adam`, `AdamW`), written over rows
and in place: the matrices are larger than the processor's nearest memory, and each pass counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.updates import stride

MOMENTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}


def family(training: TrainingSpec) -> str:
    """Return whose state the optimizer of ``training`` has: of sgd, or of adam."""
    return "sgd" if training.optimizer == "sgd" else "adam"


@dataclass
class Row:
    """The trained weights of one trial end to end, [n], with what the optimizer keeps of them.

    Attributes:
        parameters: of the module, by name.
        optimizer: whose state is loaded and stored.
        training: its settings.
        weights: [n]; while it trains a row of the stack's, which steps change.
        first: mean of gradients, or the momentum, [n].
        second: mean of squared gradients, [n]; of sgd unused.
        steps: that the optimizer has done.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    training: TrainingSpec
    weights: Tensor = field(init=False)
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Read parameters and state."""
        parts = list(self.parameters.values())
        self.weights = torch.cat([part.detach().reshape(-1) for part in parts])
        self.first, self.second = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        kept = [self.optimizer.state.get(part, {}) for part in parts]
        names = MOMENTS[family(self.training)]
        for name, target in zip(names, (self.first, self.second), strict=False):
            moments = [state.get(name) for state in kept]
            if all(moment is not None for moment in moments):
                target.copy_(torch.cat([moment.reshape(-1) for moment in moments]))
        self.steps = int(kept[0].get("step", 0))

    def parts(self) -> dict[str, Tensor]:
        """Return the weights by name, in the shapes of the parameters."""
        parts = zip(self.parameters.items(), self._split(self.weights), strict=True)
        return {name: weights.view_as(parameter) for (name, parameter), weights in parts}

    @torch.no_grad()
    def store_weights(self) -> None:
        """Write the weights back into the module."""
        for name, weights in self.parts().items():
            self.parameters[name].copy_(weights)

    @torch.no_grad()
    def store(self) -> None:
        """Write weights and state back, as the optimizer itself would have them."""
        self.store_weights()
        columns = zip(self._split(self.first), self._split(self.second), strict=True)
        for part, (first, second) in zip(self.parameters.values(), columns, strict=True):
            first, second = first.view_as(part), second.view_as(part)
            state: dict[str, Any] = {}
            if family(self.training) == "adam":
                count = torch.tensor(float(self.steps), device=self._count_device(part))
                state = {"step": count, "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
            elif self.training.momentum:
                state = {"momentum_buffer": first.clone()}
            if self.steps or family(self.training) == "sgd":
                self.optimizer.state[part] = state

    def _split(self, row: Tensor) -> tuple[Tensor, ...]:
        return torch.split(row, [part.numel() for part in self.parameters.values()])

    def _count_device(self, part: Tensor) -> torch.device:
        fused = bool(self.optimizer.param_groups[0].get("fused"))
        return part.device if fused else torch.device("cpu")


class Rows:
    """The rows of all trials of a stack, and the vectors of their settings."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Stack ``rows``, which have parameters of the same names and shapes, sgd's first.

        They are copied: what is done to the stack is theirs after `take`.
        """
        self._rows = rows
        self.weights = torch.stack([row.weights for row in rows])
        self._first = torch.stack([row.first for row in rows])
        self._second = torch.stack([row.second for row in rows])
        self._grads = torch.empty_like(self.weights)
        self._spare = torch.empty_like(self.weights)
        self._settings = _Settings.of(rows, self.weights.device)
        sgd = sum(family(row.training) == "sgd" for row in rows)
        self._families = [
            (slice(0, sgd), self._sgd),
            (slice(sgd, len(rows)), self._adam),
        ]
        shapes = {name: part.shape for name, part in rows[0].parameters.items()}
        parts = torch.split(self.weights, [shape.numel() for shape in shapes.values()], dim=1)
        self.parameters = {
            name: part.view(len(rows), *shape).requires_grad_()
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        """Views of the weights by name, [k, ...], to be differentiated by."""
        grads = torch.split(self._grads, [shape.numel() for shape in shapes.values()], dim=1)
        self._parts = [
            part.view(len(rows), *shape) for shape, part in zip(shapes.values(), grads, strict=True)
        ]

    def take(self) -> None:
        """Let each row be that of the stack."""
        for k, row in enumerate(self._rows):
            row.weights, row.first, row.second = self.weights[k], self._first[k], self._second[k]

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Return a copy of the weights that `UpdateRatio` looks at, [k, m]."""
        strides = [stride(grad[0].numel(), len(self._parts)) for grad in self._parts]
        if max(strides) == 1:
            return self.weights.clone()
        parts = zip(self.parameters.values(), strides, strict=True)
        return torch.cat([part.flatten(1)[:, ::every] for part, every in parts], dim=1)

    @torch.no_grad()
    def step(self, loss: Tensor, rates: Tensor) -> Tensor:
        """Do one optimizer step of every row.

        Args:
            loss: a sum over rows of what only the row's own weights change.
            rates: learning rates, [k].

        Returns:
            The norms of the gradients before clipping, [k].
        """
        with torch.enable_grad():
            parts = torch.autograd.grad(loss, list(self.parameters.values()))
        grads = torch.cat([part.flatten(1) for part in parts], dim=1, out=self._grads)
        at = self._settings
        for grad, weights, strength in zip(
            self._parts, self.parameters.values(), at.l1, strict=False
        ):
            grad.addcmul_(weights.sign(), strength)
        norms: Tensor = grads.norm(dim=1)
        clipped = norms
        if at.clip_value is not None:
            torch.clamp(grads, -at.clip_value, at.clip_value, out=grads)
            clipped = grads.norm(dim=1)
        if at.clip_norm is not None:
            grads *= (at.clip_norm / (clipped + 1e-6)).clamp(max=1.0)[:, None]
        rates = rates[:, None] * at.multiplier
        for grad, weights, decay in zip(
            self._parts, self.parameters.values(), at.pull, strict=False
        ):
            grad.addcmul_(weights, decay)
        for weights, decay, rate in zip(
            self.parameters.values(), at.shrink, self._by_part(rates), strict=False
        ):
            weights.mul_(1 - rate * decay)
        for rows, update in self._families:
            if rows.start < rows.stop:
                update(rows, rates[rows])
        for row in self._rows:
            row.steps += 1
        return norms

    def _by_part(self, rates: Tensor) -> Iterator[Tensor]:
        """Yield ``rates``, [k, 1] or [k, n], for each parameter, to be multiplied with it."""
        if rates.shape[1] == 1:
            yield from (rates.view(-1, *[1] * (grad.ndim - 1)) for grad in self._parts)
            return
        sizes = [grad[0].numel() for grad in self._parts]
        for rate, grad in zip(torch.split(rates, sizes, dim=1), self._parts, strict=True):
            yield rate.view_as(grad)

    def _sgd(self, rows: slice, rates: Tensor) -> None:
        at, weights, grads, kept = (
            self._settings,
            self.weights[rows],
            self._grads[rows],
            self._first[rows],
        )
        momentum = at.momentum[rows]
        kept.mul_(momentum).add_(grads)
        ahead = torch.where(at.nesterov[rows], grads + momentum * kept, kept)
        weights.sub_(ahead.mul_(rates))

    def _adam(self, rows: slice, rates: Tensor) -> None:
        at, weights, grads, spare = (
            self._settings,
            self.weights[rows],
            self._grads[rows],
            self._spare[rows],
        )
        first, second = self._first[rows], self._second[rows]
        first.lerp_(grads, at.fresh1[rows])
        second.lerp_(grads.square_(), at.fresh2[rows])
        steps = at.steps[rows].add_(1)
        # As torch does: corrections in double precision.
        size = (rates / (1 - at.beta1[rows] ** steps)).float()
        root = (1 - at.beta2[rows] ** steps).sqrt().float()
        torch.sqrt(second, out=spare)
        spare.div_(root).add_(at.epsilon[rows])
        weights.sub_(torch.div(first, spare, out=spare).mul_(size))


@dataclass
class _Settings:
    """What the rows are told, [k, 1].

    Attributes:
        l1: of each parameter, [k, 1, ...]; none where no row has it. So are the next two.
        pull: weight decay that goes through the gradients.
        shrink: weight decay that does not.
        clip_value: largest number of a gradient.
        clip_norm: largest norm, [k].
        multiplier: of the learning rate; where a row's parameters have several, [k, n].
        fresh1: what the first moment takes of a gradient, 1 - beta1.
        fresh2: what the second takes of its square.
        steps: that were done.
    """

    l1: list[Tensor]
    pull: list[Tensor]
    shrink: list[Tensor]
    clip_value: Tensor | None
    clip_norm: Tensor | None
    multiplier: Tensor
    momentum: Tensor
    nesterov: Tensor
    beta1: Tensor
    beta2: Tensor
    fresh1: Tensor
    fresh2: Tensor
    epsilon: Tensor
    steps: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> _Settings:
        settings = [row.training for row in rows]

        def column(values: Sequence[float | bool], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        def limit(values: Sequence[float | None]) -> Tensor | None:
            if all(value is None for value in values):
                return None
            return column([float("inf") if value is None else value for value in values])

        def by_part(values: Sequence[float]) -> list[Tensor]:
            if not any(values):
                return []
            # As `optimizers.parameter_groups`: of one dimension or none they are not decayed.
            found = []
            for part in rows[0].parameters.values():
                kept = [v if part.ndim > 1 or s.decay_all else 0.0 for v, s in pairs(values)]
                found.append(column(kept).view(-1, *[1] * part.ndim))
            return found

        def pairs(values: Sequence[float]) -> list[tuple[float, TrainingSpec]]:
            return list(zip(values, settings, strict=True))

        decays = [s.weight_decay for s in settings]
        beta1 = [0.9 if s.beta1 is None else s.beta1 for s in settings]
        beta2 = [0.999 if s.beta2 is None else s.beta2 for s in settings]
        clip_norm = limit([s.clip_norm for s in settings])
        return cls(
            l1=by_part([s.l1 for s in settings]),
            pull=by_part([0.0 if s.optimizer == "adamw" else v for v, s in pairs(decays)]),
            shrink=by_part([v if s.optimizer == "adamw" else 0.0 for v, s in pairs(decays)]),
            clip_value=limit([s.clip_value for s in settings]),
            clip_norm=None if clip_norm is None else clip_norm[:, 0],
            multiplier=_multipliers(rows, device),
            momentum=column([s.momentum for s in settings]),
            nesterov=column([bool(s.nesterov) and s.momentum > 0 for s in settings], torch.bool),
            beta1=column(beta1, torch.float64),
            beta2=column(beta2, torch.float64),
            fresh1=column([1 - beta for beta in beta1]),
            fresh2=column([1 - beta for beta in beta2]),
            epsilon=column([1e-8 if s.epsilon is None else s.epsilon for s in settings]),
            steps=column([row.steps for row in rows], torch.float64),
        )


def _multipliers(rows: Sequence[Row], device: torch.device) -> Tensor:
    """Return what the learning rates of ``rows`` are multiplied by, [k, 1] or [k, n]."""
    found = []
    for row in rows:
        groups = row.optimizer.param_groups
        known = {id(part): group["multiplier"] for group in groups for part in group["params"]}
        found.append([float(known[id(part)]) for part in row.parameters.values()])
    if all(len(set(values)) == 1 for values in found):
        return torch.tensor([values[:1] for values in found], device=device)
    sizes = torch.tensor([part.numel() for part in rows[0].parameters.values()])
    return torch.tensor(found).repeat_interleave(sizes, dim=1).to(device)
