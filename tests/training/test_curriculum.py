# SPDX-License-Identifier: Apache-2.0
"""The paper's stages: their numbers, what each draws and what each trains, by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from tiny import MARKS, text, tiny_network

from monai_unimedvl.data.mixture import Dropout, Stream
from monai_unimedvl.sequence import Segment
from monai_unimedvl.training.curriculum import KINDS, PAPER, Curriculum, Stage, dropout_of
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.optimizer import Rates

TABLE_12 = {  # steps, rate, ViT sizes, VAE sizes, tokens a sample, shares in per cent, frozen besides the VAE
    "foundation": (85_000, 5e-5, (378, 980), (512, 1024), 18_500, (5, 25, 75, 0), ()),
    "instruction": (120_000, 2.5e-5, (224, 518), (512, 1024), 20_000, (5, 45, 40, 10), ("vision",)),
    "unified": (70_000, 1e-5, (378, 980), (32, 1024), 27_000, (3, 35, 37, 25), ("vision",)),
}


def to_segments(dialogue: list[Any], draw: bool) -> list[Segment]:
    return [text(1, loss=True)]


def lessons() -> dict[str, list[Stream]]:
    """A stream of one-word samples for each kind; two for reading, with weights 1 and 3."""

    def stream(name: str, weight: float = 1.0) -> Stream:
        return Stream(name, lambda index, generator: ["a"], 10, weight)

    found = {kind: [stream(kind)] for kind in KINDS}
    return {**found, "image-to-text": [stream("vqa", 1.0), stream("caption", 3.0)]}


def drawn(mixture: Any, samples: int) -> list[str]:
    """The streams of the first samples."""
    origins = (origin.split("/")[0] for pack in mixture for origin in pack.origins)
    return list(islice(origins, samples))


def test_the_stages_are_those_of_table_12() -> None:
    assert [stage.name for stage in PAPER] == list(TABLE_12)
    for stage in PAPER:
        weights = tuple(stage.weights[kind] for kind in KINDS)
        found = (stage.steps, stage.lr, stage.view, stage.canvas, stage.max_tokens, weights, stage.frozen)
        assert found == TABLE_12[stage.name]
        assert stage.dropout == Dropout(0.3, 0.05, 0.05) and stage.ema == 0.995
        assert (stage.text_weight, stage.flow_weight) == (0.25, 1.0)
        assert sum(stage.shares().values()) == pytest.approx(1)
    assert sum(PAPER[0].weights.values()) == 105  # as published
    rates = Curriculum().rates
    assert (rates.optimizer, rates.betas, rates.eps, rates.weight_decay) == ("adamw", (0.9, 0.95), 1e-15, 0.0)
    assert (rates.schedule, rates.warmup) == ("constant", 2000)
    assert [Curriculum().stage_rates(n).lr for n in (1, 2, 3)] == [5e-5, 2.5e-5, 1e-5]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_stage_trains_exactly_the_parameters_that_the_paper_says(number: int) -> None:
    curriculum, network = Curriculum(), tiny_network()
    stage = curriculum.stage(number)
    module = UniMedVLModule(network, MARKS, objective=stage.objective, frozen=stage.frozen)
    names = {name for name, _ in network.named_parameters()}
    vision = {name for name in names if name.startswith("vision.")}
    autoencoder = {name for name in names if name.startswith("autoencoder.")}
    wanted = names - autoencoder if number == 1 else names - autoencoder - vision  # connector and LLM learn
    assert set(module.learning) == wanted == {n for n, p in network.named_parameters() if p.requires_grad}
    assert vision and {name for name in wanted if name.startswith("connector.")}
    optimizer = curriculum.stage_rates(number).build(network)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in network.named_parameters() if name in wanted}


def test_freeze_und_leaves_what_the_reference_leaves_to_learn() -> None:
    network = tiny_network()
    stage = replace(PAPER[2], detach_understanding=True)
    module = UniMedVLModule(network, MARKS, objective=stage.objective, frozen=stage.frozen)
    parts = {".".join(name.split(".")[:1]) for name in module.learning}
    assert parts == {"decoder", "time_embed", "latent_in", "latent_out"}
    inside = [name for name in module.learning if name.startswith("decoder.")]
    assert all(".generation." in name or name == "decoder.head.weight" for name in inside)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ten_thousand_draws_have_the_shares_of_the_stage_within_a_per_cent(number: int) -> None:
    curriculum = Curriculum()
    mixture = curriculum.mixture(number, lessons(), to_segments, seed=1)
    counts = Counter(mixture.streams[mixture._stream(n)].name for n in range(10_000))
    assert drawn(mixture, 50) == [mixture.streams[mixture._stream(n)].name for n in range(50)]
    shares = curriculum.stage(number).shares()
    for kind in ("text", "text-to-image", "interleaved"):
        assert counts[kind] / 10_000 == pytest.approx(shares[kind], abs=0.01), kind
    assert counts["vqa"] / 10_000 == pytest.approx(shares["image-to-text"] / 4, abs=0.01)
    assert counts["caption"] / 10_000 == pytest.approx(shares["image-to-text"] * 3 / 4, abs=0.01)


def test_a_mixture_moves_from_the_weights_before_to_its_own() -> None:
    stages = (PAPER[0], replace(PAPER[1], anneal=4000, max_tokens=100))
    mixture = Curriculum(stages).mixture(2, lessons(), to_segments)
    found = [mixture.streams[mixture._stream(n)].name for n in range(8000)]
    first, middle, rest = (Counter(found[a:b]) for a, b in ((0, 400), (1800, 2200), (4000, 8000)))
    assert first["interleaved"] / 400 < 0.02  # none in stage 1, 10 % in stage 2
    assert middle["text-to-image"] / 400 == pytest.approx((25 / 105 + 0.45) / 2, abs=0.05)
    assert rest["text-to-image"] / 4000 == pytest.approx(0.45, abs=0.02)
    assert rest["interleaved"] / 4000 == pytest.approx(0.10, abs=0.02)
    at_once = Curriculum((PAPER[0], replace(PAPER[1], max_tokens=100))).mixture(2, lessons(), to_segments)
    assert Counter(drawn(at_once, 400))["interleaved"] / 400 > 0.05


def test_an_annealed_mixture_goes_on_from_its_state() -> None:
    stages = (PAPER[0], replace(PAPER[1], anneal=50, max_tokens=30))
    straight = Curriculum(stages).mixture(2, lessons(), to_segments)
    packs = list(islice(straight, 8))
    resumed = Curriculum(stages).mixture(2, lessons(), to_segments)
    resumed.load_state_dict(packs[3].state)
    assert [pack.origins for pack in islice(resumed, 4)] == [pack.origins for pack in packs[4:]]


def test_conditions_are_dropped_where_guidance_needs_it() -> None:
    every = Dropout(0.3, 0.05, 0.04)
    assert dropout_of("text", every) == Dropout()
    assert dropout_of("image-to-text", every) == Dropout(view=0.05)
    assert dropout_of("text-to-image", every) == Dropout(text=0.3)
    assert dropout_of("interleaved", every) == every


def test_small_models_get_the_same_curriculum_in_small() -> None:
    small = Curriculum.scaled(275, lr=1e-3, max_tokens=600)
    assert [stage.steps for stage in small.stages] == [85, 120, 70]
    assert [stage.lr for stage in small.stages] == pytest.approx([1e-3, 5e-4, 2e-4])
    for stage, paper in zip(small.stages, PAPER, strict=True):
        assert (stage.weights, stage.frozen, stage.dropout) == (paper.weights, paper.frozen, paper.dropout)
        assert stage.max_tokens == 600 and stage.view is None and stage.canvas is None


def test_a_curriculum_survives_plain_values() -> None:
    curriculum = Curriculum.scaled(30, anneal=100)
    again = Curriculum.from_config(curriculum.to_config())
    assert again == curriculum and again.rates == Rates(**curriculum.to_config()["rates"])


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    stage = {
        "name": 1,
        "steps": "1e2",
        "lr": "1e-4",
        "max_tokens": 60,
        "weights": {"text": "1e0"},
        "view": [8, 9],
    }
    made = Curriculum.from_config({"stages": [stage], "rates": {"eps": "1e-8", "betas": ["9e-1", 0.95]}})
    assert made.stages == (Stage("1", 100, 1e-4, {"text": 1.0}, 60, view=(8, 9)),)
    assert made.rates == Rates(eps=1e-8, betas=(0.9, 0.95))


@pytest.mark.parametrize(
    "config, said",
    [
        ({"stage": []}, "the key 'stage', which means nothing here: did you mean 'stages'"),
        ({"stages": []}, "no stage, expected at least one"),
        ({"stages": [{"name": "a", "stepz": 1}]}, r"stages\[0\] has the key 'stepz'.*did you mean 'steps'"),
        ({"stages": [{"name": "a"}]}, r"stages\[0\] does not fit"),
        ({"stages": ["a"]}, "expected a mapping of names to values"),
        ({"stages": [PAPER[0].__dict__ | {"weights": {"txt": 1}}]}, "a weight for 'txt', expected some of"),
        ({"stages": [PAPER[0].__dict__ | {"weights": {"text": 0}}]}, "expected none below 0 and one above"),
        ({"stages": [PAPER[0].__dict__ | {"steps": 0}]}, "steps=0"),
        ({"stages": [PAPER[0].__dict__ | {"dropout": {"vit": 0.1}}]}, "dropout has the key 'vit'"),
        ({"stages": [PAPER[0].__dict__ | {"dropout": [0.1]}]}, "expected names and chances"),
        ({"stages": [PAPER[0].__dict__ | {"dropout": {"text": "a"}}]}, "dropout.text is 'a', expected a num"),
        ({"stages": [PAPER[0].__dict__ | {"lr": "fast"}]}, r"stages\[0\].lr is 'fast', expected a number"),
        ({"stages": [PAPER[0].__dict__ | {"steps": 1.5}]}, r"steps is 1.5, expected a whole number"),
        ({"stages": [PAPER[0].__dict__ | {"view": [8]}]}, r"view is \[8\], expected a list of 2"),
        ({"stages": [PAPER[0].__dict__ | {"frozen": "vision"}]}, "frozen is 'vision', expected a list"),
        ({"stages": [PAPER[0].__dict__ | {"weights": [1]}]}, r"weights is \[1\], expected a mapping"),
    ],
)
def test_a_wrong_curriculum_is_refused_with_the_place(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Curriculum.from_config(config)


def test_a_stage_that_is_not_there_or_has_no_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no stage 4, expected 1 to 3 \(foundation, instruction, unified\)"):
        Curriculum().stage(4)
    some = {**lessons(), "text": []}
    with pytest.raises(ValueError, match="'foundation' draws 5 parts of 'text' samples, but the data has"):
        Curriculum().mixture(1, some, to_segments)
