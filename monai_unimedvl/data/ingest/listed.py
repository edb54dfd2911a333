# SPDX-License-Identifier: Apache-2.0
"""What sources of ready rows share: files of rows as numbered parts, and pictures taken as they are."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from monai_unimedvl.data.ingest.base import Ingest, inside
from monai_unimedvl.data.ingest.rows import Rows
from monai_unimedvl.data.record import ImageFile, InvalidRecord
from monai_unimedvl.data.step import Item, option

TABLES = (".json", ".jsonl", ".ndjson", ".parquet", ".pq")


class Numbered(Sequence[Any]):
    """(file, row) of every row, in order, without a list of them."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.ends = list(accumulate(lengths))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        file = bisect_right(self.ends, number)
        return file, number - (self.ends[file - 1] if file else 0)


@dataclass(frozen=True, kw_only=True)
class IngestRows(Ingest):
    """A file of rows, or a folder of them, whose pictures are ready: they are taken without a recipe."""

    images: str = option("", "folder of the images (default: that of the rows)")
    needs_modality: ClassVar[bool] = False
    as_they_are: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = TABLES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settings:
            raise ValueError(
                f"{self.name} takes pictures as they are, expected no settings of a recipe: drop them."
            )

    def files(self) -> list[Path]:
        """The files of rows."""
        found = super().files()
        return found if Path(self.path).is_file() else [p for p in found if p.suffix.lower() in self.suffixes]

    @functools.cached_property
    def tables(self) -> list[Rows]:
        """The rows of each file."""
        return [Rows(path) for path in self.files()]

    def parts(self) -> Sequence[tuple[int, int]]:
        """(file, row) of each row."""
        found = Numbered([len(table) for table in self.tables])
        if not found:
            raise ValueError(
                f"{self.path} holds no row, expected {', '.join(self.suffixes)}: check the path."
            )
        return found

    def each(self, part: tuple[int, int]) -> Iterable[Item]:
        """One row -> its records."""
        file, row = part
        where = f"file {file + 1} row {row + 1}" if len(self.tables) > 1 else f"row {row + 1}"
        return self.guarded(self._opened(file, row), "row", at=where)

    def _opened(self, file: int, row: int) -> Iterator[Item]:
        yield from self.row(self.tables[file][row], file)

    def row(self, row: Mapping[str, Any], file: int) -> Iterator[Item]:
        """The records of one row; `file` counts from 0.

        Raises:
            InvalidRecord: why there is none.
        """
        raise NotImplementedError

    def place(self, path: Path | str, at: str = "") -> str:
        """The row."""
        return at

    @functools.cached_property
    def folder(self) -> Path:
        """Of the images."""
        here = Path(self.path)
        return Path(self.images) if self.images else here if here.is_dir() else here.parent

    def picture(self, given: Any) -> ImageFile:
        """A picture by its name in the folder, its bytes, or {"bytes": ..., "path": ...}.

        Raises:
            InvalidRecord: it is not there or damaged.
        """
        if isinstance(given, Mapping):
            given = given.get("bytes") or given.get("path")
        if isinstance(given, bytes):
            return self.save_plain(given)
        if not isinstance(given, str):
            raise InvalidRecord("image-missing", "a row has an image that is neither a name nor bytes.")
        return self.save_plain(inside(self.folder, given).read_bytes())


def listed(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, anything else as a list of one."""
    return [] if value is None or value == "" else list(value) if isinstance(value, list | tuple) else [value]
