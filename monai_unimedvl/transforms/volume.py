# SPDX-License-Identifier: Apache-2.0
"""From a volume, or a run of frames, to pictures that know where they came from.

Which slices, how thick, and in which plane; how they are turned stands in `slices.py`, the way back in
`restack.py`.
Volumes are (C, X, Y, Z) with an affine to RAS mm, as MONAI's readers give them; a tensor without
affine is taken to lie in RAS. Frames are (C, H, W, T) with `meta["kind"] == "frames"`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_unimedvl.transforms.image import PerKey, check_picture
from monai_unimedvl.transforms.slices import (
    PLANES,
    PROJECTIONS,
    Slices,
    Volume,
    check_plane,
    nearest_plane,
    picture,
    place_in_words,
    plane_of,
    to_display,
)

__all__ = [
    "PLANES", "POLICIES", "SelectFrames", "SelectFramesD", "SelectFramesDict", "SelectFramesd",
    "SelectSlices", "SelectSlicesD", "SelectSlicesDict", "SelectSlicesd", "nearest_plane", "picked",
    "picture", "place_in_words", "placed_prompt", "to_display",
]  # fmt: skip

POLICIES = ("uniform", "center", "content", "mm", "all")


def picked(count: int, policy: str, available: int, shape: Sequence[int], name: str) -> list[int]:
    """Which of `available` slices a policy takes, in order.

    uniform: the middle one of each of `count` equal parts; center: `count` neighbours around the middle; all.

    Raises:
        ValueError: more are wanted than there are.
    """
    if policy == "all":
        return list(range(available))
    if count > available:
        raise ValueError(
            f"{name}(count={count}) needs {count} slices, got {available} in shape {tuple(shape)}: "
            'lower count or use policy="all".'
        )
    if policy == "center":
        first = (available - count) // 2
        return list(range(first, first + count))
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]


def placed_prompt(pictures: Sequence[MetaTensor], *words: str) -> list[str | Tensor]:
    """A prompt that says before each picture where it lies in mm, then the words.

    Args:
        pictures: (3, H, W) with `meta["source"]`.
    """
    prompt: list[str | Tensor] = []
    for one in pictures:
        prompt += [f"{place_in_words(one.meta['source'])}:", one]
    return [*prompt, *words]


class SelectSlices(Transform):
    """Slices of a volume, or frames of a run, as a list of pictures; a single picture becomes a list of one.

    Args:
        count: how many; unused with policies "all" and "mm".
        policy: "uniform" over the length, "center" = neighbours around the middle, "content" = uniform over
            the slices that show something, "mm" = one `every` so many mm, or "all".
        plane: "axial", "coronal" or "sagittal"; unused for frames and pictures.
        every: mm from slice to slice, for policy "mm".
        slab: thickness in mm of which each picture is the projection; 0 for single slices.
        project: "mean", "max" (MIP) or "min" of a slab.
        centre: "series" notes the middle of what is bright in all of the volume, for a `SquareField` of that
            name; others are left to it.

    Raises:
        ValueError: a setting that is not known, `every` without policy "mm" or the other way round.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, count: int = 8, policy: str = "uniform", plane: str = "axial", every: float | None = None,
        slab: float = 0.0, project: str = "mean", centre: str | None = None,
    ) -> None:  # fmt: skip
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is not known: use one of {', '.join(POLICIES)}.")
        check_plane(plane)
        if count < 1:
            raise ValueError(
                f"SelectSlices got count={count}, expected 1 or more: name how many slices you want."
            )
        if (policy == "mm") != (every is not None) or every is not None and not every > 0:
            raise ValueError(
                f'SelectSlices got policy="{policy}" with every={every}, but every (mm above 0) and '
                'policy="mm" belong together: give both or none.'
            )
        if not slab >= 0 or project not in PROJECTIONS:
            raise ValueError(
                f"SelectSlices got slab={slab}, project={project!r}, expected mm of 0 or more and one of "
                f"{', '.join(PROJECTIONS)}: change it."
            )
        self.count, self.policy, self.plane = count, policy, plane
        self.every, self.slab, self.project, self.centre = every, slab, project, centre

    def __call__(self, image: NdarrayOrTensor) -> list[MetaTensor]:
        """(1, X, Y, Z), (C, H, W, T) frames or (C, H, W) -> list of (C, H, W), each with `meta["source"]`."""
        x = image if isinstance(image, MetaTensor) else MetaTensor(torch.as_tensor(image))
        known = "kind" in x.meta or isinstance(image, MetaTensor)
        if x.ndim == 3:
            if "source" in x.meta:
                return [x]
            affine = x.affine.numpy().astype(float) if x.meta.get("placed") else None
            plane = None if affine is None else nearest_plane(affine, 2)
            return [picture(x.as_subclass(Tensor), x.meta, x.shape, affine, plane, 0, 1)]
        if x.ndim != 4:
            raise ValueError(
                f"SelectSlices got shape {tuple(x.shape)}, expected a volume (1, X, Y, Z), frames (C, H, "
                "W, T) "
                "or a picture (C, H, W): choose one volume of the series."
            )
        if x.meta.get("kind") == "frames":
            return self._frames(x)
        return self._slices(x, x.affine.numpy().astype(float) if known else np.eye(4))

    def indexes(
        self, available: int, gap: float, occupied: Callable[[], Sequence[int]], shape: Sequence[int] = (),
        fewer: bool = False,
    ) -> list[int]:  # fmt: skip
        """Which of `available` slices, `gap` mm apart, are taken, in order.

        Args:
            occupied: gives the slices that show something; asked only by policy "content".
            fewer: take all where there are not `count` of them.

        Raises:
            ValueError: more slices are wanted than there are, or a finer distance than theirs.
        """
        name = type(self).__name__
        if self.policy == "mm":
            assert self.every is not None
            if self.every < gap * (1 - 1e-6):
                raise ValueError(
                    f"{name}(every={self.every}) is finer than the slices, which lie {gap:g} mm apart: raise "
                    'every or use policy="all".'
                )
            reach = int((available - 1) / 2 * gap / self.every + 1e-6)
            middle = (available - 1) / 2
            return [round(middle + k * self.every / gap) for k in range(-reach, reach + 1)]
        if self.policy == "content":
            found = list(occupied())
            if not found:
                raise ValueError(
                    f'{name}(policy="content") found no slice that shows anything in shape {tuple(shape)}: '
                    'use policy="uniform".'
                )
            count = min(self.count, len(found)) if fewer else self.count
            return [found[i] for i in picked(count, "uniform", len(found), shape, name)]
        count = min(self.count, available) if fewer else self.count
        return picked(count, self.policy, available, shape, name)

    def _frames(self, frames: MetaTensor) -> list[MetaTensor]:
        if self.policy in ("mm", "content") or self.slab:
            raise ValueError(
                f'{type(self).__name__} got frames of shape {tuple(frames.shape)}, but policy "{self.policy}"'
                f" and slab={self.slab:g} are for volumes: use uniform, center or all, without a slab."
            )
        available = frames.shape[3]
        affine = frames.affine.numpy().astype(float) if frames.meta.get("placed") else None
        values = frames.as_subclass(Tensor)
        indices = picked(self.count, self.policy, available, frames.shape, type(self).__name__)
        # of a sampled film the numbers and the length are those of the film
        numbers = frames.meta.get("numbers", range(available))
        length = frames.meta.get("available", available)
        return [
            picture(values[..., i], frames.meta, frames.shape, affine, None, int(numbers[i]), int(length))
            for i in indices
        ]

    def _slices(self, volume: MetaTensor, affine: np.ndarray) -> list[MetaTensor]:
        whole = self.noted(Volume(volume.as_subclass(Tensor), affine, meta=volume.meta))
        return self.of(Slices(whole, plane_of(volume.shape[1:], affine, self.plane)))

    def noted(self, volume: Volume, bounds: tuple[float, float] | None = None) -> Volume:
        """The volume with what its pictures have to know; `bounds` as `Volume.around_body` takes them."""
        return volume.around_body(bounds) if self.centre == "series" else volume

    def of(self, slices: Slices, fewer: bool = False) -> list[MetaTensor]:
        """The chosen ones of `slices`, (1, H, W) each; `fewer` as `indexes` takes it."""
        shape = slices.volume.shape
        if len(slices) == 1:
            indexes = [0]
        else:
            indexes = self.indexes(len(slices), slices.gap, slices.occupied, shape, fewer)
        found = []
        for index in indexes:
            one = slices.slab(index, self.slab, self.project)
            check_picture(one.as_subclass(Tensor), f"{slices.plane} slice of shape {tuple(shape)}")
            found.append(one)
        return found


