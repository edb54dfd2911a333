# SPDX-License-Identifier: Apache-2.0
"""Folders whose files of one name show the same thing differently: `T1/case1.nii` and `T2/case1.nii`.

Each ordered pair of folders gives a record: read the first picture, draw the second, on the same pixels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from monai.data import MetaTensor

from monai_unimedvl.data.ingest.base import Ingest, digest_of, patient_left, place_of, stem, under
from monai_unimedvl.data.ingest.nifti import check_pattern, who_of
from monai_unimedvl.data.record import InvalidRecord
from monai_unimedvl.data.step import Item, option
from monai_unimedvl.transforms.onto import picture_onto

# Of volumes all slices of the second are read, so that one lies on each slice of the first.
WHOLE = {"policy": "all"}


@dataclass(frozen=True, kw_only=True)
class IngestPairs(Ingest):
    """Files of one name in two or more folders, as pairs to translate between."""

    name: ClassVar[str] = "ingest-pairs"
    about: ClassVar[str] = "paired folders: files of one name show the same thing in two ways"
    example: ClassVar[str] = "brains/ --folders T1 T2 --out corpus --dataset ours --modality mri"
    folders: tuple[str, ...] = option((), "which folders, below the path (default: all, in order)")
    modalities: tuple[str, ...] = option((), "recipe of each folder (default: modality for all)")
    names: tuple[str, ...] = option((), "what each folder shows, in words (default: its name)")
    one_way: bool = option(False, "only from earlier folders to later ones")
    patient_in: str = option(r"sub-([A-Za-z0-9]+)", "pattern that finds the patient in a path")
    needs_modality: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.patient_in)
        _ = self.secret
        count = len(self.shown)
        if count < 2:
            raise ValueError(
                f"{self.path} has {count} folders, expected two at least: name them with folders."
            )
        for what, given in (("modalities", self.modalities), ("names", self.names)):
            if given and len(given) != count:
                raise ValueError(
                    f"{what} are {len(given)} for {count} folders, expected one for each: add them."
                )
        if not self.modality and not self.modalities:
            raise ValueError(f"{self.name} has no modality, expected one, or one for each folder: name it.")
        for modality in self.modalities:
            self.chain(modality)

    @functools.cached_property
    def shown(self) -> dict[str, tuple[str, str]]:
        """Folder -> (recipe, words)."""
        here = Path(self.path)
        found = self.folders or tuple(
            sorted(p.name for p in here.iterdir() if p.is_dir() and p.name[0] != ".")
        )
        for name in found:
            if not (here / name).is_dir():
                raise ValueError(f"{self.path} has no folder {name!r}, expected it: check folders.")
        recipes, names = self.modalities or (self.modality,) * len(found), self.names or found
        whole = len(recipes) == len(names) == len(found)  # else the door says so
        return {folder: (recipes[n], names[n]) if whole else ("", "") for n, folder in enumerate(found)}

    @functools.cached_property
    def cases(self) -> dict[str, dict[str, Path]]:
        """Name without endings -> folder -> file."""
        found: dict[str, dict[str, Path]] = {}
        for folder in self.shown:
            for path in under(Path(self.path) / folder):
                key = self._name(path, folder)
                found.setdefault(key, {})[folder] = path
        return dict(sorted(found.items()))

    def _name(self, path: Path, folder: str) -> str:
        """What the files of a case have in common."""
        return str(path.relative_to(Path(self.path) / folder).parent / stem(path))

    def files(self) -> list[Path]:
        """All of them."""
        return sorted(path for case in self.cases.values() for path in case.values())

    def parts(self) -> Sequence[str]:
        """The names."""
        if not self.cases:
            raise ValueError(
                f"{self.path} holds no file in {', '.join(self.shown)}, expected pairs: add them."
            )
        return list(self.cases)

    def each(self, part: str) -> Iterable[Item]:
        """The files of one name -> a record for each picture and direction."""
        first = next(iter(self.cases[part].values()))
        return self.guarded(self._case(self.cases[part]), first)

    def _case(self, case: dict[str, Path]) -> Iterator[Item]:
        if len(case) < 2:
            raise InvalidRecord(
                "unpaired",
                f"a file stands in folder {next(iter(case))!r} alone, expected one of its name in two.",
            )
        for first, second in itertools.combinations(case, 2):
            yield from self._pair(case, first, second)
            if not self.one_way:
                yield from self._pair(case, second, first)

    def _pair(self, case: dict[str, Path], first: str, second: str) -> Iterator[Item]:
        pictures = self.pictures(case[first], self.shown[first][0])
        others = self.pictures(case[second], self.shown[second][0], **WHOLE)
        where = [place_of(other).get("position_mm") for other in others]
        digest = digest_of(case[first], case[second])
        who = who_of(self, case[first], self.patient_in)
        if who["facts"]["patient_from"] == "file":  # the files of a case are of one patient, either way round
            who["patient"] = self.patient(f"file {self._name(case[first], first)}")
        said = {"from": self.shown[first][1], "to": self.shown[second][1]}
        for place, picture in enumerate(pictures):
            other = others[nearest(picture, where, place)]
            try:
                values = picture_onto(other, picture)
            except ValueError as error:  # of slices of 2 mm and of 4 mm only each second has a partner
                at = f", picture {place + 1}" if len(pictures) > 1 else ""
                yield self.refused(error, case[second], at=at, others=list(case.values()))
                continue
            target = MetaTensor(values, meta=dict(picture.meta))
            target.affine = picture.affine
            shown, drawn = self.save(picture), self.save(target)
            facts = {
                **who["facts"],
                "pair": said,
                "contrast": said["from"],
                "patient_left": patient_left(picture),
            }
            yield self.record(
                (digest, first, second, shown.place.get("plane", ""), shown.place.get("index", place)),
                **{**who, "facts": facts}, input_img=(shown,), output_img=(drawn,),
                modality=self.shown[first][0], main_task_type="interleaved", sub_task_type="pair",
                provenance={"output_img": {"by": self.name, "onto": "input_img"}},
            )  # fmt: skip


def nearest(picture: MetaTensor, where: Sequence[Sequence[float] | None], place: int) -> int:
    """The number of the slice that lies nearest to a picture; without places the one of its number.

    Args:
        where: (x, y, z) in mm of the middles of the others.

    Raises:
        InvalidRecord: there is none of its number.
    """
    position = place_of(picture).get("position_mm")
    placed = [(at, number) for number, at in enumerate(where) if at is not None]
    if position is not None and placed and len(placed) == len(where):
        plane = (picture.meta.get("source") or {}).get("plane")
        axis = {"sagittal": 0, "coronal": 1, "axial": 2}.get(str(plane), 2)
        return min(placed, key=lambda one: abs(one[0][axis] - position[axis]))[1]
    index: int = (picture.meta.get("source") or {}).get("index", place)
    if index >= len(where):
        raise InvalidRecord(
            "geometry-differs",
            f"picture {index + 1} has no partner among {len(where)}, expected as many: check the pair.",
        )
    return index
