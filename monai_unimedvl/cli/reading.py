# SPDX-License-Identifier: Apache-2.0
"""What the user named -> pictures for the model, with a note on each choice that was made on the way.

A model that knows only squares (the nano: 64 x 64) gets what `recipe(modality, field="square")` gives; what
it draws is put back the same way.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.cli.options import value
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import sha256
from monai_unimedvl.transforms import Recipe
from monai_unimedvl.transforms.choosing import (
    Choice,
    choose,
    knows_only_squares,
    place,
    usual_count,
    volume_chain,
)
from monai_unimedvl.transforms.dicom import holds_dicom, series_uids

__all__ = ["Reading", "device", "holds_dicom", "one_volume", "place", "read_images", "volume_recipe"]


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
        options: of the command line: modality, plane, slice, count, window, settings.
        one: only a single picture makes sense; of a volume the middle slice is taken.

    Raises:
        ValueError: a file that is no image, a modality that must be named, a slice that is not there.
    """
    pictures: list[MetaTensor] = []
    notes: list[str] = []
    if one and (options.count or 1) > 1:
        raise ValueError(f"--count {options.count} came, but one slice is edited at a time: use --slice.")
    choice = _choice(options, network, 1 if one else usual_count(network))
    for number, path in enumerate(map(Path, paths), 1):
        found, said = choose(path, choice)
        pictures += found
        notes.append(f"input {number}: {said}")  # not by name: files are often named after patients
    if choice.square:
        side = network.grids["canvas"][0]
        notes.append(f"made square, because this model was trained on {side} x {side} pixels")
    sources = [uid for path in paths for uid in series_uids(Path(path))]
    return Reading(pictures, [sha256(path) for path in paths], notes, sources)


def one_volume(path: str, options: Namespace) -> None:
    """Say before the work that one volume comes out, and not one for each time.

    Raises:
        ValueError: a NIfTI of several volumes, and none is chosen.
    """
    if not path.lower().endswith((".nii", ".nii.gz")) or "volume" in dict(options.settings or ()):
        return
    try:
        count = math.prod(nibabel.load(path).shape[3:])  # type: ignore[attr-defined]
    except Exception:  # the recipe says what is wrong with it
        return
    if count > 1:
        raise ValueError(
            f"{Path(path).name} holds {count} volumes, but one comes out: choose it by --settings volume=0"
            f" to volume={count - 1}."
        )


def volume_recipe(path: str, options: Namespace, network: UniMedVL) -> tuple[Recipe, str]:
    """How the slices of a volume become pictures for this model, and a remark on it.

    Raises:
        ValueError: as `read_images`.
    """
    return volume_chain(Path(path), _choice(options, network, 1))


def _choice(options: Namespace, network: UniMedVL, count: int) -> Choice:
    return Choice(
        options.modality, options.plane, options.slice, options.count or count,
        options.window and value(options.window), knows_only_squares(network), dict(options.settings or ()),
    )  # fmt: skip


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
