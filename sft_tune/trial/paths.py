"""Where the files of one trial lie: every file name of its folder is in this class."""

from __future__ import annotations

from pathlib import Path


class TrialPaths:
    """The folder of one trial.

    ==========================  ======================================================
    best.safetensors            weights at the best rung, complete with configuration
    resume.safetensors          the last state that the trial can go on from
    resume.previous.safetensors the one before, in case the last is torn
    config.json                 the complete configuration
    log.txt                     what the worker printed
    files                       what a task's own training function keeps
    reports.json                what that has reported, while the trial is not ended
    resume-folds.json           of cross-validation: the folds that are done
    resume-files.zip            `files` and `reports.json` on their way to a URL
    ==========================  ======================================================
    """

    def __init__(self, root: Path) -> None:
        """Name the files under ``root``; nothing is created."""
        self.root = root
        self.best = root / "best.safetensors"
        self.resume = root / "resume.safetensors"
        self.previous_resume = root / "resume.previous.safetensors"
        self.config = root / "config.json"
        self.log = root / "log.txt"
        self.function_folder = root / "files"
        self.reports = root / "reports.json"
        self.folds = root / "resume-folds.json"

    def __repr__(self) -> str:
        return f"TrialPaths({str(self.root)!r})"

    def create(self) -> TrialPaths:
        """Create the folder where it is missing, and return self.

        Raises:
            OSError: when it cannot be created.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        return self

    def clear_resume(self) -> None:
        """Delete what a resume needs: the trial's end is on record, it will not go on.

        What a process left that died while it wrote goes with it.
        """
        for path in (self.reports, *self.root.glob("resume*"), *self.root.glob("*.tmp")):
            path.unlink(missing_ok=True)


class FunctionPaths(TrialPaths):
    """The files of a trial that is a function's: it goes on from an archive of its folder."""

    def __init__(self, root: Path) -> None:
        """Name the files under ``root``."""
        super().__init__(root)
        self.resume = root / "resume-files.zip"


class FoldPaths(TrialPaths):
    """The files of one fold of a trial, in the trial's folder; its end on record removes them."""

    def __init__(self, root: Path, fold: int) -> None:
        """Name the files of the fold ``fold``, from 0, under ``root``."""
        super().__init__(root)
        self.best = root / f"resume-fold-{fold}-best.safetensors"
        self.resume = root / f"resume-fold-{fold}.safetensors"
        self.previous_resume = root / f"resume-fold-{fold}.previous.safetensors"

    def drop_state(self) -> None:
        """Delete what the fold would go on from: it is done."""
        self.resume.unlink(missing_ok=True)
        self.previous_resume.unlink(missing_ok=True)
