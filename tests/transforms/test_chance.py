# SPDX-License-Identifier: Apache-2.0
"""Augmentations: repeatable, in MONAI's chains and workers, and true in words and geometry."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from monai.data import Dataset, MetaTensor, ThreadDataLoader, list_data_collate
from monai.transforms import Compose

from monai_unimedvl.transforms.chance import (
    RandDropCondition,
    RandDropConditiond,
    RandMirrord,
    RandParaphrase,
    RandParaphrased,
    RandWindow,
    RandWindowd,
    UnclearSides,
    swap_sides,
)


@pytest.mark.parametrize(
    ("said", "mirrored"),
    [
        ("Left lung, RIGHT kidney, left-sided stroke", "Right lung, LEFT kidney, right-sided stroke"),
        ("Rt. ventricle; the OD and the OS", "Lt. ventricle; the OS and the OD"),
        ("Shifted leftwards at right angles", "Shifted rightwards at right angles"),
        ("Bright, upright, copyright, OSA and cleft", "Bright, upright, copyright, OSA and cleft"),
        ("A mass in the left lobe and one on the right.", "A mass in the right lobe and one on the left."),
    ],
)
def test_left_and_right_change_places_and_nothing_else(said: str, mirrored: str) -> None:
    assert swap_sides(said) == mirrored
    assert swap_sides(mirrored) == said


@pytest.mark.parametrize(
    "said",
    ["Lesion at 3 o'clock", "Situs solitus", "The drain was left in place", "dextrocardia", "left the lab"],
)
def test_words_without_a_safe_mirror_image_are_not_mirrored(said: str) -> None:
    with pytest.raises(UnclearSides, match="no safe mirror image"):
        swap_sides(said)
    record = {"image": MetaTensor(torch.rand(1, 8, 8)), "report": said}
    kept = RandMirrord("image", "report", prob=1.0)(record)
    assert torch.equal(kept["image"], record["image"]) and kept["report"] == said


def record() -> dict:
    image = torch.zeros(1, 8, 10)
    image[0, 3, 2] = 1.0  # a lesion at image left: the patient's right
    affine = torch.diag(torch.tensor([2.0, -2.0, 1.0, 1.0], dtype=torch.float64))
    prompt = ["Is the lesion right?", image.clone(), "Answer."]
    return {"image": MetaTensor(image, affine=affine), "prompt": prompt, "report": "Lesion on the right."}


def test_images_words_and_affine_are_mirrored_together_and_back() -> None:
    step = RandMirrord("image", ["prompt", "report"], prob=1.0)
    made = step(record())
    assert made["image"][0, 3, 7] == 1.0 and made["report"] == "Lesion on the left."
    assert made["prompt"][0] == "Is the lesion left?" and made["prompt"][1][0, 3, 7] == 1.0
    before = record()["image"].affine @ torch.tensor([3, 2, 0, 1.0], dtype=torch.float64)
    after = made["image"].affine @ torch.tensor([3, 7, 0, 1.0], dtype=torch.float64)
    assert torch.equal(before, after), "the lesion is where it was in the patient"
    back = step.inverse(made)
    assert torch.equal(back["image"], record()["image"]) and back["report"] == record()["report"]
    assert torch.equal(back["image"].affine, record()["image"].affine)
    with pytest.raises(KeyError, match="words that keep their sides would lie"):
        RandMirrord("image", "absent", prob=1.0)(record())
    assert (
        RandMirrord(["image", "no"], "absent", 1.0, allow_missing_keys=True)(record())["image"][0, 3, 7] == 1
    )


def test_the_same_seed_gives_the_same_changes() -> None:
    steps = [
        RandMirrord("image", ["prompt", "report"]),
        RandParaphrased("report", [["Lesion", "Finding", "Mass"]], prob=0.8),
        RandWindowd("image", 0, 1),
        RandDropConditiond("prompt", 0.3, 0.3, 0.2),
    ]
    chain = Compose(steps)

    def run(seed: int) -> list:
        chain.set_random_state(seed)
        made = [chain(record()) for _ in range(12)]
        return [(m["report"], m["image"].sum().item(), len(m["prompt"])) for m in made]

    first = run(3)
    assert first == run(3) != run(4) and len(set(first)) > 3


def test_a_window_differs_within_its_limits() -> None:
    step = RandWindow(-150, 250, level=0.1, width=0.2)
    step.set_random_state(0)
    seen = [step(torch.full((1, 8, 8), 50.0)) for _ in range(50)]
    assert max(float(one.std()) for one in seen) < 1e-6
    values = torch.stack([one.mean() for one in seen])
    assert values.std() > 0.02 and values.min() > 0.35 and values.max() < 0.65
    image = step(MetaTensor(torch.linspace(-1000, 1000, 64).view(1, 8, 8)))
    low, high = image.meta["window"]
    assert (
        320 <= high - low <= 480 and image.meta["unit"] and 0 <= float(image.min()) <= float(image.max()) <= 1
    )
    plain = RandWindow(-150, 250, prob=0.0)(torch.tensor([[[-150.0, 50.0, 250.0]]]))
    assert plain.flatten().tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="RandWindow got level=-1"):
        RandWindow(0, 1, level=-1)


def test_paraphrases_mean_the_same_and_are_drawn_evenly() -> None:
    group = ["Describe this image.", "What does this image show?", "Write a report."]
    step = RandParaphrase([group], prob=1.0)
    step.set_random_state(0)
    seen = Counter(step("Describe this image.") for _ in range(300))
    assert set(seen) == set(group) and min(seen.values()) > 60
    image = torch.rand(3, 8, 8)
    prompt = step([image, "Describe this image.", "Nothing else."])
    assert prompt[0] is image and prompt[1] in group and prompt[2] == "Nothing else."
    assert RandParaphrase([group], prob=0.0)(group[0]) == group[0]
    with pytest.raises(ValueError, match="expected two phrases or more"):
        RandParaphrase([["one"]])
    with pytest.raises(ValueError, match="a int came as words"):
        step(3)


def test_conditions_are_dropped_at_the_stated_rates() -> None:
    image = torch.zeros(3, 8, 8)
    step = RandDropCondition(text=0.2, image=0.1, both=0.1)
    step.set_random_state(0)
    kinds = Counter(
        "".join("w" if isinstance(p, str) else "i" for p in step(["A", image, "B"])) for _ in range(4000)
    )
    assert set(kinds) == {"wiw", "i", "ww", ""}
    for kind, share in (("wiw", 0.6), ("i", 0.2), ("ww", 0.1), ("", 0.1)):
        assert kinds[kind] / 4000 == pytest.approx(share, abs=0.03)
    with pytest.raises(ValueError, match="add up to at most 1"):
        RandDropCondition(0.8, 0.3)


def test_they_run_in_a_loader_with_workers() -> None:
    chain = Compose([RandMirrord("image", ["report"], prob=1.0), RandWindowd("image", 0, 1, prob=0.0)])
    records = [{"image": record()["image"], "report": "Lesion on the right."} for _ in range(4)]
    loader = ThreadDataLoader(
        Dataset(records, chain), batch_size=2, num_workers=1, collate_fn=list_data_collate
    )
    batches = list(loader)
    assert [b["image"].shape for b in batches] == [(2, 1, 8, 10)] * 2
    assert batches[0]["report"] == ["Lesion on the left."] * 2 and float(batches[0]["image"][0, 0, 3, 7]) == 1
