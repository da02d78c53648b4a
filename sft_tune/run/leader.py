"""The best value of a study, whichever of its runners found it."""

from __future__ import annotations

from sft_tune.store import reads
from sft_tune.store.database import Database
from sft_tune.store.newcomers import Newcomers
from sft_tune.store.retry import retrying


class Leader:
    """What a new trial has to beat; other runners' trials are heard of when it is asked."""

    def __init__(self, db: Database, study: str, *, maximize: bool) -> None:
        """Begin with the best value that ``study`` has in ``db``."""
        self._maximize = maximize
        # In this order: what ends between the two is seen twice, and not never.
        self._others = Newcomers.from_now(db, study)
        best = reads.best_row(db, study)
        self._value = None if best is None else best.value

    def takes(self, number: int, value: float | None) -> bool:
        """Tell whether the trial ``number``, which ended here, leads with ``value`` (None: no)."""
        self._others.note(number)
        self._hear()
        return self._is_best(value)

    def reached(self, target: float) -> bool:
        """Tell whether the best value is as good as ``target``."""
        if self._is_at(target):  # it cannot become worse
            return True
        self._hear()
        return self._is_at(target)

    def _is_at(self, target: float) -> bool:
        if self._value is None:
            return False
        return self._value >= target if self._maximize else self._value <= target

    def _hear(self) -> None:
        for row in retrying(self._others.look):
            if row.state == "COMPLETE" and row.duplicate_of is None:
                self._is_best(row.value)

    def _is_best(self, value: float | None) -> bool:
        if value is None:
            return False
        if self._value is not None:
            better = value > self._value if self._maximize else value < self._value
            if not better:
                return False
        self._value = value
        return True
