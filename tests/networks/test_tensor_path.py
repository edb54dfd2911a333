# SPDX-License-Identifier: Apache-2.0
"""TensorPath is one real drawing: the inferer's numbers, every weight counts, sizes stay."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_network
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer
from monai_unimedvl.networks.tensor_path import TensorPath
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

WORDS = "which plane is this?"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["which plane is this? axial coronal sagittal"] * 3, 270)


@pytest.fixture
def network(tokenizer: Tokenizer) -> UniMedVL:
    return tiny_network(decoder={"vocab_size": len(tokenizer)}).eval()


def path(network: UniMedVL, tokenizer: Tokenizer, **options: object) -> TensorPath:
    return TensorPath(network, tokenizer.encode(WORDS), tokenizer.marks, **options)


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_it_draws_what_the_inferer_draws(network: UniMedVL, tokenizer: Tokenizer) -> None:
    images = pictures(2, 3, 16, 16).float()
    inferer = ImageInferer(tokenizer, steps=3, shift=network.timestep_shift, seed=7)
    drawn = inferer([[image, WORDS] for image in images], network)
    pred = path(network, tokenizer, steps=3, seed=7)(images)
    assert_close(pred, torch.stack(drawn).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.embed.weight", "decoder.layers.1.attention.q.generation.weight", "vision.patch.weight",
        "decoder.layers.0.mlp.understanding.up.weight", "latent_out.weight", "connector.fc1.weight",
    ],
)  # fmt: skip
def test_changing_one_weight_changes_pred(network: UniMedVL, tokenizer: Tokenizer, name: str) -> None:
    draw, image = path(network, tokenizer, steps=2), pictures(1, 3, 8, 8)
    before = draw(image)
    draw.state_dict()[f"network.{name}"].mul_(1.5)
    assert (draw(image) - before).abs().max() > 1e-6


def test_seed_words_and_picture_matter(network: UniMedVL, tokenizer: Tokenizer) -> None:
    image = pictures(1, 3, 8, 8)
    pred = path(network, tokenizer)(image)
    assert_close(path(network, tokenizer)(image), pred, atol=0, rtol=0)
    assert not torch.equal(path(network, tokenizer, seed=1)(image), pred)
    assert not torch.equal(path(network, tokenizer)(1 - image), pred)
    other = TensorPath(network, tokenizer.encode("axial"), tokenizer.marks)
    assert not torch.equal(other(image), pred)


def test_any_size_comes_back_as_it_came_and_grey_is_welcome(network: UniMedVL, tokenizer: Tokenizer) -> None:
    draw = path(network, tokenizer, steps=1)
    for size in [(8, 8), (9, 13), (40, 17)]:
        pred = draw(pictures(2, 1, *size).float())
        assert pred.shape == (2, 3, *size) and pred.dtype == torch.float32
        assert 0 <= pred.min() and pred.max() <= 1


def test_the_state_dict_is_that_of_the_network(network: UniMedVL, tokenizer: Tokenizer) -> None:
    names = path(network, tokenizer).state_dict()
    assert set(names) == {f"network.{name}" for name in network.state_dict()}


def test_wrong_input_is_refused(network: UniMedVL, tokenizer: Tokenizer) -> None:
    picture = torch.rand(1, 3, 16, 16)
    for wrong, range_ in ((picture * 255, r"\[.*, 25\d.*\]"), (picture * float("nan"), "nan, nan")):
        with pytest.raises(ValueError, match=rf"TensorPath got values in .*{range_}.*expected \[0, 1\]"):
            path(network, tokenizer)(wrong)
    assert path(network, tokenizer)(picture * 1.2 - 0.1).isfinite().all(), "resampled a little beyond"
    with pytest.raises(ValueError, match=r"float32 of shape \(3, 8, 8\), expected floats \(N, 1 | 3, H, W\)"):
        path(network, tokenizer)(pictures(3, 8, 8).float())
    with pytest.raises(ValueError, match="got torch.uint8 of shape"):
        path(network, tokenizer)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="steps=0, expected at least 1"):
        path(network, tokenizer, steps=0)
    with pytest.raises(ValueError, match="empty instruction"):
        TensorPath(network, [], tokenizer.marks)
    with pytest.raises(ValueError, match="network without vision"):
        TensorPath(tiny_network(vision=None), [1], tokenizer.marks)


def test_guided_and_from_words_alone_it_draws_what_the_inferer_draws(
    network: UniMedVL, tokenizer: Tokenizer
) -> None:
    inferer = ImageInferer(
        tokenizer, size=(16, 16), steps=3, shift=network.timestep_shift, guidance=Guidance(text=2.0)
    )
    (drawn,) = inferer([[WORDS]], network)
    draw = path(network, tokenizer, steps=3, guidance=2.0, reads=False)
    pred = draw(pictures(2, 3, 16, 16))
    assert_close(pred, torch.stack([drawn, drawn]).to(pred), atol=1e-6, rtol=0)
    edit = ImageInferer(tokenizer, steps=3, shift=network.timestep_shift, guidance=Guidance(text=2.0))
    image = pictures(1, 3, 16, 16).float()
    (drawn,) = edit([[image[0], WORDS]], network)
    assert_close(path(network, tokenizer, steps=3, guidance=2.0)(image)[0], drawn.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"guidance": 2.0, "reads": False}])
def test_scripted_it_draws_the_same(network: UniMedVL, tokenizer: Tokenizer, options: dict) -> None:
    draw = path(network, tokenizer, steps=2, **options)
    scripted = torch.jit.script(draw)
    side = network.grids["canvas"][0]
    for shape in ((1, 3, side, side), (2, 1, side, side)):
        image = pictures(*shape)
        assert_close(scripted(image), draw(image), atol=1e-6, rtol=0)  # traced in float32
