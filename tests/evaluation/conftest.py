# SPDX-License-Identifier: Apache-2.0
"""A few made-up items of every task, and a tiny network to ask."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation import benchmarks
from monai_unimedvl.evaluation.image import paint
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer

SECTIONS = ("train", "test", "test_subject")


@pytest.fixture(scope="session", autouse=True)
def few_words():
    """An untrained network never stops by itself: a few tokens say as much as many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "WORDS", {"vqa": 3, "caption": 5})
        yield


def items(section, count=3):
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
                    "turns": [Turn("user", [*shown, asked or f"{plane} T1 MRI."]), Turn("assistant", [told])],
                    "plane": plane, "question": question, "balanced": question == "plane",
                    "kind": "text" if isinstance(told, str) else "image",
                    "truth": told, "baseline": picture * 0.5 if task == "sr4" else None,
                    "mask": mask if task == "seg-tissue" else None,
                }
            )  # fmt: skip
    return found


@pytest.fixture(scope="session")
def data():
    return {section: items(section) for section in SECTIONS}


@pytest.fixture(scope="session")
def model(data):
    tokenizer = Tokenizer.train(["axial coronal T1 MRI of the head. Which plane is this? Describe"] * 4, 300)
    torch.manual_seed(0)
    network = nano(PatchCodec(8, 192), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    network.latent_out.weight.data.normal_(std=0.02)
    return network, tokenizer
