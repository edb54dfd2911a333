# SPDX-License-Identifier: Apache-2.0
"""Made-up items, and a tiny network to ask about them."""

from __future__ import annotations

import pytest
import torch
from atlas_items import SECTIONS, items

from monai_unimedvl.evaluation import benchmarks
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer


@pytest.fixture(scope="module", autouse=True)
def few_words():
    """An untrained network never stops by itself: a few tokens say as much as many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "WORDS", {"vqa": 3, "caption": 5})
        yield


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
