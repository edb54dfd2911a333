# SPDX-License-Identifier: Apache-2.0
"""Records in a file: JSON lines, Parquet, or a folder of shards; what is written is whole or not there.

for item in read_records("records.jsonl"): ...
with Sink("kept.parquet") as sink:            # rejects go to kept.rejects.jsonl
    for item in step(read_records("records.jsonl")):
        sink.put(item)
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.utils import optional_import

from monai_unimedvl.atomic import unwritable, write
from monai_unimedvl.data.record import InvalidRecord, Record, Reject, read_jsonl
from monai_unimedvl.data.shards import MANIFEST, arrow_schema, check_shards, parquet, record_of, row_of
from monai_unimedvl.data.step import Item

JSONL = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
ROWS = 256  # records that are written together


def read_records(path: str | Path, defaults: Mapping[str, Any] | None = None) -> Iterator[Item]:
    """The records of a file or of a folder of shards, those that are none as rejects.

    Args:
        defaults: of fields that a line of JSON lacks; see `read_jsonl`.

    Raises:
        ValueError: no such file, or one of another kind.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise ValueError(
                f"{path} holds no {MANIFEST}, expected a folder of shards or a file of records: name one."
            )
        for shard in check_shards(path, "sizes")["shards"]:
            yield from _read_parquet(path / shard["name"], f" of {shard['name']}")
    elif path.suffix.lower() in PARQUET:
        if not path.is_file():
            raise ValueError(f"{path} is no file, expected records as Parquet: check the path.")
        yield from _read_parquet(path)
    elif path.suffix.lower() in JSONL:
        yield from read_jsonl(path, defaults)
    elif not path.exists():
        raise ValueError(f"{path} does not exist, expected records or a folder of shards: check the path.")
    else:
        raise ValueError(
            f"{path.name} has an unknown suffix, expected .jsonl, .parquet or a folder of shards: rename it."
        )


def write_records(items: Iterable[Item], path: str | Path) -> dict[str, int]:
    """Write records to a file and rejects beside it; returns how many of each."""
    with Sink(path) as sink:
        for item in items:
            sink.put(item)
    return {"records": sink.records, "rejects": sink.rejects}


def write_json(path: str | Path, values: Any) -> None:
    """Write JSON, whole or not at all; what it cannot hold is written as its text."""
    write(path, json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n")


def rejects_beside(path: str | Path) -> Path:
    """Where the rejects of a file of records go: kept.jsonl -> kept.rejects.jsonl"""
    path = Path(path)
    return path.with_name(f"{path.stem}.rejects.jsonl")


class Sink:
    """A file of records, and one of rejects beside it, that appear together when the block ends well.

    Raises:
        ValueError: the file's suffix is neither .jsonl nor .parquet; at the end: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.records, self.rejects = Path(path), 0, 0
        if self.path.suffix.lower() not in (*JSONL, *PARQUET):
            raise ValueError(f"{self.path.name} is to hold records, expected .jsonl or .parquet: rename it.")
        self._waiting: list[Record] = []
        self._table: Any = None

    def __enter__(self) -> Sink:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        shards = parquet() if self.path.suffix.lower() in PARQUET else None
        self._kept, self._left = self._open(), self._open()
        if shards is not None:
            arrow, _ = optional_import("pyarrow")
            self._schema = arrow_schema(arrow)
            self._table = shards.ParquetWriter(self._kept.name, self._schema, compression="zstd")
        return self

    def put(self, item: Item) -> None:
        """Add a record or a reject."""
        if isinstance(item, Reject):
            self.rejects += 1
            self._line(self._left, item)
            return
        self.records += 1
        if self._table is None:
            self._line(self._kept, item)
            return
        self._waiting.append(item)
        if len(self._waiting) == ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        beside = rejects_beside(self.path)
        try:
            if self._table is not None:
                if kind is None:
                    self._flush()
                self._table.close()
            for stream in (self._kept, self._left):
                stream.close()
                os.chmod(stream.name, 0o644)  # a temporary file is for its owner only
            if kind is None:  # both are whole
                os.replace(self._kept.name, self.path)
                if self.rejects:
                    os.replace(self._left.name, beside)
                else:
                    beside.unlink(missing_ok=True)
        except OSError as fault:
            if kind is None:  # else what came before is raised
                raise unwritable(self.path, fault) from fault
        finally:
            for stream in (self._kept, self._left):
                with suppress(OSError):  # what a full disk does not take is not kept anyway
                    stream.close()
                Path(stream.name).unlink(missing_ok=True)

    def _open(self) -> Any:
        return tempfile.NamedTemporaryFile(
            "w", dir=self.path.parent, prefix=".", suffix=".part", delete=False, encoding="utf8"
        )

    def _line(self, stream: Any, item: Item) -> None:
        stream.write(json.dumps(item.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n")

    def _flush(self) -> None:
        arrow, _ = optional_import("pyarrow")
        if self._waiting:
            rows = [row_of(record) for record in self._waiting]
            self._table.write_table(arrow.Table.from_pylist(rows, schema=self._schema))
        self._waiting = []


def _read_parquet(path: Path, named: str = "") -> Iterator[Item]:
    """The rows of a file as `Sink` or `write_shards` wrote it; `named` is what a reject may call a shard."""
    arrow = parquet()
    try:
        file = arrow.ParquetFile(path)
    except Exception as error:  # Arrow raises its own kinds for damaged files
        raise ValueError(
            f"{path.name} cannot be read as Parquet ({str(error).splitlines()[0][:120]}): copy it again."
        ) from error
    number = 0
    with file:
        for batch in file.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield record_of(row)
                except InvalidRecord as error:
                    known = row.get("id")
                    id = known if isinstance(known, str) else ""
                    yield Reject(error.code, error.reason, id, "read", f"row {number}{named}")
