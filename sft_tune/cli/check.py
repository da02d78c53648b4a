"""`sft-tune check`: does it load, does it fit, what will it cost?"""

from __future__ import annotations

import queue
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_tune.cli.options import AsJson, FileStorage, StudyFile
from sft_tune.cli.output import console, print_json
from sft_tune.errors import StorageError, StudyNotFoundError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from sft_tune.run.slots import Slot
    from sft_tune.spec.study import StudySpec


def check(file: StudyFile, as_json: AsJson = False, storage: FileStorage = None) -> None:
    """Check a study file, its data and its models, and estimate the time.

    Each model of the space takes a few steps at each batch size. Nothing is written but prepared
    data, which `start` uses too.

    Example: sft-tune check study.yaml
    """
    from sft_tune.run.slots import find_slots, unused_gpus
    from sft_tune.spec.function_task import is_function
    from sft_tune.spec.load import load_study
    from sft_tune.view.advice import advice_json, draw_advice
    from sft_tune.view.advice_rules import beforehand
    from sft_tune.view.estimate import draw_check, estimate, warnings

    spec = load_study(file).spec
    slot = find_slots(spec.resources)[0]
    waiting = console(stderr=True)
    if text := unused_gpus(spec.resources):
        waiting.print(text, soft_wrap=True)
    with waiting.status("loading data and model, taking a few steps"):
        probed = _probe(spec, slot)
    if is_function(spec.task):
        known = _known(spec, storage)
        if as_json:
            print_json({"study": spec.name, "device": slot.label, "probes": [], "database": known})
        else:
            print(f"{spec.name}: {spec.task} can be imported; what it costs shows when it runs")
            if known is not None:
                print(f"\n{known}")
        return
    cost = estimate(spec, probed)
    advice = beforehand(spec, cost)
    known = _known(spec, storage)
    if as_json:
        print_json(
            {
                "study": spec.name,
                "device": slot.label,
                "probes": [{"model": model, **facts} for model, facts in probed],
                "estimate": cost._asdict(),
                "warnings": warnings(spec, probed),
                "advice": advice_json(advice),
                "database": known,
            }
        )
    else:
        console().print(draw_check(spec, slot.label, probed, cost))
        if advice:
            print("\nadvice")
            console().print(draw_advice(advice))
        if known is not None:
            print(f"\n{known}")


def _probe(spec: StudySpec, slot: Slot) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Probe each model of the space in one worker process; return model and facts of each."""
    from sft_tune.run.engine import Inbox, LocalEngine
    from sft_tune.run.register import configs_to_check
    from sft_tune.run.single import probe_config
    from sft_tune.view.estimate import batch_sizes, token_budgets

    ways = batch_sizes(spec), token_budgets(spec)
    with tempfile.TemporaryDirectory() as logs:
        inbox: Inbox = queue.SimpleQueue()
        worker = LocalEngine(Path(logs)).spawn(slot, inbox)
        try:
            return [
                (config.model.model_dump(), probe_config(worker, inbox, config, *ways))
                for config in configs_to_check(spec)
            ]
        finally:
            worker.close()


def _known(spec: StudySpec, storage: str | None) -> str | None:
    """Return what the study database has of this study; None where it has nothing.

    A database that is named and cannot be opened is told of: `start` may make it, or fail too.
    """
    from sft_tune.store.records import find_study
    from sft_tune.store.urls import redact

    try:
        with open_database(storage or spec.storage.url) as db:
            record = find_study(db, spec.name)
    except StudyNotFoundError:
        return None
    except StorageError as error:
        return None if storage is None else str(error)
    of = f" of {record.max_trials}" if record.max_trials else ""
    what = "it is finished" if record.ended else "`sft-tune start` goes on with it"
    return f"study {record.name} is in {redact(db.url)}, {record.issued}{of} trials issued; {what}"
