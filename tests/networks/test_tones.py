# SPDX-License-Identifier: Apache-2.0
"""Tone curves: nothing when new, a curve over grey levels after, and only where a codec is linear."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.tones import Tones
from monai_unimedvl.networks.unimedvl import from_config, nano


def test_a_new_curve_changes_nothing() -> None:
    codec = PatchCodec(4, 48)
    source = codec.encode_stage_2_inputs(torch.rand(1, 3, 8, 8))[0].flatten(1).T
    assert not Tones(6, 5)(torch.randn(4, 6), source, codec).any()


def test_the_curve_is_applied_to_each_pixel_by_its_grey_level() -> None:
    codec, tones = PatchCodec(4, 48), Tones(6, 3)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    grey = image.mean(1, keepdim=True)
    source = codec.encode_stage_2_inputs(image)
    with torch.no_grad():  # points -1, 0, 1: red rises by 1 at the top, blue falls by 0.5 at the bottom
        tones.curve.bias.copy_(torch.tensor([[0, 0, -0.5], [0, 0, 0], [1.0, 0, 0]]).flatten())
    change = tones(torch.zeros(4, 6), source[0].flatten(1).T, codec)
    result = codec.decode_stage_2_outputs(source + change.T.view_as(source)).detach()
    red, blue = grey.clamp(min=0), 0.5 * grey.clamp(max=0)
    expected = image + torch.cat([red, torch.zeros_like(grey), blue], dim=1)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_pixels_and_project_are_the_codec_itself() -> None:
    codec = PatchCodec.fit(torch.rand(8, 3, 16, 16) * 2 - 1, patch=4, channels=48)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    tokens = codec.encode_stage_2_inputs(image)[0].flatten(1).T  # (16, 48)
    pixels = codec.pixels(tokens)  # (16, 16, 3)
    second = pixels[5].view(4, 4, 3).movedim(-1, 0)
    torch.testing.assert_close(second, image[0, :, 4:8, 4:8], atol=1e-4, rtol=0)
    back = codec.project(pixels - codec.pixels(torch.zeros_like(tokens)))
    torch.testing.assert_close(back, tokens, atol=1e-3, rtol=0)


def test_a_network_with_tones_is_rebuilt_from_its_config() -> None:
    network = nano(PatchCodec(8, 24), vocab_size=40, hidden_size=32, num_layers=1)
    twin = from_config(network.config)
    assert network.config["tones"] == 16
    assert twin.load_state_dict(network.state_dict()).missing_keys == []


def test_tones_without_a_linear_codec_are_refused() -> None:
    config = nano(PatchCodec(8, 24), vocab_size=40, hidden_size=32, num_layers=1).config
    with pytest.raises(ValueError, match="tones=16, details=24 and strokes=0, expected them"):
        from_config({**config, "prediction": "velocity"})


def test_grey_levels_are_read_whole_under_autocast() -> None:
    codec, tones = PatchCodec(4, 48), Tones(6, 16)
    source = codec.encode_stage_2_inputs(torch.rand(1, 3, 8, 8) * 2 - 1)[0].flatten(1).T
    with torch.no_grad():
        tones.curve.bias.copy_(torch.arange(48).float())  # whole numbers: the curve itself loses nothing
        plain = tones(torch.zeros(4, 6), source, codec)
        with torch.autocast("cpu", torch.bfloat16):
            halved = tones(torch.zeros(4, 6), source, codec)
    torch.testing.assert_close(halved, plain, atol=1e-4, rtol=0)
