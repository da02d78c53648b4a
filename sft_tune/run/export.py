"""Export: a trial's weights in their library's format, proved in a fresh process before it is done.

The work is that of worker processes; this one imports no torch. One writes the files, and
another, which has seen nothing but them, loads them and evaluates validation again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_tune.errors import ExportError, UserError
from sft_tune.run.export_work import ExportWork
from sft_tune.run.exported import CARD, MARKER, Exported, How
from sft_tune.run.staging import staged
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import is_function
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import TrialRow


def export_trial(
    record: StudyRecord,
    row: TrialRow,
    others: Sequence[TrialRow],
    folder: Path,
    *,
    how: How = "trial",
    onnx: bool = False,
    force: bool = False,
    describe: Callable[[Exported], str],
    notify: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Export the trial ``row`` of the study ``record`` to ``folder``, and prove it there.

    ``folder`` appears when all is proved, and not before.

    Args:
        record: the study.
        row: the trial.
        others: for a soup: the other candidates, the best first.
        folder: where to.
        how: see `Exported`.
        onnx: write ``model.onnx`` too.
        force: replace an earlier export in ``folder``.
        describe: makes the model card, its README.md.
        notify: is told what is being done.

    Raises:
        ExportError: what was written does not give the trial's numbers.
        UserError: ``folder`` may not be used; the trial's weights were not kept.
        DataError, ModelError: the data or the checkpoint is not there, or not what it was.
        TrialError: the refit failed.
    """
    if row.config is None:
        raise UserError(f"trial {row.number} of study {record.name!r} has no configuration of ours")
    config = TrialConfig.model_validate(row.config)
    if is_function(config.task):
        raise UserError(
            f"the task of study {record.name!r} is a function of yours ({config.task}), which "
            "keeps its own weights; there is nothing here to export"
        )
    if how == "soup" and config.data.folds is not None:
        raise UserError(
            f"the trials of study {record.name!r} were cross-validated (data.folds), so what one "
            "was evaluated on another was trained on, and no soup can be judged; export without "
            "--soup"
        )
    target = Path(folder).expanduser().absolute()
    with (
        staged(target, marker=MARKER, force=force) as staging,
        tempfile.TemporaryDirectory(prefix="sft-tune-export-") as scratch,
    ):
        work = ExportWork(record, row, config, staging, Path(scratch), onnx, notify)
        try:
            exported = work.run(how, others, target)
            (staging / CARD).write_text(describe(exported), encoding="utf8")
            _write_json(staging / MARKER, exported.to_json())
        except OSError as error:
            raise ExportError(
                f"the export cannot be written: {error}; free space, or give another folder"
            ) from error
    return exported


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
