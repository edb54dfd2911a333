# SPDX-License-Identifier: Apache-2.0
"""No picture of a GPL source lies in this project: what is binary is named with its package, and looked at.

Declared sources are held against the list of licences; `make slow` compares every picture, also those inside
notebooks, with every GPL slice of the corpus. `make tutorials` runs the notebooks with no such source there.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from monai_unimedvl.data.atlas_pictures import load_pictures
from monai_unimedvl.data.fetch import default_root, licences, sources
from monai_unimedvl.evaluation.atlas_scores import NEAR_COPY
from monai_unimedvl.evaluation.image import nearest_correlation

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bundles", "docs", "monai_unimedvl", "tests", "transforms", "tutorials")
OURS = "no scan"  # weights, random numbers, plots of numbers
BINARY = {  # every file that is no text -> the package that its picture is from
    "bundles/unimedvl_nano/models/model.safetensors": OURS,
    "bundles/unimedvl_nano/samples/brain/icbm152_axial.png": "nilearn",
    "bundles/unimedvl_nano/samples/brain/icbm152_coronal.png": "nilearn",
    "bundles/unimedvl_nano/samples/eye/retina.png": "scikit-image",
    "bundles/unimedvl_nano/samples/tissue/colon_ihc.png": "scikit-image",
    "bundles/unimedvl_volume/samples/volume/icbm152_t1_4mm.nii.gz": "nilearn",
    "tests/benchmarks/science/*.png": OURS,
    "tests/golden/*.safetensors": OURS,
}
INLINE = re.compile(r"iVBORw0KGgo|/9j/4[AQ]|R0lGODlh|UklGR")  # PNG, JPEG, GIF and WebP in base64
ICONS = ("monai_unimedvl/serve/page/niivue.js", "tests/test_pictures.py")  # a viewer's font; the line above
GPL = {source.name for source in sources() if not source.permissive}
GPL_SCANS = ("avg152T1", "avg152T2", "avg152PD", "spmEPI", "spmPET", "spmSPECT", "headct_soft", "headct_bone")
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def files() -> Iterator[tuple[str, bytes]]:
    """Every file of the project with its bytes; caches of tools are none."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
                yield "/".join(parts), path.read_bytes()


def text_of(content: bytes) -> str | None:
    try:
        return content.decode("utf8")
    except UnicodeDecodeError:
        return None


def shown(path: Path) -> list[Image.Image]:
    """The pictures in the outputs of a notebook."""
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def panels(figure: Image.Image, smallest: int = 24) -> list[Image.Image]:
    """What stands on the white of a figure, each alone; a picture without a margin is its own panel."""
    inside = ndimage.binary_fill_holes(np.asarray(figure.convert("L")) < 250)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(ndimage.label(inside)[0])]
    return [figure.crop(box) for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= smallest]


def as_batch(pictures: list[Image.Image]) -> torch.Tensor:
    """(N, 3, 64, 64) in [0, 1]"""
    small = [np.asarray(one.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)) for one in pictures]
    return torch.from_numpy(np.stack(small)).movedim(-1, 1).float() / 255


def volume_slices(path: Path) -> list[Image.Image]:
    """All slices of a volume in all planes, turned as the corpus shows them."""
    values = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    values = (255 * values / values.max()).astype(np.uint8)
    cuts = [np.rot90(np.take(values, n, axis)) for axis in range(3) for n in range(values.shape[axis])]
    sides = [np.pad(cut, [((max(cut.shape) - side) // 2,) * 2 for side in cut.shape]) for cut in cuts]
    return [Image.fromarray(np.ascontiguousarray(side)) for side in sides]


def test_every_binary_file_is_named_with_its_permissive_package() -> None:
    permissive = {name for name, *_ in licences(permissive_only=True)} | {OURS}
    assert set(BINARY.values()) <= permissive and not permissive & GPL and len(GPL) == 2
    names = [name for name, content in files() if text_of(content) is None]
    unnamed = [name for name in names if not any(fnmatchcase(name, glob) for glob in BINARY)]
    assert not unnamed, f"{unnamed}: name the package of each in BINARY, none of {sorted(GPL)}"
    gone = [glob for glob in BINARY if "*" not in glob and glob not in names]
    assert not gone, f"{gone} are named in BINARY and are not there"


def test_text_holds_pictures_in_notebooks_only() -> None:
    found = [name for name, content in files() if INLINE.search(text_of(content) or "")]
    assert {name for name in found if not name.endswith(".ipynb")} == set(ICONS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_the_packages_of_its_pictures(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    named = notebook.metadata.get("sources", [])
    assert named and set(named) <= {name for name, *_ in licences(permissive_only=True)}
    text = path.read_text("utf8")
    assert not [name for name in (*GPL, *GPL_SCANS) if name in text], "a GPL source is named"


def test_a_copied_slice_is_found_inside_a_figure(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 1, 9, 9, generator=generator).expand(-1, 3, -1, -1)
    bank = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 0.9)
    figure, axes = plt.subplots(1, 3, figsize=(6, 2.3))
    for axis, one in zip(axes, bank[:3], strict=True):
        axis.imshow(one.movedim(0, -1).numpy(), interpolation="nearest", vmin=0, vmax=1)
        axis.set_axis_off()
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    cut = panels(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert len(cut) == 3
    assert nearest_correlation(as_batch(cut), bank).min() > NEAR_COPY
    assert nearest_correlation(as_batch(cut), bank[3:]).max() < NEAR_COPY


@pytest.mark.slow
def test_no_picture_here_is_a_slice_of_a_gpl_source() -> None:
    pictures, missing = load_pictures(default_root())
    if GPL & set(missing):
        pytest.skip(f"{', '.join(sorted(GPL & set(missing)))} not fetched: `unimedvl data fetch-atlas`")
    scans = [one.pixels for one in pictures if one.source in GPL_SCANS]
    assert len(scans) > 1000
    bank = as_batch([Image.fromarray(one) for one in scans])
    looked: dict[str, list[Image.Image]] = {path.name: [] for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        looked[path.name] = [one for figure in shown(path) for one in panels(figure.convert("RGB"))]
    for name, content in files():
        if name.endswith((".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff")):
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            looked[name] = [picture, *panels(picture)]
        elif name.endswith((".nii", ".nii.gz")):
            looked[name] = volume_slices(ROOT / name)
    assert sum(map(len, looked.values())) > 100
    for name, found in looked.items():
        if found:
            near = nearest_correlation(as_batch(found), bank)
            assert near.max() < NEAR_COPY, f"{name}: panel {int(near.argmax())} is {near.max():.3f} alike"
