# SPDX-License-Identifier: Apache-2.0
"""The whole network against golden numbers: answers, and drawings with every guidance."""

from __future__ import annotations

import pytest
import torch
from golden_support import Golden, reading
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl import flow
from monai_unimedvl.networks.decoder import KVCache
from monai_unimedvl.networks.layers import patchify, unpatchify
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Marks, Segment, pack, step

Grid = tuple[int, int]


def read(network: UniMedVL, marks: Marks, samples: list[list[Segment]]) -> KVCache:
    """A cache that holds the samples."""
    cache = KVCache(network.decoder, len(samples), capacity=8)
    network(pack(samples, marks), cache)
    return cache


def velocities(
    network: UniMedVL, marks: Marks, cache: KVCache, noise: Tensor, grid: Grid, t: float
) -> tuple[Tensor, ...]:
    """The velocity of one canvas at time t as each sample of the cache sees it."""
    drawn = Canvas(grid, noise, noisy=True, time=t)
    seq = pack([[drawn]] * len(cache.lengths), marks, start=cache.positions)
    return network(seq, cache, keep=False).velocity.chunk(len(cache.lengths))


def draw(gold: Golden, name: str, cache: KVCache, grid: Grid, guidance: flow.Guidance) -> Tensor:
    """The latents of a sampler run; the cache holds the full, the wordless and the imageless context."""
    case, x = gold.cases[name], gold[f"{name}.noise"]
    times = flow.schedule(case["num_timesteps"] - 1, case["timestep_shift"]).tolist()
    for t, t_next in zip(times, times[1:], strict=False):
        text_, image = guidance.uses(t)
        full, no_text, no_image = velocities(gold.network, gold.marks, cache, x, grid, t)
        v = guidance.combine(full, no_text if text_ else None, no_image if image else None)
        x = flow.step(x, v, t, t_next)
    return x


def greedy_logits(gold: Golden, cache: KVCache, ids: Tensor) -> Tensor:
    """Logits (steps, V) of feeding the golden ids one by one."""
    steps = [gold.network(step(i[None], [0], cache.positions[:1]), cache).hidden for i in ids]
    return gold.network.logits(torch.cat(steps))


