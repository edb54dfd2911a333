# SPDX-License-Identifier: Apache-2.0
"""A tiny network in float64 whose vocabulary is that of a small real tokenizer."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_network
from torch import Tensor

from monai_unimedvl.inferers import segments_for
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.segments import ToSegments


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["which plane is this? axial coronal sagittal"] * 3, 270)


@pytest.fixture
def tiny(tokenizer: Tokenizer) -> UniMedVL:
    """A network that often ends its answers, so that those of a batch have different lengths."""
    network = tiny_network(decoder={"vocab_size": len(tokenizer), "max_context": 200}).eval()
    network.decoder.head.weight.data[tokenizer.marks.text_end] *= -1.5
    return network


@pytest.fixture
def segments(tiny: UniMedVL, tokenizer: Tokenizer) -> ToSegments:
    return segments_for(tiny, tokenizer)


@pytest.fixture
def image() -> Tensor:
    """(3, 9, 12) in [0, 1]: not of the network's size."""
    return torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def other() -> Tensor:
    """(3, 16, 16) in [0, 1]"""
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(6))
