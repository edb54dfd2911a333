# SPDX-License-Identifier: Apache-2.0
"""A context: what it holds does not depend on the steps, the batch, or the forks in which it was read."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import Branches, Context, segments_for
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.starts import based
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config, nano
from monai_unimedvl.sequence import Canvas, Text, Turn, View
from monai_unimedvl.transforms.segments import made_here


def assert_same(one: Context, other: Context, pairs: list[tuple[int, int]]) -> None:
    """Sample i of `one` holds what sample j of `other` holds."""
    for i, j in pairs:
        assert one.cache.lengths[i] == other.cache.lengths[j]
        assert one.positions[i] == other.positions[j]
        n = one.cache.lengths[i]
        for name in ("keys", "values"):
            a, b = getattr(one.cache, name)[:, i, :, :n], getattr(other.cache, name)[:, j, :, :n]
            assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_reading_in_two_steps_equals_reading_at_once(tiny, segments, image, other, draw, cut):
    prompt = [image, "which plane", other, "is this?"]
    once, twice = (Context(tiny, segments, samples=1, capacity=4) for _ in range(2))
    once.read([prompt], draw=draw)
    twice.read([prompt[:cut]], draw=draw)
    twice.read([prompt[cut:]], draw=draw)
    assert once.cache.lengths[0] > 40
    assert_same(once, twice, [(0, 0)])


def test_reading_in_a_batch_equals_reading_alone(tiny, segments, image, other):
    prompts = [[image, "axial"], ["coronal"], [other, other], [], ["this is", image]]
    together = Context(tiny, segments, samples=5)
    together.read(prompts, draw=True)
    assert together.cache.lengths[3] == 0
    for s, prompt in enumerate(prompts):
        alone = Context(tiny, segments, samples=1)
        alone.read([prompt], draw=True)
        assert_same(together, alone, [(s, 0)])


def test_a_fork_goes_its_own_way_and_none_has_read_nothing(tiny, segments):
    stem = Context(tiny, segments, samples=2)
    stem.read([["axial"], ["which plane"]])
    before = list(stem.cache.lengths)
    fork = stem.fork([1, None, 1])
    fork.read([["is"], ["is"], []])
    assert stem.cache.lengths == before
    fresh = Context(tiny, segments, samples=2)
    fresh.read([["which plane", "is"], ["is"]])
    assert_same(fork, fresh, [(0, 0), (1, 1)])
    assert_same(fork, stem, [(2, 1)])


def test_a_dialogue_is_read_like_its_parts_and_drawn_images_as_past(tiny, segments, image, other):
    context = Context(tiny, segments, samples=2)
    turns = [
        Turn("user", [image, "axial"]),
        Turn("assistant", ["coronal", other]),
        Turn("user", ["is this?"]),
    ]
    by_hand = [*segments([image, "axial", "coronal"], draw=True)]
    by_hand += segments([other, "is this?"], draw=True)
    context.read([turns, by_hand], draw=True)
    assert_same(context, context, [(0, 1)])


def test_branches_hold_the_prompt_without_its_last_words_and_without_its_images(tiny, segments, image, other):
    prompts = [[image, "axial", other, "this"], ["is", image], [other]]
    parts = [segments(prompt, draw=True) for prompt in prompts]
    branches = Branches(tiny, segments, prompts=3, guidance=Guidance(text=2, image=2))
    branches.read(parts)
    fresh = Context(tiny, segments, samples=9)
    wordless = [parts[0][:-1], parts[1][1:], parts[2]]
    texts = [[part for part in sample if isinstance(part, Text)] for sample in parts]
    fresh.read([*parts, *wordless, *texts])
    assert_same(branches.context, fresh, [(s, s) for s in range(9)])


def test_branches_read_on_as_they_would_have_read_at_once(tiny, segments, image, other):
    prompts = [[image, "axial", other, "this"], ["is", image, "plane", "plane"]]
    once, twice = (Branches(tiny, segments, prompts=2, guidance=Guidance(text=2, image=2)) for _ in range(2))
    once.read([segments(prompt, draw=True) for prompt in prompts])
    twice.read([segments(prompt[:2], draw=True) for prompt in prompts])
    twice.read([segments(prompt[2:], draw=True) for prompt in prompts])
    assert_same(once.context, twice.context, [(s, s) for s in range(6)])


@pytest.mark.parametrize(
    "guidance, count",
    [
        (None, 1),
        (Guidance(), 1),
        (Guidance(image=2), 1),
        (Guidance(text=2), 2),
        (Guidance(text=2, image=2), 3),
    ],
)
def test_branches_are_read_only_as_far_as_guidance_needs_them(tiny, segments, guidance, count):
    assert len(Branches(tiny, segments, prompts=2, guidance=guidance).context) == 2 * count


def latents_of(tiny, segments, image):
    return tiny.encode([segments([image], True)])[0][0].latents


def test_what_drawings_start_from_follows_reads_and_forks(tiny, segments, image, other):
    context = Context(tiny, segments, samples=3)
    context.read([[image, "axial"], ["axial"], [other]], draw=True)
    ((grid, first),) = context.bases[0].items()
    assert context.bases[1] == {} and torch.equal(first.latents, latents_of(tiny, segments, image))
    fork = context.fork([2, None, 0])
    assert fork.bases[1] == {} and fork.bases[2][grid] is first and fork.bases[0] == context.bases[2]
    fork.read([[], [other], [other]], draw=True)
    assert context.bases[0] == {grid: first} and len(fork.bases[1]) == 1
    assert len(fork.bases[2]) == 2 and fork.bases[2][grid] is first  # another size leaves it
    context.read([[], [image], [image]], draw=False)
    assert context.bases[1] == {} and len(context.bases[2]) == 1  # images to understand are no base
    context.read([[Canvas(grid, -first.latents, dropped=True)], [], []])
    assert context.bases[0][grid] is first


def test_the_branch_without_images_has_no_base(tiny, segments, image):
    branches = Branches(tiny, segments, prompts=2, guidance=Guidance(text=2, image=2))
    branches.read([segments(prompt, draw=True) for prompt in ([image, "axial"], ["axial"])])
    assert [len(bases) for bases in branches.context.bases] == [1, 0, 1, 0, 0, 0]


def test_segments_have_the_sizes_that_the_network_was_made_for(tokenizer, image):
    network = nano(PatchCodec(8, 96), vocab_size=len(tokenizer))
    drawn, seen = segments_for(network, tokenizer)([image], draw=True)
    assert isinstance(drawn, Canvas) and drawn.image.shape == (3, 48, 64) and drawn.grid == (6, 8)
    assert isinstance(seen, View) and seen.grid == (6, 8) and seen.patches.shape == (48, 192)
    assert from_config(network.config).grids == network.grids == {"view": [64, 64, 8], "canvas": [64, 64, 8]}


def test_a_network_has_the_released_sizes_as_far_as_its_tables_reach(tiny):
    assert tiny.grids == {"view": [8, 8, 2], "canvas": [16, 16, 4]}
    with torch.device("meta"):
        wide = from_config({**tiny.config, "grids": None, "latent_side": 512})
    assert wide.grids["canvas"] == [1024, 512, 4]


def test_wrong_numbers_of_prompts_and_long_prompts_are_refused(tiny, segments):
    context = Context(tiny, segments, samples=2)
    with pytest.raises(ValueError, match=r"got 1 prompts, expected 2: pass \[\]"):
        context.read([["axial"]])
    with pytest.raises(ValueError, match="needs [0-9]+ tokens.*but the context holds 200: shorten"):
        context.read([["axial " * 300], []])
    context.read([["axial " * 40], []])
    with pytest.raises(ValueError, match="expected at most 200 in the context"):
        context.read([["axial " * 40], []])


def test_an_image_for_a_network_without_vision_is_refused(tiny, tokenizer, image):
    blind = UniMedVL(tiny.decoder, None, tiny.autoencoder, latent_side=4).double()
    context = Context(blind, segments_for(blind, tokenizer), samples=1)
    with pytest.raises(ValueError, match="no vision encoder"):
        context.read([[image]])


def test_slices_drawn_together_start_from_those_given_not_from_one_drawn_here():
    scan, mask = torch.zeros(4, 3), torch.ones(4, 3)
    read = [Canvas((2, 2), scan), Canvas((2, 2), mask, given=False)]
    noisy = [Canvas((2, 2), scan, noisy=True), Canvas((2, 2), scan, noisy=True, joined=True)]
    assert [canvas.base is scan for canvas in based([*read, *noisy])[2:]] == [True, True]
    for given in (True, False):  # or from the last that were drawn, where nothing was given
        two = [Canvas((2, 2), scan, given=given), Canvas((2, 2), mask, given=given)]
        both = based([*two, *noisy])[2:]
        assert both[0].base is scan and both[1].base is mask


def test_a_later_drawing_starts_from_what_was_given_not_from_what_was_drawn(tiny, segments, image):
    branches = Branches(tiny, segments, prompts=1)
    branches.read([segments([image, "mask"], True)])
    scan = dict(branches.context.bases[0])
    branches.read([made_here(segments([1 - image], True))])
    ((grid, kept),) = branches.context.bases[0].items()
    assert kept is scan[grid]
    branches.read([segments([1 - image], True)])
    assert branches.context.bases[0][grid] is not kept


def test_where_nothing_was_given_a_drawing_starts_from_the_last_one(tiny, segments, image):
    def start(*dialogue):
        """The latents from which a drawing starts after each of some parts, read one after another."""
        context, at_once = Context(tiny, segments, samples=1), Context(tiny, segments, samples=1)
        for role, part in dialogue:
            context.read([[Turn(role, [part])]], draw=True)
        at_once.read([[Turn(role, [part]) for role, part in dialogue]], draw=True)
        ((grid, found),), ((_, same),) = (c.bases[0].items() for c in (context, at_once))
        assert torch.equal(found.latents, same.latents)
        noisy = Canvas(grid, found.latents, noisy=True)
        (drawn,) = based([noisy], context.bases[0])
        assert torch.equal(drawn.base, found.latents)
        return found.latents

    words, scan, drawn, later = ("user", "axial"), ("user", image), ("assistant", 1 - image), image.flip(2)
    assert torch.equal(start(words, drawn), latents_of(tiny, segments, 1 - image))
    assert torch.equal(start(words, drawn, ("assistant", later)), latents_of(tiny, segments, later))
    assert torch.equal(start(scan, drawn), latents_of(tiny, segments, image))
    assert torch.equal(start(words, drawn, scan, drawn), latents_of(tiny, segments, image))
