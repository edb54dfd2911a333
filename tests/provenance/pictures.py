# SPDX-License-Identifier: Apache-2.0
"""Real pictures of 256 x 256 and more, and drawings of the nano made as large, to mark and to search."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pydicom
from PIL import Image

SIDE, LARGEST = 256, 640
PHOTOS = (
    "astronaut brick camera cat chelsea clock coffee coins colorwheel grass gravel hubble_deep_field"
    " immunohistochemistry microaneurysms moon page retina rocket text"
).split()
SCANS = (
    "693_UNCI JPEG2000_UNC MR2_UNCI OBXXXX1A RG1_UNCR RG3_UNCR US1_UNCR color-pl explicit_VR-UN mlut_18"
    " eCT_Supplemental emri_small SC_rgb gdcm-US-ALOKA-16 MR-SIEMENS-DICOM-WithOverlays color3d_jpeg_baseline"
).split()
WORDS = (
    "Axial T1 MRI of the head.", "Coronal T1 MRI of the head.", "Sagittal T1 MRI of the head.",
    "Axial T2 MRI of the head.", "Axial PD MRI of the head.", "H&E stained histology.",
)  # fmt: skip


def real(count: int | None = None) -> list[np.ndarray]:
    """8-bit pictures, (H, W) or (H, W, 3): photographs, a stain, a retina, scans of every kind, a brain.

    Where `count` is less than there are, they are taken evenly from all.
    """
    found = list(_all())
    if count is None or count >= len(found):
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, count).round().astype(int)]


def drawn(count: int, steps: int = 6) -> list[np.ndarray]:
    """Drawings of the nano, 64 x 64, made four times as large: (256, 256, 3)."""
    from monai_unimedvl import bundle
    from monai_unimedvl.inferers import ImageInferer
    from monai_unimedvl.provenance import to_picture

    network, tokenizer = bundle.load("unimedvl_nano")
    made = []
    for start in range(0, count, len(WORDS)):
        words = [[text] for text in islice(WORDS, count - start)]
        infer = ImageInferer(tokenizer, steps=steps, seed=[start + i for i in range(len(words))])
        made += [to_picture(image) for image in infer(words, network)]
    return [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for picture in made]


def _all() -> Iterator[np.ndarray]:
    from skimage import data

    for name in PHOTOS:
        picture = getattr(data, name)()
        yield _large(np.asarray(picture)[..., :3] if picture.ndim == 3 else picture)
    yield from (_large(scan) for scan in _scans())
    from nilearn.datasets import load_mni152_template

    brain = np.asarray(load_mni152_template(resolution=1).dataobj, dtype=np.float64)  # (197, 233, 189)
    planes = [brain[:, :, z] for z in range(16, 160, 8)] + [brain[:, y] for y in range(30, 210, 10)]
    planes += [brain[x] for x in range(36, 170, 8)]
    yield from (_large(_eight_bits(np.rot90(plane))) for plane in planes)


def _scans() -> Iterator[np.ndarray]:
    from pathlib import Path

    import data_store

    for name in SCANS:
        path = Path(data_store.__file__).parent / "data" / f"{name}.dcm"
        if path.is_file():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path)
                pixels = header.pixel_array
            colours = int(header.SamplesPerPixel) == 3
            frame = pixels[0] if pixels.ndim == (4 if colours else 3) else pixels
            yield frame if frame.dtype == np.uint8 else _eight_bits(frame)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


def _large(pixels: np.ndarray) -> np.ndarray:
    """At least 256 x 256, and a piece of at most 640 x 640."""
    pixels = pixels[:LARGEST, :LARGEST]
    height, width = pixels.shape[:2]
    factor = SIDE / min(height, width)
    if factor <= 1:
        return pixels
    size = (int(np.ceil(width * factor)), int(np.ceil(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