class SelectFrames(SelectSlices):
    """Frames of a run of pictures (cine, pages, a folder) as a list; refuses volumes.

    Args:
        count: how many; unused with policy "all".
        policy: "uniform" over the length, "center" = neighbours around the middle, or "all".
    """

    def __init__(self, count: int = 8, policy: str = "all") -> None:
        super().__init__(count, policy)

    def _slices(self, volume: MetaTensor, affine: np.ndarray) -> list[MetaTensor]:
        raise ValueError(
            f"a 4-D volume came, shape {tuple(volume.shape)}, where a 3-D picture (C, H, W) is needed: "
            "use a recipe for volumes (mri, ct), or pass one slice."
        )


class _ListPerKey(PerKey):
    """One mapping per slice: every key holds its slice, the rest is copied."""

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """list of mappings, one per slice; all keys must give the same number of slices."""
        lists = {key: self.transform(data[key]) for key in self.key_iterator(dict(data))}
        counts = {len(pictures) for pictures in lists.values()}
        if len(counts) > 1:
            raise ValueError(
                f"keys {list(lists)} give different numbers of slices, {sorted(counts)}: align them."
            )
        return [
            {**data, **{key: pictures[i] for key, pictures in lists.items()}}
            for i in range(max(counts, default=0))
        ]


class SelectSlicesd(_ListPerKey):
    """Dictionary form of `SelectSlices`: one mapping per slice."""

    array = SelectSlices


class SelectFramesd(_ListPerKey):
    """Dictionary form of `SelectFrames`: one mapping per frame."""

    array = SelectFrames


SelectSlicesD = SelectSlicesDict = SelectSlicesd
SelectFramesD = SelectFramesDict = SelectFramesd
