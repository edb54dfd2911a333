# SPDX-License-Identifier: Apache-2.0
"""The losses: golden values and gradients of one packed batch, then laws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isnan

import pytest
import torch
import torch.nn.functional as F
from golden_support import Golden, reading, rows
from tiny import MARKS, canvas, numbers, text, tiny_network, view
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl import flow
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, PackedSequence, Segment, pack
from monai_unimedvl.training.objective import Draw, Losses, Objective, draw
from monai_unimedvl.weights.upstream import to_upstream

NORM_FLOOR = 1e-7  # the gradients of the ViT's key biases are mathematically zero


@pytest.fixture(scope="module")
def batch(gold: Golden) -> tuple[UniMedVL, PackedSequence]:
    """A network of this file's own, in training mode, and the golden batch."""
    return gold.build().train(), pack(gold.train_samples(), gold.marks)


def chance(gold: Golden, shift: float) -> Draw:
    """The times and noise of the golden batch."""
    return Draw(flow.shift_time(gold["train.packed_timesteps"].sigmoid(), shift), gold["train.flow_noise"])


def objective(gold: Golden, **options: bool) -> Objective:
    """With the weights of the golden case."""
    case = gold.cases["train"]
    return Objective(text_weight=case["ce_weight"], flow_weight=case["mse_weight"], **options)


def check_losses(gold: Golden, found: Losses, wanted: dict[str, float]) -> None:
    assert_close(found.text.item(), wanted["ce"], atol=gold.tolerance, rtol=0)
    assert_close(found.flow.item(), wanted["mse"], atol=gold.cases["tolerance"]["train_mse_abs"], rtol=0)
    assert_close(found.loss.item(), wanted["total"], atol=gold.cases["tolerance"]["train_mse_abs"], rtol=0)


def gradients(network: UniMedVL) -> dict[str, Tensor]:
    """Gradients under the reference's names; zeros where there is none."""
    ours = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
        if not name.startswith("autoencoder.")
    }
    return to_upstream(ours)


def backward(
    gold: Golden, network: UniMedVL, seq: PackedSequence, shift: float
) -> tuple[Losses, dict[str, Tensor]]:
    """Losses and gradients of the golden batch."""
    network.zero_grad()
    losses = objective(gold).measure(network, seq, chance(gold, shift))
    losses.loss.backward()
    return losses, gradients(network)


def norm_errors(gold: Golden, found: dict[str, Tensor], wanted: dict[str, float | None]) -> Iterator[str]:
    """The parameters whose gradient has another norm."""
    tolerance = gold.cases["tolerance"]["grad_norm_rel"]
    assert set(wanted) <= set(found)
    for name, norm in wanted.items():
        ours = float(found[name].norm())
        if isnan(ours) or abs(ours - (norm or 0.0)) > max(tolerance * (norm or 0.0), NORM_FLOOR):
            yield f"{name}: {ours} instead of {norm}"


def total_norm(found: dict[str, Tensor]) -> float:
    return float(torch.stack([g.norm() for g in found.values()]).norm())


def test_golden_train_losses_and_gradient_norms(gold: Golden, batch: tuple[UniMedVL, PackedSequence]) -> None:
    case = gold.cases["train"]
    losses, found = backward(gold, *batch, case["timestep_shift"])
    check_losses(gold, losses, case["losses"])
    assert not list(norm_errors(gold, found, case["grad_norms"]))
    assert_close(total_norm(found), case["grad_norm_global"], atol=0, rtol=1e-3)


def test_golden_train_gradients_in_full(gold: Golden, batch: tuple[UniMedVL, PackedSequence]) -> None:
    _, found = backward(gold, *batch, gold.cases["train"]["timestep_shift"])
    names = [name for name in gold.arrays if name.startswith("train.grad.")]
    assert len(names) >= 10
    for name in names:
        gold.check(name, found[name.removeprefix("train.grad.")])


