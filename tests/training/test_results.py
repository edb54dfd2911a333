# SPDX-License-Identifier: Apache-2.0
"""What MONAI's engines have made, in files: whose seed is sealed, and that nothing made is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import SupervisedEvaluator
from tiny import tiny_network
from torch import Tensor

from monai_unimedvl import provenance
from monai_unimedvl.inferers import ImageInferer, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.engine import PreparePrompts, SaveResults
from monai_unimedvl.training.volumes import SaveVolumes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["which plane is this? axial coronal sagittal"] * 3, 270)


@pytest.fixture
def tiny(tokenizer: Tokenizer) -> UniMedVL:
    return tiny_network(decoder={"vocab_size": len(tokenizer), "max_context": 200}).eval()


def run(inferer: Any, network: Any, folder: Path, images: Tensor) -> list[Path]:
    """The files that are written of one batch (B, 3, H, W)."""
    handler = SaveResults(folder, "made", weights="w" * 64)
    SupervisedEvaluator(
        device="cpu", val_data_loader=[{"image": images}], network=network, inferer=inferer, decollate=False,
        prepare_batch=PreparePrompts("axial"), val_handlers=[handler],
    ).run()  # fmt: skip
    return handler.written


def test_of_a_generator_the_seed_that_was_drawn_is_sealed_and_gives_the_same_picture(
    tiny: UniMedVL, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    chance = torch.Generator().manual_seed(77)
    drawn = run(ImageInferer(tokenizer, steps=2, generator=chance), tiny, tmp_path / "a", images)
    marks = [provenance.verify(path) for path in drawn]
    assert len({mark["seed"] for mark in marks}) == 2
    seeds = [mark["seed"] for mark in marks]
    again = run(ImageInferer(tokenizer, steps=2, seed=seeds), tiny, tmp_path / "b", images)
    assert [provenance.verify(path)["content"] for path in again] == [mark["content"] for mark in marks]


def test_a_volume_of_several_seeds_is_refused_at_the_start(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings: list[tuple[dict[str, Any], str]] = [
        ({"generator": torch.Generator()}, "a generator"),
        ({"seed": [1, 2]}, "several seeds"),
    ]
    for options, came in settings:
        inferer = VolumeInferer(ImageInferer(tokenizer, steps=2, **options), instruction="axial")
        evaluator = SupervisedEvaluator(
            device="cpu", val_data_loader=[], network=torch.nn.Identity(), inferer=inferer, decollate=False,
            val_handlers=[SaveVolumes(tmp_path, "made", weights="w" * 64)], epoch_length=1,
        )  # fmt: skip
        with pytest.raises(ValueError, match=f"ImageInferer with {came}, expected one seed for all slices"):
            evaluator.run()
