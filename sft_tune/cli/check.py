"""`sft-tune check`: does it load, does it fit, what will it cost?"""

from __future__ import annotations

import queue
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sft_tune.cli.options import AsJson, FileStorage, StudyFile
from sft_tune.cli.output import console, print_json
from sft_tune.errors import StorageError, StudyNotFoundError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from sft_tune.run.slots import Slot
    from sft_tune.spec.study import StudySpec
    from sft_tune.view.estimate import Probed


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
    from sft_tune.view.checked import draw_check, warnings
    from sft_tune.view.estimate import estimate

    spec = load_study(file).spec
    at_once = _at_once(spec)
    slot = find_slots(spec.resources, at_once or 1)[0]
    waiting = console(stderr=True)
    if text := unused_gpus(spec.resources):
        waiting.print(text, soft_wrap=True)
    with waiting.status("loading data and model, taking a few steps"):
        probed, begin = _probe(spec, slot)
    if is_function(spec.task):
        known = _known(spec, storage)
        if as_json:
            print_json({"study": spec.name, "device": slot.label, "probes": [], "database": known})
        else:
            print(f"{spec.name}: {spec.task} can be imported; what it costs shows when it runs")
            if known is not None:
                print(f"\n{known}")
        return
    cost = estimate(spec, probed, begin=begin, at_once=at_once)
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


def _at_once(spec: StudySpec) -> int | None:
    """Return how many trials `start` runs at once; None: it is going to measure that."""
    from sft_tune.run.calibrate import is_open, known_cpu_workers
    from sft_tune.run.register import configs_to_check
    from sft_tune.run.slots import find_slots
    from sft_tune.spec.function_task import is_function

    resources = spec.resources
    if is_function(spec.task) or resources.engine == "ray":
        return resources.workers
    if not is_open(resources):
        return len(find_slots(resources))
    config = configs_to_check(spec)[0]
    return known_cpu_workers(config, resources, features=resources.feature_cache)


def _probe(spec: StudySpec, slot: Slot) -> tuple[list[Probed], float]:
    """Probe each model of the space in one worker process; return model and facts of each.

    They come with the seconds until the first has taken its steps, as it has to in `start`; without
    those for the data, which is prepared by then.
    """
    from sft_tune.run.engine import Inbox, LocalEngine
    from sft_tune.run.register import MODELS, configs_to_check
    from sft_tune.run.single import probe_config
    from sft_tune.view.estimate import batch_sizes, token_budgets

    ways = batch_sizes(spec), token_budgets(spec)
    probed: list[Probed] = []
    begin, took = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as logs:
        inbox: Inbox = queue.SimpleQueue()
        worker = LocalEngine(Path(logs)).spawn(slot, inbox)
        try:
            for config in configs_to_check(spec, (*MODELS, "freeze")):
                facts = probe_config(worker, inbox, config, spec.resources, *ways)
                probed.append((config.model.model_dump(), facts))
                took = took or time.monotonic() - begin - facts.get("data_seconds", 0.0)
        finally:
            worker.close()
    return probed, took


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
