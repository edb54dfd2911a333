# SPDX-License-Identifier: Apache-2.0
"""The distinct 64 x 64 pictures of the atlas corpus, with their facts and the maps that are drawn on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .atlas_regions import GROUPS, PARCELS, REGIONS, aal_indices, level_of
from .atlas_splits import section_of_slab, sections_of_columns
from .atlas_volumes import GRID_ORIGIN, SIDE, Arrays, display, prepare_arrays, read_arrays, shrink

__all__ = ["Picture", "load_pictures", "make_pictures"]

# mm that is shown; |x| for sagittal slices
_RANGE = {
    "axial": (-52.0, 74.0),
    "coronal": (-98.0, 64.0),
    "sagittal": (0.0, 62.0),
}  # mm that is shown; |x| for sagittal


@dataclass
class Picture:
    """One picture: `pixels` (64, 64) or (64, 64, 3) uint8.

    `maps` hold label maps and partner pictures by task; "parcels" is no task, it teaches vision encoders.
    """

    id: str
    source: str
    subject: str
    modality: str
    contrast: str
    plane: str
    section: str
    pixels: NDArray[np.uint8]
    position: float = 0.0  # mm in MNI space, slice number or column otherwise
    facts: dict[str, object] = field(default_factory=dict)
    maps: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


def load_pictures(
    root: Path, *, permissive_only: bool = False, progress: Callable[[str], None] | None = None
) -> tuple[list[Picture], list[str]]:
    """The pictures of every source that is present, made once a process, and the names of missing sources."""
    path, missing = prepare_arrays(root, permissive_only=permissive_only, progress=progress)
    return _load(path, path.stat().st_mtime_ns), missing


@lru_cache(maxsize=2)
def _load(path: Path, changed: int) -> list[Picture]:
    return make_pictures(read_arrays(path))


def make_pictures(arrays: Arrays) -> list[Picture]:
    """All pictures that the arrays give, in a fixed order."""
    return [*_mni(arrays), *_tumours(arrays), *_stacks(arrays), *_patches(arrays), *_nuclei(arrays)]


_MNI = {  # array: subject, modality, contrast, kind
    "icbm09a": ("ICBM152", "MRI", "T1", "skull-stripped average"),
    "icbm09c": ("ICBM152", "MRI", "T1", "skull-stripped average"),
    "avg152T1": ("ICBM152", "MRI", "T1", "whole-head average"),
    "avg152T2": ("ICBM152", "MRI", "T2", "whole-head average"),
    "avg152PD": ("ICBM152", "MRI", "PD", "whole-head average"),
    "spmEPI": ("SPM-EPI", "MRI", "EPI", "smooth average"),
    "spmPET": ("SPM-PET", "PET", "PET", "smooth average"),
    "spmSPECT": ("SPM-SPECT", "SPECT", "SPECT", "smooth average"),
    "ch2": ("Colin27", "MRI", "T1", "whole head"),
    "ch2bet": ("Colin27", "MRI", "T1", "skull-stripped"),
}


def _mni(arrays: Arrays) -> list[Picture]:
    names = [name for name in _MNI if f"mni/{name}" in arrays]
    aal = arrays.get("mni/aal")
    labels = aal_indices() if aal is not None else {}
    found = []
    for plane in ("axial", "coronal", "sagittal"):
        axis = ("sagittal", "coronal", "axial").index(plane)
        shown = {
            name: np.rint(shrink(display(arrays[f"mni/{name}"], plane))).astype(np.uint8) for name in names
        }
        tissues = {key: _tissue_map(arrays, plane, key) for key in ("icbm09a", "tpm")}
        grey = display(arrays["mni/icbm09a_gm"], plane) if "mni/icbm09a_gm" in arrays else None
        csf = _csf_share(arrays, plane)
        counts = _region_counts(aal, labels, plane) if aal is not None else {}
        lobes = _region_map(aal, labels, plane, GROUPS) if aal is not None else None
        parcels = _region_map(aal, labels, plane, PARCELS) if aal is not None else None
        for index in range(len(next(iter(shown.values()))) if shown else 0):
            position = GRID_ORIGIN[axis] + 2.0 * index
            low, high = _RANGE[plane]
            place = abs(position) if plane == "sagittal" else position
            if not low <= place <= high:
                continue
            slab = section_of_slab(place, low, high, 2.0)
            for name in names:
                subject, modality, contrast, kind = _MNI[name]
                section = "test_subject" if subject == "Colin27" else slab
                if section is None or (
                    subject == "Colin27" and index % 2
                ):  # Colin27 every 4 mm: enough for a test
                    continue
                facts: dict[str, object] = {
                    "kind": kind,
                    "level": level_of(plane, place),
                    "body": "head",
                    "mm": place,
                }
                if counts:
                    facts["areas"] = {region: int(4 * count[index]) for region, count in counts.items()}
                if csf is not None and subject == "ICBM152":
                    facts["csf"] = float(csf[index])
                maps: dict[str, NDArray[np.uint8]] = {}
                if parcels is not None:
                    maps["parcels"] = parcels[index]
                if lobes is not None and modality == "MRI" and contrast == "T1":
                    maps["seg-lobes"] = lobes[index]
                tissue = tissues["icbm09a" if name == "icbm09a" else "tpm"]
                if tissue is not None and subject == "ICBM152":
                    maps["seg-tissue"] = tissue[index]
                for task, partner in (("t1-to-t2", "avg152T2"), ("t1-to-pd", "avg152PD")):
                    if name == "avg152T1" and partner in shown:
                        maps[task] = shown[partner][index]
                if name == "avg152T2" and "avg152T1" in shown:
                    maps["t2-to-t1"] = shown["avg152T1"][index]
                if name == "icbm09a" and grey is not None:
                    maps["t1-to-gm"] = np.rint(shrink(grey[index])).astype(np.uint8)
                found.append(
                    Picture(
                        f"{name}/{plane}/{position:+04.0f}", name, subject, modality, contrast, plane,
                        section, shown[name][index], position, facts, maps,
                    )
                )  # fmt: skip
    return found


def _tissue_map(arrays: Arrays, plane: str, key: str) -> NDArray[np.uint8] | None:
    """(N, 64, 64): 0 nothing, 1 grey matter, 2 white matter, 3 CSF; the largest share of a pixel wins."""
    if key == "icbm09a":
        if "mni/icbm09a_gm" not in arrays:
            return None
        grey, white = (arrays[f"mni/icbm09a_{tissue}"].astype(np.float64) for tissue in ("gm", "wm"))
        brain = 255.0 * (arrays["mni/icbm09a"] > 12)
        parts = [grey, white, np.clip(brain - grey - white, 0, 255)]
    else:
        if "mni/tpm_gm" not in arrays:
            return None
        inside = arrays["mni/icv"].astype(np.float64)
        parts = [arrays[f"mni/tpm_{tissue}"] * inside for tissue in ("gm", "wm", "csf")]
    shares = np.stack([shrink(display(part, plane)) for part in parts])
    nothing = np.clip(255.0 - shares.sum(0), 0, None)
    return np.concatenate([nothing[None], shares]).argmax(0).astype(np.uint8)


def _csf_share(arrays: Arrays, plane: str) -> NDArray[np.float64] | None:
    """Share of CSF in the intracranial area of each slice, (N,)."""
    if "mni/tpm_csf" not in arrays:
        return None
    inside = arrays["mni/icv"] > 0
    sums = [
        display(np.where(inside, arrays[f"mni/tpm_{t}"], 0).astype(np.float64), plane).sum((1, 2))
        for t in ("gm", "wm", "csf")
    ]
    return sums[2] / np.clip(sum(sums), 1, None)


def _region_counts(
    aal: NDArray[np.uint8], labels: dict[str, list[int]], plane: str
) -> dict[str, NDArray[np.int64]]:
    """Pixels (N,) of each region in each slice."""
    shown = display(aal, plane)
    return {region: _inside(shown, labels, prefixes).sum((1, 2)) for region, prefixes in REGIONS.items()}


def _region_map(
    aal: NDArray[np.uint8], labels: dict[str, list[int]], plane: str, names: Mapping[str, tuple[str, ...]]
) -> NDArray[np.uint8]:
    """(N, 64, 64): number of the name with the largest share of a pixel, 0 where less than half has one."""
    shown = display(aal, plane)
    shares = np.stack([shrink(_inside(shown, labels, prefixes)) for prefixes in names.values()])
    return np.where(shares.sum(0) >= 0.5, shares.argmax(0) + 1, 0).astype(np.uint8)


def _inside(
    shown: NDArray[np.uint8], labels: dict[str, list[int]], prefixes: tuple[str, ...]
) -> NDArray[np.bool_]:
    return np.isin(shown, [i for prefix in prefixes for i in labels[prefix]])


def _tumours(arrays: Arrays) -> list[Picture]:
    """Axial slices of the four tumour patients; training slices also mirrored, so that the side flips."""
    found = []
    for case, section in (
        ("brain1", "train"),
        ("brain2", "test_subject"),
        ("lung1", "train"),
        ("lung2", "test_subject"),
    ):
        if f"stack/{case}" not in arrays:
            continue
        brain = case.startswith("brain")
        for index, (pixels, share) in enumerate(
            zip(arrays[f"stack/{case}"], arrays[f"mask/{case}"], strict=True)
        ):
            diameter = int(arrays[f"area/{case}"][index])
            mask = (share >= 128).astype(np.uint8)
            if mask.sum() < 2 and share.any():
                continue  # too small to be seen here, too large to be called absent
            for mirrored in (False, True):
                image, tumour = (pixels[:, ::-1], mask[:, ::-1]) if mirrored else (pixels, mask)
                visible = bool(mask.any())
                facts: dict[str, object] = {
                    "kind": "patient",
                    "body": "head" if brain else "chest",
                    "tumour": visible,
                    "mirrored": mirrored,
                }
                if visible:
                    columns = np.nonzero(tumour)[1].mean()
                    facts |= {"side": "left" if columns > (SIDE - 1) / 2 else "right", "diameter": diameter}
                found.append(
                    Picture(
                        f"{case}/axial/{index:03d}{'m' if mirrored else ''}",
                        case, case, "MRI" if brain else "CT",
                        "T1 with contrast" if brain else "CT", "axial", section,
                        np.ascontiguousarray(image), float(index), facts,
                        {"seg-tumour": np.ascontiguousarray(tumour)} if visible else {},
                    )
                )  # fmt: skip
    return found


def _stacks(arrays: Arrays) -> list[Picture]:
    found = []
    for name, partner in (("headct_soft", "headct_bone"), ("headct_bone", None)):
        if f"stack/{name}" not in arrays:
            continue
        stack = arrays[f"stack/{name}"]
        for index, pixels in enumerate(stack):
            section = section_of_slab(index, 0, len(stack) - 1, 1)
            if section is None or (pixels > 40).mean() < 0.05:
                continue
            maps = {"seg-bone": (arrays["mask/headct"][index] >= 128).astype(np.uint8)}
            if partner:
                maps["ct-to-bone"] = arrays[f"stack/{partner}"][index]
            window = "brain window" if partner else "bone window"
            facts: dict[str, object] = {"kind": window, "body": "head"}
            found.append(
                Picture(
                    f"{name}/axial/{index:03d}",
                    name,
                    "headCT",
                    "CT",
                    "CT",
                    "axial",
                    section,
                    pixels,
                    float(index),
                    facts,
                    maps,
                )
            )
    for name, subject, contrast, plane in (
        ("itkT1_axial", "itkT1", "T1", "axial"), ("itkT1_coronal", "itkT1", "T1", "coronal"),
        ("daikonPD", "daikonPD", "PD", "axial"),
    ):  # fmt: skip
        for index, pixels in enumerate(arrays.get(f"stack/{name}", np.zeros((0, SIDE, SIDE), np.uint8))):
            if subject == "itkT1" and index % 2:
                continue
            if (pixels > 40).mean() > 0.2:
                facts = {"kind": "whole head", "body": "head"}
                found.append(
                    Picture(
                        f"{name}/{index:03d}",
                        subject,
                        subject,
                        "MRI",
                        contrast,
                        plane,
                        "test_subject",
                        pixels,
                        float(index),
                        facts,
                    )
                )
    return found


def _patches(arrays: Arrays) -> list[Picture]:
    found = []
    sheets = {
        "skin": ("skin", "H&E", 32),
        "histo": ("tissue", "H&E", 16),
        "wsi": ("tissue", "H&E", 8),
        "ihc": ("colon", "IHC", 32),
        "fundus": ("retina", "fundus", 64),
    }
    for name, (body, contrast, stride) in sheets.items():
        if f"tile/{name}" not in arrays:
            continue
        sheet = arrays[f"tile/{name}"]
        task = {"H&E": "h-to-he", "IHC": "h-to-ihc"}.get(contrast)
        columns = sections_of_columns(sheet.shape[1], stride)
        if name == "wsi":  # too small to divide, so the whole tile is another slide never trained on
            columns = [(left, "test_subject") for left in range(0, sheet.shape[1] - SIDE + 1, 28)]
        for left, section in columns:
            for top in range(0, sheet.shape[0] - SIDE + 1, 28 if name == "wsi" else stride):
                pixels = sheet[top : top + SIDE, left : left + SIDE]
                if contrast == "fundus" and pixels[..., 0].mean() < 40 or pixels.std() < 14:
                    continue  # outside the eye, or bare glass
                maps = {task: _haematoxylin(pixels)} if task else {}
                facts: dict[str, object] = {"kind": body, "body": {"fundus": "eye"}.get(contrast, "tissue")}
                modality = "fundus photograph" if contrast == "fundus" else "histology"
                found.append(
                    Picture(
                        f"{name}/{left:04d}-{top:04d}",
                        name,
                        name,
                        modality,
                        contrast,
                        "",
                        section,
                        pixels,
                        float(left),
                        facts,
                        maps,
                    )
                )
    return found


def _haematoxylin(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture as if only haematoxylin had been applied, by colour deconvolution (Ruifrok 2001)."""
    from skimage.color import hed2rgb, rgb2hed

    stains = rgb2hed(pixels)
    stains[..., 1:] = 0
    return np.rint(255 * np.clip(hed2rgb(stains), 0, 1)).astype(np.uint8)


def _nuclei(arrays: Arrays) -> list[Picture]:
    if "nuclei/image" not in arrays:
        return []
    image, mask = arrays["nuclei/image"], arrays["nuclei/mask"]
    size, stride, found = 128, 32, []
    for left, section in sections_of_columns(image.shape[1], stride, size):
        for top in range(0, image.shape[0] - size + 1, stride):
            window = (slice(top, top + size), slice(left, left + size))
            ids, areas = np.unique(mask[window], return_counts=True)
            count = int(((areas >= 40) & (ids > 0)).sum())
            maps = {"seg-nuclei": (shrink(mask[window] > 0) >= 0.5).astype(np.uint8)}
            facts: dict[str, object] = {"kind": "nuclei", "body": "cells", "count": count}
            found.append(
                Picture(
                    f"nuclei/{left:04d}-{top:04d}", "nuclei", "nuclei", "microscopy", "fluorescence", "",
                    section, np.rint(shrink(image[window])).astype(np.uint8), float(left), facts, maps,
                )
            )  # fmt: skip
    return found
