"""Settings of training that have no effect, or none that is meant, beside other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft_tune.spec.config import setting
from sft_tune.spec.findings import Findings
from sft_tune.spec.rules import Finding, Rule, combinations, known_combinations, place_of, places_of
from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import settings, shown

_ADAPTIVE = ("adamw", "adam", "muon")
_TO_A_MINIMUM = ("linear", "cosine", "polynomial", "warmup_stable_decay", "one_cycle")
# Settings that some values of another one ignore: giving or searching them there is in vain.
_NEEDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "momentum": ("optimizer", ("sgd", "muon")),
    "nesterov": ("optimizer", ("sgd", "muon")),
    "beta1": ("optimizer", (*_ADAPTIVE, "lion")),
    "beta2": ("optimizer", (*_ADAPTIVE, "lion")),
    "epsilon": ("optimizer", _ADAPTIVE),
    "decay_factor": ("schedule", ("exponential", "step")),
    "decay_epochs": ("schedule", ("step",)),
    "cycles": ("schedule", ("cosine",)),
    "power": ("schedule", ("polynomial",)),
    "cooldown": ("schedule", ("warmup_stable_decay",)),
    "min_learning_rate": ("schedule", _TO_A_MINIMUM),
    "ema_decay": ("averaging", ("ema",)),
    "swa_start": ("averaging", ("swa",)),
    "magnitude": ("auto_augment", ("randaugment",)),
    "mix_alpha": ("mix", ("mixup", "cutmix")),
    "freeze_blocks": ("freeze", ("blocks",)),
    "unfreeze_at": ("freeze", ("head_first", "gradual")),
    "unfrozen_learning_rate": ("freeze", ("head_first",)),
    "layer_decay": ("freeze", ("none", "blocks", "head_first", "gradual")),
}

_LORA_DETAILS = ("model.lora_alpha", "model.lora_dropout", "model.lora_targets", "model.lora_merge")


def unread(given: Mapping[str, Any]) -> set[str]:
    """Return the settings (``momentum``, ``model.lora_alpha``) that one configuration ignores.

    Args:
        given: its settings, under the names that the space has for them.
    """
    names = {
        name
        for name, (other, read) in _NEEDS.items()
        if other in given and given[other] not in read
    }
    if given.get("batch_tokens") is not None:
        names.add("batch_size")
    if given.get("patience") is None:
        names.add("min_change")
    if given.get("model.lora_rank") is None:
        names.update(_LORA_DETAILS)
    return names


def _settings_in_vain(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    for name, (other, values) in _NEEDS.items():
        if not _decided(spec, name) or not findings.ok(*places_of(name, other)):
            continue
        if not any(cell[other] in values for cell in _active(spec, name, other)):
            wanted = " or ".join(values)
            yield (
                place_of(spec, name),
                f"has an effect only with {other}: {wanted}; add that or remove it",
            )


def _decided(spec: StudySpec, name: str) -> bool:
    """Tell whether the file searches ``name``, or fixes it to another value than its default."""
    return name in spec.space or setting(spec, name) != settings()[name].default


def _active(spec: StudySpec, name: str, other: str) -> Iterator[dict[str, Any]]:
    """Yield the combinations of both in which ``name`` has the value that the file decides."""
    when = (spec.space[name].when or {}).get(other) if name in spec.space else None
    for cell in combinations(spec, [name, other]):
        if when is None or cell[other] in when:
            yield cell


def _change_without_patience(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    if _decided(spec, "min_change") and findings.ok(*places_of("min_change", "patience")):
        if all(cell["patience"] is None for cell in _active(spec, "min_change", "patience")):
            yield (
                place_of(spec, "min_change"),
                "has an effect only with patience; give that a number or remove this",
            )


def _rates_in_order(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    for cell in known_combinations(
        spec, findings, "schedule", "learning_rate", "min_learning_rate"
    ):
        low, rate = cell["min_learning_rate"], cell["learning_rate"]
        if cell["schedule"] in _TO_A_MINIMUM and low > rate:
            place = place_of(spec, "min_learning_rate")
            yield place, f"must not exceed learning_rate, which may be {shown(rate)}; lower it"
            return


def _nesterov_without_momentum(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    for cell in known_combinations(spec, findings, "optimizer", "nesterov", "momentum"):
        if cell["optimizer"] == "sgd" and cell["nesterov"] and cell["momentum"] == 0:
            yield place_of(spec, "nesterov"), "needs momentum above 0; raise that or remove it"
            return


def _cooldown_after_warmup(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    for cell in known_combinations(spec, findings, "schedule", "warmup", "cooldown"):
        warmup, cooldown = cell["warmup"], cell["cooldown"]
        if cell["schedule"] == "warmup_stable_decay" and warmup + cooldown > 1:
            yield (
                place_of(spec, "cooldown"),
                f"with warmup, which may be {shown(warmup)}, it takes more than the whole trial; "
                "lower one",
            )
            return


def _batch_tokens(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    """A batch has room for the longest text, and its size is given one way."""
    budgets = [cell["batch_tokens"] for cell in combinations(spec, ["batch_tokens"])]
    given = [budget for budget in budgets if budget is not None]
    longest, limits = spec.data.max_length, "data.max_length"
    if spec.task == "seq2seq":
        longest, limits = longest + spec.data.max_target_length, f"{limits} + max_target_length"
    if given and min(given) < longest and findings.ok(*places_of("batch_tokens")):
        yield (
            place_of(spec, "batch_tokens"),
            f"a text may have {longest} tokens ({limits}), more than a batch of "
            f"{shown(min(given))}; raise this, or lower that",
        )
    if not given or not _decided(spec, "batch_size") or not findings.ok(*places_of("batch_size")):
        return
    beside = _active(spec, "batch_size", "batch_tokens")
    if all(cell["batch_tokens"] is not None for cell in beside):
        yield (
            place_of(spec, "batch_size"),
            "has an effect only without batch_tokens; remove one of them",
        )


def _reinit_of_nothing(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    known = known_combinations(spec, findings, "model.reinit_blocks", "model.weights")
    cells = [cell for cell in known if cell["model.reinit_blocks"]]
    if cells and all(cell["model.weights"] == "none" for cell in cells):
        yield (
            place_of(spec, "model.reinit_blocks"),
            "with model.weights: none all blocks begin with random weights; remove it",
        )


def _lora(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    rank = "model.lora_rank"
    if not findings.ok(*places_of(rank, "model.name", "freeze")):
        return
    for cell in combinations(spec, [rank, "model.name", "freeze"]):
        name = str(cell["model.name"])
        if cell[rank] is None:
            continue
        if name.startswith("builtin:"):
            yield (
                place_of(spec, rank),
                f"LoRA is for pretrained models of a library, not {name}; remove it",
            )
            return
        if cell["freeze"] == "backbone":
            yield place_of(spec, rank), "with freeze: backbone no update is trained; change one"
            return
    ranks = [cell[rank] for cell in combinations(spec, [rank])]
    for name in _LORA_DETAILS:
        if _decided(spec, name) and all(value is None for value in ranks):
            yield (
                place_of(spec, name),
                "has an effect only with model.lora_rank; give that, or remove it",
            )


TECHNIQUE_RULES: tuple[Rule, ...] = (
    _settings_in_vain,
    _change_without_patience,
    _rates_in_order,
    _nesterov_without_momentum,
    _cooldown_after_warmup,
    _batch_tokens,
    _reinit_of_nothing,
    _lora,
)
