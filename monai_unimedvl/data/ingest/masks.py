# SPDX-License-Identifier: Apache-2.0
"""Pictures or volumes and their label maps: `images/case1.nii.gz` and `masks/case1.nii.gz`, of one name.

`labels.json` beside the two folders says which value is what: {"liver": 1, "tumour": 2}, or {"nuclei":
"instances"} where every piece has a number of its own. The label map is brought onto the pixels of each
picture and kept as a PNG of 0..K; what can be measured on it becomes facts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.data.ingest.base import Ingest, digest_of, patient_left, place_of, stem
from monai_unimedvl.data.ingest.nifti import check_pattern, who_of
from monai_unimedvl.data.ingest.regions import check_labels, facts_of, side_of
from monai_unimedvl.data.record import InvalidRecord
from monai_unimedvl.data.step import Item, option
from monai_unimedvl.transforms.onto import labels_onto
from monai_unimedvl.transforms.read import read

INSTANCES = -1


@dataclass(frozen=True, kw_only=True)
class IngestMasks(Ingest):
    """Images with their masks: a record for each picture, its label map and what it measures."""

    name: ClassVar[str] = "ingest-masks"
    about: ClassVar[str] = (
        "images/ and masks/ of one name, with labels.json: label maps and what they measure"
    )
    example: ClassVar[str] = "livers/ --out corpus --dataset ours --modality ct --containing label"
    images: str = option("images", "folder of the images, below the path")
    masks: str = option("masks", "folder of the masks, below the path")
    labels: str = option("labels.json", "file with name -> value in the masks, below the path")
    containing: str = option("any", "which slices: any, or label (only those where a label is)")
    patient_in: str = option(r"sub-([A-Za-z0-9]+)", "pattern that finds the patient in a path")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.patient_in)
        if self.containing not in ("any", "label"):
            raise ValueError(f"containing is {self.containing!r}, expected 'any' or 'label': choose one.")
        _ = self.secret, self.values

    @functools.cached_property
    def values(self) -> dict[str, int]:
        """Label -> value in the masks."""
        try:
            found = json.loads((Path(self.path) / self.labels).read_text("utf8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.labels} is missing or no JSON, expected name -> value in the masks, such as "
                '{"liver": 1}: write it.'
            ) from error
        return check_labels(found, self.labels)

    def files(self) -> list[Path]:
        """The images; masks belong to them."""
        folder = Path(self.path) / self.images
        return [path for path in super().files() if path.is_relative_to(folder)]

    @functools.cached_property
    def partners(self) -> dict[str, Path]:
        """Name without endings, with folders -> mask."""
        folder = Path(self.path) / self.masks
        return {
            str(path.relative_to(folder).parent / stem(path)): path
            for path in super().files()
            if path.is_relative_to(folder)
        }

    def parts(self) -> Sequence[str]:
        """The images, then the masks that have none."""
        if not self.order or not self.partners:
            raise ValueError(
                f"{self.path} holds {len(self.order)} images in {self.images}/ and {len(self.partners)} "
                f"masks in {self.masks}/, expected some in both: check the folders."
            )
        named = {self._key(Path(path)) for path in self.order}
        return [*self.order, *(str(mask) for key, mask in sorted(self.partners.items()) if key not in named)]

    def each(self, part: str) -> Iterable[Item]:
        """One pair -> a record for each picture."""
        return self.guarded(self._pair(Path(part)), part)

    def _key(self, path: Path) -> str:
        return str(path.relative_to(Path(self.path) / self.images).parent / stem(path))

    def _pair(self, path: Path) -> Iterator[Item]:
        if str(path) not in self.order or self._key(path) not in self.partners:
            what = "a mask has no image" if str(path) not in self.order else "an image has no mask"
            raise InvalidRecord("unpaired", f"{what} of its name, expected pairs: give both one name.")
        mask = self.partners[self._key(path)]
        pictures = self.pictures(path, **({"policy": "all"} if self.containing == "label" else {}))
        maps = read(mask)
        if (
            maps.ndim == 3
            and maps.shape[0] == 3
            and bool((maps[0] == maps[1]).all() & (maps[0] == maps[2]).all())
        ):
            maps = MetaTensor(
                maps.as_subclass(Tensor)[:1], meta=dict(maps.meta)
            )  # a grey mask saved as colours
        who, digest = who_of(self, path, self.patient_in), digest_of(path, mask)
        found = [(n, *labelled) for n, labelled in enumerate(self._labelled(maps, one) for one in pictures)
                 if self.containing == "any" or labelled[0].any()]  # fmt: skip
        if not found:
            raise InvalidRecord(
                "no-label", "no slice of the volume has a label, expected some: check values."
            )
        if self.containing == "label" and len(found) > self.slices:
            found = [found[(2 * n + 1) * len(found) // (2 * self.slices)] for n in range(self.slices)]
        for place, (number, label_map, instances) in enumerate(found):
            picture = pictures[number]
            image = self.save(picture)
            key = (digest, image.place.get("plane", ""), image.place.get("index", place))
            facts = {**who["facts"], **self._facts(picture, label_map, instances)}
            told = {"facts": {"by": self.name, "from": "mask"}}
            yield self.record(key, **{**who, "facts": facts}, input_img=(image,), provenance=told)

    def _labelled(self, maps: MetaTensor, picture: MetaTensor) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W) of 0..K, and (H, W) with a number for each piece where these are known."""
        values = list(self.values.values())
        if values != [INSTANCES]:
            return labels_onto(maps, picture, values).numpy(), None
        numbers = maps.as_subclass(Tensor).round().long()
        found = torch.unique(numbers)
        found = found[found > 0]
        pieces = np.zeros(tuple(picture.shape[1:]), np.int64)
        for start in range(0, len(found), 255):  # a label map holds 255 values at a time
            some = found[start : start + 255]
            cut = labels_onto(maps, picture, some.tolist()).numpy().astype(np.int64)
            pieces = np.where(cut > 0, cut + start, pieces)
        return (pieces > 0).astype(np.uint8), pieces

    def _facts(
        self, picture: MetaTensor, label_map: np.ndarray, instances: np.ndarray | None
    ) -> dict[str, Any]:
        names = list(self.values)
        kept = self.save_pixels(label_map.astype(np.uint8), folder="masks")
        left = patient_left(picture)
        known = facts_of(label_map, names, place_of(picture).get("spacing_mm"), instances)
        facts = {"mask": {"path": kept.path, "labels": names}, "patient_left": left, **known}
        if len(names) == 1 and (side := side_of(label_map == 1, left)):
            facts["side"] = side
        return facts
