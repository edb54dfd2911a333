# SPDX-License-Identifier: Apache-2.0
"""Small parts: golden patches, time codes and position tables, and each part against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from golden_support import Golden
from reference import turned
from tiny import MARKS, numbers
from torch import nn
from torch.testing import assert_close

from monai_unimedvl.networks.layers import (
    MLP,
    PerExpert,
    RMSNorm,
    SwiGLU,
    TimeEmbed,
    grid_table,
    patchify,
    rotary,
    rotate,
    scaled_dot_product,
    unpatchify,
)
from monai_unimedvl.networks.unimedvl import from_config
from monai_unimedvl.sequence import Routes, View, pack


def test_golden_patches(gold: Golden) -> None:
    gold.check("patchify.out", patchify(gold["patchify.in"], gold.network.vision.patch_size))


def test_golden_position_ids(gold: Golden) -> None:
    for case in gold.cases["posids"]["cases"]:
        h, w = case["img_h"] // case["patch"], case["img_w"] // case["patch"]
        cells = pack([[View(torch.zeros(h * w, 1), (h, w))]], MARKS).view_cells
        gold.check(case["extrapolate"], cells @ torch.tensor([case["max_num_patches_per_side"], 1]))


def test_golden_time_embedding(gold: Golden) -> None:
    gold.check("time.freq", TimeEmbed.features(gold["time.t"]))
    gold.check("time.emb", gold.network.time_embed(gold["time.t"]))


def test_golden_position_tables_are_the_ones_we_compute(gold: Golden) -> None:
    fresh, loaded = from_config(gold.network.config), gold.network
    assert_close(fresh.view_table, loaded.view_table, atol=1e-6, rtol=0)
    assert_close(fresh.latent_table, loaded.latent_table, atol=1e-6, rtol=0)
    assert loaded.view_table.std() > 0.1


def test_a_position_table_codes_the_column_first_then_the_row() -> None:
    table = grid_table(side=5, size=8, base=50.0, scale=0.5)
    for row, column in ((0, 0), (1, 4), (3, 2)):
        code = [
            0.5 * wave(p * 50.0 ** (-i / 2))
            for p in (column, row)
            for wave in (math.sin, math.cos)
            for i in (0, 1)
        ]
        assert_close(table[row * 5 + column], torch.tensor(code))


@pytest.mark.parametrize("h, w, patch, channels", [(1, 1, 1, 1), (2, 3, 2, 5), (4, 1, 3, 3)])
def test_unpatchify_is_the_inverse_of_patchify(h: int, w: int, patch: int, channels: int) -> None:
    image = numbers(channels, h * patch, w * patch)
    tokens = patchify(image, patch)
    assert tokens.shape == (h * w, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, (h, w), patch), image)


def test_a_patch_holds_its_pixels_row_by_row_with_the_channels_last() -> None:
    image = torch.arange(2 * 4 * 6.0).view(2, 4, 6)
    second = patchify(image, 2)[1]  # row 0, column 1 of the grid
    pixels = [image[c, y, x] for y in (0, 1) for x in (2, 3) for c in (0, 1)]
    assert second.tolist() == [float(p) for p in pixels]


def test_an_image_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="image of 4x5, expected multiples of 2: fit it to the grid"):
        patchify(torch.zeros(3, 4, 5), 2)


def test_each_token_goes_through_its_own_twin() -> None:
    twins, x = PerExpert(lambda: nn.Linear(3, 2)).double(), numbers(5, 3)
    for words in range(6):
        wanted = torch.cat([twins.understanding(x[:words]), twins.generation(x[words:])])
        assert torch.equal(twins(x, Routes(words, 5 - words)), wanted)


def test_detached_understanding_passes_no_gradient_to_words() -> None:
    for words, latents in ((5, 0), (2, 3)):
        twins, x = PerExpert(lambda: nn.Linear(3, 2)).double(), numbers(5, 3).requires_grad_()
        y = twins(x, Routes(words, latents, detach_understanding=True))
        assert torch.equal(y, twins(x, Routes(words, latents)))
        if latents:
            y.sum().backward()
            assert x.grad[:words].abs().max() == 0 and x.grad[words:].abs().min() > 0
            assert twins.understanding.weight.grad is None
        else:
            assert not y.requires_grad


def test_rotation_is_multiplication_by_complex_numbers() -> None:
    x, position = numbers(4, 2, 6), torch.tensor([0, 1, 7, 300])
    cos, sin = rotary(position, 6, theta=100.0)
    assert cos.dtype == torch.float32
    y = rotate(x, cos.double(), sin.double())
    for i, p in enumerate(position.tolist()):
        for head in range(2):
            assert_close(y[i, head], turned(x[i, head], p, 100.0), atol=3e-5, rtol=0)


def test_attention_after_rotation_depends_on_distance_only() -> None:
    q, k = numbers(1, 1, 8), numbers(1, 1, 8, seed=1)

    def score(at: int, to: int) -> torch.Tensor:
        turn = [rotate(x, *rotary(torch.tensor([p]), 8, 100.0)) for x, p in ((q, at), (k, to))]
        return (turn[0] * turn[1]).sum()

    assert_close(score(9, 4), score(25, 20), atol=1e-5, rtol=0)
    assert abs(float(score(9, 4) - score(9, 5))) > 1e-3


def test_norm_and_feed_forward_are_their_formulas() -> None:
    x = numbers(3, 4)
    norm, glu, mlp = RMSNorm(4, 1e-6).double(), SwiGLU(4, 5).double(), MLP(4, 5, 2).double()
    norm.weight.data = numbers(4, seed=1)
    assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight)
    gate = x @ glu.gate.weight.T
    assert_close(glu(x), (gate * gate.sigmoid() * (x @ glu.up.weight.T)) @ glu.down.weight.T)
    h = mlp.fc1(x)
    gelu = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    assert_close(mlp(x), mlp.fc2(gelu))


def test_bf16_training_on_a_cpu_keeps_dtype_and_gives_the_numbers_of_float32() -> None:
    q, k, v = (numbers(1, 2, 3, 4, seed=s).bfloat16().requires_grad_() for s in range(3))
    y = scaled_dot_product(q, k, v, is_causal=True)
    wanted = scaled_dot_product(q.float(), k.float(), v.float(), is_causal=True)
    assert y.dtype == torch.bfloat16 and torch.equal(y, wanted.bfloat16())


def test_under_autocast_training_attention_is_computed_in_float32_too() -> None:
    q, k, v = (numbers(1, 2, 3, 4, seed=s).float().requires_grad_() for s in range(3))
    wanted = scaled_dot_product(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):  # queries and keys are whole after the rotary codes
        y = scaled_dot_product(q, k, v)
        half = scaled_dot_product(*(x.detach() for x in (q, k, v)))
    assert y.dtype == torch.bfloat16 and torch.equal(y, wanted.bfloat16()) and not torch.equal(half, y)
