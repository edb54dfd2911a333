# SPDX-License-Identifier: Apache-2.0
"""Which recipe a file asks for by itself, and which of its slices are taken, said in words.

Whoever lets a user name a file (command line, server, MONAI Label) reads it through `choose`, so that the
same file and settings give the same pictures everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import pydicom
from monai.data import MetaTensor

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.transforms import Recipe, modalities, recipe
from monai_unimedvl.transforms.dicom import is_dicom
from monai_unimedvl.transforms.nrrd import NRRD
from monai_unimedvl.transforms.read import NIFTI, PICTURES, opening, read
from monai_unimedvl.transforms.slide import SLIDES
from monai_unimedvl.transforms.video import VIDEOS
from monai_unimedvl.transforms.volume import SelectSlices

SHORT_CONTEXT = 4096  # tokens
FROM_DICOM = {
    "MR": "mri",
    "CT": "ct",
    "CR": "xray",
    "DX": "xray",
    "MG": "xray",
    "OP": "fundus",
    "US": "ultrasound",
    "IVUS": "ultrasound",
    "OPT": "oct",
    "ES": "endoscopy",
    "DMS": "dermoscopy",
    "SM": "histopathology",
}


@dataclass(frozen=True)
class Choice:
    """What of a file is read, and how.

    Args:
        modality: a name of `modalities()` or a recipe's YAML; None asks the file.
        plane: of a volume's slices; None is the recipe's.
        slice: a number from 0, "middle", or None for `count` evenly spread.
        count: how many slices.
        window: of a CT.
        square: pictures are framed as squares, for a model that knows nothing else.
        others: further settings of the recipe, such as {"volume": 0} of a file of four dimensions.
    """

    modality: str | None = None
    plane: str | None = None
    slice: str | None = None
    count: int = 1
    window: str | None = None
    square: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The settings of the recipe."""
        wanted = {"field": "square" if self.square else None, "plane": self.plane, "window": self.window}
        return {"policy": "all", **{key: value for key, value in wanted.items() if value}, **self.others}


def choose(path: Path, choice: Choice) -> tuple[list[MetaTensor], str]:
    """The pictures (3, H, W) in [0, 1] that are chosen of a file or folder, and a remark on them.

    Raises:
        ValueError: a file that is no image, a modality that must be named, a slice that is not there.
    """
    modality, guessed = modality_of(path, choice.modality)
    chain = recipe(modality, **choice.settings())
    chain.steps = [
        _Chosen(step, choice.slice, choice.count) if isinstance(step, SelectSlices) else step
        for step in chain.steps
    ]
    pictures = chain(path)
    return pictures, f"{', '.join(place(picture.meta['source']) for picture in pictures)}{guessed}"


def volume_chain(path: Path, choice: Choice) -> tuple[Recipe, str]:
    """The recipe for every slice of a volume, and a remark on it.

    Raises:
        ValueError: as `choose`; a modality that has no slices.
    """
    modality, guessed = modality_of(path, choice.modality)
    chain = recipe(modality, **replace(choice, plane=None).settings())
    if not any(type(step) is SelectSlices for step in chain.steps):
        raise ValueError(
            f"{path.name} is read as {modality}, which is no volume of slices: ask for a single "
            "picture (on the command line: leave --whole out)."
        )
    return chain, f"every slice{guessed}"


def place(source: Mapping[str, Any]) -> str:
    """Which slice a picture is, in words: "axial slice 94 of 0 to 188, at S +20.0 mm"."""
    if source["count"] <= 1:
        return "single picture"
    what = f"{source['plane']} slice" if "plane" in source else "frame"
    where = ""
    if "position" in source and "plane" in source:
        axis = ("sagittal", "coronal", "axial").index(source["plane"])
        where = f", at {'RAS'[axis]} {source['position'][axis]:+.1f} mm"
    return f"{what} {source['index']} of 0 to {source['count'] - 1}{where}"


def knows_only_squares(network: UniMedVL) -> bool:
    """Whether a model was made for square pictures only."""
    return all(rule[0] == rule[1] for rule in network.grids.values())


def usual_count(network: UniMedVL) -> int:
    """How many slices of a volume a model is shown where nobody says: one where the context is short."""
    return 1 if network.decoder.max_context < SHORT_CONTEXT else 8


class _Chosen:
    """Some of the slices that `select` gives: the one named, or some evenly spread."""

    def __init__(self, select: SelectSlices, index: str | None, count: int) -> None:
        self.select, self.index, self.count = select, index, count

    def __call__(self, image: MetaTensor) -> list[MetaTensor]:
        every = self.select(image)
        last = len(every) - 1
        if self.index is None:
            count = min(self.count, len(every))
            return [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]
        if self.index == "middle":
            return [every[len(every) // 2]]
        if not self.index.isdigit() or int(self.index) > last:
            raise ValueError(
                f"slice {self.index!r} came, but 'middle' or a number from 0 to {last} is expected."
            )
        return [every[int(self.index)]]


def modality_of(path: Path, named: str | None = None) -> tuple[str, str]:
    """The recipe that is named, else the one that a file asks for by itself with a remark about it.

    Raises:
        ValueError: no such file, one that is no image whatever its modality, or one that does not say how to
            read its values.
    """
    if named is not None:
        return named, ""
    file = path
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        pictures = (p for p in inside if p.suffix.lower() in PICTURES)
        file = next((p for p in inside if is_dicom(p)), next(pictures, path))
    if file.is_file() and file.suffix.lower() in PICTURES:
        return "histopathology", " (colours as they are)"
    if file.is_file() and file.suffix.lower() in SLIDES:
        return "histopathology", " (read as histopathology, as its suffix says)"
    if file.is_file() and is_dicom(file):
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        tag = str(header.get("Modality", ""))
        if tag in FROM_DICOM:
            return FROM_DICOM[tag], f" (read as {FROM_DICOM[tag]}, as its header says {tag})"
        if tag and "Rows" not in header:
            raise ValueError(
                f"{file.name} is DICOM of modality {tag} and holds no image: name the images it is about."
            )
    _check(file)
    raise ValueError(
        f"{path.name} does not say how to read its values: if it is an image, add its modality (on the "
        f"command line: --modality), one of {', '.join(modalities())}."
    )


def _check(path: Path) -> None:
    """Say what is wrong with a file or folder before its modality is asked for; of volumes and videos, which
    may be long, no values are read.

    Raises:
        ValueError: as `read` says it.
    """
    name, filled = path.name.lower(), path.is_file() and path.stat().st_size > 0
    if filled and name.endswith(NIFTI):
        with opening(path, "NIfTI"):
            nibabel.load(path)
    elif not (filled and name.endswith((*NRRD, *VIDEOS, ".npy"))):
        read(path)
