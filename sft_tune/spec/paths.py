"""Paths in a study file: relative to the file, kept absolute, found again on other machines.

The database keeps absolute paths of the machine that registered the study. On a machine where
the files lie elsewhere, the environment variable ``SFT_TUNE_ROOT`` names the folder that stands
for the study file's folder (the study's root):

- a path below the root is looked for at the same relative place below ``$SFT_TUNE_ROOT``;
- a path outside of it (``../data``) is looked for where it is, and where that does not exist, at
  the same place relative to ``$SFT_TUNE_ROOT``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.documents import Place
from sft_tune.spec.findings import Findings, lookup
from sft_tune.spec.function_task import is_function
from sft_tune.spec.urls import is_url as is_url
from sft_tune.spec.wording import near

ROOT_VARIABLE = "SFT_TUNE_ROOT"
DATA_SCHEMES = ("torchvision", "hub", "sklearn", "python")
MODEL_SCHEMES = ("torchvision", "transformers", "timm", "builtin")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)", re.DOTALL)
_DATABASE = re.compile(r"(sqlite|postgres|postgresql|mysql|mariadb)(\+\w+)?://")


def localize(path: str, root: str) -> str:
    """Return where the absolute ``path`` of a study with the folder ``root`` lies on this machine.

    The same path, unless ``SFT_TUNE_ROOT`` is set (see above).
    """
    here = os.environ.get(ROOT_VARIABLE)
    if not here or not os.path.isabs(path):
        return path
    relative = os.path.relpath(path, root)
    moved = os.path.normpath(os.path.join(os.path.abspath(os.path.expanduser(here)), relative))
    if relative.split(os.sep)[0] != os.pardir:
        return moved
    return moved if not os.path.exists(path) and os.path.exists(moved) else path


def localize_config(config: TrialConfig, root: str) -> TrialConfig:
    """Return ``config`` with the paths of this machine, for a worker to open.

    Its fingerprint may differ from that of ``config``: compare and store the original.
    """
    if is_function(config.task):
        return config.model_copy(update={"task": _localized_after_scheme(config.task, root)})
    data, model = config.data, config.model
    data = data.model_copy(update={"source": _localized_after_scheme(data.source, root)})
    names = {
        "name": _localized_after_scheme(model.name, root),
        "weights": localize(model.weights, root),
    }
    return config.model_copy(update={"data": data, "model": model.model_copy(update=names)})


def _localized_after_scheme(text: str, root: str) -> str:
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in (*DATA_SCHEMES, *MODEL_SCHEMES):
        return localize(text, root)
    file, colon, function = rest.rpartition(":")
    if scheme == "python" and colon:
        return f"python:{localize(file, root)}:{function}"
    return f"{scheme}:{localize(rest, root)}" if scheme == "transformers" else text


def absolute(path: str, root: str) -> str:
    """Return ``path`` of a study file in the folder ``root`` as an absolute one; ``~`` expands."""
    return os.path.abspath(os.path.join(root, os.path.expanduser(path)))


def is_weights_path(weights: str) -> bool:
    """Tell whether ``weights`` of a model names a file (else the library's name for weights)."""
    return weights.endswith(_WEIGHT_SUFFIXES) or "/" in weights or os.sep in weights


def locate(data: dict[str, Any], root: str, findings: Findings) -> None:
    """Make every path in ``data`` (a study file's, expanded) absolute, in place.

    Adds a problem for each file that is missing, and each scheme that is unknown.
    """
    paths = _Paths(root, findings)
    paths.change(data, ("storage", "url"), paths.database)
    paths.change(data, ("storage", "artifacts"), paths.artifacts)
    if is_function(str(data.get("task"))):
        paths.change(data, ("task",), paths.task)
        return
    paths.change(data, ("data", "source"), paths.source)
    for key, convert in (("name", paths.model), ("weights", paths.weights)):
        for place in _places_of(data, key):
            paths.change(data, place, convert)


def _places_of(data: dict[str, Any], key: str) -> Iterator[Place]:
    """Yield every place of a study (expanded) that may hold a value of ``model.<key>``."""
    yield "model", key
    name = f"model.{key}"
    for index in _indices(lookup(data, ("space", name, "values"))):
        yield "space", name, "values", index
    for index in _indices(lookup(data, ("sampler", "enqueue"))):
        yield "sampler", "enqueue", index, name
    space = data.get("space")
    for other in space if isinstance(space, dict) else ():
        for index in _indices(lookup(data, ("space", other, "when", name))):
            yield "space", other, "when", name, index


def _indices(items: Any) -> range:
    return range(len(items)) if isinstance(items, list) else range(0)


class _Paths:
    """How each kind of text becomes absolute; the place is only for problems."""

    def __init__(self, root: str, findings: Findings) -> None:
        self.root = root
        self.findings = findings

    def change(self, data: Any, place: Place, convert: Callable[[Place, str], str]) -> None:
        """Replace the text at ``place`` by what ``convert`` makes of it; nothing else there."""
        *parents, last = place
        holder = lookup(data, tuple(parents))
        if isinstance(text := lookup(holder, (last,)), str):
            holder[last] = convert(self._written(place), text)

    def _written(self, place: Place) -> Place:
        """Return ``place`` as the file has it: short forms lack ``values`` or the last index."""
        short = tuple(part for part in place if part != "values" or place[0] != "space")
        for candidate in (place, short, place[:-1]):
            if self.findings.has(candidate):
                return candidate
        return place

    def _existing(self, place: Place, path: str, what: str) -> str:
        full = absolute(path, self.root)
        tried = localize(full, self.root)
        if not os.path.exists(tried):
            rule = f"no such {what}: {tried}; relative paths start at the study file's folder"
            self.findings.add(place, rule)
        return full

    def source(self, place: Place, text: str) -> str:
        if not text.strip():
            self.findings.add(place, "must name a file, a folder or a data set")
            return text
        scheme, colon, rest = text.partition(":")
        if scheme == "python" and colon:
            return self._function(place, text, rest)
        if scheme in DATA_SCHEMES and colon:
            known = rest == "digits" if scheme == "sklearn" else bool(rest)
            if not known:
                wanted = "sklearn:digits" if scheme == "sklearn" else f"a name after `{scheme}:`"
                self.findings.add(place, f"must be {wanted}")
            return text
        if colon and re.fullmatch(r"\w{2,}", scheme) and not self._exists(text):
            guess = near(scheme, DATA_SCHEMES)
            others = f"use a path or one of {_list(DATA_SCHEMES)}"
            remedy = f"did you mean {guess}:{rest}?" if guess else others
            self.findings.add(place, f"unknown scheme `{scheme}:`; {remedy}")
            return text
        return self._existing(place, text, "file or folder")

    def task(self, place: Place, text: str) -> str:
        return self._function(place, text, text.partition(":")[2])

    def _function(self, place: Place, text: str, rest: str) -> str:
        module, _, function = rest.rpartition(":")
        if not function.isidentifier() or not module:
            self.findings.add(place, "must be python:module:function or python:file.py:function")
            return text
        if module.endswith(".py") or "/" in module:
            return f"python:{self._existing(place, module, 'Python file')}:{function}"
        return text

    def model(self, place: Place, text: str) -> str:
        scheme, colon, rest = text.partition(":")
        if not colon or scheme not in MODEL_SCHEMES or not rest:
            self.findings.add(place, f"must begin with {_list(MODEL_SCHEMES)}; {_scheme_of(text)}")
        elif scheme == "builtin" and rest != "convnet":
            self.findings.add(place, "builtin: has one model; write builtin:convnet")
        elif scheme == "transformers":
            if rest.startswith(("./", "../", "/", "~")) or rest in (".", ".."):
                return f"transformers:{self._existing(place, rest, 'model folder')}"
            if self._exists(rest):
                return f"transformers:{absolute(rest, self.root)}"
        return text

    def _exists(self, path: str) -> bool:
        return os.path.exists(localize(absolute(path, self.root), self.root))

    def weights(self, place: Place, text: str) -> str:
        if not text.strip():
            self.findings.add(place, "must be DEFAULT, none, a file or a name of weights")
        return self._existing(place, text, "weights file") if is_weights_path(text) else text

    def database(self, place: Place, text: str) -> str:
        if "://" not in text and text.strip():  # a bare file, as --storage takes it too
            text = f"sqlite:///{text}"
        if not _DATABASE.match(text):
            self.findings.add(
                place, "must be a URL: sqlite:///file.db, postgresql://... or mysql://..."
            )
        elif text.startswith("sqlite") and "///" not in text and text.partition("://")[2]:
            self.findings.add(place, "a SQLite URL has three slashes; write sqlite:///file.db")
        found = _SQLITE.fullmatch(text)
        if found is None or found[2] == ":memory:" or found[2].startswith("file:"):
            return text
        return f"{found[1]}{absolute(found[2], self.root)}{found[3]}"

    def artifacts(self, place: Place, text: str) -> str:
        if not is_url(text):
            return absolute(text, self.root)
        if re.search(r"://[^/@]*:[^/@]*@", text):
            self.findings.add(
                place,
                "must hold no password: it is shown and kept; give it in the environment or in "
                "fsspec's configuration",
            )
        return text.rstrip("/")


def _list(schemes: tuple[str, ...]) -> str:
    return ", ".join(f"{scheme}:" for scheme in schemes)


def _scheme_of(text: str) -> str:
    """Return the end of a message: which scheme the model ``text`` seems to want."""
    scheme, colon, rest = text.partition(":")
    if colon:
        guess = near(scheme, MODEL_SCHEMES)
        return f"did you mean {guess}:{rest}?" if guess and rest else "add the name after it"
    library = "transformers" if "/" in text or "bert" in text else "torchvision"
    return f"for example {library}:{text}" if text else "for example torchvision:resnet18"
