# SPDX-License-Identifier: Apache-2.0
"""Infer tasks in images: masks, translations of a whole volume or one slice, and drawings from words.

What comes out lies on the voxels of the image that was sent, with its affine.
  (X, Y, Z) voxels   h, w drawn rows and columns
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monailabel.interfaces.tasks.infer_v2 import InferType
from torch import Tensor

from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, shades_of
from monai_unimedvl.evaluation.asking import DRAWING, EDITING, Drawing
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer
from monai_unimedvl.inferers.outputs import Grey, Labels, Output
from monai_unimedvl.inferers.volume import VolumeInferer
from monai_unimedvl.label.knobs import Knob
from monai_unimedvl.label.pictures import AUTO, PLANES, choice_of, is_volume, pictures_of, reading_knobs
from monai_unimedvl.label.served import Served
from monai_unimedvl.label.task_base import Asked, Result, Task
from monai_unimedvl.label.writing import FLAT, PICTURES, colour_map, extension_of, write_picture, write_values
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.transforms.choosing import place, volume_chain
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.lazy import prepare
from monai_unimedvl.transforms.masks import UNCERTAIN, ColoursToLabels, as_legend, volumes_of
from monai_unimedvl.transforms.restack import Restack
from monai_unimedvl.transforms.stored import place_of

logger = logging.getLogger(__name__)

ALL = "all"
TASKS = tuple(name for name in INSTRUCTIONS if name != "caption" and not name.startswith("seg-"))
AT_ONCE = 8  # slices in one batch


def drawing_knobs(usual: Drawing) -> dict[str, Knob]:
    """How an image is sampled."""
    return {
        "steps": Knob(usual.steps, 1, 1000),
        "guidance": Knob(float(usual.guidance), 1.0, 100.0),
        "image_guidance": Knob(1.0, 1.0, 100.0),
        "seed": Knob(0, 0),
    }


def volume_knobs() -> dict[str, Knob]:
    """Which slices of a volume are drawn."""
    knobs = reading_knobs()
    knobs.pop("count")
    return {**knobs, "slice": Knob(ALL), "fuse_planes": Knob(False)}


class Telling(ImageInferer):
    """An `ImageInferer` that logs how many slices are drawn."""

    def __init__(self, *args: Any, total: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.total, self.done = total, 0

    def __call__(  # type: ignore[override]
        self, batch: Sequence[Prompt], network: UniMedVL, *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        """An image for each prompt."""
        made = super().__call__(batch, network, *args, **kwargs)
        before, self.done = self.done, self.done + len(made)
        if not self.total or before * 10 // self.total != self.done * 10 // self.total:
            logger.info("drew %d of at most %d slices", self.done, self.total)
        return made


def inferer(asked: Asked, total: int = 0, **options: Any) -> Telling:
    """What draws, with the settings of a request.

    Raises:
        ValueError: a weight for the image alone, which would do nothing.
    """
    values = asked.values
    text, image = values["guidance"], values["image_guidance"]
    if image > 1 and text == 1:
        raise ValueError(
            f"image_guidance is {image:g}, which acts only with guidance above 1: raise both or none."
        )
    return Telling(
        asked.model.tokenizer, steps=values["steps"], seed=values["seed"],
        guidance=Guidance(text=text, image=image), total=total, **options,
    )  # fmt: skip


class Drawn(Task):
    """An image out of an image: of a volume every slice, or the one that is named.

    Slices that are not drawn are 0, or what the recipe shows as black.
    """

    def made(
        self, asked: Asked, instruction: str, output: Output
    ) -> tuple[MetaTensor, Facts, dict[str, Any]]:
        """A volume (1, X, Y, Z), its facts, and what was read.

        Raises:
            ValueError: what cannot be read or drawn.
        """
        values, model = asked.values, asked.model
        path = asked.path
        choice = replace(choice_of(asked.reading(count=1, slice=AUTO), model.network), slice=None)
        chain, said = volume_chain(path, choice)
        plane = choice.plane or PLANES[0]
        task = str(values.get("task") or asked.request.get("model", ""))
        drawn_by = {
            "steps": values["steps"],
            "text_guidance": values["guidance"],
            "image_guidance": values["image_guidance"],
        }
        if values["slice"] != ALL:
            return self._slice(asked, instruction, output, chain, plane, task, drawn_by)
        (first, *_) = prepare(chain, path)
        wanted = PLANES if values["fuse_planes"] else (plane,)
        stacks = {one.plane: len(one) for one in map(first.slices, wanted)}
        infer = VolumeInferer(
            inferer(asked, sum(stacks.values())), chain, planes=tuple(stacks), output=output, batch=AT_ONCE
        )
        volume = infer(path, model.network, instruction)
        if not isinstance(volume, MetaTensor) or volume.shape[0] != 1:
            raise ValueError("the image holds several volumes, expected one: split it.")
        return (
            volume,
            asked.facts(instruction, task, **drawn_by),
            {"read": [f"every {one} slice" for one in stacks], "remark": said},
        )

    def _slice(
        self, asked: Asked, instruction: str, output: Output, chain: Any, plane: str, task: str,
        drawn_by: Mapping[str, Any],
    ) -> tuple[MetaTensor, Facts, dict[str, Any]]:  # fmt: skip
        """One slice in an otherwise empty volume."""
        wanted, network = asked.values["slice"], asked.model.network
        part = prepare(chain, asked.path)[0]
        slices = part.slices(plane)
        last = len(slices) - 1
        if wanted in ("middle", AUTO):
            index = len(slices) // 2
        elif str(wanted).isdigit() and int(wanted) <= last:
            index = int(wanted)
        else:
            raise ValueError(f"slice is {wanted!r}, expected 'all', 'middle' or a number from 0 to {last}.")
        picture = part.picture(slices[index])
        (drawn,) = inferer(asked, 1)([[picture.as_tensor(), instruction]], network)
        back = Restack(
            part.volume.shape[1:], part.volume.affine, slices.plane, dtype=output.dtype(part),
            fill=output.fill(part), mode=output.mode,
        )  # fmt: skip
        back.put(output.seen(drawn, part, 1), picture, last=output.chosen)
        said = place(picture.meta["source"])
        return back.volume, asked.facts(instruction, task, slices=[index], **drawn_by), {"read": [said]}

    def flat(self, asked: Asked, instruction: str) -> tuple[Tensor, MetaTensor, Facts]:
        """What is drawn from a flat picture (3, h, w), that picture, and the facts."""
        values = asked.reading(count=1)
        if values["slice"] == ALL:
            values["slice"] = AUTO
        pictures, _ = pictures_of(asked.path, values, asked.model.network)
        (drawn,) = inferer(asked, 1)([[pictures[0].as_tensor(), instruction]], asked.model.network)
        facts = asked.facts(
            instruction, str(asked.values.get("task") or asked.request.get("model", "")),
            steps=values["steps"], text_guidance=values["guidance"], image_guidance=values["image_guidance"],
        )  # fmt: skip
        return drawn, pictures[0], facts


class SegmentTask(Drawn):
    """A mask with the names, numbers and colours of a legend, on the voxels of the image.

    Args:
        instruction: what the model is told.
        legend: name -> colour that it draws.
        numbers: name -> number in the label map; None counts from 1.
    """

    def __init__(
        self, served: Served, instruction: str, legend: Mapping[str, Sequence[int]],
        modality: str = "", numbers: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.instruction, self.legend = instruction, as_legend(legend)
        knobs = {**volume_knobs(), **drawing_knobs(EDITING), "uncertain": Knob(False)}
        labels = dict(numbers or {name: n for n, name in enumerate(self.legend, 1)})
        super().__init__(
            served, instruction, knobs, type=InferType.SEGMENTATION, labels=labels, modality=modality
        )

    def answer(self, asked: Asked) -> Result:
        """A label map, and beside it names, numbers, colours and how much there is of each."""
        threshold = 0.5 if asked.values["uncertain"] else None  # of a colour's distance, as the CLI has it
        unsure = max(self.labels.values()) + 1
        names = {**self.labels, **({UNCERTAIN: unsure} if threshold else {})}
        if is_volume(asked.path):
            volume, facts, said = self.made(asked, self.instruction, Labels(self.legend, threshold))
            labels = self._numbered(volume.as_subclass(Tensor)[0], unsure)
            file = write_values(
                labels, volume.affine.numpy(), facts, asked.request, legend=self.legend,
                numbers={**self.labels, UNCERTAIN: unsure},
            )  # fmt: skip
            amounts = {"ml": _kept(volumes_of(volume, self.legend), names)}
        else:
            drawn, picture, facts = self.flat(asked, self.instruction)
            found = ColoursToLabels(self.legend, threshold).labels(drawn.cpu())
            whole = put_back(found, picture)
            flat = whole.as_subclass(Tensor).to(torch.uint8)  # (H, W)
            said = {"read": [place(picture.meta["source"])]}
            file = write_values(
                self._numbered(flat, unsure).T[..., None], _place_of(whole), facts, asked.request, ".png",
                self.legend, {**self.labels, UNCERTAIN: unsure},
            )  # fmt: skip
            amounts = {"pixels": _kept(volumes_of(flat[None], self.legend), names)}
        colours = {name: colour for name, colour in colour_map(self.legend).items() if name in names}
        told = {
            **said,
            **amounts,
            "label_names": names,
            "color_map": colours,
            "prompt": self.instruction,
            "seed": asked.values["seed"],
            "manifest": facts.manifest(),
        }
        return file, told

    def _numbered(self, labels: Tensor, unsure: int) -> Tensor:
        """Labels in the order of the legend, (...) uint8, as the numbers that they were taught with."""
        numbers = torch.tensor([0, *(self.labels[name] for name in self.legend), unsure])
        kinds = (torch.uint8, torch.int16, torch.int32)
        return numbers.to(next(one for one in kinds if unsure <= torch.iinfo(one).max))[labels.long()]


class TranslateTask(Drawn):
    """Another contrast, a sharper image, another stain: greys in unit and type of the source, or colours."""

    def __init__(self, served: Served, modality: str = "") -> None:
        knobs = {
            "task": Knob(TASKS),
            "instruction": Knob(""),
            **volume_knobs(),
            **drawing_knobs(EDITING),
        }
        super().__init__(served, "Turn the image into another one", knobs, modality=modality)

    def answer(self, asked: Asked) -> Result:
        """The new image."""
        values = asked.values
        instruction = values["instruction"].strip() or INSTRUCTIONS[values["task"]]
        if values["instruction"].strip():
            values["task"] = "edit"
        if is_volume(asked.path):
            volume, facts, said = self.made(asked, instruction, Grey(bounds=shades_of(instruction)))
            file = write_values(
                volume.as_subclass(Tensor)[0], volume.affine.numpy(), facts, asked.request
            )  # fmt: skip
        else:
            drawn, picture, facts = self.flat(asked, instruction)
            file = _placed(put_back(drawn, picture), facts, asked.request, ".png")
            said = {"read": [place(picture.meta["source"])]}
        return file, {**said, "prompt": instruction, "seed": values["seed"], "manifest": facts.manifest()}


class DrawTask(Task):
    """An image from words; the image that is sent lends its pixels and its place, and is not looked at.

    As a picture it comes as it was drawn; as NIfTI or NRRD it lies on the slice that was named.
    """

    def __init__(self, served: Served, modality: str = "") -> None:
        prompt = "Axial T1 MRI at the level of the lateral ventricles, skull-stripped average."
        reading = reading_knobs()
        reading.pop("count")
        knobs = {
            "prompt": Knob(prompt),
            "size": Knob(0, 0, 4096),  # 0: the model's largest
            **reading,
            **drawing_knobs(DRAWING),
        }
        super().__init__(served, "Draw an image from words", knobs, modality=modality)

    def answer(self, asked: Asked) -> Result:
        """The drawing."""
        values = asked.values
        prompt, size = values["prompt"], values["size"]
        if not prompt.strip():
            raise ValueError(
                "the prompt is empty, but a description of the image is expected: say what to draw."
            )
        infer = inferer(asked, 1, size=(size, size) if size else None)
        (drawn,) = infer([[prompt]], asked.model.network)
        facts = Facts(
            prompt, values["seed"], asked.model.digest, "draw", steps=values["steps"],
            text_guidance=values["guidance"], image_guidance=values["image_guidance"],
        )  # fmt: skip
        told = {"prompt": prompt, "seed": values["seed"], "manifest": facts.manifest()}
        if extension_of(asked.request, ".png") in PICTURES:
            return write_picture(drawn.cpu(), facts, extension_of(asked.request, ".png")), told
        values = asked.reading(count=1, slice="middle" if values["slice"] == AUTO else values["slice"])
        pictures, _ = pictures_of(asked.path, values, asked.model.network)
        file = _placed(put_back(drawn, pictures[0]), facts, asked.request, ".nii.gz")
        return file, {**told, "read": [place(pictures[0].meta["source"])]}


def _kept(amounts: Mapping[str, float], names: Mapping[str, int]) -> dict[str, float]:
    return {name: amounts[name] for name in names}


def _placed(whole: Tensor, facts: Facts, request: Mapping[str, Any], usual: str) -> str:
    """A picture (3, H, W) on the pixels of its source: as a picture, or as a volume of one slice there."""
    plain = whole.as_subclass(Tensor).cpu().clamp(0, 1)
    if extension_of(request, usual) in PICTURES:
        return write_picture(plain, facts, extension_of(request, usual))
    grey = plain.mean(0).T[..., None]  # columns, rows, one slice
    return write_values(grey, _place_of(whole), facts, request, usual)


def _place_of(whole: Tensor) -> np.ndarray:
    """From (column, row, 0) of what was put back to RAS mm; as ITK reads a picture, where it has no place."""
    found = place_of(whole)
    return FLAT if found is None else found
