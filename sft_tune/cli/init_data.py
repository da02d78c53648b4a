"""What `sft-tune init` sees of local data: the first rows of its table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_tune.errors import DataError
from sft_tune.spec.guess import wrong_separator

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
ROWS = 200


def table_of(source: str) -> Path | None:
    """Return the table that ``source`` is, or the training one of a folder of tables."""
    path = Path(source).expanduser()
    if path.is_file():
        return path if path.suffix.lower() in TABLES else None
    if not path.is_dir():
        return None
    files = sorted(f for f in path.iterdir() if _is_table(f))
    inside = path / "train"
    if not files and inside.is_dir():
        files = sorted(f for f in inside.iterdir() if _is_table(f))
    return min(files, key=lambda file: not file.name.startswith("train"), default=None)


def _is_table(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in TABLES and not file.name.startswith(".")


def first_rows(path: Path) -> dict[str, list[Any]]:
    """Return the first values of each column of a table, None where there is none.

    A file that cannot be read has no columns: `sft-tune check` says what is wrong with it.

    Raises:
        DataError: its ending says another separator than it has, so that nothing could be guessed.
    """
    kind = path.suffix.lower()
    try:
        frame = _read(path)
    except (OSError, ValueError, ImportError):  # pandas' and pyarrow's errors are of these
        return {}
    names = [str(name) for name in frame.columns]
    if kind in SEPARATORS and (wrong := wrong_separator(path, names, SEPARATORS[kind])):
        raise DataError(wrong)
    return {
        str(name): [_plain(value) for value in frame.iloc[:, i].astype(object).tolist()]
        for i, name in enumerate(frame.columns)
    }


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    kind = path.suffix.lower()
    if kind in SEPARATORS:
        return pd.read_csv(path, sep=SEPARATORS[kind], nrows=ROWS)
    if kind == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=ROWS), None)
        return pd.DataFrame({} if batch is None else batch.to_pydict())
    return pd.DataFrame(list(islice(_objects(path), ROWS)))


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of JSON lines; pandas would read ids and dates as other than they are."""
    import json

    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(line)
                yield row


def _plain(value: Any) -> Any:
    return None if value is None or value != value else value  # NaN alone differs from itself
