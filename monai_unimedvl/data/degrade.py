# SPDX-License-Identifier: Apache-2.0
"""Pictures made poorer or different in a known way, so that the way back can be taught.

All take and give uint8, (H, W) or (H, W, 3), and draw nothing by chance.
  H rows   W columns
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from monai_unimedvl.data.atlas_tasks import LEGENDS
from monai_unimedvl.data.own import COLOURS
from monai_unimedvl.packages import needed
from monai_unimedvl.transforms.masks import ColoursToLabels, Legend

Pixels = NDArray[np.uint8]
KNOWN = {name.lower(): colour for legend in LEGENDS.values() for name, colour in legend.items()}


def lose_resolution(pixels: Pixels, factor: int, *, fourier: bool) -> Pixels:
    """A picture whose resolution is lower by a factor, back at its size by bicubic interpolation.

    Args:
        fourier: keep the middle of k-space, as a shorter MRI scan does; else average areas, as coarser
            detectors do.

    Raises:
        ValueError: a side that is less than eight small pixels.
    """
    height, width = pixels.shape[:2]
    small = (height // factor, width // factor)
    if factor < 2 or min(small) < 8:
        raise ValueError(f"a picture of {height}x{width} pixels cannot lose {factor} times its resolution.")
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    planes = []
    for plane in np.moveaxis(channels.astype(np.float64), -1, 0):
        low = _truncate(plane, small) if fourier else _average(plane, small)
        image = Image.fromarray(low.astype(np.float32))
        planes.append(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64))
    wide = np.rint(np.clip(np.round(np.stack(planes, -1), 3), 0, 255)).astype(np.uint8)
    return wide[..., 0] if pixels.ndim == 2 else wide


def _truncate(plane: NDArray[np.float64], small: tuple[int, int]) -> NDArray[np.float64]:
    """The picture of the middle of k-space, with pixels where the areas of the large ones lie."""
    spectrum = np.fft.fftshift(np.fft.fft2(plane))
    kept = spectrum
    for axis, (size, wanted) in enumerate(zip(plane.shape, small, strict=True)):
        first = size // 2 - wanted // 2
        kept = np.take(kept, range(first, first + wanted), axis)
        # a small pixel lies in the middle of those it stands for: half a small pixel less half a large one
        shift = np.exp(2j * np.pi * (size / wanted - 1) / 2 * (np.arange(wanted) - wanted // 2) / size)
        kept = kept * (shift[:, None] if axis == 0 else shift)
    low = np.fft.ifft2(np.fft.ifftshift(kept)).real * (small[0] * small[1] / plane.size)
    return np.asarray(low)


def _average(plane: NDArray[np.float64], small: tuple[int, int]) -> NDArray[np.float64]:
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize(small[::-1], Image.Resampling.BOX), dtype=np.float64)


def haematoxylin(pixels: Pixels) -> tuple[Pixels, dict[str, float]]:
    """Stained tissue with its haematoxylin alone, by `skimage.color`'s stain separation (Ruifrok 2001).

    Returns:
        the picture (H, W, 3), and for each of "haematoxylin", "eosin" and "dab" how much there is: the 95 %
        quantile of its optical density.

    Raises:
        ValueError: a grey picture, or scikit-image is not installed.
    """
    colour = needed("skimage.color", "Stain separation", "data")
    if pixels.ndim != 3:
        raise ValueError("stain separation got a grey picture, expected colours (H, W, 3).")
    stains = colour.rgb2hed(pixels)  # (H, W, 3)
    amounts = dict(zip(("haematoxylin", "eosin", "dab"), np.quantile(stains, 0.95, (0, 1)), strict=True))
    none = np.zeros_like(stains[..., 0])
    only = colour.hed2rgb(np.stack([stains[..., 0], none, none], -1))
    drawn = np.rint(np.clip(only, 0, 1) * 255).astype(np.uint8)
    return drawn, {name: float(value) for name, value in amounts.items()}


def without(pixels: Pixels, mask: NDArray[np.bool_], *, mirror: bool) -> tuple[Pixels, str]:
    """A picture with a region replaced: by the other side where it is healthy, else by what is around.

    Args:
        mask: (H, W). mirror: left and right look alike, as in an axial or coronal slice of a head.

    Returns:
        the picture, and what fills the region, in words.

    Raises:
        ValueError: scikit-image is not installed.
    """
    segmentation = needed("skimage.restoration", "Filling a region", "data")
    ndimage = needed("scipy.ndimage", "Filling a region", "data")
    grown = ndimage.binary_dilation(mask, iterations=2)
    twin = grown[:, ::-1]
    if mirror and not (grown & twin).any():
        soft = np.clip(ndimage.gaussian_filter(grown.astype(np.float64), 1.5) * 1.5, 0, 1)
        soft = soft if pixels.ndim == 2 else soft[..., None]
        mixed = pixels * (1 - soft) + pixels[:, ::-1] * soft
        return np.rint(mixed).astype(np.uint8), "the tissue of the other side"
    axis = None if pixels.ndim == 2 else -1
    smooth = segmentation.inpaint_biharmonic(pixels / 255.0, grown, channel_axis=axis)
    return np.rint(np.clip(smooth, 0, 1) * 255).astype(np.uint8), "what lies around it"


def legend_of(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Label -> colour, the same in every corpus as far as the labels of one map allow.

    Names of the atlas keep their colours. Another begins at a place of the palette that its letters give,
    and takes the next free one.
    """
    taken = {KNOWN[name.lower()] for name in labels if name.lower() in KNOWN}
    legend = {name: KNOWN[name.lower()] for name in labels if name.lower() in KNOWN}
    for name in sorted(set(labels) - set(legend)):
        start = crc32(name.lower().encode())
        every = [COLOURS[(start + n) % len(COLOURS)] for n in range(len(COLOURS))]
        free = [colour for colour in every if colour not in taken]
        legend[name] = free[0] if free else next(c for c in map(_spread, range(215)) if c not in taken)
        taken.add(legend[name])
    return {name: legend[name] for name in labels}


def _spread(number: int) -> tuple[int, int, int]:
    """A colour beyond the palette: in steps of 47, which is prime, through 6 x 6 x 6 colours but black."""
    place = 1 + 47 * number % 215
    return (place % 6 * 51, place // 6 % 6 * 51, place // 36 * 51)


def coloured(label_map: NDArray[np.uint8], legend: Mapping[str, Sequence[int]]) -> Pixels:
    """A label map (H, W) of 0..K in the colours of its legend, (H, W, 3); 0 is black."""
    palette = np.array([(0, 0, 0), *map(tuple, legend.values())], np.uint8)
    return palette[label_map]


def labels_of(pixels: Pixels, legend: Mapping[str, Sequence[int]]) -> NDArray[np.uint8]:
    """The inverse of `coloured`: (H, W, 3) -> (H, W), each pixel the label of the nearest colour."""
    told = Legend({name: (int(c[0]), int(c[1]), int(c[2])) for name, c in legend.items()})
    decode = ColoursToLabels(told, threshold=None)
    found: NDArray[np.uint8] = decode(torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())).numpy()[0]
    return found
