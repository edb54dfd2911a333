# SPDX-License-Identifier: Apache-2.0
"""The atlas corpus as a source of a pipeline: {step: atlas, tasks: [vqa, caption, sr4]}"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.atlas_records import atlas_records
from monai_unimedvl.data.atlas_splits import SECTIONS
from monai_unimedvl.data.jobs import stored
from monai_unimedvl.data.record import Record
from monai_unimedvl.data.step import Item, Source, option

AT_ONCE = 64  # records of one part


@dataclass(frozen=True, kw_only=True)
class AtlasSource(Source):
    """The records of the atlas: real scans and stained tissue, 64 x 64."""

    name: ClassVar[str] = "atlas"
    about: ClassVar[str] = "the public scans that `data fetch-atlas` brought, as records"
    example: ClassVar[str] = "~/.cache/monai_unimedvl/atlas --out corpus --tasks vqa caption"

    path: str = option("", "where fetch-atlas put them (default: the cache)")
    root: str = option("", "folder of the corpus; pictures go to its images/")
    tasks: tuple[str, ...] = option((), "only these, such as vqa sr4 seg-nuclei")
    sections: tuple[str, ...] = option((), "of train, val, test, test_subject (default: all)")
    only: tuple[str, ...] = option((), "sources whose names begin so, such as brain lung (default: all)")
    permissive_only: bool = option(False, "leave out sources under GPL")
    keep_split: bool = option(True, "as the atlas has it; false: a later step splits")

    def parts(self) -> Sequence[Any]:
        """(section, first record)

        Raises:
            ValueError: an unknown task or section, or nothing is there.
        """
        found = [
            (section, first)
            for section in self.sections or SECTIONS
            for first in range(0, len(self._records(section)), AT_ONCE)
        ]
        if not found:
            raise ValueError("the atlas holds nothing of this: run `unimedvl data fetch-atlas`.")
        return found

    def each(self, part: Sequence[Any]) -> Iterable[Item]:
        """Some records of a section."""
        section, first = part
        for record in self._records(section)[first : first + AT_ONCE]:
            kept = stored(record, Path(self.root)) if self.root else record
            yield kept if self.keep_split else replace(kept, split="")

    def _records(self, section: str) -> list[Record]:
        tasks = tuple(self.tasks) or None
        found = _records(self.path or None, section, tasks, self.permissive_only)
        starts = tuple(f"atlas:{name}" for name in self.only)
        return [record for record in found if record.dataset.startswith(starts)] if starts else found


@functools.lru_cache(maxsize=8)
def _records(
    folder: str | None, section: str, tasks: tuple[str, ...] | None, permissive_only: bool
) -> list[Record]:
    dataset = AtlasDataset(
        folder, section, tasks=tasks, permissive_only=permissive_only, cache_rate=0.0, progress=False
    )
    return list(atlas_records(dataset))
