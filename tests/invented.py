# SPDX-License-Identifier: Apache-2.0
"""Data steps that only tests have, and builds of them; a worker of Ray can import them by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from monai_unimedvl.data.ingest.base import write_png
from monai_unimedvl.data.pipeline import build_dataset
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Message, Record, Reject, pseudonym
from monai_unimedvl.data.step import Each, Source, Stream, option

HERE = __name__


@dataclass(frozen=True, kw_only=True)
class Invented(Source):
    """Records of random pictures; every tenth part is damaged, every seventh is the one before it."""

    name: ClassVar[str] = "invented"
    about: ClassVar[str] = "random pictures"
    root: str = option("", "folder of the corpus")
    count: int = option(40, "how many")
    licence: str = option("CC0-1.0", "of all")
    dataset: str = option("invented", "name")
    pause: float = option(0.0, "seconds a part")

    def parts(self) -> list[int]:
        """Numbers."""
        return list(range(self.count))

    def each(self, part: int) -> list[Record]:
        """One picture and its brightness."""
        time.sleep(self.pause)
        if part % 10 == 9:
            raise InvalidRecord("image-damaged", "part cannot be read, expected a picture.")
        seed = part - 1 if part % 7 == 6 else part
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)
        image = ImageFile(f"images/{write_png(pixels, Path(self.root) / 'images')}", 16, 16)
        said = (Message("human", "<image> How bright?"), Message("gpt", f"{int(pixels.mean())}"))
        return [
            Record(
                id=f"r{part}", main_task_type="image-to-text", sub_task_type="vqa", modality="xray",
                dataset=self.dataset, licence=self.licence, source="numpy", input_img=(image,), message=said,
                patient=pseudonym("p", str(part // 3), "key"),
            )
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Doubled(Each):
    """Each record, and one that asks otherwise."""

    name: ClassVar[str] = "doubled"
    about: ClassVar[str] = "twice as many"

    def each(self, record: Record) -> list[Record]:
        """Two records."""
        said = (Message("human", "<image> Is it bright?"), Message("gpt", "yes"))
        return [record, replace(record, id=f"{record.id}-b", message=said)]


@dataclass(frozen=True, kw_only=True)
class Broken(Each):
    """Nobody foresaw what it raises."""

    name: ClassVar[str] = "broken"
    about: ClassVar[str] = "a step that fails"

    def each(self, record: Any) -> Any:
        """Never."""
        raise LookupError(record.id)


@dataclass(frozen=True, kw_only=True)
class Brighter(Stream):
    """A stream that is no `Whole`: it keeps what is not darker than the one before, and says so."""

    name: ClassVar[str] = "brighter"
    about: ClassVar[str] = "rising brightness"
    least: int = option(0, "brightness of the first")

    def stream(self, records: Any) -> Any:
        """In order."""
        last = self.least
        for record in records:
            words = record.message[-1].value
            value = int(words) if words.isdigit() else last
            if value < last:
                yield Reject("darker", "darker than the one before.", record.id, self.name)
            else:
                yield replace(record, facts={"bright": value})
            last = value


def dies_once(job: dict[str, Any]) -> dict[str, Any]:
    """A job whose worker is killed the first time."""
    mark = Path(job["mark"])
    if job["deadly"] and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"name": job["name"]}


def dies_at_a_bar(job: dict[str, Any]) -> dict[str, Any]:
    """A job whose worker is killed while it draws a progress bar, the first time."""
    with tqdm.get_lock():
        return dies_once(job)


def dies_always(job: dict[str, Any]) -> dict[str, Any]:
    """A job that does not fit."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def plan(**source: Any) -> dict[str, Any]:
    """A pipeline of two passes with every sort of step."""
    return {
        "name": "invented", "batch": 4, "seed": 1, "shards": {"max_bytes": 12_000},
        "sources": [{"step": f"{HERE}:Invented", **source}],
        "steps": [
            {"step": "dedup"}, {"step": f"{HERE}:Doubled"}, {"step": f"{HERE}:Brighter"},
            {"step": "split", "shares": {"train": 3, "test": 1}},
        ],
    }  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """name -> bytes of everything in a corpus."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def build(out: Path, told: dict[str, Any], **how: Any) -> dict[str, Any]:
    """A build without a bar."""
    return build_dataset(told, out, progress=False, **how)
