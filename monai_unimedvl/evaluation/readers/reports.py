# SPDX-License-Identifier: Apache-2.0
"""Reports of chest films: MIMIC-CXR and IU X-Ray, by R2Gen's annotation.json or a list of findings."""

from __future__ import annotations

import json
from pathlib import Path

from monai_unimedvl.evaluation.readers.base import Item, Picture, folder_of, json_rows, present

ASKED = "Describe the findings and give an impression."


def reports(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """annotation.json {"test": [{id, report, image_path}]}, or test.json [{findings, impression, image}]."""
    folder = folder_of(root, "annotation.json", f"{section}.json")
    path = folder / "annotation.json"
    if path.is_file():
        try:
            rows = json.loads(path.read_text("utf8"))[section]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path.name} holds no list under {section!r}, expected R2Gen's form."
            ) from error
        texts = [str(row["report"]).strip() for row in rows]
        names = [list(map(str, row["image_path"])) for row in rows]
        keys = [str(row["id"]) for row in rows]
        patients = [str(row.get("subject_id", "")) for row in rows]
    else:
        rows = json_rows(folder / f"{section}.json", ("findings", "impression", "image"))
        texts = [_joined(row["findings"], row["impression"]) for row in rows]
        names = [[row["image"]] if isinstance(row["image"], str) else list(row["image"]) for row in rows]
        keys = [str(row.get("id", number)) for number, row in enumerate(rows)]
        patients = [str(row.get("patient", "")) for row in rows]
    items = [
        Item(
            key, ASKED, text, task="report", answer_type="report", modality="xray", anatomy="chest",
            image=key, patient=patient, pictures=tuple(Picture(folder / "images" / name) for name in files),
        )
        for key, text, files, patient in zip(keys, texts, names, patients, strict=True)
        if text
    ]  # fmt: skip
    return present(items, root)


def _joined(findings: str, impression: str) -> str:
    parts = [("Findings", str(findings).strip()), ("Impression", str(impression).strip())]
    return " ".join(f"{name}: {text}" for name, text in parts if text)
