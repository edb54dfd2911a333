# SPDX-License-Identifier: Apache-2.0
"""Images to draw: from words, from another image, as masks.

text-to-image   MODALITY/metadata.jsonl (or .csv) with file_name and text, the Hub's image folder
bci             HE/test/*.png and IHC/test/*.png of one name
ixi-sr4         test/LQ/* and test/HQ/* of one name, pictures or NIfTI volumes
brats23         CASE/CASE-t2w.nii.gz and CASE/CASE-t2f.nii.gz
icg-cxr         .../PAIR/PAIR.json, PAIR-ref-reg.png, PAIR-flu-reg.png
segmentation    SET/images/*, SET/masks/* of one name, SET/labels.json
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_unimedvl.data.own import COLOURS, KNOWN
from monai_unimedvl.evaluation.readers.base import NIFTI, Item, Picture, folder_of, json_rows, present

MODALITIES = {  # folder of a text-to-image set -> recipe
    "cfp": "fundus", "cxr": "xray", "ct": "ct", "his": "histopathology", "mri": "mri", "oct": "oct",
    "us": "ultrasound", "endoscopy": "endoscopy",
}  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
ASKED = {
    "bci": "Turn this H&E stain into immunohistochemistry for HER2.",
    "ixi-sr4": "Sharpen this MRI to four times its resolution.",
    "t2-to-flair": "Turn this T2 MRI into FLAIR.",
    "flair-to-t2": "Turn this FLAIR MRI into T2.",
}
SLICES = 8  # of each volume, evenly spread


def text_to_image(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """Captions and their real images, one folder a modality."""
    folder_of(root, *MODALITIES)
    items, missing = [], []
    for name, modality in MODALITIES.items():
        tables = [root / name / f"metadata.{ending}" for ending in ("jsonl", "csv")]
        table = next((path for path in tables if path.is_file()), None)
        if table is None:
            missing.append(f"{name}/metadata.jsonl")
            continue
        for row in _table(table, ("file_name", "text")):
            items.append(
                Item(
                    f"{name}/{row['file_name']}", row["text"], task="text-to-image", modality=modality,
                    groups={"set": name}, image=f"{name}/{row['file_name']}", patient=row.get("patient", ""),
                    target=Picture(root / name / row["file_name"]),
                )
            )  # fmt: skip
    kept, lost = present(items, root)
    return kept, [*missing, *lost]


def bci(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """BCI: H&E to HER2 immunohistochemistry; the level of HER2 is in the name."""
    folder_of(root, f"HE/{section}")
    items = []
    for path in _pictures(root / "HE" / section):
        level = path.stem.rsplit("_", 1)[-1]
        items.append(
            Item(
                path.stem, ASKED["bci"], task="he-to-ihc", modality="histopathology", image=path.stem,
                groups={"HER2": level} if level in ("0", "1+", "2+", "3+") else {},
                pictures=(Picture(path),), target=Picture(root / "IHC" / section / path.name),
            )
        )  # fmt: skip
    return present(items, root)


def ixi(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """IXI as AMIR prepares it: low against high quality; of volumes some slices."""
    folder = folder_of(root, section) / section
    if not (folder / "LQ").is_dir():
        return [], [f"{section}/LQ", f"{section}/HQ"]
    items = []
    for path in _pictures(folder / "LQ", volumes=True):
        pair = Picture(path), Picture(folder / "HQ" / path.name)
        for number, (low, high) in enumerate(_slices(*pair)):
            stem = path.name.split(".")[0]
            name = f"{stem} {number}" if low.place else stem
            items.append(
                Item(name, ASKED["ixi-sr4"], task="sr4", modality="mri", image=name, patient=stem,
                     pictures=(low,), target=high)
            )  # fmt: skip
    return present(items, root)


def brats23(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """BraTS 2023 gliomas: T2 to FLAIR and FLAIR to T2, some axial slices of each case."""
    cases = sorted(path for path in folder_of(root, "BraTS-*").glob("BraTS-*") if path.is_dir())
    items = []
    for case in cases:
        t2, flair = (Picture(_volume(case / f"{case.name}-{kind}.nii.gz")) for kind in ("t2w", "t2f"))
        for number, (one, other) in enumerate(_slices(t2, flair)):
            for task, shown, target in (("t2-to-flair", one, other), ("flair-to-t2", other, one)):
                items.append(
                    Item(
                        f"{case.name} {number} {task}", ASKED[task], task=task, modality="mri",
                        anatomy="brain", image=f"{case.name} {number}", patient=case.name,
                        pictures=(shown,), target=target,
                    )
                )  # fmt: skip
    return present(items, root)


def icg_cxr(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """ICG-CXR: a film, a change in words, the later film, and what is to be seen of it."""
    files = sorted(path for path in root.glob("**/*-*.json") if path.stem == path.parent.name)
    if not files:
        raise ValueError(f"{root} has no PAIR/PAIR.json: give the folder icg-cxr-v1.")
    items = []
    for path in files:
        (row,) = json_rows_of_one(path, ("progression-description", "changes-of-findings"))
        ref, flu = (path.with_name(f"{path.stem}-{kind}-reg.png") for kind in ("ref", "flu"))
        patient = str(row.get("subject-id", path.parent.parent.name))
        items.append(
            Item(
                f"{path.parent.parent.name}/{path.stem}", str(row["progression-description"]),
                str(row["changes-of-findings"]), task="counterfactual", answer_type="report", modality="xray",
                anatomy="chest", image=path.stem, patient=patient,
                groups={"source": path.relative_to(root).parts[0]},
                pictures=(Picture(ref),), target=Picture(flu),
            )
        )  # fmt: skip
    return present(items, root)


def segmentation(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """Sets of images with masks; labels.json of each says which value is which label."""
    sets = sorted(path.parent for path in folder_of(root, "*/labels.json").glob("*/labels.json"))
    items = []
    for folder in sets:
        values = _labels(folder / "labels.json")
        legend = {name: KNOWN.get(name, COLOURS[n % len(COLOURS)]) for n, name in enumerate(values)}
        listed = ", ".join(f"{name} in RGB {colour}" for name, colour in legend.items())
        masks = {path.name.split(".")[0]: path for path in _pictures(folder / "masks", volumes=True)}
        for path in _pictures(folder / "images", volumes=True):
            stem = path.name.split(".")[0]
            mask = masks.get(stem, folder / "masks" / path.name)
            items.append(
                Item(
                    f"{folder.name}/{stem}", f"Draw a mask: {listed}; the rest black.", task="segmentation",
                    groups={"set": folder.name}, image=f"{folder.name}/{stem}", pictures=(Picture(path),),
                    target=Picture(mask), legend=legend, values=values,
                )
            )  # fmt: skip
    return present(items, root)


def json_rows_of_one(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """A JSON file of one object, checked as `json_rows` checks a list."""
    try:
        row = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is no JSON that can be read: get it again.") from error
    if not isinstance(row, dict) or (lost := [key for key in needed if key not in row]):
        what = f"no {lost[0]!r}" if isinstance(row, dict) else "no mapping"
        raise ValueError(f"{path.name} has {what}, expected {', '.join(needed)}: get it again.")
    return [row]


def _table(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    if path.suffix == ".jsonl":
        return [{k: str(v) for k, v in row.items()} for row in json_rows(path, needed)]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows, 1):
        if lost := [name for name in needed if row.get(name) is None]:
            raise ValueError(
                f"{path.parent.name}/{path.name} row {number} has no {lost[0]!r}, expected "
                f"{', '.join(needed)}: mend it."
            )
    return rows


def _labels(path: Path) -> dict[str, int]:
    (values,) = json_rows_of_one(path, ())
    if not values or not all(isinstance(value, int) and value for value in values.values()):
        raise ValueError(
            f"{path.parent.name}/{path.name} has {values!r}, expected a label for each whole number above 0."
        )
    return values


def _pictures(folder: Path, volumes: bool = False) -> list[Path]:
    endings = (*PICTURES, *NIFTI) if volumes else PICTURES
    return sorted(path for path in folder.glob("*") if path.name.lower().endswith(endings))


def _volume(path: Path) -> Path:
    """The file, or the same without .gz if that is what lies there."""
    bare = path.with_suffix("")
    return bare if bare.is_file() and not path.is_file() else path


def _slices(one: Picture, other: Picture) -> Iterator[tuple[Picture, Picture]]:
    """The slices of two volumes, or two pictures as they are."""
    if not one.file.name.endswith(NIFTI):
        yield one, other
        return
    for number in range(SLICES):
        yield Picture(one.file, (number, SLICES)), Picture(other.file, (number, SLICES))
