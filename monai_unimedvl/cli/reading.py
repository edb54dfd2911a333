# SPDX-License-Identifier: Apache-2.0
"""What the user named -> pictures for the model, with a note on each choice that was made on the way.

A model that knows only squares (the nano: 64 x 64) gets what `recipe(modality, field="square")` gives; what
it draws is put back the same way.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import sha256
from monai_unimedvl.transforms import Recipe, modalities, recipe
from monai_unimedvl.transforms.dicom import is_dicom, series_uids
from monai_unimedvl.transforms.read import PICTURES
from monai_unimedvl.transforms.slide import SLIDES
from monai_unimedvl.transforms.volume import SelectSlices

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
SHORT_CONTEXT = 4096  # tokens; a model below that gets one slice of a volume, not eight


@dataclass(frozen=True)
class Reading:
    """Pictures as the model gets them, and what is known about each.

    Args:
        pictures: of the recipe, (3, H, W) in [0, 1] with `meta["source"]`.
        inputs: sha256 of the files.
        notes: what was chosen, a sentence each.
        sources: the hashed UIDs of the DICOM series among them.
    """

    pictures: list[MetaTensor]
    inputs: list[str]
    notes: list[str]
    sources: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[Tensor]:
        """The pictures as plain tensors, for a prompt."""
        return [picture.as_tensor() for picture in self.pictures]

    @property
    def slices(self) -> list[int]:
        """Indexes along the volumes or runs; empty where single pictures were read."""
        return [p.meta["source"]["index"] for p in self.pictures if p.meta["source"]["count"] > 1]


def read_images(paths: Sequence[str], options: Namespace, network: UniMedVL, *, one: bool = False) -> Reading:
    """Everything that the paths name, as pictures.

    Args:
        options: of the command line: modality, plane, slice, count, window.
        one: only a single picture makes sense; of a volume the middle slice is taken.

    Raises:
        ValueError: a file that is no image, a modality that must be named, a slice that is not there.
    """
    pictures: list[MetaTensor] = []
    notes: list[str] = []
    if one and (options.count or 1) > 1:
        raise ValueError(f"--count {options.count} came, but one slice is edited at a time: use --slice.")
    few = one or network.decoder.max_context < SHORT_CONTEXT
    field = "square" if _square_only(network) else None
    for number, path in enumerate(map(Path, paths), 1):
        found, said = _read(path, options, 1 if few else 8, field)
        pictures += found
        notes.append(f"input {number}: {said}")  # not by name: files are often named after patients
    if field is not None:
        side = network.grids["canvas"][0]
        notes.append(f"made square, because this model was trained on {side} x {side} pixels")
    sources = [uid for path in paths for uid in series_uids(Path(path))]
    return Reading(pictures, [sha256(path) for path in paths], notes, sources)


def volume_recipe(path: str, options: Namespace, network: UniMedVL) -> tuple[Recipe, str]:
    """How the slices of a volume become pictures for this model, and a remark on it.

    Raises:
        ValueError: as `read_images`.
    """
    modality, guessed = (options.modality, "") if options.modality else _modality(Path(path))
    settings: dict[str, Any] = {"policy": "all"}
    if _square_only(network):
        settings["field"] = "square"
    if options.window:
        settings["window"] = options.window
    chain = recipe(modality, **settings)
    if not any(type(step) is SelectSlices for step in chain.steps):
        raise ValueError(
            f"{Path(path).name} is read as {modality}, which is no volume of slices: leave --whole out."
        )
    return chain, f"every slice{guessed}"


def holds_dicom(path: str | Path) -> bool:
    """Whether a path is a DICOM file, or a folder with one in it."""
    path = Path(path)
    if path.is_dir():
        return any(is_dicom(file) for file in path.iterdir() if file.is_file())
    return path.is_file() and is_dicom(path)


def place(source: dict[str, Any]) -> str:
    """Which slice a picture is, in words: "axial slice 94 of 0 to 188, at 20.0 mm"."""
    if source["count"] <= 1:
        return "single picture"
    what = f"{source['plane']} slice" if source["plane"] else "frame"
    where = ""
    if source["position"] is not None and source["plane"]:
        axis = ("sagittal", "coronal", "axial").index(source["plane"])
        where = f", at {'RAS'[axis]} {source['position'][axis]:+.1f} mm"
    return f"{what} {source['index']} of 0 to {source['count'] - 1}{where}"


def _read(
    path: Path, options: Namespace, count: int, field: str | None
) -> tuple[list[MetaTensor], str]:  # fmt: skip
    modality, guessed = options.modality, ""
    if modality is None:
        modality, guessed = _modality(path)
    settings: dict[str, Any] = {"policy": "all"}
    if field:
        settings["field"] = field
    if options.plane:
        settings["plane"] = options.plane
    if options.window:
        settings["window"] = options.window
    chain = recipe(modality, **settings)
    chain.steps = [
        _Chosen(step, options.slice, options.count or count) if isinstance(step, SelectSlices) else step
        for step in chain.steps
    ]
    pictures = chain(path)
    names = [place(picture.meta["source"]) for picture in pictures]
    return pictures, f"{', '.join(names)}{guessed}"


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
                f"--slice {self.index} came, but 'middle' or a number from 0 to {last} is expected."
            )
        return [every[int(self.index)]]


def _modality(path: Path) -> tuple[str, str]:
    """The recipe that a file asks for by itself, and a remark about it."""
    file = path
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        file = next((p for p in inside if is_dicom(p)), next(iter(inside), path))
    if file.is_file() and file.suffix.lower() in PICTURES:
        return "histopathology", " (colours as they are)"
    if file.is_file() and file.suffix.lower() in SLIDES:
        return "histopathology", " (read as histopathology, as its suffix says)"
    if file.is_file() and is_dicom(file):
        tag = str(pydicom.dcmread(file, force=True, stop_before_pixels=True).get("Modality", ""))
        if tag in FROM_DICOM:
            return FROM_DICOM[tag], f" (read as {FROM_DICOM[tag]}, as its header says {tag})"
    elif not path.exists():
        raise ValueError(f"{path} does not exist, but a file or folder is expected: check the path.")
    elif path.is_dir() and file == path:
        raise ValueError(
            f"folder {path} holds no images, but a DICOM series or pictures are expected: check the path."
        )
    raise ValueError(
        f"{path.name} does not say how to read its values: if it is an image, add --modality, one of "
        f"{', '.join(modalities())}."
    )


def _square_only(network: UniMedVL) -> bool:
    return all(rule[0] == rule[1] for rule in network.grids.values())


def device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: torch does not know it, or it is not there.
    """
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")[:120]
        raise ValueError(f"--device {name} cannot be used ({reason}): use cpu.") from error
    return found
