# SPDX-License-Identifier: Apache-2.0
"""Drawn colours -> label maps: the nearest colour of a legend, or "uncertain" where none is near.

A model that draws masks as pictures says with each colour how sure it is: halfway between two colours it has
not decided. Label 0 is the background, n the n-th name of the legend, K + 1 what is uncertain.
  N pictures   K names   H rows   W columns
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import FillHoles, KeepLargestConnectedComponent, RemoveSmallObjects, Transform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from monai_unimedvl.transforms.image import PerKey, like

Colour = tuple[int, int, int]
UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class Legend(Mapping[str, Colour]):
    """Which colour means what.

    Args:
        colours: name -> (red, green, blue) in 0..255; label n is the n-th name.
        background: the colour of label 0.

    Raises:
        ValueError: no name, a colour that is none, two names of one colour, or a name that is taken.
    """

    colours: Mapping[str, Colour]
    background: Colour = (0, 0, 0)

    def __post_init__(self) -> None:
        if not self.colours:
            raise ValueError("Legend got no colours, expected name -> (red, green, blue): name at least one.")
        for name, colour in [("background", self.background), *self.colours.items()]:
            if len(colour) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in colour):
                raise ValueError(
                    f"Legend got {colour!r} for {name!r}, expected three whole numbers in 0..255: correct it."
                )
        every = [tuple(self.background), *map(tuple, self.colours.values())]
        if len(set(every)) < len(every):
            raise ValueError("Legend got one colour twice, expected a colour of its own for each name.")
        if {"background", UNCERTAIN} & set(self.colours):
            raise ValueError(
                f"Legend got the name 'background' or {UNCERTAIN!r}, which are labels 0 and K + 1: rename it."
            )

    def __getitem__(self, name: str) -> Colour:
        return self.colours[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.colours)

    def __len__(self) -> int:
        return len(self.colours)

    @property
    def uncertain(self) -> int:
        """The label of pixels that are near no colour."""
        return len(self) + 1

    @property
    def labels(self) -> dict[str, int]:
        """name -> label, background and uncertain included."""
        return {"background": 0, **{name: n for n, name in enumerate(self, 1)}, UNCERTAIN: self.uncertain}

    @property
    def palette(self) -> Tensor:
        """(K + 1, 3) in [0, 1], background first."""
        return torch.tensor([self.background, *self.colours.values()], dtype=torch.float32) / 255

    def coloured(self, labels: Tensor) -> Tensor:
        """Label maps as pictures: (..., H, W) of 0..K+1 -> (..., 3, H, W) in [0, 1]; uncertain is grey."""
        grey = torch.full((1, 3), 0.5)
        palette = torch.cat([self.palette, grey]).to(labels.device)
        return palette[labels.as_subclass(Tensor).long()].movedim(-1, -3)


def as_legend(legend: Mapping[str, Sequence[int]] | Legend) -> Legend:
    """A `Legend` of a plain mapping name -> (red, green, blue)."""
    if isinstance(legend, Legend):
        return legend
    return Legend({name: tuple(colour) for name, colour in legend.items()})  # type: ignore[misc]


def distances(images: Tensor, legend: Legend) -> Tensor:
    """How far each pixel is from each colour: (..., 3, H, W) in [0, 1] -> (..., K + 1, H, W), 0 to 1.73"""
    pixels = images.as_subclass(Tensor).float().movedim(-3, -1).unsqueeze(-2)  # (..., H, W, 1, 3)
    return (pixels - legend.palette.to(images.device)).square().sum(-1).sqrt().movedim(-1, -3)


class ColoursToLabels(Transform):
    """A picture in the colours of a legend -> its label map.

    Args:
        legend: name -> (red, green, blue) in 0..255; label n is the n-th name, black is 0.
        threshold: pixels farther than this from every colour become `legend.uncertain`; in [0, 1] where
            sqrt(3) is the way from black to white. None takes the nearest colour however far.

    Raises:
        ValueError: a threshold that is not above 0.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, legend: Mapping[str, Sequence[int]] | Legend, threshold: float | None = 0.5) -> None:
        if threshold is not None and not threshold > 0:
            raise ValueError(
                f"ColoursToLabels got threshold={threshold}, expected a distance above 0 or None: change it."
            )
        self.legend, self.threshold = as_legend(legend), threshold

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(..., 3, H, W) in [0, 1] or uint8 -> (..., 1, H, W) uint8

        Raises:
            ValueError: not three channels.
        """
        x = convert_to_tensor(image, track_meta=get_track_meta())
        if x.ndim < 3 or x.shape[-3] != 3:
            raise ValueError(
                f"ColoursToLabels got shape {tuple(x.shape)}, expected colours (3, H, W): pass a drawing."
            )
        labels = self.labels(x).unsqueeze(-3)
        return like(x, labels, legend=self.legend.labels)

    def labels(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) -> (..., H, W) uint8, without meta"""
        plain = images.as_subclass(Tensor)
        if plain.dtype == torch.uint8:
            plain = plain.float() / 255
        nearest = distances(plain, self.legend).min(-3)
        labels = nearest.indices
        if self.threshold is not None:
            labels = torch.where(nearest.values > self.threshold, self.legend.uncertain, labels)
        return labels.to(torch.uint8)

    def votes(self, images: Tensor) -> Tensor:
        """One-hot labels, to be resampled and added: (..., 3, H, W) -> (..., K + 2, H, W) of 0.0 and 1.0"""
        labels = self.labels(images).long()
        return torch.nn.functional.one_hot(labels, self.legend.uncertain + 1).movedim(-1, -3).float()


