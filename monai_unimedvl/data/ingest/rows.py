# SPDX-License-Identifier: Apache-2.0
"""CSV, TSV, JSON, JSON lines and Parquet as numbered rows; a row that cannot be read is refused by itself.

JSON lines and Parquet are read where they lie; CSV and JSON are held in memory.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unimedvl.data.record import InvalidRecord
from monai_unimedvl.data.shards import parquet

CELL = 64_000_000  # characters of a cell of a CSV
LISTS = (
    "data",
    "annotations",
    "items",
    "records",
    "conversations",
)  # keys that a JSON object has its rows under
KNOWN = ".csv, .tsv, .json, .jsonl or .parquet"


class Rows(Sequence[Any]):
    """The rows of a file.

    Raises:
        ValueError: no such file, or one that cannot be read as a whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if not self.path.is_file():
            raise ValueError(f"{self.path} is no file, expected a table ({KNOWN}): check the path.")
        self._starts: array[int] | None = None
        self._groups: list[int] = []
        self._open: tuple[int, list[Any]] = (-1, [])
        self._rows: list[Any] = []
        if suffix in (".csv", ".tsv"):
            self._rows = list(_csv_rows(self.path, "\t" if suffix == ".tsv" else ""))
        elif suffix in (".jsonl", ".ndjson"):
            self._starts = _lines(self.path)
        elif suffix == ".json":
            self._rows = _json_rows(self.path)
        elif suffix in (".parquet", ".pq"):
            self._groups = _groups(self.path)
        else:
            raise ValueError(f"{self.path.name} has an unknown suffix, expected {KNOWN}: convert it.")

    def __len__(self) -> int:
        if self._starts is not None:
            return len(self._starts)
        return sum(self._groups) if self._groups else len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        """The row of a number, a mapping.

        Raises:
            InvalidRecord: it cannot be read, or is no mapping.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self._starts is not None:
            row = self._line(self._starts[number])
        elif self._groups:
            row = self._parquet(number)
        else:
            row = self._rows[number]
        if isinstance(row, InvalidRecord):
            raise row
        if not isinstance(row, Mapping):
            raise InvalidRecord("bad-row", f"a row is a {type(row).__name__}, expected an object.")
        return row

    def _line(self, start: int) -> Any:
        with self.path.open("rb") as stream:
            stream.seek(start)
            line = stream.readline()
        try:
            return json.loads(line.decode("utf8"))
        except UnicodeDecodeError as error:
            raise InvalidRecord(
                "bad-encoding", "a line is no UTF-8 text, expected it: save it anew."
            ) from error
        except (ValueError, RecursionError) as error:
            raise InvalidRecord("bad-json", "a line is no JSON object, expected one.") from error

    def _parquet(self, number: int) -> Any:
        group = 0
        while number >= self._groups[group]:
            number -= self._groups[group]
            group += 1
        if self._open[0] != group:
            try:
                with parquet().ParquetFile(self.path) as file:
                    self._open = (group, file.read_row_group(group).to_pylist())
            except Exception as error:  # Arrow raises its own kinds for damaged pages
                raise InvalidRecord("bad-row", "a row group cannot be read, expected it whole.") from error
        return self._open[1][number]


def _csv_rows(path: Path, delimiter: str) -> Any:
    """Mappings, or what is wrong with a line."""
    csv.field_size_limit(CELL)
    text = path.read_bytes()
    lines = text.removeprefix(b"\xef\xbb\xbf").decode("utf8", "surrogateescape").splitlines(keepends=True)
    if not lines or not lines[0].strip():
        raise ValueError(f"{path.name} is empty, expected a line with the names of columns: fill it.")
    delimiter = delimiter or max(",;\t", key=lines[0].count)
    reader = csv.reader(iter(lines), delimiter=delimiter)
    header = [name.strip() for name in next(reader)]
    if len(set(header)) < len(header):
        raise ValueError(f"{path.name} has two columns of one name, expected each once: rename one.")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield InvalidRecord("bad-row", f"line {reader.line_num} is no CSV, expected closed quotes.")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            yield InvalidRecord(
                "bad-row", f"line {reader.line_num} has {len(cells)} cells under {len(header)} columns."
            )
        elif not all(map(_is_text, cells)):
            yield InvalidRecord("bad-encoding", f"line {reader.line_num} is no UTF-8 text, expected it.")
        else:
            yield dict(zip(header, (cell.strip() for cell in cells), strict=True))


def _is_text(cell: str) -> bool:
    """Whether no byte of a cell was left undecoded."""
    try:
        cell.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def _json_rows(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is no JSON in UTF-8, expected a list of objects: save it anew."
        ) from error
    if isinstance(found, dict):
        listed = next((found[key] for key in LISTS if isinstance(found.get(key), list)), None)
        if listed is None:  # {"a.png": "pneumonia", ...}
            listed = [
                {"image": name, **(value if isinstance(value, dict) else {"label": value})}
                for name, value in found.items()
            ]
        found = listed
    if not isinstance(found, list):
        raise ValueError(
            f"{path.name} is a JSON {type(found).__name__}, expected a list of objects: convert it."
        )
    return found


def _lines(path: Path) -> array[int]:
    """Where each line that is not blank starts."""
    starts, at = array("Q"), 0
    with path.open("rb") as stream:
        for line in stream:
            if line.strip():
                starts.append(at)
            at += len(line)
    return starts


def _groups(path: Path) -> list[int]:
    arrow = parquet()
    try:
        with arrow.ParquetFile(path) as file:
            about = file.metadata
            return [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    except Exception as error:  # Arrow raises its own kinds for damaged files
        raise ValueError(
            f"{path.name} cannot be read as Parquet, expected a whole file: copy it again."
        ) from error
