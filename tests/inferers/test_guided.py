# SPDX-License-Identifier: Apache-2.0
"""The loop of flow steps under guidance, against golden numbers, slow twins, and itself alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import numbers, tiny_network
from torch.testing import assert_close

from monai_unimedvl import flow
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import Branches, Context, ImageInferer, flow_steps, guided, segments_for
from monai_unimedvl.sequence import Canvas, Text, pack

GUIDANCES = {
    "off": Guidance(),
    "text": Guidance(text=3.0, interval=(0.3, 1.0)),
    "both": Guidance(text=3.0, image=2.0, renorm="text_channel", interval=(0.3, 0.95)),
}
ALWAYS = replace(GUIDANCES["both"], interval=(0.0, 1.0))


@pytest.mark.parametrize("case", ["t2i", "edit"])
def test_golden_images_are_drawn_under_every_guidance(gold, case):
    gold.check_drawings(case)


def test_golden_edit_comes_out_of_branches_as_a_picture(gold):
    name, guidance = next(pair for pair in gold.guidances("edit") if pair[0] == "edit.final_text_channel_img")
    marked = SimpleNamespace(tokenizer=SimpleNamespace(marks=gold.marks))
    branches = Branches(gold.network, marked, prompts=1, guidance=guidance)
    branches.read([gold.edited()])
    assert branches.context.cache.lengths == [46, 36, 10] and branches.context.positions == [12, 2, 10]
    grid = (3, 4)
    *_, (_, (latents,)) = flow_steps(
        branches.context, [grid], guidance, steps=5, shift=3.0, noise=[gold["edit.noise"]]
    )
    gold.check(name, latents)
    picture = (gold.network.decode(latents, grid) * 255).to(torch.uint8).movedim(0, -1)
    assert (picture.int() - gold["edit.image_text_channel_img"].int()).abs().max() <= 1


def drawn_apart(network, segments, samples, grid, guidance, noise, steps, shift):
    """The slow twin: one drawing, each branch in its own cache, one forward after another."""
    contexts = []
    for sample in samples:
        contexts.append(Context(network, segments, samples=1))
        contexts[-1].read([sample])
    x, times = noise, flow.schedule(steps, shift).tolist()
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        velocities = []
        for context, used in zip(contexts, (True, *guidance.uses(t)), strict=True):
            seq = pack([[Canvas(grid, x, noisy=True, time=t)]], context.marks, start=context.positions)
            velocities.append(network(seq, context.cache, keep=False).velocity if used else None)
        x = flow.step(x, guidance.combine(*velocities), t, t_next)
    return x


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
def test_guided_together_equals_apart_and_a_batch_equals_alone(tiny, segments, image, other, guidance):
    parts = [segments(prompt, draw=True) for prompt in ([image, "axial"], ["plane", other, "is"])]
    grids, noise = [(2, 3), (4, 4)], [numbers(6, 12, seed=1), numbers(16, 12, seed=2)]
    branches = Branches(tiny, segments, prompts=2, guidance=guidance)
    branches.read(tiny.encode(parts))
    before = list(branches.context.cache.lengths)
    *_, (_, together) = flow_steps(branches.context, grids, guidance, steps=6, shift=2.0, noise=noise)
    assert branches.context.cache.lengths == before
    for n, sample in enumerate(tiny.encode(parts)):
        wordless, texts = sample[:-1], [part for part in sample if isinstance(part, Text)]
        apart = drawn_apart(
            tiny, segments, [sample, wordless, texts], grids[n], guidance, noise[n], steps=6, shift=2.0
        )
        assert_close(together[n], apart, atol=1e-12, rtol=0)


def drawn_without_cache(network, marks, samples, grid, guidance, noise, steps, shift):
    """The slow twin of networks that predict images: each branch is read anew at each step, alone."""
    x, times = noise, flow.schedule(steps, shift).tolist()
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        velocities = []
        for sample, used in zip(samples, (True, *guidance.uses(t)), strict=True):
            seq = pack(network.encode([[*sample, Canvas(grid, x, noisy=True, time=t)]]), marks)
            velocities.append(network(seq).velocity[seq.noisy] if used else None)
        x = flow.step(x, guidance.combine(*velocities), t, t_next)
    return x


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
def test_drawing_from_a_read_condition_equals_the_same_without_cache(tokenizer, image, other, guidance):
    network = tiny_network(prediction="image", decoder={"vocab_size": len(tokenizer)}).eval()
    segments = segments_for(network, tokenizer)
    prompts = [[image, "axial"], ["plane", other, image, "is"], ["axial"]]
    samples = network.encode([segments(prompt, draw=True) for prompt in prompts])
    grids = [samples[0][0].grid, samples[1][1].grid, (2, 2)]
    noise = [numbers(h * w, 12, seed=n) for n, (h, w) in enumerate(grids)]
    branches = Branches(network, segments, prompts=3, guidance=guidance)
    branches.read(samples)
    *_, (_, together) = flow_steps(branches.context, grids, guidance, steps=5, shift=2.0, noise=noise)
    for n, sample in enumerate(samples):
        texts = [part for part in sample if isinstance(part, Text)]
        contexts = [sample, sample[:-1], texts]
        apart = drawn_without_cache(
            network, branches.context.marks, contexts, grids[n], guidance, noise[n], steps=5, shift=2.0
        )
        assert_close(together[n], apart, atol=1e-10, rtol=0)
    assert grids[0] != grids[1] and [len(bases) for bases in branches.context.bases[:3]] == [1, 2, 0]


def test_branches_that_are_switched_off_are_not_computed_and_layouts_are_built_once(
    tiny, segments, image, monkeypatch
):
    guidance = Guidance(text=3.0, image=2.0, interval=(0.3, 0.95))
    branches = Branches(tiny, segments, prompts=2, guidance=guidance)
    branches.read([segments([image, "axial"], draw=True)] * 2)
    computed, built = [], []
    forward = tiny.forward
    monkeypatch.setattr(
        tiny, "forward", lambda seq, *a, **k: computed.append(len(seq)) or forward(seq, *a, **k)
    )
    monkeypatch.setattr(guided, "pack", lambda *a, **k: built.append(1) or pack(*a, **k))
    noise = [numbers(6, 12)] * 2
    list(flow_steps(branches.context, [(2, 3)] * 2, guidance, steps=8, shift=1.0, noise=noise))
    times = flow.schedule(8).tolist()[:-1]
    assert computed == [2 * 8 * (3 if 0.3 < t <= 0.95 else 1) for t in times]
    assert len(set(computed)) == len(built) == 2


def test_branches_apart_draw_what_they_draw_together(tiny, segments, image, other, monkeypatch):
    guidance, noise = ALWAYS, [numbers(6, 12, seed=1), numbers(16, 12, seed=2)]
    branches = Branches(tiny, segments, prompts=2, guidance=guidance)
    prompts = [[image, "axial"], ["plane", other, "is"]]
    branches.read(tiny.encode([segments(prompt, draw=True) for prompt in prompts]))
    forward, drawn, rows = tiny.forward, [], {}
    for most in (3 * 22, 2 * 22 + 1, 22, 1):
        monkeypatch.setattr(guided, "TOGETHER", most)
        seen = rows[most] = []
        monkeypatch.setattr(
            tiny, "forward", lambda seq, *a, seen=seen, **k: seen.append(len(seq)) or forward(seq, *a, **k)
        )
        loop = flow_steps(branches.context, [(2, 3), (4, 4)], guidance, steps=3, shift=2.0, noise=noise)
        *_, (_, latents) = loop
        drawn.append(torch.cat(latents))
    for latents in drawn[1:]:
        assert_close(latents, drawn[0], atol=1e-12, rtol=0)
    each = 22 + 4  # two drawings of 6 and 16 tokens, two marks each
    assert list(rows.values()) == [[3 * each] * 3, [2 * each, each] * 3, [each] * 9, [each] * 9]


def test_a_branch_that_repeats_another_is_not_computed(tiny, segments, image, monkeypatch):
    parts = tiny.encode([segments([image, "axial"], draw=True)])[0]
    context = Context(tiny, segments, samples=3)
    context.read([parts, parts[:-1], parts])  # the third is the first, as the reference draws from words
    computed, forward = [], tiny.forward
    monkeypatch.setattr(
        tiny, "forward", lambda seq, *a, **k: computed.append(len(seq)) or forward(seq, *a, **k)
    )
    options = {"steps": 3, "shift": 2.0, "noise": [numbers(6, 12)]}
    *_, (_, (latents,)) = flow_steps(context, [(2, 3)], ALWAYS, **options)
    assert computed == [2 * 8] * 3
    apart = drawn_apart(tiny, segments, [parts, parts[:-1], parts], (2, 3), ALWAYS, numbers(6, 12), 3, 2.0)
    assert_close(latents, apart, atol=1e-12, rtol=0)


def test_branches_that_start_from_different_images_are_all_computed(tokenizer, image):
    network = tiny_network(prediction="image", decoder={"vocab_size": len(tokenizer)}).eval()
    segments = segments_for(network, tokenizer)
    parts = network.encode([segments([image, "axial"], draw=True)])[0]
    context = Context(network, segments, samples=3)
    context.read([parts, parts[:-1], parts])
    made = [guided.Guided(context, [(2, 3)], ALWAYS, times=[1.0])]
    context.bases = [{}, {}, {}]
    made.append(guided.Guided(context, [(2, 3)], ALWAYS, times=[1.0]))
    assert [one.first for one in made] == [[0, 1, 2], [0, 1, 0]]


def test_flow_steps_tell_the_time_reached_and_change_with_the_image_guidance(tiny, segments, image):
    guidance = GUIDANCES["both"]
    branches = Branches(tiny, segments, prompts=1, guidance=guidance)
    branches.read([segments([image, "axial"], draw=True)])
    runs = []
    for image_scale in (1.0, 2.0):
        changed = replace(guidance, image=image_scale)
        runs.append(
            list(flow_steps(branches.context, [(2, 3)], changed, steps=4, shift=3.0, noise=[numbers(6, 12)]))
        )
    assert_close([t for t, _ in runs[0]], flow.schedule(4, 3.0).tolist()[1:])
    assert not torch.allclose(runs[0][-1][1][0], runs[1][-1][1][0])


def test_guidance_on_a_context_without_that_branch_is_refused(tiny, segments):
    context = Context(tiny, segments, samples=2)
    context.read([["axial"], []])
    with pytest.raises(
        ValueError, match="compares 3 contexts a drawing, got 2 for 1 drawings: read the branches"
    ):
        next(flow_steps(context, [(2, 3)], GUIDANCES["both"], steps=2, shift=1.0, noise=[numbers(6, 12)]))
    with pytest.raises(ValueError, match="steps=0, expected at least 1"):
        next(flow_steps(context, [(2, 3)], Guidance(), steps=0, shift=1.0, noise=[numbers(6, 12)]))


@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_every_solver_draws_a_batch_as_alone_within_its_evaluations(
    tiny, segments, image, solver, monkeypatch
):
    guidance = Guidance(text=3.0, interval=(0.55, 1.0))
    parts, noise = segments([image, "axial"], draw=True), [numbers(6, 12, seed=n) for n in (1, 2)]
    branches = Branches(tiny, segments, prompts=2, guidance=guidance)
    branches.read(tiny.encode([parts, parts]))
    computed, forward = [], tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda *a, **k: computed.append(1) or forward(*a, **k))
    options = {"steps": 5, "shift": 1.0, "solver": solver}
    *_, (_, both) = flow_steps(branches.context, [(2, 3)] * 2, guidance, noise=noise, **options)
    assert len(computed) == 5
    for n in range(2):
        one = Branches(tiny, segments, prompts=1, guidance=guidance)
        one.read(tiny.encode([parts]))
        *_, (t, (alone,)) = flow_steps(one.context, [(2, 3)], guidance, noise=[noise[n]], **options)
        assert t == 0
        assert_close(both[n], alone, atol=1e-12, rtol=0)


def test_what_is_skipped_is_not_computed(tiny, tokenizer, image, monkeypatch):
    computed, forward = [], tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda *a, **k: computed.append(1) or forward(*a, **k))
    draw = ImageInferer(tokenizer, steps=9, solver="ab2", skip=flow.Skip(every=3))
    first, again = (draw([[image, "axial"]], tiny)[0] for _ in range(2))
    assert len(computed) == 2 * (
        1 + 2 + 2
    )  # a prompt is read once; the first two and each third are asked for
    assert torch.equal(first, again)
    with pytest.raises(ValueError, match="solver is 'rk45'"):
        ImageInferer(tokenizer, solver="rk45")
    with pytest.raises(ValueError, match="goes with solvers of one a step, got 'heun'"):
        ImageInferer(tokenizer, solver="heun", skip=flow.Skip())
