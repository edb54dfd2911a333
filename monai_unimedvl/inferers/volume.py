# SPDX-License-Identifier: Apache-2.0
"""A volume in; a report, answers, or a volume out, in the space of the source.

Slices are cut, drawn and put back a batch at a time, and what is large lies in files, so memory does not grow
with the number of slices.
  C channels or points in time   X, Y, Z voxels   h, w drawn rows and columns
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from monai_unimedvl.inferers.drawing import ImageInferer
from monai_unimedvl.inferers.groups import GroupInferer, windows
from monai_unimedvl.inferers.inferers import Answer, TextInferer, shown
from monai_unimedvl.inferers.outputs import Grey, Output
from monai_unimedvl.networks.tensor_path import TensorPath
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.transforms import Recipe
from monai_unimedvl.transforms import recipe as recipe_for
from monai_unimedvl.transforms.image import ToRGB, resize, tracked
from monai_unimedvl.transforms.lazy import Prepared, prepare
from monai_unimedvl.transforms.restack import Restack, empty_volume, squared_grid
from monai_unimedvl.transforms.slices import check_plane, place_in_words, plane_of
from monai_unimedvl.transforms.volume import SelectSlices, placed_prompt

FLAT = 0.02  # of [0, 1]: a picture with less between its darkest and brightest pixel shows nothing
PER = ("slice", "whole")
Made = Iterator[tuple[Sequence[MetaTensor], Sequence[Tensor]]]  # pictures, and what was drawn from them


@dataclass(frozen=True)
class PlacedAnswer:
    """What was said, and about which slices.

    Args:
        answer: the words with their log-probabilities.
        sources: `meta["source"]` of each picture that was shown.
    """

    answer: Answer
    sources: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        if len(self.sources) != 1:
            return self.answer.text
        return f"{place_in_words(self.sources[0])}: {self.answer.text}"


@dataclass(frozen=True)
class Tiles:
    """Windows over pictures that are larger than the model's grid, joined by MONAI's SlidingWindowInferer.

    Args:
        size: (h, w) of a window in pixels of the picture.
        overlap: of neighbouring windows, in [0, 1).
    """

    size: tuple[int, int]
    overlap: float = 0.25


class VolumeInferer(Inferer):
    """Volume -> answers (with a `TextInferer`), or a volume (with an `ImageInferer` or `GroupInferer`).

    A `GroupInferer` draws neighbouring slices together, in groups that overlap along the volume.

    Args:
        inferer: what answers or draws.
        recipe: how slices become pictures: a modality, or a `Recipe`; None for values in [0, 1].
        instruction: the question or task, where the call names none.
        select: which slices are read, for answers; by default those that the recipe takes (of a volume with
            fewer, all), without recipe eight with content. Drawing takes all.
        per: answers for each "slice" (or slab), or one for the "whole".
        planes: in which the volume is drawn, by default the recipe's; several are fused by mean or vote. A
            volume of one slice is seen in its own.
        output: `Grey()`, `Colour()` or `Labels(legend)`.
        square: the result has square pixels in the plane of the slices, as fine as their finer side, instead
            of the source's grid: super-resolution of thick slices, seen from the side.
        tiles: for pictures larger than the model's grid; None shows whole slices.
        batch: slices at a time.
        places: say before each picture where it lies in mm.
        progress: show a bar.

    Example::

        tissue = VolumeInferer(ImageInferer(tokenizer, steps=4), recipe("mri", field=192.0, centre="middle"),
                               output=Labels(LEGENDS["seg-tissue"]))
        labels = tissue("scan.nii.gz", network, "Segment grey matter, white matter and CSF.")

    Raises:
        ValueError: a setting that is not known, or that does not go with the inferer.
    """

    def __init__(
        self,
        inferer: TextInferer | ImageInferer,
        recipe: str | Recipe | None = None,
        instruction: str | None = None,
        *,
        select: SelectSlices | None = None,
        per: str = "slice",
        planes: Sequence[str] | str | None = None,
        output: Output | None = None,
        square: bool = False,
        tiles: Tiles | None = None,
        batch: int = 8,
        places: bool = False,
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.recipe = recipe_for(recipe) if isinstance(recipe, str) else recipe or _as_it_is()
        taken = next((step for step in self.recipe.steps if type(step) is SelectSlices), None)
        named = planes is not None
        if planes is None:
            planes = taken.plane if taken else "axial"
        planes = (planes,) if isinstance(planes, str) else tuple(planes)
        if not planes or len(set(map(check_plane, planes))) < len(planes):
            raise ValueError(f"VolumeInferer got planes={planes}, expected one to three of them, each once.")
        if per not in PER:
            raise ValueError(f"VolumeInferer got per={per!r}, expected one of {', '.join(PER)}: use one.")
        if batch < 1:
            raise ValueError(f"VolumeInferer got batch={batch}, expected 1 or more slices: raise it.")
        if square and len(planes) > 1:
            raise ValueError(
                "VolumeInferer got square=True with several planes, which have no common grid: name one."
            )
        reads = isinstance(inferer, TextInferer)
        if reads and (output is not None or tiles is not None or square or named):
            raise ValueError(
                "VolumeInferer got a TextInferer with settings of drawing (planes, output, square, tiles): "
                "use select to choose what is read, or an ImageInferer."
            )
        if isinstance(inferer, GroupInferer) and tiles is not None:
            raise ValueError(
                "VolumeInferer got tiles with a GroupInferer, which draws whole slices: drop one."
            )
        if not reads and (select is not None or per != "slice"):
            raise ValueError(
                "VolumeInferer got an ImageInferer with select or per, which are for answers: every slice is "
                "drawn; leave them out."
            )
        self.inferer, self.instruction = inferer, instruction
        self.select, self.fewer = select or taken or SelectSlices(), select is None
        self.per, self.planes, self.output = per, planes, output or Grey()
        self.square, self.tiles, self.batch = square, tiles, batch
        self.places, self.progress = places, progress

    @torch.no_grad()
    @tracked()
    def __call__(  # type: ignore[override]
        self, inputs: Any, network: UniMedVL | TensorPath, instruction: str | None = None,
        out: np.ndarray | None = None, *args: Any, **kwargs: Any,
    ) -> MetaTensor | list[PlacedAnswer] | list[list[PlacedAnswer]]:  # fmt: skip
        """The answers, or the volume (C, X, Y, Z) with the affine of the source.

        Args:
            inputs: path of a NIfTI (3-D or 4-D) or DICOM folder; a volume (1, X, Y, Z), or (C, X, Y, Z) whose
                channels are taken one by one; or a batch (B, C, X, Y, Z) of MONAI's loaders.
            instruction: the question or task.
            out: (C, X, Y, Z) to be written in place, such as a `numpy.memmap`; None makes one.

        Raises:
            ValueError: no instruction; a batch of pictures; a volume that cannot be read; an `out` of another
                shape.
        """
        network = network.network if isinstance(network, TensorPath) else network
        instruction = instruction or self.instruction
        if not isinstance(instruction or "", str):
            raise ValueError(f"VolumeInferer got {instruction!r}, expected a question or task: give words.")
        if not instruction or not instruction.strip():
            raise ValueError("VolumeInferer got no instruction, expected a question or task: say what to do.")
        if isinstance(inputs, Tensor) and inputs.ndim == 5:
            made: Any = [self(one, network, instruction) for one in _apart(inputs)]
            if isinstance(self.inferer, TextInferer):
                return made  # type: ignore
            several = isinstance(inputs, MetaTensor) and inputs.is_batch  # each at a place of its own
            return list_data_collate(made) if several else torch.stack(made)
        if isinstance(inputs, MetaTensor) and inputs.is_batch:
            raise ValueError(
                f"VolumeInferer got a batch of shape {tuple(inputs.shape)}, which are pictures, expected "
                "volumes (B, C, X, Y, Z): load a DICOM series by its folder, or use ImageInferer."
            )
        parts = prepare(self.recipe, inputs)
        if isinstance(self.inferer, TextInferer):
            return [answer for part in parts for answer in self._answers(part, network, instruction)]
        return self._volume(parts, network, instruction, out)

    def _answers(self, part: Prepared, network: UniMedVL, instruction: str) -> list[PlacedAnswer]:
        taken = self.select.of(part.slices(self.select.plane), fewer=self.fewer)
        pictures = [part.picture(one) for one in taken]
        groups = [pictures] if self.per == "whole" else [[one] for one in pictures]
        found: list[PlacedAnswer] = []
        for some in shown(
            _chunks(groups, self.batch), self.progress, -(-len(groups) // self.batch), "batches"
        ):
            answers = self.inferer([self._prompt(group, instruction) for group in some], network)
            sources = [tuple(one.meta["source"] for one in group) for group in some]
            found += [PlacedAnswer(*pair) for pair in zip(answers, sources, strict=True)]  # type: ignore
        return found

    def _volume(
        self, parts: Sequence[Prepared], network: UniMedVL, instruction: str, out: np.ndarray | None
    ) -> MetaTensor:
        source, output = parts[0].volume, self.output
        shape, affine = tuple(source.shape[1:]), source.affine
        planes = tuple(dict.fromkeys(plane_of(shape, affine, plane) for plane in self.planes))
        if self.square:
            shape, affine = squared_grid(shape, affine, planes[0])
        if len(parts) > 1 and output.channels > 1:
            raise ValueError(
                f"a series of {len(parts)} volumes came where colours are drawn, expected one volume: "
                "choose one."
            )
        whole = (len(parts) * output.channels, *shape)
        if out is None:
            out = empty_volume(whole, output.dtype(parts[0]), output.fill(parts[0]))
        elif out.shape != whole:
            raise ValueError(f"out has shape {out.shape}, expected {whole}: make it anew.")
        else:
            out[...] = output.fill(parts[0])
        for number, part in enumerate(parts):
            mine = out[number * output.channels : (number + 1) * output.channels]
            if len(planes) == 1:
                self._plane(part, planes[0], network, instruction, affine, mine)
            else:
                self._fused(part, planes, network, instruction, affine, mine)
        result = MetaTensor(torch.from_numpy(out), affine=torch.from_numpy(affine.copy()))
        result.meta |= {"kind": "volume", "synthetic": True, "instruction": instruction}
        told = {"shades": output.shades(parts[0]), "filename_or_obj": source.meta.get("filename_or_obj")}
        result.meta |= {key: value for key, value in told.items() if value is not None}
        return result

    def _fused(
        self, part: Prepared, planes: Sequence[str], network: UniMedVL, instruction: str, affine: np.ndarray,
        out: np.ndarray,
    ) -> None:  # fmt: skip
        """All planes added up, then one row of voxels after the other decided."""
        sums = empty_volume((self.output.added, *out.shape[1:]), self.output.added_dtype)
        for plane in planes:
            self._plane(part, plane, network, instruction, affine, sums, fused=len(planes))
        fill = self.output.fill(part)
        limits = np.iinfo(out.dtype) if out.dtype.kind in "iu" else None
        for z in range(out.shape[3]):
            values = self.output.fused(sums[..., z], fill)
            if limits is not None:
                values = np.clip(np.rint(values), limits.min, limits.max)
            out[..., z] = values

    def _plane(
        self, part: Prepared, plane: str, network: UniMedVL, instruction: str, affine: np.ndarray,
        out: np.ndarray, fused: int = 1,
    ) -> None:  # fmt: skip
        """Every slice of one plane, drawn and written, or added where several are fused, into `out`."""
        slices = part.slices(plane)
        back = Restack(out.shape[1:], affine, plane, values=out, mode=self.output.mode)
        last = self.output.chosen if fused == 1 else None
        indexes = shown(iter(range(len(slices))), self.progress, len(slices), f"{plane} slices")
        pictures = (None if _flat(one) else one for one in (part.picture(slices[i]) for i in indexes))
        made = self._in_groups if isinstance(self.inferer, GroupInferer) else self._in_batches
        for some, drawn in made(pictures, network, instruction):
            for picture, image in zip(some, drawn, strict=True):
                back.put(self.output.seen(image, part, fused), picture, add=fused > 1, last=last)
            part.volume.release()
            back.release()

    def _in_batches(self, pictures: Iterator[MetaTensor | None], network: UniMedVL, instruction: str) -> Made:
        """Slice by slice, those of a batch at once."""
        waiting = (one for one in pictures if one is not None)
        while some := list(islice(waiting, self.batch)):
            yield some, self._drawn(some, network, instruction)

    def _in_groups(self, pictures: Iterator[MetaTensor | None], network: UniMedVL, instruction: str) -> Made:
        """Neighbours together, each group fitted to the last slices of the one before."""
        infer = self.inferer
        assert isinstance(infer, GroupInferer)
        drawn: list[Tensor] = []
        for group, old in windows(pictures, infer.count, infer.overlap):
            if len(group) == 1:  # nothing to be drawn together with
                alone = ImageInferer.__call__(infer, [self._prompt(group, instruction)], network)
                yield group, alone
                continue
            known = [*drawn[len(drawn) - old :], *[None] * (len(group) - old)]
            (drawn,) = infer([self._prompt(group, instruction)], network, [known])
            yield group[old:], drawn[old:]

    def _drawn(self, pictures: Sequence[MetaTensor], network: UniMedVL, instruction: str) -> Sequence[Tensor]:
        """What is drawn from each picture (3, H, W): (3, h, w)."""
        if not pictures:
            return []
        if self.tiles is None:
            drawn: list[Tensor] = self.inferer(  # type: ignore[assignment]
                [self._prompt([one], instruction) for one in pictures], network
            )
            return drawn
        windows = SlidingWindowInferer(
            self.tiles.size, sw_batch_size=self.batch, overlap=self.tiles.overlap, mode="gaussian"
        )
        size = self.tiles.size[1], self.tiles.size[0]

        def draw(tiles: Tensor) -> Tensor:
            """(n, 3, h, w) -> (n, 3, h, w)"""
            images = self.inferer([[tile, instruction] for tile in tiles.as_subclass(Tensor)], network)
            return torch.stack([resize(image.cpu(), size, (0.0, 1.0)) for image in images])  # type: ignore

        return list(windows(torch.stack([one.as_subclass(Tensor) for one in pictures]), draw).clamp(0, 1))

    def _prompt(self, pictures: Sequence[MetaTensor], instruction: str) -> Prompt:
        return placed_prompt(pictures, instruction) if self.places else [*pictures, instruction]


def _apart(batch: Tensor) -> Sequence[Tensor]:
    """The volumes of a batch (B, C, X, Y, Z); one that only got an axis in front keeps its affine."""
    if isinstance(batch, MetaTensor) and batch.affine.ndim == 2:
        return [MetaTensor(one.as_subclass(Tensor), affine=batch.affine) for one in batch]
    return decollate_batch(batch)


def _as_it_is() -> Recipe:
    """Slices of a volume in [0, 1], as red, green and blue."""
    return Recipe("as it is", {}, [SelectSlices(count=8, policy="content"), ToRGB()])


def _flat(picture: Tensor) -> bool:
    low, high = picture.as_subclass(Tensor).aminmax()
    return float(high - low) < FLAT


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
