"""The state of a trial between two steps: what a resume needs to go on bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sft_tune.trial import checkpoint
from sft_tune.trial.best import Best
from sft_tune.trial.candidate import Candidate
from sft_tune.trial.device import like
from sft_tune.trial.monitors import Clock, Monitors
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.patience import Patience
from sft_tune.trial.portions import Portion
from sft_tune.trial.seeding import random_states, restore_random_states
from sft_tune.trial.trainee import Trainee

FORMAT = 2


@dataclass
class TrialState:
    """What a trial has come to. It is in the machine's memory: a full device does not lose it.

    Attributes:
        step: optimizer steps done.
        horizon: optimizer steps in all; 0 before it is known.
        best: the best rung so far, of those on the whole validation split.
        candidate: the best rung so far, of those on a part of it.
        clock: of the device.
        resumed_from: the step that this attempt went on from.
        samples: training examples that this attempt has seen.
        notes: what the trial's reader should know, in words.
        unsaved: of these, what could not be saved and is told with the next rung.
        cached_features: whether a head was trained on kept features, in this attempt or before.
        compiled: whether it trains through a compiled module; None before that is known.
        training: how much of a training batch fits into memory (the trainee's ``portion``).
        evaluation: how much of an evaluation batch does.
        patience: how long the objective has not improved.
    """

    step: int = 0
    horizon: int = 0
    best: Best | None = None
    candidate: Candidate | None = None
    clock: Clock = field(default_factory=Clock)
    resumed_from: int = 0
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    unsaved: list[str] = field(default_factory=list)
    cached_features: bool = False
    compiled: bool | None = None
    training: Portion = field(default_factory=Portion)
    evaluation: Portion = field(default_factory=Portion)
    patience: Patience = field(default_factory=Patience)


def save(paths: TrialPaths, trainee: Trainee, state: TrialState, monitors: Monitors) -> None:
    """Write all that `restore` needs.

    Raises:
        OSError: when it cannot be written; the checkpoint before is still there.
    """
    optimizer_tensors, optimizer_rest = _split(trainee.optimizer.state_dict()["state"])
    random_tensors, random_rest = random_states(trainee.device)
    groups: dict[str, Mapping[str, Tensor]] = {
        "model": _changing(trainee, trainee.model.module.state_dict()),
        "optimizer": optimizer_tensors,
        "random": random_tensors,
        "monitor": monitors.tensors(),
    }
    header: checkpoint.Header = {
        "identity": _identity(trainee),
        "step": state.step,
        "seconds": state.clock.total(),
        "optimizer": optimizer_rest,
        "random": random_rest,
        "scaler": trainee.scaler.state_dict(),
        "sizes": monitors.sizes,
        "patience": state.patience.header(),
        "head_only": trainee.backbone_stays,
        "cached_features": state.cached_features,
        "compiled": state.compiled,
    }
    if trainee.averaging is not None:
        groups["average"] = trainee.averaging.tensors()
        header["averaged"] = trainee.averaging.count
    if state.best is not None:
        groups["best"] = _changing(trainee, state.best.weights)
        header["best"] = state.best.header()
    if state.candidate is not None:
        groups["candidate"] = state.candidate.weights
        header["candidate"] = state.candidate.header()
    tensors = {f"{group}.{k}": t for group, part in groups.items() for k, t in part.items()}
    checkpoint.write(paths.resume, tensors, header, previous=paths.previous_resume)


def restore(paths: TrialPaths, trainee: Trainee, state: TrialState, monitors: Monitors) -> None:
    """Set everything to the last good checkpoint of the same configuration, if there is one."""
    found, wrong = checkpoint.read_last(paths.resume, paths.previous_resume)
    if wrong:
        went_on = "went on from the checkpoint before it" if found else "began anew"
        state.notes.append(f"{'; '.join(wrong)}; {went_on}")
    if found is None:
        return
    tensors, header = found
    if header.get("identity") != _identity(trainee):
        state.notes.append(
            f"{paths.resume} is of another configuration, data or version; began anew"
        )
        return
    # A backbone that is as it was made, its features kept, is not in the checkpoint.
    backbone = {
        name: tensor.detach()
        for name, tensor in trainee.model.module.state_dict().items()
        if header.get("head_only") and not trainee.model.in_head(name)
    }
    trainee.model.module.load_state_dict({**backbone, **_group(tensors, "model")})
    groups = trainee.optimizer.state_dict()["param_groups"]
    moments = _join(_group(tensors, "optimizer"), header["optimizer"])
    trainee.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    _lay_out(trainee.optimizer)
    if header["scaler"]:
        trainee.scaler.load_state_dict(header["scaler"])
    monitor = _group(tensors, "monitor")
    monitors.restore({k: v.to(trainee.device) for k, v in monitor.items()}, header["sizes"])
    if trainee.averaging is not None:
        trainee.averaging.restore(_group(tensors, "average"), header["averaged"])
    # Checkpoints of earlier versions lack it.
    state.patience = Patience(**header.get("patience", {}))
    if "best" in header:
        state.best = Best(**header["best"], weights={**backbone, **_group(tensors, "best")})
    if "candidate" in header:
        state.candidate = Candidate.restored(header["candidate"], _group(tensors, "candidate"))
    state.compiled = header.get("compiled")
    state.cached_features |= header.get("cached_features", False)
    state.step = state.resumed_from = header["step"]
    state.clock.earlier = header["seconds"]
    restore_random_states(_group(tensors, "random"), header["random"], trainee.device)


def _lay_out(optimizer: Optimizer) -> None:
    """Lay out in memory what ``optimizer`` keeps of each parameter as the parameter is.

    Files have the plain layout. Fused optimizers step through both as they lie.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            laid_out = not isinstance(value, Tensor) or value.shape != parameter.shape
            if not laid_out and value.stride() != parameter.stride():
                kept[name] = like(parameter, value)


def _changing(trainee: Trainee, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return those of ``tensors`` that training changes."""
    if not trainee.backbone_stays:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if trainee.model.in_head(name)}


def _identity(trainee: Trainee) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be this trial's own."""
    return {
        "format": FORMAT,
        "config": trainee.config.fingerprint(),
        "seed": trainee.config.seed,
        "labels": list(trainee.data.labels),
        "examples": len(trainee.data.train),
    }


def _group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _split(
    state: Mapping[int, Mapping[str, Any]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return an optimizer's state per parameter as named tensors, and what of it is none."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                rest.setdefault(str(index), {})[key] = value
    return tensors, rest


def _join(
    tensors: Mapping[str, Tensor], rest: Mapping[str, Mapping[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Undo `_split`."""
    state: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in rest.items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return state
