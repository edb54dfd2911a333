# SPDX-License-Identifier: Apache-2.0
"""Folders of shards as numbered records, and as the streams that a mixture draws from.

    corpus = Corpus("shards")            # checks every byte first
    lessons = corpus.lessons("train")    # {"text": [...], "text-to-image": [...], ...}, one stream a task

An epoch's order is a random one of row groups, and within a window of them of their records, so that a disk
reads long pieces and little is kept in memory. A corpus that fits the window is simply shuffled.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from monai.utils import optional_import
from torch import Tensor

from monai_unimedvl.data.dialogue import dialogue
from monai_unimedvl.data.mixture import Stream
from monai_unimedvl.data.record import KINDS, Record
from monai_unimedvl.data.shards import IMAGES, check_shards, digest_of, parquet, record_of
from monai_unimedvl.sequence import Turn

LIGHT = ("id", "split", "sub_task_type", "modality")  # columns that are kept in memory
Augment = Callable[[list[Turn], torch.Generator, Record], list[Turn]]


class Corpus:
    """The records of folders of shards, by number; files are opened anew in every process.

    Args:
        folders: as `write_shards` made them.
        check: "sha256" reads every byte once, here; "sizes" only looks at lengths.
        window: row groups that are shuffled together, and kept in memory.
        augment: (turns, generator, record) -> turns, for each look at a record of split "train".

    Raises:
        ValueError: a folder that is not whole, or a record that is in two of them.
    """

    def __init__(
        self, *folders: str | Path, check: Literal["sha256", "sizes"] = "sha256", window: int = 64,
        augment: Augment | None = None,
    ) -> None:  # fmt: skip
        if not folders:
            raise ValueError("Corpus got no folder, expected at least one: name a folder of shards.")
        manifests = [check_shards(folder, check) for folder in folders]
        self.digest = " ".join(map(digest_of, manifests))
        self.paths = [
            Path(folder) / shard["name"]
            for folder, manifest in zip(folders, manifests, strict=True)
            for shard in manifest["shards"]
        ]
        self.window, self.augment = max(1, window), augment
        self.groups: list[tuple[int, int]] = []  # shard, and row group in it
        starts = [0]
        tables = []
        for number, path in enumerate(self.paths):
            with parquet().ParquetFile(path) as file:
                tables.append(self._light(file))
                for group in range(file.num_row_groups):
                    self.groups.append((number, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        self._starts = torch.tensor(starts)
        arrow, _ = optional_import("pyarrow")
        self.light = arrow.concat_tables(tables)  # of each record: id, kind, split, task, modality
        self._refuse_doubles()
        self._forget()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        """The record with its images' bytes.

        Raises:
            IndexError: there is no such record.
            InvalidRecord: the row is no record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        group = int(self._group_of(torch.tensor(index)))
        row = self._table(group).slice(index - int(self._starts[group]), 1).to_pylist()[0]
        return record_of(row)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which belong to one process."""
        return {**self.__dict__, "_process": -1, "_files": {}, "_tables": OrderedDict()}

    def lessons(self, split: str = "train") -> dict[str, list[Stream]]:
        """Kind -> streams "task:modality" of the records of a split, weighing as much as they have records.

        A corpus without splits is all "train".

        Raises:
            ValueError: some records have a split and some have none, or none has this one in "train".
        """
        splits = self.light["split"].to_pylist()
        counts = Counter(splits)
        if counts[""] and len(counts) > 1:
            raise ValueError(
                f"The shards have {counts['']} records without a split among {len(splits)}, expected one for "
                "each or for none: split the corpus as a whole."
            )
        if counts[""]:
            splits = ["train"] * len(splits)
        places: dict[tuple[str, str, str], list[int]] = {}
        columns = (self.light[name].to_pylist() for name in ("kind", "sub_task_type", "modality"))
        for index, (found, *key) in enumerate(zip(splits, *columns, strict=True)):
            if found == split:
                places.setdefault((key[0], key[1], key[2]), []).append(index)
        if split == "train" and not places:
            raise ValueError(
                f"The shards have no record of split 'train' (splits: {dict(counts)}), expected some: split "
                "the corpus, or leave the split of all records empty."
            )
        names = Counter((task, modality) for _, task, modality in places)
        lessons: dict[str, list[Stream]] = {kind: [] for kind in KINDS}
        for (kind, task, modality), indexes in sorted(places.items()):
            name = f"{task}:{modality}" if names[task, modality] == 1 else f"{task}:{kind}:{modality}"
            source = _Source(self, torch.tensor(indexes), self.augment if split == "train" else None)
            stream = Stream(
                name, source.read, len(indexes), float(len(indexes)), draws=kind in KINDS[1::2],
                order=source.order, label=source.label, digest=self.digest,
            )  # fmt: skip
            lessons[kind].append(stream)
        return lessons

    def _group_of(self, indexes: Tensor) -> Tensor:
        """The row group of each record, counted over all shards."""
        return torch.searchsorted(self._starts, indexes, right=True) - 1

    def _light(self, file: Any) -> Any:
        """The columns of a shard that are kept, and the kind that follows from its images."""
        compute, _ = optional_import("pyarrow.compute")
        sizes = [f"{name}_info" for name in IMAGES]
        table = file.read(columns=[*LIGHT, *(f"{name}.list.element.height" for name in sizes)])
        shown, drawn = (compute.greater(compute.list_value_length(table[name]), 0) for name in sizes)
        number = [KINDS[2 * s + d] for s, d in zip(shown.to_pylist(), drawn.to_pylist(), strict=True)]
        return table.select(list(LIGHT)).append_column("kind", [number])

    def _refuse_doubles(self) -> None:
        ids = self.light["id"].to_pylist()
        if len(set(ids)) < len(ids):
            (first, count), *_ = Counter(ids).most_common(1)
            raise ValueError(
                f"The shards hold record {first} {count} times, expected each once: leave out a folder."
            )

    def _table(self, group: int) -> Any:
        if self._process != os.getpid():  # a fork would share handles and locks
            self._forget()
        if group in self._tables:
            self._tables.move_to_end(group)
            return self._tables[group]
        number, inside = self.groups[group]
        if number not in self._files:
            if len(self._files) > 32:
                self._files.pop(next(iter(self._files))).close()
            self._files[number] = parquet().ParquetFile(self.paths[number])
        try:
            table = self._files[number].read_row_group(inside)
        except OSError as error:
            raise ValueError(
                f"{self.paths[number]} can no longer be read ({error}), expected what was checked at the "
                "start: check the disk, and copy the shard again."
            ) from error
        self._tables[group] = table
        while len(self._tables) > self.window:
            self._tables.popitem(last=False)
        return table

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: dict[int, Any] = {}
        self._tables: OrderedDict[int, Any] = OrderedDict()


@dataclass(frozen=True)
class _Source:
    """Some records of a corpus as a stream reads them; a plain object, so that any worker can be sent it."""

    corpus: Corpus
    indexes: Tensor
    augment: Augment | None = None

    def read(self, index: int, generator: torch.Generator) -> list[Turn]:
        """The dialogue of a record; an `InvalidRecord` where there is none."""
        record = self.corpus[int(self.indexes[index])]
        turns = dialogue(record)
        return turns if self.augment is None else self.augment(turns, generator, record)

    def label(self, index: int) -> str:
        """Its id."""
        return self.corpus.light["id"][int(self.indexes[index])].as_py()

    def order(self, generator: torch.Generator) -> Tensor:
        """Places 0 .. n-1: groups in random order, records in random order within a window of groups."""
        groups, at = torch.unique_consecutive(self.corpus._group_of(self.indexes), return_inverse=True)
        window = torch.randperm(len(groups), generator=generator)[at] // self.corpus.window
        shuffled = torch.randperm(len(at), generator=generator)
        return shuffled[torch.argsort(window[shuffled], stable=True)]
