# SPDX-License-Identifier: Apache-2.0
"""`tasks`: images with masks, pairs, or images alone -> tasks that are answered by drawing, and their kin.

    segmentation, mask-to-image      facts.mask, in the colours of a fixed legend, both ways
    super-resolution                 any image: k-space cut for MRI, averaged areas for the rest
    translation, staining            pairs; stained tissue alone gives its haematoxylin
    counterfactual                   facts.mask of something that can be taken away; explained after the image
    target-selection, modality-identification, direction
                                     pairs, as SynerMedGen asks them: what the drawing expert must know

The order of segments is that of the released loaders: image, instruction, words, drawn image; in a
counterfactual the image comes before the words. Images of a pair that do not lie on each other are rejected.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from monai_unimedvl.data.degrade import Pixels, coloured, haematoxylin, legend_of, lose_resolution, without
from monai_unimedvl.data.dialogue import pixels, read_content
from monai_unimedvl.data.ingest.base import write_png
from monai_unimedvl.data.phrases import article, chance, fill, listed, templates
from monai_unimedvl.data.record import (
    PLACEHOLDER,
    ImageFile,
    InvalidRecord,
    Message,
    Record,
    Reject,
    stable_id,
)
from monai_unimedvl.data.step import Each, Item, option

CODES = {
    "geometry-differs": "images of a pair, or a mask and its image, that do not lie on each other",
    "no-task": "a record without words of which no task can be made",
}
OF_IMAGE = ("segmentation", "mask-to-image", "super-resolution", "staining", "counterfactual")
OF_PAIR = ("translation", "target-selection", "modality-identification", "direction")
TASKS = (*OF_IMAGE, *OF_PAIR)
REMOVABLE = ("tumour", "tumor", "lesion", "nodule", "mass", "cyst", "metastasis")
STAINS = {"eosin": "H&E", "dab": "IHC"}
LEAST_STAIN = 0.01  # optical density below which a stain is not there
LARGEST = 0.15  # of the image: a larger region is not taken away
APART_MM = 0.5  # between the middles of two images that lie on each other


@dataclass(frozen=True, kw_only=True)
class Tasks(Each):
    """Records without words -> records of tasks; those with words go on as they are."""

    name: ClassVar[str] = "tasks"
    about: ClassVar[str] = (
        "masks, pairs and images into segmentation, super-resolution, translation, staining"
    )
    example: ClassVar[str] = "corpus/records.jsonl --out corpus/tasks.jsonl --make segmentation staining"
    root: str = option("", "folder of the corpus; pictures go to its images/")
    make: tuple[str, ...] = option(TASKS, f"what to make, of {', '.join(TASKS)}")
    seed: int = option(0, "of the choice among forms and distractors")
    factor: int = option(4, "of the super-resolution")
    each_label: bool = option(True, "of a mask with several labels also a record for each")
    remove: tuple[str, ...] = option(REMOVABLE, "labels that a counterfactual takes away")
    templates: str = option("", "folder with templates of one's own (default: those that ship)")
    keep: bool = option(False, "the record without words goes on too")

    def __post_init__(self) -> None:
        if unknown := [each for each in self.make if each not in TASKS]:
            raise ValueError(f"make has {unknown[0]!r}, expected some of {', '.join(TASKS)}: change it.")
        if self.factor < 2:
            raise ValueError(f"factor is {self.factor}, expected 2 or more: raise it.")
        templates("tasks", self.templates)

    def each(self, record: Record) -> Iterable[Item]:
        """A record -> the tasks that it gives."""
        if record.message:
            return [record]
        made: list[Item] = []
        if len(record.input_img) == 1 and len(record.output_img) == 1 and record.facts.get("pair"):
            made += self._of_pair(record)
        elif len(record.input_img) == 1 and not record.output_img:
            for make in (self._segmentation, self._resolution, self._staining, self._counterfactual):
                made += self._guarded(make, record)
        if self.keep:
            made.append(record)
        if not made:
            reason = f"no task of {', '.join(self.make)} fits it, expected an image, a mask or a pair."
            made.append(Reject("no-task", reason, record.id, self.name))
        return made

    def _guarded(self, make: Callable[[Record], Iterator[Item]], record: Record) -> list[Item]:
        """What a task gives; one that is refused leaves the others."""
        try:
            return list(make(record))
        except InvalidRecord as error:
            return [self.refusal(error, record.id)]

    def _segmentation(self, record: Record) -> Iterator[Item]:
        """The mask of all labels, of each label, and the image of the mask."""
        mask = record.facts.get("mask")
        if not mask or not {"segmentation", "mask-to-image"} & set(self.make):
            return
        image, labels = record.input_img[0], list(mask["labels"])
        label_map = self._label_map(record)
        legend = legend_of(labels)
        if "segmentation" in self.make:
            chosen = [labels, *([[label] for label in labels] if self.each_label and len(labels) > 1 else [])]
            for some in chosen:
                values = np.zeros(len(labels) + 1, np.uint8)
                for number, label in enumerate(some, 1):
                    values[labels.index(label) + 1] = number
                part = {label: legend[label] for label in some}
                drawn = self._save(coloured(values[label_map], part), image)
                there = bool(values[label_map].any())
                words = {
                    "labels": f"the {listed(some)}" if there else listed(some, "or"),
                    "legend": _told(part),
                }
                told = "told" if there else "nothing"
                yield self._edit(
                    record,
                    "segmentation",
                    (image,),
                    drawn,
                    words,
                    told=told,
                    key=some,
                    facts={"legend": part},
                )
        if "mask-to-image" in self.make and label_map.any():
            shown = self._save(coloured(label_map, legend), image)
            words = {"legend": _told(legend), **_contrast(record)}
            yield self._edit(record, "mask-to-image", (shown,), image, words, facts={"legend": legend})

    def _resolution(self, record: Record) -> Iterator[Item]:
        """The image out of one of lower resolution."""
        image = record.input_img[0]
        if "super-resolution" not in self.make or min(image.height, image.width) < 8 * self.factor:
            return
        fourier = record.modality == "mri"
        poor = self._save(lose_resolution(self._load(image), self.factor, fourier=fourier), image)
        words = {"factor": str(self.factor), **_contrast(record)}
        how = f"{'k-space' if fourier else 'area'} x{self.factor}"
        yield self._edit(record, "super-resolution", (poor,), image, words, made={"input_img": how})

    def _staining(self, record: Record) -> Iterator[Item]:
        """Stained tissue out of its haematoxylin."""
        if "staining" not in self.make or record.modality != "histopathology":
            return
        image = record.input_img[0]
        tissue = self._load(image)
        if tissue.ndim != 3:
            return
        only, amounts = haematoxylin(tissue)
        said = str(record.facts.get("contrast", "")).lower()
        brown = "ihc" in said or "dab" in said or (not said and amounts["dab"] > amounts["eosin"])
        stain = "dab" if brown else "eosin"
        if amounts[stain] < LEAST_STAIN or amounts["haematoxylin"] < LEAST_STAIN:
            return
        shown = self._save(only, image)
        words = {"source": "haematoxylin", "target": STAINS[stain]}
        yield self._edit(
            record, "staining", (shown,), image, words, made={"input_img": "haematoxylin of rgb2hed"}
        )

    def _counterfactual(self, record: Record) -> Iterator[Item]:
        """The image without what can be taken away, and what was done, said after it."""
        mask = record.facts.get("mask")
        if not mask or "counterfactual" not in self.make:
            return
        image = record.input_img[0]
        for number, label in enumerate(mask["labels"], 1):
            if label.lower() not in [name.lower() for name in self.remove]:
                continue
            region = self._label_map(record) == number
            share = float(region.mean())
            if not 0 < share <= LARGEST:
                continue
            head = str(record.facts.get("organ", "")).lower() in ("brain", "head")
            mirror = head and image.place.get("plane", "axial") != "sagittal"
            filled, how = without(self._load(image), region, mirror=mirror)
            side = record.facts.get("side") if len(mask["labels"]) == 1 else None
            words = {
                "label": label, "fill": how, "share": f"{100 * share:.1f} %",
                "place": f" on the {side} side" if side in ("left", "right") else "",
            }  # fmt: skip
            made = {"output_img": f"simulated: {how}"}
            drawn = self._save(filled, image)
            yield self._edit(record, "counterfactual", (image,), drawn, words, key=label, made=made)

    def _of_pair(self, record: Record) -> Iterator[Item]:
        """Translation, and what must be known for it."""
        first, second = record.input_img[0], record.output_img[0]
        same_geometry(first, second)
        source, target = str(record.facts["pair"]["from"]), str(record.facts["pair"]["to"])
        draw = chance(self.seed, record.id)
        tissue = record.modality == "histopathology"
        words = {"source": source, "target": target}
        if tissue and "staining" in self.make:
            yield self._edit(record, "staining", (first,), second, words)
        elif not tissue and "translation" in self.make:
            yield self._edit(record, "translation", (first,), second, words)
        if "target-selection" in self.make:
            other = self._save(self._load(second)[::-1], second) if draw.random() < 0.5 else first
            right = draw.randrange(2)
            shown = (first, second, other) if right == 0 else (first, other, second)
            made = {
                "input_img": "distractor: upside down" if other is not first else "distractor: the source"
            }
            yield self._answer(record, "target-selection", shown, words, "AB"[right], made=made)
        names = sorted({source, target}, key=lambda name: draw.random())
        if "modality-identification" in self.make and len(names) == 2:
            for image, name in ((first, source), (second, target)):
                known = {"choices": listed(names, "or")}
                yield self._answer(record, "modality-identification", (image,), known, name, key=name)
        if "direction" in self.make and source != target:
            ways = [f"{source} to {target}", f"{target} to {source}"]
            known = {"choices": listed(sorted(ways, key=lambda way: draw.random()), "or")}
            yield self._answer(record, "direction", (first, second), known, ways[0])

    def _edit(
        self, record: Record, task: str, shown: Sequence[ImageFile], drawn: ImageFile, words: dict[str, str],
        *, told: str = "told", key: Any = "", facts: dict[str, Any] | None = None,
        made: dict[str, str] | None = None,
    ) -> Record:  # fmt: skip
        """A record that is answered by an image."""
        asked, which = self._form(record, task, "asked", words, key)
        said, _ = self._form(record, task, told, {**words, "image": PLACEHOLDER}, key)
        marks = " ".join([PLACEHOLDER] * len(shown))
        message = (Message("human", f"{marks} {asked}"), Message("gpt", said))
        return self._made(record, task, which, message, tuple(shown), (drawn,), key, facts, made)

    def _answer(
        self, record: Record, task: str, shown: Sequence[ImageFile], words: dict[str, str], answer: str, *,
        key: Any = "", made: dict[str, str] | None = None,
    ) -> Record:  # fmt: skip
        """A record that is answered in words."""
        marks = " ".join([PLACEHOLDER] * len(shown))
        asked, which = self._form(record, task, "asked", {**words, "images": marks}, key)
        asked = asked if PLACEHOLDER in asked else f"{marks} {asked}"
        message = (Message("human", asked), Message("gpt", answer))
        return self._made(record, task, which, message, tuple(shown), (), key, None, made)

    def _form(self, record: Record, task: str, part: str, words: dict[str, str], key: Any) -> tuple[str, str]:
        """A sentence of the library, and its name."""
        forms = templates("tasks", self.templates)[task][part]
        number = chance(self.seed, record.id, task, part, key).randrange(len(forms))
        return fill(forms[number], words), f"{task}-{number}"

    def _made(
        self, record: Record, task: str, which: str, message: tuple[Message, ...],
        shown: tuple[ImageFile, ...], drawn: tuple[ImageFile, ...], key: Any, facts: dict[str, Any] | None,
        made: dict[str, str] | None,
    ) -> Record:  # fmt: skip
        """The record of a task, with where each part is from."""
        origins = {name: {"by": self.name, "name": how} for name, how in (made or {}).items()}
        return replace(
            record, id=stable_id(record.id, self.name, task, key),
            main_task_type="interleaved" if drawn else "image-to-text", sub_task_type=task,
            input_img=shown, output_img=drawn, message=message, facts={**record.facts, **(facts or {})},
            provenance={**record.provenance, **origins, "message": {"by": "template", "name": which}},
        )  # fmt: skip

    def _label_map(self, record: Record) -> Pixels:
        """(H, W) of 0..K on the pixels of the record's image.

        Raises:
            InvalidRecord: it is missing, or does not lie on the image.
        """
        mask, image = record.facts["mask"], record.input_img[0]
        content = read_content(ImageFile(mask["path"], image.height, image.width), self.root or None)
        try:
            with Image.open(io.BytesIO(content)) as opened:
                found = np.asarray(opened.convert("L"))
        except OSError as error:
            raise InvalidRecord(
                "image-damaged", "the mask cannot be read, expected a PNG of 0..K."
            ) from error
        if found.shape != (image.height, image.width):
            raise InvalidRecord(
                "geometry-differs",
                f"the mask has {found.shape[0]}x{found.shape[1]} pixels, its image {image.height}x"
                f"{image.width}, expected the same.",
            )
        if int(found.max()) > len(mask["labels"]):
            raise InvalidRecord(
                "wrong-value", f"the mask holds {int(found.max())}, expected 0 to {len(mask['labels'])}."
            )
        return found

    def _load(self, image: ImageFile) -> Pixels:
        """(H, W) of a grey picture, or (H, W, 3)"""
        content = read_content(image, self.root or None)
        values = np.rint(pixels(replace(image, content=content)).numpy() * 255).astype(np.uint8)  # (3, H, W)
        grey = np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2])
        return values[0] if grey else np.moveaxis(values, 0, -1)

    def _save(self, picture: Pixels, like: ImageFile) -> ImageFile:
        """A picture of the corpus, at the place of another."""
        name = write_png(np.ascontiguousarray(picture), Path(self.root) / "images")
        return ImageFile(f"images/{name}", picture.shape[0], picture.shape[1], like.place)


def same_geometry(first: ImageFile, second: ImageFile) -> None:
    """Nothing, where two images lie on each other as far as is known.

    Raises:
        InvalidRecord: they differ in size, in mm a pixel or in place; with the numbers.
    """
    grids = [f"{image.height}x{image.width} pixels" for image in (first, second)]
    wrong = grids[0] != grids[1]
    mine, other = (image.place.get("spacing_mm") for image in (first, second))
    if mine and other:
        sizes = [" x ".join(f"{mm:g}" for mm in spacing) for spacing in (mine, other)]
        grids = [f"{grid} of {size} mm" for grid, size in zip(grids, sizes, strict=True)]
        wrong = wrong or not np.allclose(mine, other, rtol=0.01)
    here, there = (image.place.get("position_mm") for image in (first, second))
    if here and there:
        apart = float(np.linalg.norm(np.subtract(here, there)))
        grids[1] += f" {apart:.1f} mm away"
        wrong = wrong or apart > APART_MM
    if wrong:
        raise InvalidRecord(
            "geometry-differs",
            f"the images of the pair have {grids[0]} and {grids[1]}, expected one grid: register them, or "
            "resample one on the other.",
        )


def _told(legend: dict[str, tuple[int, int, int]]) -> str:
    """ "liver in (60, 180, 75), tumour in (255, 60, 60)" """
    return ", ".join(f"{name} in ({r}, {g}, {b})" for name, (r, g, b) in legend.items())


def _contrast(record: Record) -> dict[str, str]:
    """What the image shows, in words, with its article."""
    words = str(
        record.facts.get("contrast") or {"mri": "MRI", "ct": "CT"}.get(record.modality, record.modality)
    )
    return {"contrast": words, "article": article(words)}