def bytes_of(image: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] -> (H, W, 3), whole numbers, truncated as the reference does."""
    return (image * 255).movedim(0, -1).floor()


@torch.no_grad()
def test_golden_vqa_with_two_images(gold: Golden) -> None:
    samples = [[gold.view("vit.img0"), gold.view("vit.img1"), gold.text("vqa.text_ids")]]
    cache, seq, case = KVCache(gold.network.decoder, 1), pack(samples, gold.marks), gold.cases["vqa"]
    states, at = gold.network(seq, cache).hidden, reading(seq)
    ends = case["kv_lens"]
    for name, rows in zip(("img0", "img1", "text"), at.tensor_split(ends[:-1]), strict=True):
        gold.check(f"vqa.{name}_hidden", states[rows])
        gold.check(f"vqa.{name}_position_ids", seq.layout.position[rows])
    gold.check("vqa.last_logits", gold.network.logits(states[at[-1]]))
    assert (cache.lengths, cache.positions) == ([ends[-1]], [case["ropes"][-1]])
    gold.check("vqa.k_cache_last", cache.keys[-1, 0, :, : ends[-1]].transpose(0, 1))
    gold.check("vqa.v_cache_last", cache.values[-1, 0, :, : ends[-1]].transpose(0, 1))
    ids = gold["vqa.decode_ids"]
    logits = greedy_logits(gold, cache, ids)
    gold.check("vqa.decode_logits", logits)
    assert logits.argmax(-1)[:-1].tolist() == ids[1:].tolist() and ids[0] == gold.marks.text_start


@pytest.fixture(scope="module")
def t2i(gold: Golden) -> tuple[KVCache, Grid]:
    """Contexts of the text-to-image case: words, nothing, words (image guidance keeps them)."""
    words, case = gold.text("t2i.text_ids"), gold.cases["t2i"]
    stride = gold.network.canvas_stride
    with torch.no_grad():
        cache = read(gold.network, gold.marks, [[words], [], [words]])
    assert cache.lengths == [case["kv_len"], 0, case["kv_len"]] and cache.positions[0] == case["rope_start"]
    return cache, (case["height"] // stride, case["width"] // stride)


@torch.no_grad()
def test_golden_t2i_velocities(gold: Golden, t2i: tuple[KVCache, Grid]) -> None:
    cache, grid = t2i
    for i, t in enumerate(gold["t2i.vel_t"].tolist()):
        with_words, without, _ = velocities(gold.network, gold.marks, cache, gold["t2i.noise"], grid, t)
        gold.check(f"t2i.vel{i}", with_words)
        if i == 0:
            gold.check("t2i.vel0_uncond", without)


@torch.no_grad()
def test_golden_t2i_states_of_every_layer(gold: Golden, t2i: tuple[KVCache, Grid]) -> None:
    cache, grid = t2i
    drawn = Canvas(grid, gold["t2i.noise"], noisy=True, time=float(gold["t2i.vel_t"][0]))
    alone, states = cache.fork([0]), []
    seq = pack([[drawn]], gold.marks, start=alone.positions)
    at = reading(seq)
    layers = gold.network.decoder.layers
    hooks = [layer.register_forward_hook(lambda _, x, y: states.append(y[at])) for layer in layers]
    hidden = gold.network(seq, alone, keep=False).hidden
    for hook in hooks:
        hook.remove()
    gold.check("t2i.layer_outputs0", torch.stack(states))
    gold.check("t2i.hidden0", hidden[at])
    gold.check("t2i.rope_position_ids", seq.layout.position[at])
    gold.check("t2i.latent_position_ids", seq.latent_cells @ torch.tensor([gold.network.latent_side, 1]))


@torch.no_grad()
def test_golden_t2i_drawings_with_every_guidance(gold: Golden, t2i: tuple[KVCache, Grid]) -> None:
    runs = list(gold.guidances("t2i"))
    assert len(runs) >= 8
    for output, guidance in runs:
        gold.check(output, draw(gold, "t2i", *t2i, guidance))


@torch.no_grad()
def test_golden_t2i_picture_of_its_latents(gold: Golden, t2i: tuple[KVCache, Grid]) -> None:
    network, (_, grid) = gold.network, t2i
    latents = gold["t2i.final_global"]
    gold.check("t2i.latent_global", unpatchify(latents, grid, network.latent_patch)[None])
    image = network.decode(latents, grid)
    wanted = (gold["t2i.decoded_global"][0] * 0.5 + 0.5).clamp(0, 1)
    assert_close(image, wanted, atol=gold.tolerance, rtol=0)
    assert (bytes_of(image) - gold["t2i.image_global"].float()).abs().max() <= 1


@pytest.fixture(scope="module")
def edit(gold: Golden) -> tuple[KVCache, Grid]:
    """Contexts of the editing case: image and words, image, words."""
    network, case = gold.network, gold.cases["edit"]
    stride = network.canvas_stride
    latent = patchify(gold["edit.cond_latent"][0], network.latent_patch)
    h, w = (side // stride for side in gold["edit.vae_img"].shape[1:])
    seen, words = [Canvas((h, w), latent), gold.view("edit.vit_img")], gold.text("edit.text_ids")
    with torch.no_grad():
        cache = read(network, gold.marks, [[*seen, words], seen, [words]])
    assert cache.lengths == [case["kv_lens"][-1], case["cfg_text_kv"], case["cfg_img_kv"]]
    assert cache.positions == [case["ropes"][-1], case["cfg_text_rope"], case["cfg_img_rope"]]
    return cache, (case["target_height"] // stride, case["target_width"] // stride)


@torch.no_grad()
def test_golden_edit_states_of_its_prompt(gold: Golden) -> None:
    network, image = gold.network, gold["edit.vae_img"]
    latent = network.autoencoder.encode_stage_2_inputs(image[None], noise=gold["edit.vae_encode_noise"])
    gold.check("edit.cond_latent", latent)
    grid = tuple(side // network.canvas_stride for side in image.shape[1:])
    condition = Canvas(grid, patchify(latent[0], network.latent_patch))
    seq = pack([[condition, gold.view("edit.vit_img"), gold.text("edit.text_ids")]], gold.marks)
    cache = KVCache(network.decoder, 1)
    states, ends = network(seq, cache).hidden, gold.cases["edit"]["kv_lens"]
    for name, rows in zip(("vae", "vit", "text"), reading(seq).tensor_split(ends[:-1]), strict=True):
        gold.check(f"edit.{name}_hidden", states[rows])
    gold.check("edit.last_logits", network.logits(states[seq.last_at[0]]))
    gold.check("edit.decode_logits", greedy_logits(gold, cache, gold["edit.decode_ids"]))


@torch.no_grad()
def test_golden_edit_velocities_of_the_three_contexts(gold: Golden, edit: tuple[KVCache, Grid]) -> None:
    cache, grid = edit
    for i, t in enumerate(gold["edit.vel_t"].tolist()):
        found = velocities(gold.network, gold.marks, cache, gold["edit.noise"], grid, t)
        for name, v in zip(("", "_cfg_text", "_cfg_img"), found, strict=True):
            gold.check(f"edit.vel{i}{name}", v)


@torch.no_grad()
def test_golden_edit_drawings_with_every_guidance(gold: Golden, edit: tuple[KVCache, Grid]) -> None:
    runs = list(gold.guidances("edit"))
    assert len(runs) >= 7
    for output, guidance in runs:
        gold.check(output, draw(gold, "edit", *edit, guidance))
    image = gold.network.decode(gold["edit.final_text_channel_img"], edit[1])
    assert (bytes_of(image) - gold["edit.image_text_channel_img"].float()).abs().max() <= 1


@torch.no_grad()
def test_golden_latents_of_an_image_are_the_mean_without_a_generator(gold: Golden) -> None:
    images = [gold["vae.img0"], gold["vae.img1"]]
    stride = gold.network.canvas_stride
    canvases = [Canvas((x.shape[1] // stride, x.shape[2] // stride), image=x) for x in images]
    for i, segment in enumerate(gold.network.encode([canvases])[0]):
        gold.check(f"vae.packed{i}", segment.latents)
