"""The work of one export: where its weights come from, its files, and their proof."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_tune.errors import ExportError, TrialError, UserError
from sft_tune.run import messages
from sft_tune.run.agreement import LOGITS, ONNX_LOGITS, disagreements
from sft_tune.run.engine import Inbox, LocalEngine
from sft_tune.run.exported import CARD, MARKER, STUDY_FILE, Exported, How
from sft_tune.run.messages import Message
from sft_tune.run.single import await_event
from sft_tune.run.slots import Slot, find_slots
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.dump import dump_study
from sft_tune.spec.evaluating import settled
from sft_tune.spec.paths import localize_config
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import TrialRow


class ExportWork:
    """One export: where its weights come from, its files, and their proof."""

    def __init__(
        self,
        record: StudyRecord,
        row: TrialRow,
        config: TrialConfig,
        staging: Path,
        scratch: Path,
        onnx: bool,
        notify: Callable[[str], None],
    ) -> None:
        """Be ready to export the trial ``row`` of ``record``; nothing is written yet.

        Args:
            record: the study.
            row: the trial.
            config: of the trial, as the database keeps it.
            staging: folder of the files, which becomes the export.
            scratch: folder of what is needed meanwhile only.
            onnx: write ``model.onnx`` too.
            notify: is told what is being done.
        """
        self._record = record
        self._row = row
        self._config = config
        self._here = localize_config(config, record.root or "")
        self._goal = row.best_progress or 100
        self._metrics = row.metrics
        folds = (row.flags or {}).get("folds")
        if folds is not None:  # the one that the weights are of
            self._here = self._here.of_fold(folds["kept"])
            self._goal, self._metrics = folds["progress"] or 100, folds["metrics"]
        self._staging = staging
        self._scratch = scratch
        self._onnx = onnx
        self._notify = notify
        self._resources = record.spec.resources
        self._slot: Slot = find_slots(self._resources)[0]

    def run(self, how: How, others: Sequence[TrialRow], target: Path) -> Exported:
        """Get the weights, write them, and prove what was written.

        Args:
            how: where the weights come from.
            others: for a soup: the other candidates, the best first.
            target: the folder that `Exported` is to name.

        Raises:
            ExportError: what was written does not give the trial's numbers.
            UserError: the trial's weights were not kept.
            DataError, ModelError: the data or the checkpoint is not there, or not what it was.
            TrialError: the refit failed.
        """
        cooked: Message = {"ingredients": [], "tried": [], "metrics": None}
        if how == "refit":
            best = self._refit()
        elif how == "soup":
            cooked = self._soup(others)
            alone = len(cooked["ingredients"]) == 1
            best = checkpoint_of(self._row) if alone else str(self._soup_file)
        else:
            best = checkpoint_of(self._row)
        self._notify(f"writing the weights of trial {self._row.number}")
        reference = self._scratch / "reference.safetensors"
        command = messages.export(
            *(self._here, best, self._staging, reference), onnx=self._onnx, slot=self._slot
        )
        facts = self._ask(command, "exported")["facts"]
        self._write_study_file(facts["data"]["examples"])
        self._notify("loading them in a fresh process, and evaluating validation again")
        found = self._verified(reference, facts["call"])
        averaged = len(cooked["ingredients"]) > 1
        recorded = cooked["metrics"] if averaged else self._metrics
        self._compare(found, None if how == "refit" else recorded)
        return Exported(
            study=self._record.name,
            number=self._row.number,
            how=how,
            config=self._config,
            folder=target,
            metrics={} if how == "refit" else found["metrics"],
            ingredients=cooked["ingredients"],
            tried=cooked["tried"],
            facts=facts,
            onnx=self._onnx,
            difference=found["difference"],
            files=sorted([*(path.name for path in self._staging.iterdir()), CARD, MARKER]),
        )

    @property
    def _soup_file(self) -> Path:
        return self._scratch / "soup.safetensors"

    def _ask(
        self,
        command: Message,
        wanted: str,
        on_rung: Callable[[Message], bool] | None = None,
    ) -> Message:
        """Let a new worker do ``command``, and return its event ``wanted``."""
        inbox: Inbox = queue.SimpleQueue()
        worker = LocalEngine(self._scratch).spawn(self._slot, inbox)

        def answer(evaluation: Message) -> None:
            go_on = on_rung is None or on_rung(evaluation)
            worker.send(messages.verdict(go_on))

        try:
            worker.send(command)
            return await_event(inbox, wanted, answer)
        finally:
            worker.close()

    def _refit(self) -> str:
        """Train on train and validation, to the rung at which the trial was best."""
        self._notify("training on train and validation")
        goal = self._goal
        # What ends a trial by its validation scores would end this one by those of its own
        # training examples.
        training = self._here.training.model_copy(update={"patience": None})
        config = self._here.model_copy(update={"training": training})
        # It is no trial, and none of the experiment's loggers are to count it.
        resources = self._resources.model_copy(update={"loggers": ()})
        command = messages.train(
            *(config, self._scratch / "refit", self._slot, resources), refit_to=goal
        )

        def on_rung(evaluation: Message) -> bool:
            self._notify(
                f"{evaluation['progress']:3d} %  train loss {evaluation['train_loss']:.4f}"
            )
            return bool(evaluation["progress"] < goal)

        outcome = self._ask(command, "outcome", on_rung)
        if outcome["checkpoint"] is None:
            raise TrialError(
                f"the refit ended as {outcome['reason']}: {outcome['note']}; export without --refit"
            )
        return str(outcome["checkpoint"])

    def _soup(self, others: Sequence[TrialRow]) -> Message:
        self._notify(f"averaging the weights of {len(others) + 1} trials, as far as that helps")
        candidates = [
            (
                row.number,
                checkpoint_of(row),
                localize_config(TrialConfig.model_validate(row.config), self._record.root or ""),
            )
            for row in (self._row, *others)
        ]
        command = messages.soup(candidates, self._soup_file, self._slot, self._resources)
        return self._ask(command, "cooked")

    def _write_study_file(self, examples: Mapping[str, int]) -> None:
        name = f"{self._record.name[:100]}-trial-{self._row.number}"
        text = (
            f"# Trial {self._row.number} of study {self._record.name}. The same numbers again:\n"
            f"#   sft-tune train {STUDY_FILE} --seed {self._config.seed}\n"
            "# Paths, of data or a backbone, are those of the machine that exported it.\n\n"
        )
        config = self._here.model_copy(update={"objective": settled(self._here, examples)})
        text += dump_study(config, name, self._resources)
        (self._staging / STUDY_FILE).write_text(text, encoding="utf8")

    def _verified(self, reference: Path, call: Mapping[str, Any]) -> Message:
        command = messages.verify(
            *(self._here, self._staging, reference, call),
            onnx=self._onnx,
            slot=self._slot,
            resources=self._resources,
        )
        found: Message = self._ask(command, "verified")["found"]
        return found

    def _compare(self, found: Message, recorded: Mapping[str, float] | None) -> None:
        """Raise ExportError where the exported files are not the weights that were meant.

        Args:
            found: what `trial.export.verify.verify` returned.
            recorded: the metrics that they have to give; None: validation says nothing.
        """
        wrong = []
        if not found["difference"] <= LOGITS:
            wrong.append(f"logits differ by {found['difference']:.2g} of the largest")
        if self._onnx and not found["onnx_difference"] <= ONNX_LOGITS:
            wrong.append(f"logits of model.onnx differ by {found['onnx_difference']:.2g}")
        if recorded is not None:
            size, reduced = found["examples"], found["reduced"]
            wrong += disagreements(found["metrics"], recorded, examples=size, reduced=reduced)
            if self._onnx:
                # In single precision, whatever the trial ran in.
                told = disagreements(found["onnx_metrics"], recorded, examples=size, reduced=True)
                wrong += [f"model.onnx: {text}" for text in told]
        if wrong:
            raise ExportError(
                "the exported files, loaded in a fresh process, do not give the numbers of the "
                f"weights that were kept: {'; '.join(wrong)}. Nothing was left; if data or "
                "libraries have changed since the trial, export where they are as they were"
            )


def checkpoint_of(row: TrialRow) -> str:
    """Return the path of the trial's best weights.

    Raises:
        UserError: they were not kept.
    """
    if row.checkpoint is None:
        raise UserError(
            f"the weights of trial {row.number} were not kept: only the best trials keep theirs "
            "(resources.keep_checkpoints, `sft-tune prune-checkpoints`); export another trial, or "
            "train it anew with --refit"
        )
    return row.checkpoint
