"""A claimed trial on its way to a worker: what it trains, and where its files belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sft_tune.run.messages import cache_folder
from sft_tune.run.retention import prepared_place, working_folder
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.paths import is_url, localize_config
from sft_tune.spec.space import Value
from sft_tune.store.claims import Claim


@dataclass(frozen=True)
class Placement:
    """A claimed trial, or confirmation run of one, on its way.

    Attributes:
        claim: proof that it is ours.
        number: the trial's number in the study.
        params: where it lies in the space.
        config: its configuration, as the database keeps it.
        local_config: the same with the paths of this machine (see `sft_tune.spec.paths`).
        folder: of this machine, where it works.
        with_test: whether its best weights are evaluated on the test split, too.
        url: where its files belong in the end; None: in that folder.
        prepared: URL where machines share prepared data; None: nowhere.
        kept_from: its weights go at once where its value is worse than this; None: they stay.
    """

    claim: Claim
    number: int
    params: Mapping[str, Value]
    config: TrialConfig
    local_config: TrialConfig
    folder: Path
    with_test: bool = False
    url: str | None = None
    prepared: str | None = None
    kept_from: float | None = None

    @property
    def attempt(self) -> int:
        """How often it has begun, times that it was given back in order not counted."""
        return self.claim.attempts


def placed(
    claim: Claim,
    number: int,
    params: Mapping[str, Value],
    config: TrialConfig,
    *,
    artifacts: str,
    root: str | None,
    where: Callable[[str], str],
    with_test: bool = False,
) -> Placement:
    """Return the placement of ``claim``, with the paths of this machine.

    Args:
        claim: of a trial, or of a confirmation run of one.
        number: the trial's number in the study.
        params: where it lies in the space.
        config: its configuration, as the database keeps it.
        artifacts: where the study's files are, a folder or a URL.
        root: the folder that the study file was in, whose paths are made local.
        where: gives the place of the trial's files below such a folder or URL.
        with_test: whether its best weights are evaluated on the test split, too.
    """
    place = where(artifacts)
    return Placement(
        claim,
        number,
        params,
        config,
        localize_config(config, root or ""),
        Path(where(str(working_folder(artifacts, cache_folder())))),
        with_test=with_test,
        url=place if is_url(place) else None,
        prepared=prepared_place(artifacts),
    )
