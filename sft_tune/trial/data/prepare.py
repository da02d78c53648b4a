"""From a study file's `data` section to arrays: read, split, encode once, open ever after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial.data.arrays import Prepared, load_split
from sft_tune.trial.data.columns import reads_images
from sft_tune.trial.data.entries import entry_of_search, entry_of_test
from sft_tune.trial.data.examples import reason
from sft_tune.trial.data.request import Request, make_request


def prepare(
    task: Task, data: DataSpec, model: ModelSpec, *, cache: Path, with_test: bool = False
) -> Prepared:
    """Prepare a data set, or open what an earlier call has prepared.

    Args:
        task: what the examples are for.
        data: the study file's section.
        model: the model that is fine-tuned: its tokenizer makes the tokens, and images of mixed
            sizes are resized to what it was made for.
        cache: folder of prepared and downloaded data; safe to share between processes.
        with_test: prepare the test split too. Else it is not read, only known to exist.

    Raises:
        DataError: where the data is not what the study file says.
        ModelError: where the model's tokenizer or configuration is not to be had.
        SftTuneError: where the cache cannot be written.
    """
    try:
        request = make_request(task, data, model, cache, with_test)
        entry, encoder = entry_of_search(request)
        test = entry_of_test(request, entry, encoder) if with_test else None
    except OSError as error:
        raise DataError(
            f"{data.source} cannot be read: {reason(error)}. Mend the file or its permissions."
        ) from error
    splits = entry.meta["splits"]
    return Prepared(
        labels=tuple(entry.meta["labels"]),
        train=load_split(entry.folder, "train", splits["train"]),
        validation=load_split(entry.folder, "validation", splits["validation"]),
        test=load_split(test.folder, "test", test.meta["splits"]["test"]) if test else None,
        stats=entry.meta["stats"],
        facts=_facts(request, entry.meta, test.meta if test else None),
        identity=entry.folder.name,
        test_identity=test.folder.name if test else "",
        tokenizer=getattr(encoder, "folder", None),
    )


def _facts(
    request: Request, search: Mapping[str, Any], test: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what is known about the data set, JSON-able."""
    splits = {**search["splits"], **(test["splits"] if test else {})}
    counts = {**search["class_counts"], **(test["class_counts"] if test else {})}
    examples: dict[str, int | None] = {**search["examples"], **(test["examples"] if test else {})}
    if "test" not in examples:
        examples["test"] = search["held_out"] if request.test_fraction else None
    fraction = "train" if request.test_fraction else "none"
    facts: dict[str, Any] = {
        "source": request.data.source,
        "examples": examples,
        "class_counts": counts,
        "validation_from": "source" if request.own_validation else "train",
        "test_from": {True: "source", False: fraction, None: "unknown"}[request.own_test],
    }
    if TASKS[request.task].input == "audio":
        facts["audio"] = {split: meta["audio"] for split, meta in splits.items()}
    elif not reads_images(request.task):
        facts["tokens"] = {split: meta["tokens"] for split, meta in splits.items()}
        if "target_tokens" in splits["train"]:
            facts["target_tokens"] = {s: meta["target_tokens"] for s, meta in splits.items()}
    else:
        facts["image_size"] = splits["train"]["size"]
        facts["resized"] = {split: meta["resized"] for split, meta in splits.items()}
    return facts
