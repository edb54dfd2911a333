# SPDX-License-Identifier: Apache-2.0
"""Training of the autoencoder on real slices: pictures come back better, latents stay where they should."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny import tiny_network
from torch import Tensor

from monai_unimedvl.bundle import find
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.training.autoencoder import (
    WEIGHTS,
    AutoencoderModule,
    AutoencoderRates,
    Crops,
    load_autoencoder,
    psnr,
    put_autoencoder,
    rescale,
    save_autoencoder,
    small_autoencoder,
    train_autoencoder,
)
from monai_unimedvl.transforms import recipe


@pytest.fixture(scope="module")
def slices() -> list[Tensor]:
    """Real scans, the ones that are shipped with the nano bundle: (3, H, W) in [0, 1]."""
    files = sorted((find("unimedvl_nano") / "samples").rglob("*.png"))
    images = [image.as_subclass(Tensor) for file in files for image in recipe("histopathology")(file)]
    assert len(images) >= 3
    return images


def tiny(seed: int = 0) -> torch.nn.Module:
    return small_autoencoder((8, 16), latent_channels=3, seed=seed)


def test_a_few_steps_on_real_slices_bring_pictures_back_better(slices: list[Tensor]) -> None:
    autoencoder = tiny()
    before = psnr(autoencoder, slices)
    rates = AutoencoderRates(lr=5e-3)
    train_autoencoder(autoencoder, slices, rates, steps=25, side=32, batch=4, progress=False)
    assert psnr(autoencoder, slices) > before + 3
    assert not any(p.requires_grad for p in autoencoder.parameters()) and not autoencoder.training


def test_training_the_decoder_alone_leaves_latents_where_they_are(slices: list[Tensor]) -> None:
    autoencoder = tiny()
    x = slices[0][None, :, :32, :32] * 2 - 1
    latents, picture = autoencoder.encode_stage_2_inputs(x), autoencoder(x)
    rates = AutoencoderRates(part="decoder", lr=5e-3)
    train_autoencoder(autoencoder, slices, rates, steps=3, side=32, batch=2, progress=False)
    assert torch.equal(autoencoder.encode_stage_2_inputs(x), latents)
    assert not torch.allclose(autoencoder(x), picture)


def test_a_discriminator_learns_beside_and_its_word_counts_from_its_step_on(slices: list[Tensor]) -> None:
    plain, judged, late = tiny(), tiny(), tiny()
    for autoencoder, weight, begins in ((plain, 0.0, 0), (judged, 0.5, 0), (late, 0.5, 99)):
        rates = AutoencoderRates(lr=1e-3, adversarial=weight, adversarial_from=begins)
        train_autoencoder(autoencoder, slices, rates, steps=2, side=32, batch=2, progress=False)
    weights = [next(x.net.decoder.parameters()) for x in (plain, judged, late)]
    assert not torch.equal(weights[0], weights[1]) and torch.allclose(weights[0], weights[2])


def test_the_kl_is_that_of_two_normal_distributions() -> None:
    autoencoder = tiny()
    found, _ = AutoencoderModule(autoencoder).losses(torch.zeros(2, 3, 16, 16), None)
    mean, deviation = autoencoder.encode(torch.zeros(2, 3, 16, 16))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum() / 2
    torch.testing.assert_close(found["kl"], wanted)


def test_rescaled_latents_have_mean_zero_and_deviation_one(slices: list[Tensor], tmp_path: Path) -> None:
    autoencoder = rescale(tiny(), slices, 32)
    x = torch.cat([batch for batch, _ in zip(Crops(slices, 32, 8, seed=5), range(8), strict=False)])
    z = autoencoder.encode_stage_2_inputs(x)
    assert abs(float(z.mean())) < 0.2 and 0.8 < float(z.std()) < 1.2
    again = load_autoencoder(save_autoencoder(autoencoder, tmp_path / "ae"))
    assert torch.equal(again(x), autoencoder(x)) and again.scale == autoencoder.scale
    (tmp_path / "ae" / WEIGHTS).write_bytes(b"{}")
    with pytest.raises(ValueError, match="holds a damaged autoencoder"):
        load_autoencoder(tmp_path / "ae")


def test_an_autoencoder_goes_into_a_network_of_its_latents_only() -> None:
    network = tiny_network()
    codec = copy.deepcopy(network.autoencoder)
    assert put_autoencoder(network, codec).autoencoder is codec
    with pytest.raises(ValueError, match="has 5 channels and 2 pixels a cell, the network expects 3 and 2"):
        put_autoencoder(network, PatchCodec(2, 5))


def test_what_cannot_be_trained_gets_one_line(slices: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a 2-D PatchCodec of 0 parameters, expected a 2-D one that learns"):
        train_autoencoder(PatchCodec(8, 12), slices)
    with pytest.raises(ValueError, match="Crops of 33 pixels came, expected a multiple of 2"):
        train_autoencoder(tiny(), slices, side=33)
    with pytest.raises(ValueError, match="Crops of 4096 pixels came with an image of"):
        train_autoencoder(tiny(), slices, side=4096)
    with pytest.raises(ValueError, match="with no image"):
        Crops([], 32)
    with pytest.raises(ValueError, match="part is 'encoder', expected one of both, decoder"):
        AutoencoderRates(part="encoder")
    with pytest.raises(ValueError, match="expected rates above 0"):
        AutoencoderRates(lr=0.0)
    with pytest.raises(ValueError, match="has no autoencoder.json"):
        load_autoencoder(tmp_path)
    broken = [torch.full((3, 64, 64), float("nan"))]
    with pytest.raises(ValueError, match="loss is nan: lower the rate, or check the images"):
        train_autoencoder(tiny(), broken, steps=1, side=32, progress=False)
