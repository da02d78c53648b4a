"""What is to be prepared for a study: its data, and which splits the source has of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.cache import prepared_root
from sft_tune.trial.data.examples import Source
from sft_tune.trial.data.sources import open_source
from sft_tune.trial.data.target_kinds import Targets
from sft_tune.trial.data.targets import targets_of


@dataclass(frozen=True)
class Request:
    """What is to be prepared, and which splits the source has of its own.

    Attributes:
        task: what the examples are for.
        data: the study file's section.
        model: the model that is fine-tuned.
        source: of the examples.
        root: folder of prepared data.
        own_validation: whether the source has a validation split.
        own_test: whether it has a test split; None: only reading it would tell.
    """

    task: Task
    data: DataSpec
    model: ModelSpec
    source: Source
    root: Path
    own_validation: bool
    own_test: bool | None

    @property
    def targets(self) -> Targets:
        """The reader of the targets."""
        return targets_of(self.task, self.data)

    @property
    def test_fraction(self) -> float:
        """The share of train that test is taken from it; 0 where the source has its own."""
        return 0.0 if self.own_test else self.data.test_fraction

    def where(self, split: str) -> str:
        """Return what ``split`` is called in messages."""
        return f"the {split} split of {self.data.source}"


def make_request(
    task: Task, data: DataSpec, model: ModelSpec, cache: Path, with_test: bool
) -> Request:
    """Open the source and ask it for its splits; of test only where ``with_test``, or it matters.

    Raises:
        DataError: where there is no such source, or it cannot be read.
    """
    source = open_source(task, data, cache)
    source.has("train")  # first, so that a source that fails at all fails for train
    # A function has to be called to know, so it is asked only where the answer matters.
    own_test = source.has("test", ask=with_test or data.test_fraction > 0)
    own_validation = data.folds is None and bool(source.has("validation"))
    return Request(task, data, model, source, prepared_root(cache), own_validation, own_test)