@torch.no_grad()
def test_golden_train_loss_of_every_label_and_latent(
    gold: Golden, batch: tuple[UniMedVL, PackedSequence]
) -> None:
    network, seq = batch
    times, noise = chance(gold, gold.cases["train"]["timestep_shift"])
    noised = seq.with_latents(flow.add_noise(seq.latents, noise, times.unsqueeze(-1)), times)
    prediction = network(noised)
    gold.check("train.hidden", prediction.hidden[reading(seq)])
    logits = network.logits(prediction.hidden[seq.label_at])
    gold.check("train.ce", F.cross_entropy(logits, seq.labels, reduction="none"))
    error = (prediction.velocity - flow.velocity(seq.latents, noise)).square()[seq.noisy]
    gold.check("train.mse", error, gold.cases["tolerance"]["train_mse_abs"])
    assert rows(seq, seq.latent_at).tolist() == gold["train.packed_vae_token_indexes"].tolist()


@torch.no_grad()
def test_golden_train_reweighted_text_loss(gold: Golden, batch: tuple[UniMedVL, PackedSequence]) -> None:
    case = gold.cases["train"]
    losses = objective(gold, reweight_text=True).measure(*batch, chance(gold, case["timestep_shift"]))
    assert_close(losses.text.item(), case["losses"]["ce_reweighted"], atol=gold.tolerance, rtol=0)


def test_golden_train_with_shifted_times(gold: Golden, batch: tuple[UniMedVL, PackedSequence]) -> None:
    case = gold.cases["train"]["shifted"]
    losses, found = backward(gold, *batch, case["timestep_shift"])
    check_losses(gold, losses, case["losses"])
    assert_close(total_norm(found), case["grad_norm_global"], atol=0, rtol=1e-3)


def test_golden_train_with_frozen_understanding(gold: Golden, batch: tuple[UniMedVL, PackedSequence]) -> None:
    network, seq = batch
    case = gold.cases["train"]["freeze_und"]
    losses, found = backward(gold, network, seq.detached(), gold.cases["train"]["timestep_shift"])
    check_losses(gold, losses, case["losses"])
    assert not list(norm_errors(gold, found, case["grad_norms"]))
    assert_close(total_norm(found), case["grad_norm_global"], atol=0, rtol=1e-3)
    assert found["language_model.lm_head.weight"].norm() > 0
    assert found["language_model.model.norm.weight"].norm() == 0


