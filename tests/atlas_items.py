# SPDX-License-Identifier: Apache-2.0
"""Made-up items of every kind of task, as the atlas benchmark has them."""

from __future__ import annotations

from typing import Any

import torch

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation.image import paint
from monai_unimedvl.sequence import Turn

SECTIONS = ("train", "test", "test_subject")


def items(section: str, count: int = 3) -> list[dict[str, Any]]:
    """Some items of every kind, as AtlasDataset gives them."""
    generator = torch.Generator().manual_seed(SECTIONS.index(section))
    found = []
    for n in range(count):
        picture = torch.rand(3, 8, 8, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        plane = ("axial", "coronal")[n % 2]
        mask = (picture[0] > 0.5).to(torch.uint8) + (picture[1] > 0.8)
        for task, asked, told, question in (
            ("vqa", "Which plane is this?", plane, "plane"),
            ("vqa", "Is the thalamus visible?", "no", "region: thalamus"),
            ("caption", "Describe this image.", f"{plane} T1 MRI of the head.", ""),
            ("text-to-image", None, picture, ""),
            ("sr4", "Sharpen.", picture, ""),
            ("seg-tissue", "Segment.", paint(mask.unsqueeze(0), LEGENDS["seg-tissue"])[0], ""),
            ("h-to-he", "Stain.", picture.flip(0), ""),
        ):
            shown = [] if asked is None else [picture]
            found.append(
                {
                    "id": f"{task}/{section}/{n}/{question}", "task": task, "section": section,
                    "source": ("spmPET", "ch2")[n % 2], "subject": "s", "modality": "MRI", "contrast": "T1",
                    "body": ("head", "chest")[n % 2],
                    "turns": [Turn("user", [*shown, asked or f"{plane} T1 MRI."]), Turn("assistant", [told])],
                    "plane": plane, "question": question, "balanced": question == "plane",
                    "kind": "text" if isinstance(told, str) else "image",
                    "truth": told, "baseline": picture * 0.5 if task == "sr4" else None,
                    "mask": mask if task == "seg-tissue" else None,
                }
            )  # fmt: skip
    return found