class CleanLabels(Transform):
    """Label maps without specks and holes, by MONAI's transforms. Works on (1, H, W) and (1, X, Y, Z).

    Args:
        labels: which to clean; None for all but the background.
        smallest: parts of fewer pixels or voxels go; 0 keeps them.
        largest_only: only the largest part of each label stays.
        fill_holes: background enclosed by a label becomes that label.
        connectivity: how many axes may differ between neighbours, from 1 on; None for all.
    """

    backend: ClassVar = [TransformBackends.NUMPY]

    def __init__(
        self, labels: Sequence[int] | None = None, *, smallest: int = 0, largest_only: bool = False,
        fill_holes: bool = False, connectivity: int | None = None,
    ) -> None:  # fmt: skip
        if smallest < 0:
            raise ValueError(f"CleanLabels got smallest={smallest}, expected 0 or more pixels: raise it.")
        self.labels = labels
        self.smallest, self.largest_only, self.fill_holes = smallest, largest_only, fill_holes
        self.connectivity = connectivity

    def __call__(self, image: NdarrayOrTensor) -> Tensor:
        """(1, H, W) or (1, X, Y, Z) of whole numbers -> the same shape and type

        Raises:
            ValueError: another shape, or fractions.
        """
        x = convert_to_tensor(image, track_meta=get_track_meta())
        if x.ndim not in (3, 4) or x.shape[0] != 1 or x.is_floating_point() and bool((x % 1 != 0).any()):
            raise ValueError(
                f"CleanLabels got {x.dtype} of shape {tuple(x.shape)}, expected whole numbers (1, H, W) or "
                "(1, X, Y, Z): pass a label map."
            )
        plain = x.as_subclass(Tensor)
        present = [int(n) for n in plain.unique() if n != 0]
        wanted = present if self.labels is None else [n for n in self.labels if n in present]
        result = plain.clone()
        for label in wanted:
            mask = self._cleaned((plain == label).to(torch.uint8))
            result[(plain == label) & (mask == 0)] = 0
            if self.fill_holes:
                result[(mask != 0) & (result == 0)] = label
        return like(x, result)

    def _cleaned(self, mask: Tensor) -> Tensor:
        """One label alone: 0 and 1, (1, ...)."""
        if self.smallest:
            mask = RemoveSmallObjects(self.smallest, connectivity=self.connectivity or mask.ndim - 1)(mask)
        if self.largest_only and bool(mask.any()):
            mask = KeepLargestConnectedComponent(applied_labels=[1], connectivity=self.connectivity)(mask)
        if self.fill_holes:
            mask = FillHoles(applied_labels=[1], connectivity=self.connectivity)(mask)
        return torch.as_tensor(mask).as_subclass(Tensor)


class ColoursToLabelsd(PerKey):
    """Dictionary form of `ColoursToLabels`."""

    array = ColoursToLabels


class CleanLabelsd(PerKey):
    """Dictionary form of `CleanLabels`."""

    array = CleanLabels


def volumes_of(labels: Tensor, legend: Legend) -> dict[str, float]:
    """How much of each name there is: pixels, or ml where the map knows the size of its voxels.

    Args:
        labels: (1, H, W) or (1, X, Y, Z); of a MetaTensor (1, X, Y, Z) the affine gives mm.
    """
    plain = labels.as_subclass(Tensor)
    each = 1.0
    if isinstance(labels, MetaTensor) and plain.ndim == 4:
        each = abs(float(torch.linalg.det(labels.affine[:3, :3].double()))) / 1000  # mm3 -> ml
    return {name: int((plain == n).sum()) * each for name, n in legend.labels.items() if n}


ColoursToLabelsD = ColoursToLabelsDict = ColoursToLabelsd
CleanLabelsD = CleanLabelsDict = CleanLabelsd
