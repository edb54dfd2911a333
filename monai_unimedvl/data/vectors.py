# SPDX-License-Identifier: Apache-2.0
"""Pictures as vectors of a model, and those that lie near each other, by FAISS.

Perceptual hashes see the same picture; a dual encoder also sees one that was cropped, turned or recoloured.
  N pictures   D numbers of a vector
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from monai.utils import optional_import
from numpy.typing import NDArray

from monai_unimedvl.data.backends import picture_of
from monai_unimedvl.data.backends.local import LocalScorer
from monai_unimedvl.data.dialogue import pixels
from monai_unimedvl.data.near import Pairs
from monai_unimedvl.data.record import ImageFile
from monai_unimedvl.data.step import Stop

FLAT = 50_000  # vectors that are compared one with all; more are first sorted into cells
PROBES = 16  # cells that are looked into


@functools.lru_cache(maxsize=2)
def encoder(folder: str) -> LocalScorer:
    """The dual encoder of a folder, loaded once a process.

    Raises:
        Stop: it cannot be loaded, or has no image tower.
    """
    found = LocalScorer(folder)
    try:
        dual = hasattr(found.model, "get_image_features") and found.processor is not None
    except ValueError as error:
        raise Stop(str(error)) from error
    if not dual:
        raise Stop(f"model {found.name} has no image tower, expected a dual encoder: name another.")
    return found


def vector_of(image: ImageFile, folder: str, root: str | Path | None = None) -> str:
    """The unit vector of a picture as hex digits of float16.

    Raises:
        InvalidRecord: the picture cannot be read.
        Stop: the model cannot.
    """
    model = encoder(folder)
    with torch.inference_mode():
        given = model.processor(images=picture_of(pixels(image, root)), return_tensors="pt")
        found = model.model.get_image_features(pixel_values=given["pixel_values"].to(model.device))
    flat = getattr(found, "pooler_output", found)[0].float().cpu().numpy()  # (D,)
    unit = flat / max(float(np.linalg.norm(flat)), 1e-12)
    return unit.astype("<f2").tobytes().hex()


def near_vectors(vectors: NDArray[np.float32], similarity: float) -> Pairs:
    """Pairs (i, j), i < j, whose cosine is at least `similarity`; many vectors are searched cell by cell.

    Args:
        vectors: (N, D) of length 1.

    Raises:
        Stop: FAISS is not installed.
    """
    faiss, found = optional_import("faiss")
    if not found:
        raise Stop("near-duplicates by vectors need FAISS, which is not installed: `pip install faiss-cpu`.")
    count, width = vectors.shape
    if count < 2:
        return np.zeros((0, 2), np.int64)
    index = faiss.IndexFlatIP(width)
    if count > FLAT:
        index = faiss.IndexIVFFlat(index, width, int(4 * count**0.5), faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = 1
        index.train(vectors)
        index.nprobe = PROBES
    index.add(vectors)
    limits, _, others = index.range_search(vectors, similarity)
    mine = np.repeat(np.arange(count), np.diff(limits).astype(np.int64))
    pairs = np.stack([mine, others], 1).astype(np.int64)
    unique: Pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    return unique
