# SPDX-License-Identifier: Apache-2.0
"""What MONAI's engines have made, in files: whose seed is sealed, and that nothing made is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from tiny import tiny_network
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl import provenance
from monai_unimedvl.inferers import Answer, ImageInferer, InterleavedInferer, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.engine import AtSourceSized, PreparePrompts, SaveResults
from monai_unimedvl.training.volumes import SaveVolumes
from monai_unimedvl.transforms import recipe


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


def test_each_of_several_outputs_is_a_marked_file_of_its_own(
    tiny: UniMedVL, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    outputs = ["text", ("image", "coronal"), "image"]
    infer = InterleavedInferer(tokenizer, outputs=outputs, steps=2, max_new_tokens=3, seed=5)  # type: ignore
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    answer, first, second = infer([[image[0], "axial"]], tiny)[0]
    written = run(infer, tiny, tmp_path, image)
    assert [path.name for path in written] == ["made-1.json", "made-2.png", "made-3.png"]
    assert json.loads(written[0].read_text("utf8"))["text"] == str(answer)
    assert [provenance.examine(path).case for path in written[1:]] == ["marked"] * 2
    marks = [provenance.examine(path).mark or {} for path in written]
    for path, drawing in zip(written[1:], (first, second), strict=True):
        assert isinstance(drawing, Tensor)
        pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).movedim(-1, 0)  # (3, H, W)
        assert_close(pixels / 255, drawing.float(), atol=0.51 / 255, rtol=0)
    assert [mark["prompt"] for mark in marks] == ["axial", "axial coronal", "axial coronal"]
    assert {mark["seed"] for mark in marks} == {5}


def test_each_drawing_of_a_list_comes_back_on_its_pixels() -> None:
    sides = [(20, 30), (24, 30)]
    pictures = [recipe("histopathology", field="square")(torch.rand(3, *side))[0] for side in sides]
    drawn, words = [picture.as_subclass(Tensor) for picture in pictures], Answer("axial", (), (), "end")
    back = AtSourceSized("pred")
    mixed, group = back({"pred": [[words, drawn[1]], drawn], "image": [[*pictures, "a"]] * 2})["pred"]
    assert mixed[0] is words and mixed[1].shape == (3, *sides[1])
    assert [one.shape for one in group] == [(3, *side) for side in sides]
