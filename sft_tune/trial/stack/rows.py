"""The weights of K heads as one matrix, a row each, and optimizer steps with settings of each row.

The rules are those of torch's optimizers (`torch.optim.SGD`, `Adam`, `AdamW`), written over rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sft_tune.spec.training import TrainingSpec

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
        weights: [n].
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

    @torch.no_grad()
    def store(self) -> None:
        """Write weights and state back, as the optimizer itself would have them."""
        sizes = [part.numel() for part in self.parameters.values()]
        columns = [torch.split(row, sizes) for row in (self.weights, self.first, self.second)]
        for i, part in enumerate(self.parameters.values()):
            weights, first, second = (column[i].view_as(part) for column in columns)
            part.copy_(weights)
            state: dict[str, Any] = {}
            if family(self.training) == "adam":
                count = torch.tensor(float(self.steps), device=self._count_device(part))
                state = {"step": count, "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
            elif self.training.momentum:
                state = {"momentum_buffer": first.clone()}
            if self.steps or family(self.training) == "sgd":
                self.optimizer.state[part] = state

    def _count_device(self, part: Tensor) -> torch.device:
        fused = bool(self.optimizer.param_groups[0].get("fused"))
        return part.device if fused else torch.device("cpu")


class Rows:
    """The rows of all trials of a stack, and the vectors of their settings."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Stack ``rows``, which have parameters of the same names and shapes."""
        self._rows = rows
        self.weights = torch.stack([row.weights for row in rows])
        self._first = torch.stack([row.first for row in rows])
        self._second = torch.stack([row.second for row in rows])
        self._settings = _Settings.of(rows, self.weights.device)
        shapes = {name: part.shape for name, part in rows[0].parameters.items()}
        parts = torch.split(self.weights, [shape.numel() for shape in shapes.values()], dim=1)
        self.parameters = {
            name: part.view(len(rows), *shape).requires_grad_()
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        """Views of the weights by name, [k, ...], to be differentiated by."""

    def leave(self) -> None:
        """Let the rows have what they have become."""
        for k, row in enumerate(self._rows):
            row.weights, row.first, row.second = self.weights[k], self._first[k], self._second[k]

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
        grads = torch.cat([part.flatten(1) for part in parts], dim=1)
        at = self._settings
        if at.l1 is not None:
            grads += at.l1 * self.weights.sign()
        norms: Tensor = grads.norm(dim=1)
        if at.clip_value is not None:
            grads = torch.clamp(grads, -at.clip_value, at.clip_value)
            clipped = grads.norm(dim=1)
        else:
            clipped = norms
        if at.clip_norm is not None:
            grads *= (at.clip_norm / (clipped + 1e-6)).clamp(max=1.0)[:, None]
        rates = (rates * at.multiplier)[:, None]
        for rows, update in ((at.sgd, self._sgd), (at.adam, self._adam)):
            if rows is not None:
                update(rows, grads[rows], rates[rows])
        for row in self._rows:
            row.steps += 1
        return norms

    def _sgd(self, rows: Any, grads: Tensor, rates: Tensor) -> None:
        at = self._settings
        grads = grads + at.decay[rows] * self.weights[rows]
        momentum = at.momentum[rows]
        kept = self._first[rows] * momentum + grads
        self._first[rows] = kept
        ahead = torch.where(at.nesterov[rows], grads + momentum * kept, kept)
        self.weights[rows] -= rates * ahead

    def _adam(self, rows: Any, grads: Tensor, rates: Tensor) -> None:
        at = self._settings
        weights, decay, beta1, beta2 = (
            self.weights[rows],
            at.decay[rows],
            at.beta1[rows],
            at.beta2[rows],
        )
        decoupled = at.decoupled[rows]
        grads = torch.where(decoupled, grads, grads + decay * weights)
        weights = torch.where(decoupled, weights * (1 - rates * decay), weights)
        first = torch.lerp(grads, self._first[rows], beta1)
        second = torch.lerp(grads * grads, self._second[rows], beta2)
        self._first[rows], self._second[rows] = first, second
        steps = at.steps_before[rows] + 1
        at.steps_before[rows] = steps
        # As torch does: corrections in double precision.
        size = (rates / (1 - at.beta1_exact[rows] ** steps)).float()
        root = (1 - at.beta2_exact[rows] ** steps).sqrt().float()
        self.weights[rows] = weights - size * first / (second.sqrt() / root + at.epsilon[rows])


@dataclass
class _Settings:
    """What the rows are told: [k, 1], or [k, n] where it differs between weights."""

    decay: Tensor
    l1: Tensor | None
    clip_value: Tensor | None
    clip_norm: Tensor | None
    multiplier: Tensor
    momentum: Tensor
    nesterov: Tensor
    beta1: Tensor
    beta2: Tensor
    beta1_exact: Tensor
    beta2_exact: Tensor
    epsilon: Tensor
    decoupled: Tensor
    steps_before: Tensor
    sgd: Any
    adam: Any

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> _Settings:
        settings = [row.training for row in rows]

        def column(values: Sequence[float | bool], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        def limit(values: Sequence[float | None]) -> Tensor | None:
            if all(value is None for value in values):
                return None
            return column([float("inf") if value is None else value for value in values])

        beta1 = [0.9 if s.beta1 is None else s.beta1 for s in settings]
        beta2 = [0.999 if s.beta2 is None else s.beta2 for s in settings]
        penalties = torch.stack([_by_weight(row, row.training.l1) for row in rows])
        clip_norm = limit([s.clip_norm for s in settings])
        return cls(
            decay=torch.stack([_by_weight(row, row.training.weight_decay) for row in rows]),
            l1=penalties if any(s.l1 for s in settings) else None,
            clip_value=limit([s.clip_value for s in settings]),
            clip_norm=None if clip_norm is None else clip_norm[:, 0],
            multiplier=column([s.head_multiplier for s in settings])[:, 0],
            momentum=column([s.momentum for s in settings]),
            nesterov=column([bool(s.nesterov) and s.momentum > 0 for s in settings], torch.bool),
            beta1=column(beta1),
            beta2=column(beta2),
            beta1_exact=column(beta1, torch.float64),
            beta2_exact=column(beta2, torch.float64),
            epsilon=column([1e-8 if s.epsilon is None else s.epsilon for s in settings]),
            decoupled=column([s.optimizer == "adamw" for s in settings], torch.bool),
            steps_before=column([row.steps for row in rows], torch.float64),
            sgd=_places(settings, "sgd", device),
            adam=_places(settings, "adam", device),
        )


def _by_weight(row: Row, value: float) -> Tensor:
    """Return ``value`` for the weights that decay, 0 for the others, [n]."""
    return torch.cat(
        [
            part.new_full(
                (part.numel(),), value if part.ndim > 1 or row.training.decay_all else 0.0
            )
            for part in row.parameters.values()
        ]
    ).detach()


def _places(settings: Sequence[TrainingSpec], name: str, device: torch.device) -> Any:
    """Return the rows of one family: None where there are none, a slice where all are."""
    places = [k for k, training in enumerate(settings) if family(training) == name]
    if len(places) == len(settings):
        return slice(None)
    return torch.tensor(places, device=device) if places else None
