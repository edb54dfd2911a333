# SPDX-License-Identifier: Apache-2.0
"""The autoencoders: FLUX against the golden numbers, the patch codec's algebra, MONAI's nets in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.networks.autoencoder import (
    FluxAutoencoder,
    MonaiAutoencoder,
    PatchCodec,
    autoencoder_from_config,
)


@pytest.fixture(scope="module")
def golden_vae(golden: Path) -> tuple[FluxAutoencoder, dict[str, Tensor]]:
    from monai_unimedvl.weights.upstream import autoencoder_config, autoencoder_to_ours

    config = autoencoder_config(json.loads((golden / "vae_config.json").read_text()))
    net = autoencoder_from_config(config).eval()
    net.load_state_dict(autoencoder_to_ours(load_file(golden / "ae.safetensors")))
    cases = load_file(golden / "cases.safetensors")
    return net, {name.removeprefix("vae."): x for name, x in cases.items() if name.startswith("vae.")}


def small_flux() -> FluxAutoencoder:
    return FluxAutoencoder(channels=4, multipliers=(1, 2), num_res_blocks=1, latent_channels=3, norm_groups=2)


@pytest.fixture
def tiny_flux() -> FluxAutoencoder:
    torch.manual_seed(0)
    return small_flux().eval()


def monai_net(dims: int, inside: int, outside: int, **arguments):
    from monai.networks.nets import AutoencoderKL

    torch.manual_seed(0)
    sizes = {"channels": (4, 8), "num_res_blocks": 1, "norm_num_groups": 2, "attention_levels": (False,) * 2}
    net = AutoencoderKL(dims, inside, outside, latent_channels=3, **{**sizes, **arguments})
    return net.eval()


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_golden_vae_encodes_and_decodes_as_the_reference(golden_vae, index):
    net, case = golden_vae
    x = case[f"img{index}"][None]
    mean, log_variance = net.posterior(x)
    assert_close(mean, case[f"mean{index}"], atol=1e-4, rtol=0)
    assert_close(log_variance, case[f"logvar{index}"], atol=1e-4, rtol=0)
    assert_close(net.encode_stage_2_inputs(x), case[f"latent_mode{index}"], atol=1e-4, rtol=0)
    sample = net.encode_stage_2_inputs(x, noise=case[f"noise{index}"])
    assert_close(sample, case[f"latent_sample{index}"], atol=1e-4, rtol=0)
    decoded = net.decode_stage_2_outputs(case[f"latent_mode{index}"])
    assert_close(decoded, case[f"decoded{index}"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_golden_vae_pads_right_and_bottom_and_attends_with_one_head(golden_vae):
    net, _ = golden_vae
    norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {32} and {m.eps for m in norms} == {1e-6}
    assert [part.mid_block.attentions[0].heads for part in (net.net.encoder, net.net.decoder)] == [1, 1]
    assert net.net.quant_conv is None and net.net.post_quant_conv is None
    down = net.net.encoder.down_blocks[0].downsamplers[0]
    x = torch.randn(1, 32, 6, 6)
    assert_close(down(x), down.conv(torch.nn.functional.pad(x, (0, 1, 0, 1))))
    assert down.conv.padding == (0, 0)


def test_the_released_sizes_have_the_released_number_of_parameters():
    with torch.device("meta"):
        net = FluxAutoencoder()
    assert sum(p.numel() for p in net.parameters()) == 83_819_683
    assert (net.latent_channels, net.downsample, net.scale, net.shift) == (16, 8, 0.3611, 0.1159)


@torch.no_grad()
def test_a_generator_samples_the_posterior_and_replays(tiny_flux):
    x = torch.rand(2, 3, 8, 6) * 2 - 1
    first = tiny_flux.encode_stage_2_inputs(x, torch.Generator().manual_seed(3))
    again = tiny_flux.encode_stage_2_inputs(x, torch.Generator().manual_seed(3))
    noise = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(3))
    assert_close(first, again, atol=0, rtol=0)
    assert_close(first, tiny_flux.encode_stage_2_inputs(x, noise=noise), atol=0, rtol=0)
    assert not torch.equal(first, tiny_flux.encode_stage_2_inputs(x))
    assert_close(tiny_flux.encode_stage_2_inputs(x), tiny_flux.encode_stage_2_inputs(x), atol=0, rtol=0)


@torch.no_grad()
def test_latents_keep_the_dtype_of_the_image_when_the_weights_are_bfloat16(tiny_flux):
    z = tiny_flux.bfloat16().encode_stage_2_inputs(torch.zeros(1, 3, 8, 8))
    assert z.dtype == torch.float32 and tiny_flux.decode_stage_2_outputs(z).dtype == torch.float32


def test_a_full_patch_codec_is_exactly_invertible():
    x = torch.rand(4, 3, 16, 24, dtype=torch.float64) * 2 - 1
    for codec in (PatchCodec(4, 48), PatchCodec.fit(x, 4, 48), PatchCodec.fit(x, 4, 48, whiten=1.0)):
        codec = codec.double()
        assert_close(codec(x), x, atol=1e-5, rtol=0)  # the basis is stored in float32
        assert_close(codec.basis.T @ codec.basis, torch.eye(48).double(), atol=1e-5, rtol=0)


def test_the_patch_codec_loses_only_the_components_left_out():
    torch.manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand(8, 3, 36, 36, dtype=torch.float64), 5, 1, 2) * 2 - 1
    codec = PatchCodec.fit(x, patch=4, channels=10).double()
    residual = x - codec(x)  # orthogonal to the basis: encoding it again gives nothing
    rows = codec._patches(residual) @ codec.basis
    assert_close(rows, torch.zeros_like(rows), atol=1e-5, rtol=0)
    worse = PatchCodec(4, 10).double()  # cosines keep less than the principal components of these pictures
    assert residual.square().mean() < (x - worse(x)).square().mean()
    assert_close(codec(codec(x)), codec(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_fitted_latents_have_unit_variance(whiten):
    torch.manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.rand(16, 3, 32, 32), 5, 1, 2) * 2 - 1
    codec = PatchCodec.fit(x, patch=4, channels=12, whiten=whiten, chunk=5)
    z = codec.encode_stage_2_inputs(x)
    variance = z.movedim(1, -1).flatten(0, 2).var(dim=0, correction=0)
    assert_close(variance.mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    if whiten == 0:
        assert codec.deviation.unique().numel() == 1  # one number: latent distances are pixel distances
    if whiten == 1:
        assert_close(variance, torch.ones(12), atol=2e-3, rtol=0)


def test_fitting_bytes_equals_fitting_their_floats():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    bytes_, floats = PatchCodec.fit(images, 4, 8), PatchCodec.fit(images.double() / 127.5 - 1, 4, 8)
    assert_close(bytes_.basis, floats.basis)


def test_patch_latents_lie_where_their_patch_lies():
    codec, x = PatchCodec(4, 48), torch.zeros(1, 3, 12, 8)
    x[0, :, 4:8, 0:4] = 1  # the patch in row 1, column 0
    z = codec.encode_stage_2_inputs(x)
    assert z.shape == (1, 48, 3, 2) and z.abs().sum(1)[0].nonzero().tolist() == [[1, 0]]


@pytest.mark.parametrize("dims, inside, outside", [(2, 1, 1), (2, 3, 3), (2, 1, 3), (3, 1, 1), (3, 3, 3)])
@torch.no_grad()
def test_a_monai_autoencoder_stands_in(dims, inside, outside):
    net = monai_net(dims, inside, outside)
    codec = MonaiAutoencoder(net, scale=0.5, shift=0.25)
    x = torch.rand(2, 1, *(8, 6, 4)[:dims]).expand(-1, 3, *(8, 6, 4)[:dims]) * 2 - 1
    z = codec.encode_stage_2_inputs(x)
    mean, _ = net.encode(x[:, :inside])
    assert_close(z, 0.5 * (mean - 0.25))
    assert z.shape == (2, 3, *(4, 3, 2)[:dims]) and (codec.latent_channels, codec.downsample) == (3, 2)
    y = codec.decode_stage_2_outputs(z)
    assert_close(y, net.decode(mean).expand(-1, 3, *(8, 6, 4)[:dims]))
    seeded = [codec.encode_stage_2_inputs(x, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*seeded) and not torch.equal(seeded[0], z)


@pytest.mark.parametrize(
    "make",
    [
        small_flux,
        lambda: PatchCodec(4, 9),
        lambda: MonaiAutoencoder(monai_net(2, 1, 1), scale=0.5),
        lambda: MonaiAutoencoder(monai_net(3, 3, 3, attention_levels=(False, True), use_convtranspose=True)),
        lambda: MonaiAutoencoder(
            monai_net(2, 1, 1, with_encoder_nonlocal_attn=False, use_combined_linear=True, include_fc=False)
        ),
    ],
)
def test_config_rebuilds_the_autoencoder(make):
    net = make()
    twin = autoencoder_from_config(json.loads(json.dumps(net.config)))
    twin.load_state_dict(net.state_dict())
    assert type(twin) is type(net) and twin.config == net.config
    for name in ("latent_channels", "downsample", "spatial_dims", "scale", "shift"):
        assert getattr(twin, name) == getattr(net, name)


def test_bad_images_and_latents_get_one_line(tiny_flux):
    with pytest.raises(ValueError, match=r"encodes RGB \(B, 3, H, W\), got shape \(1, 1, 8, 8\)"):
        tiny_flux.encode_stage_2_inputs(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"3 channels and 4 axes"):
        tiny_flux.encode_stage_2_inputs(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"multiples of 2, got \(7, 8\): resize first"):
        tiny_flux.encode_stage_2_inputs(torch.zeros(1, 3, 7, 8))
    with pytest.raises(ValueError, match=r"decodes latents \(B, 3, h, w\), got \(1, 4, 4, 4\)"):
        tiny_flux.decode_stage_2_outputs(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"noise has shape \(1,\), the latents have \(1, 3, 4, 4\)"):
        tiny_flux.encode_stage_2_inputs(torch.zeros(1, 3, 8, 8), noise=torch.zeros(1))
    with pytest.raises(ValueError, match=r"encodes RGB \(B, 3, H, W, D\)"):
        MonaiAutoencoder(monai_net(3, 1, 1)).encode_stage_2_inputs(torch.zeros(1, 3, 8, 8))


def test_bad_autoencoders_get_one_line():
    with pytest.raises(ValueError, match=r"holds 1 to 48 latent channels, got 49"):
        PatchCodec(4, 49)
    with pytest.raises(ValueError, match=r"values outside \[-1, 1\]"):
        PatchCodec.fit(torch.full((1, 3, 8, 8), 255.0), 4, 8)
    with pytest.raises(ValueError, match=r"without any variation"):
        PatchCodec.fit(torch.zeros(1, 3, 8, 8), 4, 8)
    with pytest.raises(ValueError, match=r"got no image"):
        PatchCodec.fit(torch.zeros(0, 3, 8, 8), 4, 8)
    with pytest.raises(ValueError, match=r"multiple of norm_groups=32"):
        FluxAutoencoder(channels=20)
    with pytest.raises(ValueError, match=r"got a Linear, expected monai.networks.nets.AutoencoderKL"):
        MonaiAutoencoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"2 input and 1 output channels in 2-D"):
        MonaiAutoencoder(monai_net(2, 2, 1))
    with pytest.raises(ValueError, match=r"kind is 'vqvae', expected one of flux, patch, monai"):
        autoencoder_from_config({"kind": "vqvae"})
    with pytest.raises(ValueError, match=r"autoencoder of kind 'patch' cannot be built: .*'pitch'"):
        autoencoder_from_config({"kind": "patch", "pitch": 4})
    with pytest.raises(ValueError, match=r"autoencoder of kind 'monai' cannot be built: 'net'"):
        autoencoder_from_config({"kind": "monai"})


def test_monais_latent_diffusion_inferer_takes_our_autoencoder(tiny_flux):
    from monai.inferers import LatentDiffusionInferer
    from monai.networks.schedulers import DDIMScheduler

    class Still(torch.nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x)

    scheduler = DDIMScheduler(num_train_timesteps=10)
    scheduler.set_timesteps(1)
    inferer = LatentDiffusionInferer(scheduler, scale_factor=2.0)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    z = tiny_flux.encode_stage_2_inputs(x)
    prediction = inferer(x, tiny_flux, Still(), torch.randn(z.shape), torch.tensor([5]))
    assert prediction.shape == z.shape
    image, steps = inferer.sample(
        z, tiny_flux, Still(), verbose=False, save_intermediates=True, intermediate_steps=1
    )
    assert image.shape == x.shape and len(steps) == 1
