"""`sft-tune check`: does it load, does it fit, what will it cost?"""

from __future__ import annotations

import queue
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_tune.cli.options import AsJson, StudyFile
from sft_tune.cli.output import console, print_json

if TYPE_CHECKING:
    from sft_tune.run.slots import Slot
    from sft_tune.spec.study import StudySpec


def check(file: StudyFile, as_json: AsJson = False) -> None:
    """Check a study file, its data and its models, and estimate the time.

    Each model of the space takes a few steps at each batch size. Nothing is written but prepared
    data, which `start` uses too.

    Example: sft-tune check study.yaml
    """
    from sft_tune.run.slots import find_slots
    from sft_tune.spec.load import load_study
    from sft_tune.view.estimate import draw_check, estimate

    spec = load_study(file).spec
    slot = find_slots(spec.resources)[0]
    waiting = console(stderr=True)
    with waiting.status("loading data and model, taking a few steps"):
        probed = _probe(spec, slot)
    cost = estimate(spec, probed)
    if as_json:
        print_json(
            {
                "study": spec.name,
                "device": slot.label,
                "probes": [{"model": model, **facts} for model, facts in probed],
                "estimate": cost._asdict(),
            }
        )
    else:
        console().print(draw_check(spec, slot.label, probed, cost))


def _probe(spec: StudySpec, slot: Slot) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Probe each model of the space in one worker process; return model and facts of each."""
    from sft_tune.run.engine import Inbox, LocalEngine
    from sft_tune.run.single import probe_config
    from sft_tune.run.study import configs_to_check
    from sft_tune.view.estimate import batch_sizes

    sizes = batch_sizes(spec)
    with tempfile.TemporaryDirectory() as logs:
        inbox: Inbox = queue.SimpleQueue()
        worker = LocalEngine(Path(logs)).spawn(slot, inbox)
        try:
            return [
                (config.model.model_dump(), probe_config(worker, inbox, config, sizes))
                for config in configs_to_check(spec)
            ]
        finally:
            worker.close()
