# SPDX-License-Identifier: Apache-2.0
"""A stock segmentation network and our inferers, in one chain and in MONAI's evaluator."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    MaskIntensityd,
    ScaleIntensityd,
)
from torch import Tensor

from monai_unimedvl.inferers import Answerd, TextInferer, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.volume import SelectSlices


@pytest.fixture
def unet() -> UNet:
    """A stock network with fixed weights."""
    torch.manual_seed(7)
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,)).eval()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).uniform(0, 100, (16, 16, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_stock_network_segments_and_ours_answers_in_one_evaluator(
    tiny: UniMedVL, tokenizer: Tokenizer, unet: UNet, scan: Path
) -> None:
    read = VolumeInferer(
        TextInferer(tokenizer, max_new_tokens=4), select=SelectSlices(count=2, plane="coronal"), per="slice"
    )
    before = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), ScaleIntensityd("image")])
    after = Compose(
        [
            AsDiscreted("pred", argmax=True),
            MaskIntensityd("image", mask_key="pred"),  # only what the UNet has segmented is shown to ours
            Answerd("image", read, tiny, "which plane is this?"),
        ]
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": scan}] * 2, before), batch_size=2),
        network=unet,
        inferer=SlidingWindowInferer((16, 16, 8)),
        postprocessing=after,
    )
    evaluator.run()
    first, second = evaluator.state.output
    assert first["answer"] == second["answer"] and first["pred"].shape == (1, 16, 16, 8)
    with torch.no_grad():
        volume = before({"image": scan})["image"]
        mask = unet(volume[None]).argmax(1)
    assert 0 < float(mask.as_subclass(Tensor).float().mean()) < 1, "the mask masks something"
    expected = read(volume * mask, tiny, "which plane is this?")
    assert first["answer"] == "\n".join(map(str, expected))
    assert first["answer"].startswith("Coronal slice, A +")


def test_answers_run_in_a_chain_over_pictures(tiny: UniMedVL, tokenizer: Tokenizer) -> None:
    ask = TextInferer(tokenizer, max_new_tokens=3)
    pictures = torch.rand(2, 1, 9, 12)
    chain = Answerd(["a", "b"], ask, tiny, "plane?", names=["one", "two"], allow_missing_keys=True)
    made = Compose([chain])({"a": MetaTensor(pictures[0]), "b": pictures[1].numpy()})
    expected = ask([[one.expand(3, -1, -1), "plane?"] for one in pictures], tiny)
    assert [made["one"], made["two"]] == [str(one) for one in expected]
    assert "two" not in chain({"a": pictures[0]})
    assert decollate_batch({"answer": ["x", "y"]})[1]["answer"] == "y"
    with pytest.raises(ValueError, match="1 names for 2 keys, expected one each"):
        Answerd(["a", "b"], ask, tiny, "plane?")


def test_each_key_gets_the_answer_about_its_own_picture(tiny: UniMedVL) -> None:
    class Says:
        def __call__(self, batch, network):  # type: ignore[no-untyped-def]
            return [type("A", (), {"text": f"{float(part[0].mean()):.1f}"})() for part in batch]

    step = Answerd(["scan", "mask"], Says(), tiny, "how bright?", names=["first", "second"])  # type: ignore[arg-type]
    said = step({"scan": torch.full((1, 4, 4), 0.2), "mask": torch.full((1, 4, 4), 0.7)})
    assert (said["first"], said["second"]) == ("0.2", "0.7")
