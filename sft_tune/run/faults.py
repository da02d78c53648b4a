"""What is wrong with the trials of one study, from the rungs that its runner hears of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_tune.spec.fault_rules import find_faults
from sft_tune.spec.faults import Fault, Rung
from sft_tune.spec.study import StudySpec
from sft_tune.store import reads
from sft_tune.store.database import Database


class FaultFinder:
    """The rungs of the trials that run here, those of their earlier attempts included."""

    def __init__(self, db: Database, spec: StudySpec) -> None:
        """Watch the trials of ``spec``, whose earlier rungs are in ``db``."""
        self._db = db
        self._spec = spec
        self._rungs: dict[int, dict[int, Rung]] = {}

    def add(self, number: int, evaluation: Mapping[str, Any]) -> None:
        """Note a rung of trial ``number``, which is in the database already."""
        if number not in self._rungs:
            self._rungs[number] = self._recorded(number)
        rung = Rung.of(evaluation, self._spec.objective.metric)
        self._rungs[number][rung.progress] = rung

    def so_far(self, number: int) -> list[Fault]:
        """Return the faults of trial ``number``, which runs."""
        return self._find(number, None, "")

    def end(self, number: int, outcome: Mapping[str, Any]) -> list[Fault]:
        """Return the faults of trial ``number``, which ended so, and forget its rungs."""
        if number not in self._rungs:
            self._rungs[number] = self._recorded(number)
        faults = self._find(number, outcome["reason"], outcome.get("note") or "")
        del self._rungs[number]
        return faults

    def _find(self, number: int, reason: str | None, note: str) -> list[Fault]:
        rungs = self._rungs.get(number, {})
        if self._spec.data.folds is not None and self._spec.data.fold is None:
            rungs = {}  # each fold begins anew: they are no curve
        maximize = self._spec.direction == "maximize"
        ordered = [rungs[progress] for progress in sorted(rungs)]
        return find_faults(ordered, maximize=maximize, reason=reason, note=note)

    def _recorded(self, number: int) -> dict[int, Rung]:
        metric = self._spec.objective.metric
        rows = reads.evaluation_rows(self._db, self._spec.name, number)
        found = (Rung.of({**row._asdict(), "metrics": row.metrics}, metric) for row in rows)
        return {rung.progress: rung for rung in found}
