"""Muon for hidden matrices and AdamW for all else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import AdamW, Muon, Optimizer

Groups = list[dict[str, Any]]


class MuonAndAdamW(Optimizer):
    """Torch's Muon (Jordan et al. 2024) over the groups marked ``hidden``, AdamW over the others.

    An update of Muon is scaled to the size of AdamW's (Liu et al. 2025, eq. 4), so that both take
    one learning rate. Both work on the groups and the state of this optimizer, which is all that
    a checkpoint needs.
    """

    def __init__(self, groups: Groups, muon: Mapping[str, Any], adamw: Mapping[str, Any]) -> None:
        """Optimize ``groups``; the rest are the arguments of the two optimizers."""
        super().__init__(groups, {})
        hidden = [g for g in self.param_groups if g["hidden"]]
        others = [g for g in self.param_groups if not g["hidden"]]
        self._parts: list[Optimizer] = []
        if hidden:
            self._parts.append(Muon(hidden, **muon, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(AdamW(others, **adamw))
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do one step of both. A ``closure`` is not supported."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set state and groups to those of ``state_dict``."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both parts work on the groups and the state of the whole."""
        for part in self._parts:
            hidden = isinstance(part, Muon)
            own = [g for g in self.param_groups if bool(g["hidden"]) is hidden]
            for group, settings in zip(own, part.param_groups, strict=True):
                for key, value in settings.items():
                    group.setdefault(key, value)
            part.param_groups = own
            part.state = self.state
