"""The blocks of a backbone, from its input to its output, found by rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from sft_tune.trial.heads import OutputLayer, in_head

CONTAINERS = nn.Sequential | nn.ModuleList
# A network whose top has so many parts of one class is a chain of parts (GoogLeNet, Inception).
CHAIN = 3


@dataclass(frozen=True)
class Blocks:
    """Where each parameter stands between the input of a network and its output.

    Attributes:
        names: the modules of each block, in order: mostly one, see `find_blocks`.
        depths: of every parameter: 0 for embeddings and all else before the first block, i for
            block i, ``count + 1`` behind the last block, ``count + 2`` in the head.
        head: names of the modules that are the head.
    """

    names: tuple[tuple[str, ...], ...]
    depths: dict[str, int]
    head: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return len(self.names)

    @cached_property
    def behind(self) -> int:
        """The depth of what stands between the last block and the head."""
        return self.count + 1

    @cached_property
    def top(self) -> int:
        """The depth of the head."""
        return self.count + 2


def find_blocks(module: nn.Module, head: tuple[str, ...]) -> Blocks:
    """Return the blocks of ``module``, whose head is ``head``.

    A block is a module with parts of its own that stands in a list of modules, or in a sequence
    when another of its class does, too; the outermost are taken (layers of transformers, residual
    blocks of convolutional networks, stages of some). A network without such is a chain of its
    top modules, or else each of its layers of weights is a block with what follows it.

    What is in no block belongs to the block after it, embedding tables to the beginning.
    """
    names = _chain(module, head) or _repeated(module, head) or _layers_of_weights(module, head)
    return Blocks(names, _depths(module, names, head), head)


def with_depths_of(blocks: Blocks, module: nn.Module) -> Blocks:
    """Return the same blocks with the depths of the parameters that ``module`` has now."""
    return Blocks(blocks.names, _depths(module, blocks.names, blocks.head), blocks.head)


def _repeated(module: nn.Module, head: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the outermost members of lists and sequences that are blocks."""
    listed: Counter[type[nn.Module]] = Counter()
    for part in module.modules():
        if isinstance(part, CONTAINERS):
            listed.update(type(child) for child in part if _is_compound(child))
    found: list[tuple[str, ...]] = []

    def collect(part: nn.Module, prefix: str) -> None:
        for name, child in part.named_children():
            full = f"{prefix}{name}"
            if in_head(full, head):
                continue
            once = 1 if isinstance(part, nn.ModuleList) else 2
            if (
                isinstance(part, CONTAINERS)
                and listed[type(child)] >= once
                and not _holds(full, head)
            ):
                found.append((full,))
            else:
                collect(child, f"{full}.")

    collect(module, "")
    return tuple(found)


def _is_compound(module: nn.Module) -> bool:
    """Tell whether ``module`` has parts and parameters, and is no mere sequence of modules."""
    if isinstance(module, CONTAINERS):
        return False
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _holds(name: str, head: tuple[str, ...]) -> bool:
    """Tell whether a part of the head is within the module ``name``."""
    return any(part.startswith(f"{name}.") for part in head)


def _chain(module: nn.Module, head: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the top modules of ``module`` that have parameters, where many are of one class."""
    parts = [
        (name, child)
        for name, child in module.named_children()
        if not in_head(name, head)
        and not _holds(name, head)
        and any(True for _ in child.parameters())
    ]
    alike = Counter(type(child) for _, child in parts if _is_compound(child))
    return tuple((name,) for name, _ in parts) if max(alike.values(), default=0) >= CHAIN else ()


def _layers_of_weights(module: nn.Module, head: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return each linear or convolutional layer, with what has parameters up to the next one."""
    found: list[tuple[str, ...]] = []
    for name, part in module.named_modules():
        if in_head(name, head) or not any(True for _ in part.parameters(recurse=False)):
            continue
        if isinstance(part, OutputLayer) or not found:
            found.append((name,))
        else:
            found[-1] = (*found[-1], name)
    return tuple(found)


def _depths(
    module: nn.Module, names: tuple[tuple[str, ...], ...], head: tuple[str, ...]
) -> dict[str, int]:
    tables = {name for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    owner = {name: place for place, group in enumerate(names, start=1) for name in group}
    depths: dict[str, int] = {}
    seen = 0
    for name, _ in module.named_parameters():
        place = _place(name, owner)
        if place is not None:
            seen = depths[name] = place
        elif in_head(name, head):
            depths[name] = len(names) + 2
        elif name.rpartition(".")[0] in tables:
            depths[name] = 0
        else:
            depths[name] = seen + 1 if seen else 0
    return depths


def _place(name: str, owner: dict[str, int]) -> int | None:
    """Return the place of the block that the parameter ``name`` is in."""
    prefix = name
    while prefix:
        prefix = prefix.rpartition(".")[0]
        if prefix in owner:
            return owner[prefix]
    return None
