# SPDX-License-Identifier: Apache-2.0
"""What a reader gives: the items of a benchmark, where their pictures lie, and what is missing.

A reader takes the files as their publisher lays them out and downloads nothing. The number of items is held
against the published one; a picture is opened only when it is looked at.
  C channels   H, W pixels
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.data.shards import parquet
from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.masks import Legend
from monai_unimedvl.transforms.onto import labels_onto, picture_onto

NIFTI = (".nii", ".nii.gz")
SHOWN = 5  # names in a message
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture lies.

    Args:
        file: the picture, or the table that holds it.
        place: () if the file is the picture; (row group, row) of Parquet; (start, length) in bytes of a line
            of TSV whose first column named "image" holds it in base64; (number, count) of a volume's slice.
        column: of the table, by its place among the columns in TSV.
    """

    file: Path
    place: tuple[int, ...] = ()
    column: str = "image"

    def content(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            ValueError: the file is gone or holds no picture there.
        """
        try:
            if self.file.suffix == ".parquet" and self.place:
                group, row = self.place
                return _bytes(_group(self.file, group, self.column)[row])
            if self.file.suffix == ".tsv" and self.place:
                start, length = self.place
                with self.file.open("rb") as stream:
                    stream.seek(start)
                    line = stream.read(length).decode("utf8")
                cells = next(csv.reader(io.StringIO(line), delimiter="\t"))
                return base64.b64decode(cells[int(self.column)], validate=False)
            return self.file.read_bytes()
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            where = f" at {self.place}" if self.place else ""
            raise ValueError(
                f"{self.file.name}{where} holds no picture that can be read: get it again."
            ) from error

    def placed(self, modality: str) -> MetaTensor:
        """A slice of a volume as the recipe of its modality gives it, (3, H, W) with its place."""
        at, count = self.place or (0, 1)
        slices = recipe(modality, count=count, policy="uniform")(self.file)
        if at >= len(slices):
            raise ValueError(f"{self.file.name} has {len(slices)} slices, expected {count}: get it again.")
        return slices[at]

    def tensor(self, modality: str = "mri") -> Tensor:
        """The picture, (3, H, W) in [0, 1]; a slice of a volume as the recipe of its modality gives it."""
        if self.file.name.endswith(NIFTI):
            return self.placed(modality).as_subclass(Tensor)
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(self.content())) as opened:
                pixels = np.asarray(_to_rgb(opened))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{self.file.name} holds no picture that can be read: get it again.") from error
        return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255  # (3, H, W)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask a model, and what is true; fields as in `Prediction`.

    Args:
        pictures: shown with the question. target: the true image, where an image is asked for.
        legend: label -> colour of a true mask. values: label -> value in its file.
    """

    id: str
    question: str = ""
    truth: str = ""
    references: Sequence[str] = ()
    task: str = "vqa"
    answer_type: str = ""
    question_type: str = ""
    language: str = "en"
    options: Sequence[str] = ()
    modality: str = ""
    anatomy: str = ""
    image: str = ""
    patient: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    target: Picture | None = None
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    values: Mapping[str, int] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The question with its options, each behind its letter."""
        listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.question, *listed])

    def prompt(self, suffix: str = "") -> list[str | Tensor]:
        """What a model is given: pictures (3, H, W) in [0, 1], then words and suffix."""
        return [*(picture.tensor(self.modality or "mri") for picture in self.pictures), self.words + suffix]

    def true_image(self) -> Tensor:
        """The image that is asked for, (3, H, W) in [0, 1]; a mask in the colours of its legend.

        Raises:
            ValueError: there is none, or it cannot be read or does not lie on the picture it belongs to.
        """
        if self.target is None:
            raise ValueError(f"Item {self.id} has no true image, expected one to draw: ask it in words.")
        modality, volume = self.modality or "mri", self.target.file.name.endswith(NIFTI)
        if self.legend:
            values = list(self.values.values())
            if volume:
                labels = labels_onto(self.target.file, self.pictures[0].placed(modality), values)
            else:
                labels = _labels(self.target, values)
            return Legend(dict(self.legend)).coloured(labels).as_subclass(Tensor)
        if volume and self.pictures:
            onto = picture_onto(self.target.placed(modality), self.pictures[0].placed(modality))
            return onto.as_subclass(Tensor)
        return self.target.tensor(modality)

    def prediction(
        self, answer: str, *, benchmark: str, section: str, suffix: str = "", **more: Any
    ) -> Prediction:
        """The row of a prediction file with an answer."""
        prompt = "<image>" * len(self.pictures) + self.words + suffix
        told = "" if self.target is None else str(self.target.file.name)
        return Prediction(
            self.id, truth=self.truth, answer=answer, question=self.question, prompt=prompt,
            references=tuple(self.references), benchmark=benchmark, section=section, task=self.task,
            answer_type=self.answer_type, question_type=self.question_type, language=self.language,
            options=tuple(self.options), modality=self.modality, anatomy=self.anatomy, image=self.image,
            patient=self.patient, groups=dict(self.groups), truth_image=told, **more,
        )  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """The items of a benchmark's section.

    Args:
        published: items that its publisher counts, None if no count is published.
        missing: files that should be there and are not; their items are not among `items`.
    """

    name: str
    section: str
    items: Sequence[Item]
    published: int | None
    missing: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether every published item is there."""
        return not self.missing and self.published in (None, len(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        counted = "no published count" if self.published is None else f"{self.published:,} published"
        lost = f", {len(self.missing)} files missing" if self.missing else ""
        return f"{self.name} {self.section}: {len(self.items):,} items, {counted}{lost}"


def checked(benchmark: Benchmark, *, partial: bool, source: str) -> Benchmark:
    """The benchmark, if it is whole or a part is allowed.

    Raises:
        ValueError: files are missing, or the count is not the published one; named, with the mend.
    """
    if benchmark.complete and benchmark.items:
        return benchmark
    if benchmark.missing:
        names = ", ".join(benchmark.missing[:SHOWN])
        more = f" and {len(benchmark.missing) - SHOWN} more" if len(benchmark.missing) > SHOWN else ""
        found = f"lacks {len(benchmark.missing)} files: {names}{more}"
    else:
        counted = "some" if benchmark.published is None else f"the {benchmark.published:,} that are published"
        found = f"has {len(benchmark.items):,} items, expected {counted}"
    if partial and benchmark.items:
        return benchmark
    part = ", or read a part with partial=True (--partial)" if benchmark.items else ""
    mend = f"get them from {source}{part}"
    raise ValueError(f"{benchmark.name} {benchmark.section} {found}: {mend}.")


def folder_of(path: str | Path, *names: str) -> Path:
    """A folder that holds one of the names.

    Raises:
        ValueError: it does not.
    """
    folder = Path(path)
    if not folder.is_dir() or not any(list(folder.glob(name)) for name in names):
        raise ValueError(f"{folder} has none of {', '.join(names)}: give the folder that holds one of them.")
    return folder


def shards(folder: Path, section: str) -> tuple[list[Path], list[str]]:
    """The Parquet files of a section in a Hub layout, and the names of those that its "-of-" count lacks."""
    found = sorted([*folder.glob(f"data/{section}-*.parquet"), *folder.glob(f"{section}-*.parquet")])
    found = found or sorted([*folder.glob(f"**/{section}/*.parquet"), *folder.glob(f"{section}.parquet")])
    there: dict[str, set[int]] = {}
    for path in found:
        parts = path.stem.split("-")
        if len(parts) >= 4 and parts[2] == "of" and parts[1].isdigit() and parts[3].isdigit():
            there.setdefault(parts[3], set()).add(int(parts[1]))
    missing = [
        f"{section}-{number:05d}-of-{count}.parquet"
        for count, numbers in there.items()
        for number in sorted(set(range(int(count))) - numbers)
    ]
    return found, missing


@lru_cache(2)
def _group(file: Path, group: int, column: str) -> Any:
    """A column of a row group; neighbours are asked one after the other."""
    return parquet().ParquetFile(file).read_row_group(group, columns=[column]).column(column)


def _bytes(cell: Any) -> bytes:
    value = cell.as_py()
    return bytes(value["bytes"] if isinstance(value, Mapping) else value)


def parquet_rows(
    files: Iterable[Path], columns: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Picture, str]]:
    """(row without its picture, the picture, a name that equal pictures share) of tables with these columns.

    Raises:
        ValueError: a column is not there, or a file is no Parquet.
    """
    for path in files:
        try:
            file = parquet().ParquetFile(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path.name} is no Parquet file that can be read: get it again.") from error
        names = file.schema_arrow.names
        if lost := [name for name in columns if name not in names]:
            raise ValueError(
                f"{path.name} has no column {lost[0]!r}, it has {', '.join(names)}: get it again."
            )
        bare = [name for name in names if name not in ("image", "images")]
        for group in range(file.num_row_groups):
            cells = _group(path, group, "image")
            for row, values in enumerate(file.read_row_group(group, columns=bare).to_pylist()):
                name = hashlib.sha256(_bytes(cells[row])).hexdigest()[:12]
                yield values, Picture(path, (group, row)), name


def tsv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, str], Picture]]:
    """(row without its picture, the picture) of a TSV with a column "image" of base64; nothing is held.

    Raises:
        ValueError: a column is not there, or a line has another number of cells.
    """
    csv.field_size_limit(1 << 30)
    with path.open("rb") as stream:
        header = next(csv.reader([stream.readline().decode("utf-8-sig")], delimiter="\t"), [])
        if lost := [name for name in ("image", *columns) if name not in header]:
            raise ValueError(
                f"{path.name} has no column {lost[0]!r}, it has {', '.join(header)}: get it again."
            )
        at, number, start, line = header.index("image"), 1, stream.tell(), b""
        for part in stream:
            line += part
            if line.count(b'"') % 2:  # a cell goes on in the next line
                continue
            number += 1
            cells = next(csv.reader(io.StringIO(line.decode("utf8")), delimiter="\t"))
            if len(cells) != len(header):
                raise ValueError(
                    f"{path.name} line {number} has {len(cells)} cells, expected {len(header)}: get it again."
                )
            row = {name: cell for name, cell in zip(header, cells, strict=True) if name != "image"}
            yield row, Picture(path, (start, len(line)), str(at))
            start, line = start + len(line), b""
        if line:
            raise ValueError(f"{path.name} ends within line {number + 1}: get it again.")


