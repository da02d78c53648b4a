"""Every exception that a caller of sft_tune may catch.

::

    SftTuneError                      exit code 1: ours, or the machine's
    ├── UserError                     exit code 2: something the user can mend
    │   ├── StudyFileError            the study file breaks rules; `.problems` lists them all
    │   ├── DataError                 the data is not what the study file says
    │   ├── ModelError                the model or its weights do not fit
    │   │   └── MissingModelError     its files are not on this machine, and not to be had
    │   ├── StorageError              the database, or where checkpoints go, cannot be used
    │   ├── StudyNotFoundError        no study (or trial) of this name in the database
    │   └── StudyExistsError          a different study of this name is in the database
    ├── TrialError                    a trial failed; the message holds the worker's error
    │   └── MissingFunctionError      its function cannot be imported on this machine
    ├── ExportError                   exported files are not the weights that were kept
    └── WorkerError                   a worker process died or does not answer

A message says the rule that was broken, the offending value, where it stands and the remedy,
in one or two lines.
"""

from __future__ import annotations

from dataclasses import dataclass


class SftTuneError(Exception):
    """Base of every error that sft_tune raises on purpose."""

    exit_code = 1


class UserError(SftTuneError):
    """Something in the user's hands: a file, a name, an option."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One broken rule of a study file.

    Attributes:
        path: where it stands, dotted, e.g. ``space.learning_rate.low``.
        rule: the rule and the remedy, in words.
        value: the offending value as written, already shortened for print.
        line: line in the file, from 1; None where the format has no lines.
    """

    path: str
    rule: str
    value: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}, {self.path}" if self.line else self.path
        got = f" (got {self.value})" if self.value is not None else ""
        return f"{where}: {self.rule}{got}"


class StudyFileError(UserError):
    """A study file that breaks rules; every one of them is in ``problems``."""

    def __init__(self, problems: list[Problem], source: str | None = None) -> None:
        """Keep ``problems`` and name ``source``, the file they stand in."""
        self.problems = problems
        self.source = source
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        head = f"{source or 'study'}: {count}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in problems)]))


class DataError(UserError):
    """The data is missing, unreadable, or not what the study file says."""


class ModelError(UserError):
    """The model is unknown, or its weights do not fit it."""


class MissingModelError(ModelError):
    """Files of the model are not on this machine, and cannot be had from where they come from."""


class StorageError(UserError):
    """The study database (or where checkpoints go) cannot be used, or is of another version."""


class StudyNotFoundError(UserError):
    """The database has no study or trial of this name."""


class StudyExistsError(UserError):
    """The database has another study of this name."""


class TrialError(SftTuneError):
    """A trial failed; the message is the worker's."""


class MissingFunctionError(TrialError):
    """The function that trials call cannot be imported on this machine."""


class ExportError(SftTuneError):
    """What was exported does not give the trial's numbers, or could not be written."""


class WorkerError(SftTuneError):
    """A worker process died, or does not answer."""
