"""YAML as study files are written in it: the scalars of the 1.2 core schema.

PyYAML by itself reads YAML 1.1, which turns ``1e-5`` into text, ``no`` into false, ``010`` into
8 and ``1:30`` into 90.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import yaml

from sft_tune.errors import Problem, StudyFileError
from sft_tune.spec.documents import MOST_LEVELS, MOST_NODES, Document, Place, dotted

_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    ("merge", r"^(?:<<)$", "<"),
)
_HINTS = (
    (r"\t", "indent with spaces, not tabs"),
    ("expected <block end>", "begin keys that belong together in the same column"),
    ("mapping values are not allowed", "put the value in quotes if it contains ': '"),
    ("found another document", "keep one document a file: remove the second '---'"),
    ("could not determine a constructor", "remove the tag that begins with '!'"),
    ("undefined alias", "define it with '&' first, or put a value that begins with '*' in quotes"),
)


def _integer(text: str) -> int:
    # Leading zeros mean nothing: octal is written 0o17.
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def _real(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and no types beyond those of JSON."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in ("str", "null", "seq", "map")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def scalar_with(self, node: yaml.ScalarNode, convert: Callable[[str], Any]) -> Any:
        """Return the scalar of ``node`` as ``convert`` reads it; an error names its line."""
        try:
            return convert(str(self.construct_scalar(node)))
        except (ValueError, KeyError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value[:40]!r} is no valid {node.tag[18:]}", node.start_mark
            ) from error


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes exactly what `Loader` would not read as text."""

    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out each time: anchors are hard to read and to edit."""
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        """Return the node of ``value``: line breaks and their like are escaped, not folded."""
        style = None if value.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


Dumper.add_representer(str, Dumper.text)
for _name, _pattern, _first in _RESOLVERS:
    # PyYAML looks resolvers up by a scalar's first character; "" is the empty scalar (a null).
    _keys = [*_first, ""] if _name == "null" else list(_first)
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _keys)
for _name, _convert in (("int", _integer), ("float", _real), ("bool", _boolean)):
    Loader.add_constructor(
        f"tag:yaml.org,2002:{_name}", functools.partial(Loader.scalar_with, convert=_convert)
    )


def to_yaml(data: Any) -> str:
    """Return ``data`` (mappings, lists and scalars) as YAML that reads back equal."""
    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def to_flow(data: Any) -> str:
    """Return ``data`` as YAML on one line: ``{low: 0.001, high: 0.1}``."""
    text: str = yaml.dump(
        data,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=2**20,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def yaml_scalar(value: str) -> str:
    """Return the text ``value`` as it stands after ``key:`` on one line, in quotes if needed."""
    text: str = yaml.dump(value, Dumper=Dumper, allow_unicode=True, width=2**20)
    return text.removesuffix("\n").removesuffix("\n...")


def parse(text: str, source: str) -> Document:
    """Return the YAML ``text`` of the file ``source`` with the lines of its places.

    Raises:
        StudyFileError: the text breaks YAML's syntax.
    """
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(None)  # type: ignore[arg-type]
            lines, problems = _walk(node)
            return Document(loader.construct_document(node), lines, tuple(problems))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error("YAML", source, error) from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        reason = " ".join(str(error).split())
        problem = Problem("text", f"is not YAML: {reason}; remove the character")
        raise StudyFileError([problem], source) from None


def lines_of(text: str) -> tuple[dict[Place, int], list[Problem]]:
    """Return the line of each place in the YAML ``text``, and a problem for each key given twice.

    Returns nothing for a text that is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError:
        return {}, []
    return _walk(node) if node is not None else ({}, [])


def _syntax_error(what: str, source: str, error: yaml.MarkedYAMLError) -> StudyFileError:
    reason = error.problem or error.context or "it cannot be read"
    hint = next((f"; {remedy}" for part, remedy in _HINTS if part in reason), "")
    mark = error.problem_mark or error.context_mark
    place = f"column {mark.column + 1}" if mark else "text"
    line = mark.line + 1 if mark else None
    return StudyFileError([Problem(place, f"is not {what}: {reason}{hint}", line=line)], source)


def _walk(root: yaml.Node) -> tuple[dict[Place, int], list[Problem]]:
    """Return the line of each place below ``root``, and a problem for each key given twice.

    Stops after `MOST_NODES`, as aliases can make a small text stand for a huge or endless tree.
    """
    lines: dict[Place, int] = {(): root.start_mark.line + 1}
    problems: list[Problem] = []
    stack: list[tuple[Place, yaml.Node]] = [((), root)]
    visits = 0
    while stack and max(visits, len(lines)) < MOST_NODES:
        place, node = stack.pop()
        visits += 1
        if len(place) > MOST_LEVELS:
            continue
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines.setdefault((*place, index), item.start_mark.line + 1)
                stack.append(((*place, index), item))
        elif isinstance(node, yaml.MappingNode):
            problems += _walk_mapping(place, node, lines, stack)
    return lines, problems


def _walk_mapping(
    place: Place,
    node: yaml.MappingNode,
    lines: dict[Place, int],
    stack: list[tuple[Place, yaml.Node]],
) -> list[Problem]:
    problems = []
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag.endswith(":merge"):
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            stack.extend((place, item) for item in merged)
            continue
        name = str(key.value)
        if name in first:
            rule = f"the key is given twice (first in line {first[name]}); remove one"
            problems.append(Problem(dotted((*place, name)), rule, line=line))
        first.setdefault(name, line)
        lines.setdefault((*place, name), line)
        stack.append(((*place, name), value))
    return problems