def json_rows(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines, each with the needed keys.

    Raises:
        ValueError: it cannot be read, or an object lacks a key; named.
    """
    try:
        text = path.read_text("utf-8-sig")
        lines = text.splitlines() if path.suffix == ".jsonl" else []
        rows = [json.loads(line) for line in lines if line.strip()] if lines else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is no JSON that can be read: get it again.") from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        if not isinstance(row, dict) or (lost := [key for key in needed if key not in row]):
            what = f"no {lost[0]!r}" if isinstance(row, dict) else "no mapping"
            raise ValueError(
                f"{path.name} row {number} has {what}, expected {', '.join(needed)}: get it again."
            )
    return list(rows)


def present(items: Iterable[Item], root: Path) -> tuple[list[Item], list[str]]:
    """The items whose picture files are all there, and the names of the files that are not."""
    kept, missing, seen = [], dict[str, None](), dict[Path, bool]()
    for item in items:
        files = [picture.file for picture in (*item.pictures, *([item.target] if item.target else []))]
        whole = True
        for file in files:
            if file not in seen:
                seen[file] = file.is_file()
            if not seen[file]:
                whole = False
                missing[str(file.relative_to(root)) if file.is_relative_to(root) else file.name] = None
        if whole:
            kept.append(item)
    return kept, list(missing)


Read = Callable[[Path, str], tuple[list[Item], list[str]]]  # folder, section -> items, missing files


def _labels(picture: Picture, values: Sequence[int]) -> Tensor:
    """A flat mask -> (H, W) of n where it holds the n-th value, else 0."""
    from PIL import Image

    with Image.open(io.BytesIO(picture.content())) as opened:
        pixels = np.asarray(opened if opened.mode in ("L", "I;16", "I", "P") else opened.convert("L"))
    if unknown := sorted(set(np.unique(pixels).tolist()) - {0, *values}):
        raise ValueError(
            f"{picture.file.name} holds value {unknown[0]}, expected 0 and {', '.join(map(str, values))}: "
            "mend the mask or labels.json."
        )
    found = torch.zeros(pixels.shape, dtype=torch.uint8)
    for place, value in enumerate(values, 1):
        found[torch.from_numpy(np.asarray(pixels == value))] = place
    return found


def _to_rgb(opened: Any) -> Any:
    """8-bit RGB of a PIL image; 16-bit ones by their own range, transparency on white."""
    from PIL import Image

    if opened.mode in ("I;16", "I;16B", "I", "F"):
        values = np.asarray(opened, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
        return Image.fromarray((scaled * 255).round().astype(np.uint8)).convert("RGB")
    if "A" in opened.mode or "transparency" in opened.info:
        ground = Image.new("RGBA", opened.size, "white")
        return Image.alpha_composite(ground, opened.convert("RGBA")).convert("RGB")
    return opened.convert("RGB")
