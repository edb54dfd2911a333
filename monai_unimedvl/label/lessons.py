# SPDX-License-Identifier: Apache-2.0
"""Labels in MONAI Label's data store -> what the model learns from: masks, questions with answers, reports.

A mask is any label map, its names those that the client sent with it. Words are a JSON file:
  {"question": "Is a tumour visible?", "answer": "yes"}, a list of such, {"pairs": [...]},
  {"report": "Findings: ...", "prompt": "Describe this image."}, or {"prompt": ..., "text": ...} as the tasks
  answer and report write it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS
from monai_unimedvl.data.own import asked_for
from monai_unimedvl.label.pictures import source_of
from monai_unimedvl.label.writing import read_nrrd
from monai_unimedvl.provenance import Facts, manifest_path, save_volume

logger = logging.getLogger(__name__)

FINAL, ORIGINAL = "final", "original"  # MONAI Label's tags: what a person has handed in, what a model made


@dataclass
class Gathered:
    """What the data store has to teach.

    Args:
        items: as `data.own.list_own` gives them, one a volume.
        labels: name -> number in the masks, all masks together.
        skipped: why a label teaches nothing, without its name.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def gather(
    datastore: Any, named: Mapping[str, int], kinds: str = "all", folder: Path | None = None
) -> Gathered:
    """Every label of the data store that was handed in, as items to learn from.

    An image has one label for each tag; all tags but "original" teach, so that a mask may be "final" and a
    report of the same image "report".

    Args:
        named: name -> number of masks that come without names.
        kinds: "masks", "words" or "all".
        folder: where masks in NRRD are written as NIfTI, which recipes read.

    Raises:
        ValueError: nothing in it can be learned from.
    """
    found = Gathered()
    datastore.datalist()  # of an archive: fetches what was handed in
    for image_id in sorted(datastore.list_images()):
        tags = datastore.get_labels_by_image_id(image_id)
        for tag in sorted(set(tags) - {ORIGINAL}):
            label = Path(datastore.get_label_uri(tags[tag], tag))
            image = source_of(datastore.get_image_uri(image_id))
            info = datastore.get_label_info(image_id, tag) or {}
            try:
                if label.suffix.lower() == ".json":
                    found.items += [] if kinds == "masks" else words_of(label, image)
                elif kinds != "words":
                    names = names_of(info, named)
                    found.items.append(
                        {**asked_for(names), "image": str(image), "target": str(_mask(label, folder))}
                    )
                    found.labels |= names
            except ValueError as error:
                said = str(error).replace(label.name, "a label").replace(image.name, "an image")
                found.skipped.append(said)
    for reason in found.skipped:
        logger.warning("a label teaches nothing: %s", reason)
    if not found.items:
        why = f" ({len(found.skipped)} cannot be used: {found.skipped[0]})" if found.skipped else ""
        raise ValueError(
            f"the data store has no label that was handed in to learn from{why}, expected masks or"
            " JSON with words: label images first."
        )
    return found


def words_of(label: Path, image: Path) -> list[dict[str, Any]]:
    """The questions and reports in a JSON file, as items.

    Raises:
        ValueError: it holds none.
    """
    try:
        content = json.loads(label.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{label.name} is no JSON, expected questions and answers: write it anew."
        ) from error
    items = [
        {"kind": "answer", "words": question, "answer": answer, "image": str(image)}
        for question, answer in _pairs(content)
    ]
    if not items:
        raise ValueError(
            f'{label.name} holds no words, expected {{"question": ..., "answer": ...}}, a list of these, or'
            ' {"report": ...}: write it anew.'
        )
    return items


def names_of(info: Mapping[str, Any], named: Mapping[str, int]) -> dict[str, int]:
    """Name -> number of a mask: as the client said when it sent it, else `named`.

    Raises:
        ValueError: nobody said.
    """
    told = info.get("label_info") or (info.get("params") or {}).get("label_info") or []
    names = {
        str(one["name"]): int(one.get("idx", one.get("labelID", place)))
        for place, one in enumerate(told, 1)
        if isinstance(one, Mapping) and one.get("name")
    }
    if not (names or named):
        raise ValueError(
            'a mask came without names, expected label_info such as [{"name": "liver", "idx": 1}] with it:'
            ' send it so, or train with labels="liver=1".'
        )
    return names or dict(named)


def labels_in(text: str) -> dict[str, int]:
    """Name -> number of "liver=1, spleen=2"; without numbers, from 1 on.

    Raises:
        ValueError: a number that is none, or two alike.
    """
    names: dict[str, int] = {}
    for place, part in enumerate(filter(None, (one.strip() for one in text.split(","))), 1):
        name, _, number = (one.strip() for one in part.partition("="))
        if not name or (number and not number.isdigit()) or number == "0":
            raise ValueError(f"labels has {part!r}, expected names and numbers such as liver=1: correct it.")
        names[name] = int(number or place)
    if len(set(names.values())) < len(names):
        raise ValueError(f"labels is {text!r}, expected a number of its own for each name: correct it.")
    return names


def _pairs(content: Any) -> Iterator[tuple[str, str]]:
    if isinstance(content, list):
        for one in content:
            yield from _pairs(one)
    elif isinstance(content, Mapping):
        yield from _pairs(content.get("pairs") or [])
        report = content.get("report")
        if isinstance(report, Mapping):
            report = " ".join(filter(None, [*report.get("findings", ()), report.get("impression", "")]))
        answer = content.get("answer") or report or content.get("text")
        question = (
            content.get("question") or content.get("prompt") or (INSTRUCTIONS["caption"] if report else "")
        )
        if isinstance(answer, str) and answer.strip() and isinstance(question, str) and question.strip():
            yield question.strip(), answer.strip()


def _mask(label: Path, folder: Path | None) -> Path:
    """The label as a file that recipes read: Slicer's NRRD becomes a NIfTI."""
    if label.suffix.lower() != ".nrrd":
        return label
    values, affine = read_nrrd(label)
    if folder is None:
        raise ValueError(f"{label.name} is NRRD, expected NIfTI here: convert it.")
    out = folder / "masks" / f"{label.parent.name}-{label.name.removesuffix('.nrrd')}.nii.gz"
    kind = np.uint8 if int(values.max(initial=0)) <= 255 else np.int32
    tensor = MetaTensor(np.ascontiguousarray(values.astype(kind))).as_tensor()
    save_volume(tensor, affine, out, Facts("label", 0, ""))
    manifest_path(out).unlink()
    return out
