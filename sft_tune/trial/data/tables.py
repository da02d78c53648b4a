"""CSV, TSV, JSON lines and Parquet: the columns that are needed, with the place of each row.

CSV and JSON lines are read with the standard library: it is quick enough beside tokenizing and
decoding, guesses no types, and knows the line of every fault.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.guess import wrong_separator
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.columns import columns_of, reads_files
from sft_tune.trial.data.examples import Examples, SplitName, check_columns, files_identity, reason


@dataclass(frozen=True)
class Table:
    """Columns of one file: ``columns[name][i]`` stands at line (or row) ``lines[i]``."""

    columns: dict[str, list[Any]]
    lines: Sequence[int]


def _read_delimited(path: Path, wanted: dict[str, str], delimiter: str) -> Table:
    # The default limit of 128 KiB a field is less than a long document.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        # strict: a quote that is never closed would swallow the rest of the file.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, None)
        if header is None:
            raise DataError(f"{path} is empty; it needs a header line with the columns' names.")
        if wrong := wrong_separator(path, header, delimiter):
            raise DataError(wrong)
        check_columns(header, wanted, str(path))
        positions = {name: header.index(name) for name in wanted.values()}
        columns: dict[str, list[Any]] = {name: [] for name in positions}
        lines: list[int] = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, but the header has "
                    f"{len(header)}. Put fields that hold the separator in double quotes."
                )
            lines.append(reader.line_num)
            for name, position in positions.items():
                columns[name].append(row[position])
    # Tables write a gap as nothing, and NumPy's as nan; a class of that name is no class.
    for setting, name in wanted.items():
        if setting.startswith("label_column"):
            gaps = ("", "nan", "NaN")
            columns[name] = [None if value in gaps else value for value in columns[name]]
    return Table(columns, lines)


def _read_csv(path: Path, wanted: dict[str, str]) -> Table:
    return _read_delimited(path, wanted, ",")


def _read_tsv(path: Path, wanted: dict[str, str]) -> Table:
    return _read_delimited(path, wanted, "\t")


def _read_jsonl(path: Path, wanted: dict[str, str]) -> Table:
    columns: dict[str, list[Any]] = {name: [] for name in wanted.values()}
    keys: dict[str, None] = {}
    lines: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}). "
                    "JSON lines hold one complete object a line."
                ) from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: a JSON {type(row).__name__}, not an object. "
                    'Write each example as {"text": ..., "label": ...}.'
                )
            lines.append(number)
            keys.update(dict.fromkeys(row))
            for name, column in columns.items():
                column.append(row.get(name))
    if lines:
        check_columns(keys, wanted, str(path), known="keys")
    return Table(columns, lines)


def _read_parquet(path: Path, wanted: dict[str, str]) -> Table:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        check_columns(file.schema_arrow.names, wanted, str(path))
        table = file.read(columns=list(wanted.values()))
    columns = {name: table.column(name).to_pylist() for name in wanted.values()}
    return Table(columns, range(1, table.num_rows + 1))


READERS: dict[str, Callable[[Path, dict[str, str]], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_table(path: Path, wanted: dict[str, str]) -> Table:
    """Read the columns ``wanted`` (setting -> column) of one file.

    Raises:
        DataError: where the file cannot be read, with the line where one is known.
    """
    try:
        return READERS[path.suffix.lower()](path, wanted)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}). "
            "Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path} is not well-formed CSV: {error}. Quotes inside a quoted field are doubled, "
            "and every quote is closed."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error


class Tables:
    """A `Source` of table files; images and sounds are paths relative to it, or bytes."""

    def __init__(self, files: dict[SplitName, list[Path]], task: Task, data: DataSpec) -> None:
        """Take the files of each split that there is."""
        self._files = files
        self._files_in_cells = reads_files(task)
        self._columns = columns_of(task, data)

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell whether there are files of ``split``."""
        return split in self._files

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return None: the labels stand in the rows."""
        return None

    def identity(self, split: SplitName) -> str:
        """Return a digest of the files, and of those that they name."""
        paths = list(self._files[split])
        if self._files_in_cells:
            for table in self._files[split]:
                paths += self._paths_in(table)
        return files_identity(paths)

    def read(self, split: SplitName) -> Examples:
        """Read the files of ``split``, one after another."""
        inputs: list[Any] = []
        labels: list[Any] = []
        places: list[tuple[Path, int]] = []
        for path in self._files[split]:
            table = read_table(path, self._columns.wanted)
            found = self._columns.input(table.columns)
            inputs += [self._file(v, path) for v in found] if self._files_in_cells else found
            labels += self._columns.target(table.columns)
            places += [(path, line) for line in table.lines]

        def place(i: int) -> str:
            path, line = places[i]
            return f"{path}, {'row' if path.suffix == '.parquet' else 'line'} {line}"

        return Examples(inputs, labels, place)

    def _paths_in(self, table: Path) -> list[Path]:
        if table.suffix == ".parquet":
            from pyarrow import parquet, types

            schema = parquet.read_schema(table)
            (name,) = self._columns.inputs.values()
            if name not in schema.names:
                return []
            kind = schema.field(name).type
            if not (types.is_string(kind) or types.is_large_string(kind)):
                return []  # bytes stand in the table itself, whose digest is enough
        found = self._columns.input(read_table(table, self._columns.wanted).columns)
        return [path for v in found if isinstance(path := self._file(v, table), Path)]

    @staticmethod
    def _file(value: Any, table: Path) -> Any:
        """Return the image or sound of a cell: a path, bytes, or None where there is neither."""
        if isinstance(value, dict):  # how Hugging Face datasets write an image or a sound
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return table.parent / value if value else None
        return value
