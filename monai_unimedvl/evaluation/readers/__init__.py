# SPDX-License-Identifier: Apache-2.0
"""Benchmarks by name, read from files that the user has downloaded.

benchmark = read_benchmark("vqa-rad", "data/vqa-rad")
benchmark.items[0].prompt(protocol("strict-v1").suffixes["closed"]["en"])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from monai_unimedvl.evaluation.readers import choices, images, questions
from monai_unimedvl.evaluation.readers.base import Benchmark, Item, Picture, Read, checked
from monai_unimedvl.evaluation.readers.reports import reports

__all__ = ["BENCHMARKS", "Benchmark", "Item", "Known", "Picture", "read_benchmark"]


@dataclass(frozen=True)
class Known:
    """A benchmark that can be read.

    Args:
        source: where its files are had from.
        sections: section -> published number of items, None where none is published.
        read: (folder, section) -> items, missing files.
        md5: file -> md5 that its publisher states.
    """

    source: str
    sections: Mapping[str, int | None]
    read: Read
    md5: Mapping[str, str] = field(default_factory=dict)


SLAKE = "huggingface.co/datasets/BoKelvin/SLAKE (imgs.zip unpacked)"
BENCHMARKS: dict[str, Known] = {
    "vqa-rad": Known(
        "huggingface.co/datasets/flaviagiammarino/vqa-rad, or osf.io/89kps",
        {"test": 451}, questions.vqa_rad,
    ),
    "slake": Known(SLAKE, {"test": 2094, "validation": 2099}, questions.slake),
    "slake-en": Known(
        SLAKE, {"test": 1061, "validation": 1053}, partial(questions.slake, language="en")
    ),
    "slake-zh": Known(
        SLAKE, {"test": 1033, "validation": 1046}, partial(questions.slake, language="zh")
    ),
    "pathvqa": Known(
        "huggingface.co/datasets/flaviagiammarino/path-vqa",
        {"test": 6719, "validation": 6259}, questions.pathvqa,
    ),
    "omnimedvqa": Known(
        "huggingface.co/datasets/foreverbeliever/OmniMedVQA (open access), or its 30 TSV parts",
        {"test": 88_996}, choices.omnimedvqa,
    ),
    "gmai-mmbench": Known(
        "huggingface.co/datasets/VLMEval/GMAI-MMBench", {"val": 4550}, choices.gmai,
        {choices.GMAI_FILE: choices.GMAI_MD5},
    ),
    "medxpertqa-mm": Known(
        "huggingface.co/datasets/TsinghuaC3I/MedXpertQA (images.zip unpacked)",
        {"test": 2000, "dev": 5}, choices.medxpertqa,
    ),
    "text-to-image": Known("your own folders of captions and images", {"test": None}, images.text_to_image),
    "bci": Known("bupt-ai-cz.github.io/BCI", {"test": 977}, images.bci),
    "ixi-sr4": Known("brain-development.org/ixi-dataset, prepared as AMIR does", {"test": None}, images.ixi),
    "brats23": Known("synapse.org/brats2023 (GLI)", {"test": None}, images.brats23),
    "icg-cxr": Known(
        "physionet.org and aimi.stanford.edu, prepared as ProgEmu does", {"all": 11_439}, images.icg_cxr
    ),
    "segmentation": Known("your own folders of images and masks", {"test": None}, images.segmentation),
    "mimic-cxr": Known(
        "physionet.org/content/mimic-cxr-jpg, with R2Gen's annotation.json", {"test": 3858}, reports
    ),
    "iu-xray": Known("openi.nlm.nih.gov, with R2Gen's annotation.json", {"test": 590}, reports),
}  # fmt: skip


def read_benchmark(
    name: str, folder: str | Path, *, section: str | None = None, partial: bool = False,
    items: int | None = None,
) -> Benchmark:  # fmt: skip
    """The items of a benchmark in a folder; nothing is downloaded.

    Args:
        section: the first that the benchmark has, mostly "test", if None.
        partial: take what is there; `Benchmark` says what is missing, and a report has to.
        items: their number, where another than the published one is known to be right.

    Raises:
        ValueError: an unknown benchmark or section; files that are missing or not what they should be; a
            number of items that is not the published one.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark is {name!r}, expected one of {', '.join(BENCHMARKS)}.")
    known = BENCHMARKS[name]
    chosen = section or next(iter(known.sections))
    if chosen not in known.sections:
        raise ValueError(f"section of {name} is {chosen!r}, expected one of {', '.join(known.sections)}.")
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder} is no folder, expected that of {name}: get it from {known.source}.")
    found, missing = known.read(root, chosen)
    published = known.sections[chosen] if items is None else items
    for file, wanted in known.md5.items():
        if (root / file).is_file() and items is None and not partial:
            if (digest := choices.digest(root / file)) != wanted:
                raise ValueError(
                    f"{file} has md5 {digest}, published is {wanted}: get it from {known.source}."
                )
    return checked(Benchmark(name, chosen, found, published, missing), partial=partial, source=known.source)
