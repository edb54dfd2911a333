# SPDX-License-Identifier: Apache-2.0
"""The whole network: what it encodes and predicts, what drawings start from, what it asks of its input."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from tiny import CONFIG, MARKS, canvas, numbers, text, tiny_network, view
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl import flow
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.starts import based, bases
from monai_unimedvl.networks.unimedvl import SMALLEST_TIME, UniMedVL, from_config, nano, released
from monai_unimedvl.sequence import Canvas, Segment, pack


def test_encoding_by_size_equals_one_by_one(tiny: UniMedVL) -> None:
    images = [numbers(3, 4 * h, 4 * w, seed=i) for i, (h, w) in enumerate([(1, 2), (2, 1), (1, 2), (1, 1)])]
    segments = [Canvas((x.shape[1] // 4, x.shape[2] // 4), image=x) for x in images]
    samples = [[segments[0], text(1), segments[1]], [segments[2], view(1, 1), segments[3]]]
    found = [s.latents for sample in tiny.encode(samples) for s in sample if isinstance(s, Canvas)]
    for segment, latents in zip(segments, found, strict=True):
        assert_close(latents, tiny.encode([[segment]])[0][0].latents, atol=1e-12, rtol=0)
    assert segments[0].latents is None  # the caller's segments are left alone


def test_encoding_leaves_what_needs_none(tiny: UniMedVL) -> None:
    ready, gone = canvas(1, 1), Canvas((1, 1), dropped=True)
    (_, same, dropped), empty = tiny.encode([[text(1), ready, gone], []])
    assert same is ready and dropped is gone and empty == []


def test_decoding_undoes_encoding_and_stays_in_range() -> None:
    full = {"kind": "patch", "patch": 2, "latent_channels": 12}
    network, image = tiny_network(autoencoder=full), numbers(3, 8, 4).clamp(-1, 1)
    latents = network.encode([[Canvas((2, 1), image=image)]])[0][0].latents
    assert_close(network.decode(latents, (2, 1)), image * 0.5 + 0.5, atol=1e-5, rtol=0)
    assert network.decode(100 * latents, (2, 1)).aminmax() == (0, 1)


@pytest.mark.parametrize(
    "segments", [[text(1)], [view(1, 2)], [canvas(1, 2), text(2), canvas(1, 1, noisy=True)]]
)
def test_there_is_a_velocity_for_every_latent_token_and_none_without(
    tiny: UniMedVL, segments: list[Segment]
) -> None:
    prediction = tiny(pack([segments], MARKS))
    tokens = sum(len(s.latents) for s in segments if isinstance(s, Canvas))
    assert (prediction.velocity is None) if tokens == 0 else (prediction.velocity.shape == (tokens, 12))


def test_an_image_prediction_becomes_the_velocity_that_leads_to_it() -> None:
    network = tiny_network(prediction="image")
    x = canvas(1, 2, noisy=True, time=0.4)
    prediction = network(seq := pack([[text(1), x]], MARKS))
    guess = 0.6 / (0.6**2 + 0.4**2 + 1e-6) * x.latents  # Wiener's, at variance 1
    image = guess + network.latent_out(prediction.hidden[seq.latent_at])
    assert_close(flow.step(x.latents, prediction.velocity, 0.4, 0.0), image, atol=1e-6, rtol=0)
    late = network(pack([[text(1), canvas(1, 2, noisy=True, time=SMALLEST_TIME / 100)]], MARKS))
    assert late.velocity.abs().max() < 1e3  # not divided by next to nothing


def test_where_latents_vary_less_the_first_guess_trusts_the_noise_less() -> None:
    network = tiny_network(prediction="image")
    network.latent_out.requires_grad_(False).weight.zero_(), network.latent_out.bias.zero_()
    network.latent_variance[:6] = 0.25
    x = canvas(1, 2, noisy=True, time=0.5)
    image = flow.step(x.latents, network(pack([[x]], MARKS)).velocity, 0.5, 0.0)
    wanted = [0.5 * v / (0.25 * v + 0.25) for v in [0.25] * 6 + [1.0] * 6]
    assert_close(image, x.latents * torch.tensor(wanted).double(), atol=1e-5, rtol=0)


def opened(bias: float = 50.0) -> UniMedVL:
    """A network that predicts images, whose gate is open and whose head adds nothing."""
    network = tiny_network(prediction="image").requires_grad_(False)
    for layer in (network.latent_out, network.latent_gate):
        layer.weight.zero_(), layer.bias.zero_()
    network.latent_gate.bias.fill_(bias)
    return network


def drawn(network: UniMedVL, samples: list[list[Segment]], t: float = 0.4) -> list[Tensor]:
    """The image that the network predicts for the noisy canvas of each sample."""
    seq = pack(network.encode(samples), MARKS)
    images = flow.step(seq.latents, network(seq).velocity, t, 0.0)
    return list(images[seq.noisy].split([len(s.latents) for part in samples for s in part if noisy(s)]))


def noisy(segment: Segment) -> bool:
    return isinstance(segment, Canvas) and segment.noisy


def test_behind_an_open_gate_a_canvas_predicts_its_base() -> None:
    source, target = canvas(1, 2, seed=8), canvas(1, 2, noisy=True, time=0.4)
    (image,) = drawn(opened(), [[source, text(1), target]])
    assert_close(image, source.latents, atol=1e-6, rtol=0)
    (closed,) = drawn(opened(-50.0), [[source, text(1), target]])
    (alone,) = drawn(opened(), [[text(1), target]])
    assert_close(closed, alone, atol=1e-6, rtol=0)
    assert (closed - image).abs().max() > 0.1


def test_the_base_of_a_sample_does_not_leak_into_another() -> None:
    first, second = canvas(2, 1, seed=8), canvas(1, 2, seed=9)
    samples = [
        [first, text(1), canvas(2, 1, noisy=True, time=0.4)],
        [text(2), canvas(2, 1, seed=3, noisy=True, time=0.4)],
        [second, canvas(1, 2, seed=4, noisy=True, time=0.4), text(3)],
    ]
    network = tiny_network(prediction="image")
    together = drawn(network, samples)
    for sample, image in zip(samples, together, strict=True):
        assert_close(image, drawn(network, [sample])[0], atol=1e-12, rtol=0)
    changed = drawn(network, [[canvas(2, 1, seed=10), *samples[0][1:]], *samples[1:]])
    assert (changed[0] - together[0]).abs().max() > 1e-3
    assert torch.equal(torch.cat(changed[1:]), torch.cat(together[1:]))


@pytest.mark.parametrize(
    "before, base",
    [
        ([canvas(1, 2, seed=3), canvas(1, 2, seed=4)], 4),
        ([canvas(1, 2, seed=3), canvas(2, 1, seed=4)], 3),
        ([canvas(1, 2, seed=3), canvas(1, 2, seed=4, dropped=True)], 3),
        ([canvas(1, 2, seed=3), canvas(1, 2, seed=4, noisy=True)], 3),
        ([canvas(2, 1, seed=3), view(1, 2), text(1)], None),
        ([], None),
    ],
)
def test_a_drawing_starts_from_the_last_clean_canvas_of_its_grid(
    before: list[Segment], base: int | None
) -> None:
    target = canvas(1, 2, seed=5, noisy=True)
    after = canvas(1, 2, seed=6)
    found = based([*before, target, after])
    assert all(a is b for a, b in zip(found, before, strict=False) if not noisy(b)) and found[-1] is after
    mine = found[len(before)].base
    assert (mine is None) if base is None else torch.equal(mine, canvas(1, 2, seed=base).latents)
    later = based([target], bases(before))[0].base  # the same when read in two steps
    assert later is mine


def test_slices_drawn_together_start_each_from_its_own_source() -> None:
    sources = [canvas(1, 2, seed=n) for n in (3, 4)]
    group = [canvas(1, 2, seed=n, noisy=True, joined=n > 5) for n in (5, 6)]
    found = based([sources[0], view(1, 2), sources[1], text(1), *group])
    assert all(one.base is source.latents for one, source in zip(found[-2:], sources, strict=True))
    for before in ([*sources, canvas(1, 2)], sources[:1], [sources[0], canvas(1, 2, seed=4, dropped=True)]):
        last = [one for one in before if not one.dropped][-1].latents
        assert all(one.base is last for one in based([*before, *group])[-2:])


def test_only_networks_that_predict_images_give_drawings_a_base(tiny: UniMedVL) -> None:
    sample = [canvas(1, 2), text(1), canvas(1, 2, seed=5, noisy=True)]
    assert pack(tiny.encode([sample]), MARKS).bases is None
    seq = pack(tiny_network(prediction="image").encode([sample, sample[2:]]), MARKS)
    assert seq.based.tolist() == [False, False, True, True, False, False]
    assert torch.equal(seq.bases[2:4], sample[0].latents) and not seq.bases[[0, 1, 4, 5]].any()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction": "image", "timestep_shift": 2.0, "table_base": 50.0},
        {"vision": None},
        {"latent_patch": 1},
    ],
)
def test_a_config_rebuilds_the_network(changes: dict) -> None:
    network = tiny_network(**changes)
    config = json.loads(json.dumps(network.config))
    twin = from_config(config).double()
    twin.load_state_dict(network.state_dict())
    assert twin.config == network.config == config
    assert set(config) == set(inspect.signature(UniMedVL).parameters)  # nothing is left at its default
    segments = [text(1), canvas(1, 1, noisy=True, time=0.5)] if network.latent_patch == 2 else [text(1)]
    seq = pack([segments], MARKS)
    assert torch.equal(twin(seq).hidden, network(seq).hidden)


def test_grids_are_the_released_rules_as_far_as_the_tables_reach_unless_given() -> None:
    assert tiny_network().config["grids"] == {"canvas": [16, 16, 4], "view": [8, 8, 2]}
    given = tiny_network(grids={"view": [6, 4, 2]})
    assert from_config(given.config).config["grids"] == {"canvas": [16, 16, 4], "view": [6, 4, 2]}


def test_nano_is_small_rebuilds_and_starts_with_keys_like_queries() -> None:
    network = nano(PatchCodec(8, 24), vocab_size=50)
    twin = from_config(json.loads(json.dumps(network.config)))
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    assert sum(p.numel() for p in network.parameters()) < 6e6
    for layer in network.decoder.layers:
        for expert in ("understanding", "generation"):
            q, k = getattr(layer.attention.q, expert).weight, getattr(layer.attention.k, expert).weight
            assert torch.equal(q, k)
    assert network.canvas_stride == 8 and network.prediction == "image"


def test_released_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        network = released()
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert sizes["autoencoder"] == 83_819_683
    assert network.decoder.embed.weight.shape == (152064, 3584) and len(network.decoder.layers) == 28
    assert network.view_table.shape == (70 * 70, 3584) and network.latent_table.shape == (64 * 64, 3584)
    assert network.canvas_stride == 16 and network.latent_size == 64
    assert 14.2e9 < sum(sizes.values()) < 14.8e9


def test_the_autoencoder_is_never_trained() -> None:
    flux = {"kind": "flux", "channels": 2, "multipliers": [1, 1], "num_res_blocks": 1, "norm_groups": 2}
    network = from_config({**CONFIG, "autoencoder": flux})
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    still = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert "decoder" in trained and still == {"autoencoder"}


def test_images_too_large_for_the_position_tables_get_one_line(tiny: UniMedVL) -> None:
    for grid in ((5, 1), (1, 5)):
        with pytest.raises(ValueError, match="An image has 5 tokens a side, expected 4 at most"):
            tiny(pack([[view(*grid)]], MARKS))
        with pytest.raises(ValueError, match="An image has 5 tokens a side, expected 4 at most"):
            tiny(pack([[canvas(*grid)]], MARKS))


def test_what_the_network_lacks_gets_one_line(tiny: UniMedVL) -> None:
    with pytest.raises(ValueError, match="has an image, but this network no vision encoder"):
        tiny_network(vision=None)(pack([[view(1, 1)]], MARKS))
    with pytest.raises(ValueError, match="Canvas without image and latents"):
        tiny.encode([[Canvas((1, 1))]])
    with pytest.raises(ValueError, match="prediction='noise', expected 'velocity' or 'image'"):
        from_config({**CONFIG, "prediction": "noise"})
