# SPDX-License-Identifier: Apache-2.0
"""What is known beside the images: history, laboratory values, the prior study, and where to look."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.cli.reading import Reading, read_images
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import read_report, sha256
from monai_unimedvl.transforms.dicom import is_dicom
from monai_unimedvl.transforms.regions import numbers_of, region_of
from monai_unimedvl.transforms.structured import Case, Lab, read_labs

FILES = ("labs", "prior_report", "prior_image")  # options that name files


@dataclass(frozen=True)
class Known:
    """The parts of a case that the images and the question leave open.

    Args:
        prior: pictures of the prior study, or None.
        boxes: as the user wrote them.
        inputs: sha256 of the files that were read.
    """

    history: str
    indication: str
    labs: Sequence[Lab]
    prior: Reading | None
    prior_report: str
    boxes: Sequence[str]
    inputs: list[str]

    def prompt(self, pictures: Sequence[MetaTensor], question: str) -> list[str | Tensor]:
        """Words and images for an inferer, in order.

        Raises:
            ValueError: a region that does not lie on the first picture.
        """
        case = Case(
            pictures, question, self.history, self.indication, self.labs,
            () if self.prior is None else self.prior.pictures, self.prior_report,
            [region_of(text, pictures[0]) for text in self.boxes],
        )  # fmt: skip
        return [part.as_tensor() if isinstance(part, MetaTensor) else part for part in case.prompt()]


def known_of(options: Namespace, network: UniMedVL) -> Known:
    """What the options say beside the images.

    Raises:
        ValueError: a file that cannot be read, or a box that is none.
    """
    for text in options.box or ():
        numbers_of(text)
    labs = read_labs(options.labs) if options.labs else []
    if options.labs and not labs:
        raise ValueError(f"{Path(options.labs).name} holds no row with a name and a value: fill it in.")
    prior = None
    if options.prior_image:
        prior = read_images([options.prior_image], options, network)
    return Known(
        options.history or "",
        options.indication or "",
        labs,
        prior,
        _report(Path(options.prior_report)) if options.prior_report else "",
        options.box or (),
        [sha256(path) for path in files_of(options)],
    )


def files_of(options: Namespace) -> list[str]:
    """The files that the options name beside the images."""
    return [path for name in FILES if (path := getattr(options, name, None))]


def _report(path: Path) -> str:
    """A prior report: text, a JSON that this program wrote, or a DICOM SR."""
    if not path.is_file():
        raise ValueError(f"--prior-report {path} does not exist, but a file is expected: check the path.")
    if is_dicom(path):
        parts = read_report(path)
        return "\n".join(part for part in (parts.findings, parts.impression) if part)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no text in UTF-8: give a text, a .json or a DICOM SR.") from error
    if path.suffix.lower() == ".json":
        try:
            text = json.loads(text)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path.name} holds no 'text': give what `unimedvl report --out` wrote."
            ) from error
    if not str(text).strip():
        raise ValueError(f"{path.name} holds no word, but a prior report is expected: leave it out.")
    return str(text)
