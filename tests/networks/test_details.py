# SPDX-License-Identifier: Apache-2.0
"""A U-Net over an edit's source: nothing when new, each drawing by itself, tokens blended."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.details import Details
from monai_unimedvl.networks.unimedvl import from_config, nano
from monai_unimedvl.sequence import Canvas, Marks, Text, pack


def codec(patch: int = 4) -> PatchCodec:
    return PatchCodec.fit(torch.rand(8, 3, 16, 16) * 2 - 1, patch=patch, channels=3 * patch**2)


def taught(seed: int = 0) -> Details:
    """Details whose steering is no longer zero."""
    torch.manual_seed(seed)
    details = Details(6, 5).double()
    torch.nn.init.normal_(details.steer.weight)
    return details


def tokens(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 6).double(), torch.randn(count, 48).double()


def test_new_ones_change_nothing() -> None:
    h, source = (x.float() for x in tokens(6))
    assert not Details(6, 5)(h, source, codec(), (2, 3)).any()


@pytest.mark.parametrize(("patch", "grid"), [(4, (2, 3)), (2, (3, 3))])  # 6 pixels a side: not whole fours
def test_drawings_side_by_side_are_drawn_as_alone(patch: int, grid: tuple[int, int]) -> None:
    details, own, number = taught(), codec(patch), grid[0] * grid[1]
    h, source = torch.randn(2 * number, 6).double(), torch.randn(2 * number, own.latent_channels).double()
    together = details(h, source, own, grid)
    halves = slice(0, number), slice(number, 2 * number)
    alone = torch.cat([details(h[at], source[at], own, grid) for at in halves])
    assert_close(together, alone, atol=1e-12, rtol=0)
    assert not torch.allclose(together[:number], together[number:])


def test_a_pixel_sees_its_surroundings_and_no_further() -> None:
    details, own, (h, _) = taught(), codec(), tokens(256)
    h = h[:1].expand(256, -1)  # one wish everywhere
    image = torch.rand(1, 3, 64, 64).double() * 2 - 1
    other = image.clone()
    other[..., 32, 32] += 1

    def drawn(x: torch.Tensor) -> torch.Tensor:
        source = own.encode_stage_2_inputs(x)[0].flatten(1).T
        change = own.pixels(source + details(h, source, own, (16, 16))) - own.pixels(source)
        return change.view(16, 16, 4, 4, 3).transpose(1, 2).reshape(64, 64, 3).detach()

    moved = (drawn(other) - drawn(image)).abs().amax(-1) > 1e-9
    far = (torch.cartesian_prod(torch.arange(64), torch.arange(64)) - 32).abs().amax(-1).view(64, 64)
    assert moved[far <= 4].all() and 12 < far[moved].max() <= 24


def test_what_tokens_want_is_blended_between_their_centres() -> None:
    details, own = taught(), codec()
    h = torch.zeros(2, 6).double()
    h[1] = torch.randn(6).double()
    flat = own.encode_stage_2_inputs(torch.zeros(1, 3, 4, 8).double())[0].flatten(1).T
    change = own.pixels(flat + details(h, flat, own, (1, 2))) - own.pixels(flat)
    row = change.view(1, 2, 4, 4, 3).transpose(1, 2).reshape(4, 8, 3)[1].abs().sum(-1)
    step = row.diff().abs()
    assert step[3] <= 3 * step[2:5].median()  # no edge where the tokens meet


@pytest.mark.parametrize(("name", "redrawn"), [("details", [1, 0, 1, 1]), ("strokes", [0, 1, 0, 0])])
def test_edits_and_what_has_no_source_are_redrawn_apart(name: str, redrawn: list[int]) -> None:
    torch.manual_seed(0)
    network = nano(codec(), vocab_size=40, hidden_size=32, num_layers=1, strokes=5)
    network = network.double().eval()
    torch.nn.init.normal_(getattr(network, name).steer.weight)
    marks, size = Marks(1, 2, 3, 4), network.latent_size

    def canvas(grid: tuple[int, int], base: bool) -> Canvas:
        number = grid[0] * grid[1]
        return Canvas(grid, torch.randn(number, size).double(), noisy=True,
                      base=torch.randn(number, size).double() if base else None)  # fmt: skip

    samples = [
        [Text(torch.tensor([5, 6])), canvas((2, 2), True)],
        [canvas((2, 3), False)],
        [canvas((3, 2), True)],
        [Text(torch.tensor([7])), canvas((2, 2), True)],
    ]

    def velocity(chosen: list) -> torch.Tensor:
        seq = pack(chosen, marks)
        times = torch.full((1,), 0.5).double()
        return network(seq.with_latents(seq.latents, times)).velocity

    with torch.no_grad():
        together, alone = velocity(samples), torch.cat([velocity([x]) for x in samples])
        assert_close(together, alone, atol=1e-9, rtol=0)
        setattr(network, name, None)
        plain = velocity(samples)
    changed = (plain - together).abs().amax(1) > 1e-9
    assert [part.tolist() for part in changed.split([4, 6, 6, 4])] == [
        [bool(is_redrawn)] * count for is_redrawn, count in zip(redrawn, [4, 6, 6, 4], strict=True)
    ]


def test_a_network_with_details_is_rebuilt_from_its_config() -> None:
    network = nano(PatchCodec(8, 24), vocab_size=40, hidden_size=32, num_layers=1, strokes=4)
    assert (network.config["details"], network.config["strokes"]) == (24, 4)
    assert from_config(network.config).load_state_dict(network.state_dict()).missing_keys == []
    old = {name: x for name, x in network.config.items() if name not in ("details", "strokes")}
    assert from_config(old).details is None and from_config(old).strokes is None


def test_details_without_a_linear_codec_are_refused() -> None:
    config = nano(PatchCodec(8, 24), vocab_size=40, hidden_size=32, num_layers=1).config
    with pytest.raises(ValueError, match="details=24 and strokes=0, expected them with prediction='image'"):
        from_config({**config, "prediction": "velocity", "tones": 0})
