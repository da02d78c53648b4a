"""The small files of a transformers model (configuration, tokenizer), on this disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.examples import digest, reason

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.bpe", "*.jinja")


def pretrained_folder(name: str) -> Path:
    """Return a folder with the small files of a transformers model; no weights are fetched.

    Args:
        name: a folder, or an id of the Hugging Face hub, from which the files are downloaded
            unless its local cache has them.

    Raises:
        ModelError: where there is no such folder and the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise MissingModelError(
            f"model.name: no folder {folder}. Give an existing one, or a hub id."
        )
    from huggingface_hub import snapshot_download

    def snapshot(local_only: bool) -> Path:
        return Path(
            snapshot_download(name, allow_patterns=list(SMALL_FILES), local_files_only=local_only)
        )

    try:
        cached = snapshot(local_only=True)
        # The weights' download may have left a snapshot that lacks the other files.
        if len(small_files(cached)) > 1:
            return cached
    except (OSError, ValueError):
        pass  # not in the local cache: ask the hub
    try:
        return snapshot(local_only=False)
    except (OSError, ValueError) as error:
        raise MissingModelError(
            f"model.name: '{name}' is no folder, is not in the local Hugging Face cache, and the "
            f"hub did not give it ({reason(error)}). Check the name and the network, or download "
            "the model and give its folder."
        ) from error


def transformers_folder(model: ModelSpec, need: str) -> Path:
    """Return `pretrained_folder` of ``model``, which ``need`` says why it must be of transformers.

    Raises:
        ModelError: where it is of another library, or its files are not to be had.
    """
    library, _, name = model.name.partition(":")
    if library != "transformers" or not name:
        raise ModelError(f"model.name is '{model.name}', but {need}: transformers:ID-or-folder.")
    return pretrained_folder(name)


def small_files(folder: Path) -> list[Path]:
    """Return the small files of a model's folder, sorted."""
    return sorted({path for pattern in SMALL_FILES for path in folder.glob(pattern)})


def contents_identity(folder: Path) -> str:
    """Return a digest of the contents of a model's small files; the same wherever they lie."""
    parts: list[str | bytes] = []
    for path in small_files(folder):
        parts += [path.name, path.read_bytes()]
    return digest(*parts)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the contents of a model's JSON file; nothing where there is no such file.

    Raises:
        ModelError: where it is not JSON.
    """
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}). Fetch the model again.") from error
    return settings if isinstance(settings, dict) else {}
