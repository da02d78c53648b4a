"""`sft-tune init`: a study file to start from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_tune.errors import ModelError, StudyFileError, UserError
from sft_tune.spec.tasks import Task

if TYPE_CHECKING:
    from sft_tune.spec.guess import Guess

IMAGES: Task = "image-classification"
TEXTS: Task = "text-classification"
AUDIO_MODEL = "transformers:facebook/wav2vec2-base"
MASK_MODEL = "torchvision:deeplabv3_resnet50"
BOX_MODEL = "torchvision:fasterrcnn_resnet50_fpn_v2"
WRITERS = {
    "causal-lm": "transformers:Qwen/Qwen3-0.6B",
    "seq2seq": "transformers:google-t5/t5-small",
}
IMAGE_MODEL, TEXT_MODEL = "torchvision:resnet18", "transformers:google-bert/bert-base-uncased"
# What needs no file and no network, so that the file runs as it is.
DIGITS, SMALL_MODEL = "sklearn:digits", "builtin:convnet"


def init(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default=False,
            help="A folder of images or sounds, a .csv, .jsonl or .parquet file, hub:ID, "
            "torchvision:NAME. "
            f"Default: {DIGITS}, small images that need no download.",
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            show_default=False, help="Default: texts for a table's file, images for the rest."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="torchvision:NAME, timm:NAME, transformers:ID-or-path or builtin:convnet. "
            "Default: resnet18 for images, BERT for texts, wav2vec 2.0 for sounds, "
            "Qwen3 0.6B and T5 to write.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(show_default=False, help="Name of the study. Default: of data and model."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")
    ] = Path("study.yaml"),
) -> None:
    """Write a commented study file to start from.

    Its settings and its space are those that suit the task and the model.

    Example: sft-tune init --data photos --model torchvision:resnet18 -o photos.yaml
    """
    from sft_tune.cli.init_data import TABLES
    from sft_tune.spec.template import study_template

    if output.exists():
        raise UserError(f"--output: {output} is there already; give another name with -o")
    found = _look_into(data, task)
    by_suffix = TEXTS if data and Path(data).suffix.lower() in TABLES else IMAGES
    wanted: Task = task or found.task or by_suffix
    images = wanted.startswith("image-")
    masks, boxes = wanted == "semantic-segmentation", wanted == "object-detection"
    if data is None and (masks or boxes):
        what = "images and masks" if masks else "images and COCO's annotations"
        raise UserError(f"--data: {wanted} has no default; give a folder of {what}")
    if data is None and wanted != IMAGES:
        raise UserError(f"--data: {wanted} has no default; give a .csv or .jsonl file, or hub:ID")
    usual = IMAGE_MODEL if images else WRITERS.get(wanted, TEXT_MODEL)
    usual = MASK_MODEL if masks else BOX_MODEL if boxes else usual
    if wanted == "audio-classification":
        usual = AUDIO_MODEL
    chosen = model or (SMALL_MODEL if data is None else usual)
    source = DIGITS if data is None else _from_file(data, output)
    try:
        text = study_template(wanted, _from_model(chosen, output), source, name, found)
    except UserError as error:
        raise UserError("\n".join([str(error), *_missing(data)])) from None
    if model:
        _check_name(wanted, model)
    try:
        with output.open("x", encoding="utf8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"--output: cannot write {output}: {error.strerror}") from None
    _say_what_next(output)


def _look_into(data: str | None, task: Task | None) -> Guess:
    """Return what the first rows of ``data`` tell, where it is a local table or a folder of it."""
    from sft_tune.cli.init_data import first_rows, table_of
    from sft_tune.spec.guess import Guess, guess

    table = table_of(data) if data else None
    columns = first_rows(table) if table else {}
    if columns:
        return guess(columns, task)
    return Guess(TEXTS if table and not task else None)


def _check_name(task: Task, model: str) -> None:
    """Refuse a name that its library does not have, before a file is written with it."""
    scheme, _, name = model.partition(":")
    check: Callable[[str], None]
    if scheme == "torchvision" and task == "object-detection":
        from sft_tune.trial.models_detection import check_name as check
    elif scheme == "torchvision" and task == "semantic-segmentation":
        from sft_tune.trial.models_segmentation import check_name as check
    elif scheme == "torchvision":
        from sft_tune.trial.models_torchvision import check_name as check
    elif scheme == "timm":
        from sft_tune.trial.models_timm import check_name as check
    else:
        return
    try:
        check(name)
    except ModelError as error:
        raise UserError(f"--model: {str(error).removeprefix('model.name: ')}") from None


def _say_what_next(output: Path) -> None:
    from sft_tune.spec.load import load_study

    print(f"wrote {output}")
    try:
        load_study(output)
    except StudyFileError as error:
        print("it needs a change before it can run:")
        for problem in error.problems:
            print(f"  {problem}")
    print(f"next: sft-tune check {output}   looks at data and model, estimates the time")
    print(f"      sft-tune start {output}   runs the study")


def _missing(data: str | None) -> list[str]:
    """Return what to say of a path that is not there, beside another mistake."""
    from sft_tune.spec.paths import DATA_SCHEMES

    if data is None or data.partition(":")[0] in DATA_SCHEMES or Path(data).expanduser().exists():
        return []
    return [f"--data: no such file or folder: {data}; give one that is there"]


def _from_file(source: str, output: Path) -> str:
    """Return a path that is there as one relative to the study file's folder, as the file needs."""
    path = Path(source).expanduser()
    if not path.exists() or path.is_absolute() or source.startswith("~"):
        return source
    return Path(os.path.relpath(path, output.parent)).as_posix()


def _from_model(model: str, output: Path) -> str:
    scheme, colon, rest = model.partition(":")
    if scheme == "transformers" and colon and Path(rest).expanduser().is_dir():
        return f"{scheme}:{_from_file(rest, output)}"
    return model