@pytest.fixture
def samples() -> list[list[Segment]]:
    return [
        [view(2, 2), text(1, 2), text(3, 4, loss=True)],
        [text(5), canvas(2, 2, noisy=True)],
        [canvas(1, 2), view(1, 2), text(6), canvas(1, 2, seed=5, noisy=True), text(7, loss=True)],
    ]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_seed_replays_the_losses_and_another_changes_the_flow(
    tiny: UniMedVL, samples: list[list[Segment]]
) -> None:
    first, again, other = (Objective()(tiny, samples, MARKS, seeded(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.flow != other.flow


def test_training_and_evaluation_mode_give_the_same_losses(
    tiny: UniMedVL, samples: list[list[Segment]]
) -> None:
    train = Objective()(tiny.train(), samples, MARKS, seeded(1))
    evaluation = Objective()(tiny.eval(), samples, MARKS, seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(train, evaluation, strict=True))


def test_losses_of_a_pack_are_means_over_its_samples_alone(
    tiny: UniMedVL, samples: list[list[Segment]]
) -> None:
    seq = pack(samples, MARKS)
    times, noise = draw(seq, 1.0, seeded(1))
    together = Objective().measure(tiny, seq, Draw(times, noise))
    start, text_sum, flow_sum = 0, 0.0, 0.0
    for segments in samples:
        alone = pack([segments], MARKS)
        n = len(alone.latent_at)
        mine = Draw(times[start : start + n], noise[start : start + n]) if n else None
        losses, start = Objective().measure(tiny, alone, mine), start + n
        text_sum += losses.text.item() * len(alone.labels)
        flow_sum += losses.flow.item() * int(alone.noisy.sum())
    assert_close(together.text.item(), text_sum / len(seq.labels), atol=1e-5, rtol=0)
    assert_close(together.flow.item(), flow_sum / int(seq.noisy.sum()), atol=1e-5, rtol=0)


def test_the_loss_is_the_weighted_sum(tiny: UniMedVL, samples: list[list[Segment]]) -> None:
    weighted = Objective(text_weight=0.5, flow_weight=3.0)(tiny, samples, MARKS, seeded(1))
    assert_close(weighted.loss, 0.5 * weighted.text + 3.0 * weighted.flow)
    plain = Objective()(tiny, samples, MARKS, seeded(1))
    assert_close(plain.loss, 0.25 * plain.text + plain.flow)  # paper, Table 12


def test_reweighting_lets_short_answers_count_as_much_as_their_root(tiny: UniMedVL) -> None:
    one, two = [text(1), text(2, loss=True)], [text(1), text(3, 4, 5, 6, 7, loss=True)]
    short, long = (Objective()(tiny, [s], MARKS).text for s in (one, two))
    both = Objective(reweight_text=True)(tiny, [one, two], MARKS).text
    assert_close(both, (short * 2**0.5 + long * 6**0.5) / (2**0.5 + 6**0.5))


@pytest.mark.parametrize(
    "segments, text_loss, flow_loss",
    [
        ([text(1), text(2, loss=True)], True, False),
        ([view(1, 1), text(2, loss=True)], True, False),
        ([text(1), canvas(1, 1, noisy=True)], False, True),
        ([canvas(1, 2, noisy=True)], False, True),
        ([canvas(1, 2), text(3, loss=True)], True, False),
        ([text(1), view(1, 1)], False, False),
    ],
)
def test_packs_with_words_or_images_only_are_fine(
    tiny: UniMedVL, segments: list[Segment], text_loss: bool, flow_loss: bool
) -> None:
    losses = Objective()(tiny, [segments], MARKS, seeded(1))
    assert (bool(losses.text > 0), bool(losses.flow > 0)) == (text_loss, flow_loss)
    if text_loss or flow_loss:
        losses.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in tiny.parameters())


def test_images_are_encoded_on_the_way(tiny: UniMedVL) -> None:
    image = numbers(3, 8, 4)
    canvases = [Canvas((2, 1), image=image, noisy=True)]
    ready = tiny.encode([canvases])
    raw, encoded = (Objective()(tiny, x, MARKS, seeded(1)) for x in ([canvases], ready))
    assert torch.equal(raw.flow, encoded.flow)


def test_a_draw_is_one_time_for_each_noisy_canvas_and_zero_on_clean_ones(
    samples: list[list[Segment]],
) -> None:
    seq = pack(samples, MARKS)
    times, noise = draw(seq, 1.0, seeded(3))
    assert times.tolist()[:4] == [times[0].item()] * 4 and times[4:6].tolist() == [0, 0]
    assert times[6] == times[7] != times[0] and (times[seq.noisy] > 0).all()
    assert noise.shape == seq.latents.shape and noise.dtype == seq.latents.dtype
    assert draw(pack([[text(1)]], MARKS), 1.0) is None


def test_only_noisy_canvases_have_a_flow_loss(tiny: UniMedVL, samples: list[list[Segment]]) -> None:
    seq = pack(samples, MARKS)
    times, noise = draw(seq, 1.0, seeded(3))
    changed = noise.clone()
    changed[~seq.noisy] += 1  # nobody may read the noise of a clean canvas
    losses = [Objective().measure(tiny, seq, Draw(times, x)) for x in (noise, changed)]
    assert torch.equal(losses[0].flow, losses[1].flow) and torch.equal(losses[0].text, losses[1].text)


def test_a_network_that_predicts_images_learns_the_same_flow() -> None:
    network = tiny_network(prediction="image")
    seq = pack([[text(1), canvas(1, 2, noisy=True)]], MARKS)
    times, noise = torch.full((2,), 0.5), numbers(2, 12, seed=7)
    losses = Objective().measure(network, seq, Draw(times, noise))
    noised = seq.with_latents(flow.add_noise(seq.latents, noise, times.unsqueeze(-1)), times)
    guess = 0.5 / (0.5**2 + 0.5**2 + 1e-6) * noised.latents
    image = guess + network.latent_out(network(noised).hidden[seq.latent_at])
    assert_close(losses.flow, ((image - seq.latents) / 0.5).square().mean().float(), check_dtype=False)


def test_a_drawing_that_starts_from_its_condition_learns_through_the_gate() -> None:
    network = tiny_network(prediction="image")
    copied = [[canvas(1, 2), text(1), canvas(1, 2, noisy=True)]]  # the target is the condition
    Objective()(network, copied, MARKS, seeded(1)).loss.backward()
    assert network.latent_gate.bias.grad.abs().max() > 0
    network.requires_grad_(False).latent_gate.bias.fill_(50), network.latent_gate.weight.zero_()
    network.latent_out.weight.zero_(), network.latent_out.bias.zero_()
    assert Objective()(network, copied, MARKS, seeded(1)).flow < 1e-8


def test_an_edit_that_changes_little_may_count_for_more() -> None:
    network = tiny_network(prediction="image")
    source = canvas(1, 2)
    near, far = (replace(source, latents=source.latents + change, noisy=True) for change in (0.1, 0.5))
    free = canvas(1, 2, seed=3, noisy=True)
    samples = [[source, text(1), near], [source, text(1), far], [text(1), free]]
    plain, weighed = (Objective(relative=power)(network, samples, MARKS, seeded(1)) for power in (0.0, 0.5))
    assert torch.equal(plain.by_sample[2], weighed.by_sample[2]), "without a source nothing changes"
    worth = [float(network.latent_variance.mean() / change**2) ** 0.5 for change in (0.1, 0.5)]
    each = [float(plain.by_sample[n, 2]) * w for n, w in enumerate([*worth, 1.0])]
    assert_close(weighed.flow.item(), sum(each) / plain.by_sample[:, 3].sum().item(), atol=1e-5, rtol=1e-5)
    copied = [[source, text(1), replace(source, noisy=True)]]
    most = Objective(relative=0.5)(network, copied, MARKS, seeded(1)).flow
    assert_close(most, 12 * Objective()(network, copied, MARKS, seeded(1)).flow)


def test_an_answer_may_count_by_its_words_their_root_or_as_one(tiny: UniMedVL) -> None:
    one, two = [text(1), text(2, loss=True)], [text(1), text(3, 4, 5, 6, 7, loss=True)]
    short, long = (Objective()(tiny, [s], MARKS).text for s in (one, two))
    for name, power in (("token", 1.0), ("root", 0.5), ("segment", 0.0)):  # 2 and 6 labels
        both = Objective(reweight_text=name)(tiny, [one, two], MARKS).text
        assert_close(both, (short * 2**power + long * 6**power) / (2**power + 6**power))
    with pytest.raises(ValueError, match="reweight_text='word', expected one of token, root, segment"):
        Objective(reweight_text="word")
    with pytest.raises(ValueError, match="normalise='world'"):
        Objective(normalise="world")
    with pytest.raises(ValueError, match="flow_weight=-1"):
        Objective(flow_weight=-1)


def test_losses_are_also_told_by_sample(tiny: UniMedVL, samples: list[list[Segment]]) -> None:
    losses = Objective()(tiny, samples, MARKS, seeded(1))
    texts, labels, flows, patches = losses.by_sample.unbind(1)
    assert labels.tolist() == [3, 0, 2] and patches.tolist() == [0, 4, 2]
    assert_close(texts.sum() / labels.sum(), losses.text, check_dtype=False)
    assert_close(flows.sum() / patches.sum(), losses.flow, check_dtype=False)
    alone = Objective()(tiny, samples[:1], MARKS, seeded(1))
    assert_close(texts[0] / labels[0], alone.text, check_dtype=False)
    assert not losses.by_sample.requires_grad


def test_touched_parameters_all_have_a_gradient_and_the_others_keep_theirs(tiny: UniMedVL) -> None:
    samples = [[text(1), text(2, loss=True)]]  # nothing to look at, nothing to draw
    found = []
    for touch in (False, True):
        tiny.zero_grad()
        losses = Objective(touch=touch)(tiny, samples, MARKS, seeded(1))
        losses.loss.backward()
        found.append((losses.loss.detach(), {n: p.grad for n, p in tiny.named_parameters()}))
    (plain, few), (touched, all_) = found
    assert_close(plain, touched)
    trained = [n for n, p in tiny.named_parameters() if p.requires_grad]
    assert all(all_[n] is not None for n in trained) and any(few[n] is None for n in trained)
    for name, grad in few.items():
        assert grad is None or torch.allclose(grad, all_[name], atol=1e-9), name


def test_detached_understanding_is_a_switch_of_the_objective(
    tiny: UniMedVL, samples: list[list[Segment]]
) -> None:
    Objective(detach_understanding=True)(tiny, samples, MARKS, seeded(1)).loss.backward()
    moved = {n for n, p in tiny.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not [n for n in moved if "understanding" in n or n.startswith(("vision", "connector"))]
    assert {n.split(".")[0] for n in moved} == {"decoder", "latent_in", "latent_out", "time_embed"}
