# SPDX-License-Identifier: Apache-2.0
"""The atlas benchmark on a handful of made-up items and an untrained network."""

from __future__ import annotations

import pytest
import torch

from monai_unimedvl.evaluation import AtlasBenchmark, Drawing, Report, asking, atlas_scores, benchmarks
from monai_unimedvl.evaluation.baselines import fit
from monai_unimedvl.inferers import Answer


def run(data, model, **options):
    benchmark = AtlasBenchmark(datasets=data, tasks=options.pop("tasks", None), progress=False)
    return benchmark.run(*model, drawing=Drawing(2, 1.5), progress=False, **options)


@pytest.fixture(scope="module")
def report(data, model):
    return run(data, model, steps=(2, 1), batch=2)


def test_every_item_is_scored_once_in_each_setting(report):
    asked = {("vqa", 3), ("caption", 3), ("text-to-image", 3), ("sr4", 6), ("seg-tissue", 6), ("h-to-he", 6)}
    for section in ("test", "test_subject"):
        ids = [(p["task"], p["id"], p["setting"]) for p in report.predictions if p["section"] == section]
        assert len(set(ids)) == len(ids)
        assert {(task, sum(row[0] == task for row in ids)) for task, _ in asked} == asked


def test_the_rows_that_are_promised_are_there_with_baseline_and_ceiling(report):
    for task, metric, baseline, ceiling in (
        ("vqa", "exact match", "blind", False), ("caption", "token F1", "blind", False),
        ("caption", "contrast and plane", "blind", False), ("caption", "label F1", "blind", False),
        ("text-to-image", "contrast, plane and level", "nearest training image", True),
        ("text-to-image", "contrast and plane", "mean image", True),
        ("seg-tissue", "Dice", "nearest slice", True), ("seg-tissue", "Dice", "threshold", True),
        ("sr4", "PSNR", "bicubic", True),
        ("sr4", "SSIM", "bicubic", True), ("seg-tissue", "Dice", "lookup", True),
        ("seg-tissue", "Dice white matter", "usual place", True), ("h-to-he", "PSNR", "linear colours", True),
        ("text-to-image", "contrast and plane", "usual kind", True),
        ("text-to-image", "near copy", "held-out real images", False),
    ):  # fmt: skip
        for section in ("test", "test_subject"):
            row = report.find(task, metric, section)
            assert baseline in row.baselines and (row.ceiling is not None) == ceiling, row
            assert row.low <= row.value <= row.high and row.n == 3
    assert report.find("sr4", "PSNR").ceiling == pytest.approx(
        100
    )  # all 192 components: the codec loses nothing
    assert report.find("seg-tissue", "Dice").ceiling == 1.0
    assert report.find("sr4", "PSNR", group="all, smoothed templates").n == 2
    assert report.find("sr4", "PSNR", setting="1 step").n == 3
    with pytest.raises(ValueError, match="no row"):
        report.find(
            "sr4", "PSNR", group="ch2", setting="1 step"
        )  # sources are told apart in the default setting only
    assert report.about["judge"].keys() == {"test", "test_subject"}


def test_named_items_alone_are_scored_as_in_the_whole_run(data, model, report):
    names = {one["id"] for one in report.predictions if one["section"] == "test"} - {"vqa/test/0/plane"}
    few = [name for name in sorted(names) if name.startswith(("sr4", "vqa"))][:3]
    again = run(data, model, steps=2, only=few)
    assert {one["id"] for one in again.predictions} == set(few)
    for one in again.predictions:
        same = next(p for p in report.predictions if (p["id"], p["setting"]) == (one["id"], one["setting"]))
        for metric, score in one["scores"].items():
            assert score == pytest.approx(same["scores"][metric], abs=0.05)


def test_the_same_call_gives_the_same_numbers(data, model, report):
    again = run(data, model, steps=(2, 1), batch=2)
    assert again.rows == report.rows
    assert str(again.predictions) == str(report.predictions)  # as words, for NaN is not equal to itself
    assert all(torch.equal(again.images[name], image) for name, image in report.images.items())


def test_another_batch_size_draws_the_same_images(data, model, report):
    for name, image in run(data, model, tasks=["sr4"], steps=2, batch=64).images.items():
        assert (image.int() - report.images[name].int()).abs().max() <= 1  # level of 255, by rounding


def test_saved_images_are_what_was_scored(report, data):
    one = next(p for p in report.predictions if p["task"] == "sr4" and p["section"] == "test")
    name, place = one["image"]
    truth = next(item["truth"] for item in data["test"] if item["id"] == one["id"])
    drawn = report.images[name][place : place + 1].float() / 255
    assert atlas_scores.image_scores("sr4", drawn, truth[None])["PSNR"].item() == pytest.approx(
        one["scores"]["PSNR"]
    )


def test_right_answers_score_one_and_blind_ones_as_the_training_majority(data, model, monkeypatch):
    class Oracle:
        def __init__(self, tokenizer, **options):
            pass

        def __call__(self, batch, network):
            known = {
                id(item["turns"][0].parts[0]): item["plane"] for found in data.values() for item in found
            }
            return [Answer(f"{known[id(prompt[0])].capitalize()}.", (), (), "end") for prompt in batch]

    monkeypatch.setattr(asking, "TextInferer", Oracle)
    row = run(data, model, tasks=["vqa"]).find("vqa", "exact match")
    assert row.value == 1.0 and row.baselines == {"blind": pytest.approx(2 / 3)}


def test_a_limit_takes_the_same_few_of_every_task_and_question(data, model):
    few = run(data, model, limit=1, steps=1)
    assert {row.n for row in few.rows} == {1}
    assert [p["id"] for p in run(data, model, limit=1, steps=1).predictions] == [
        p["id"] for p in few.predictions
    ]
    assert {p["id"] for p in run(data, model, limit=2, steps=1).predictions} > {
        p["id"] for p in few.predictions
    }


def test_a_network_in_training_is_scored_in_eval_and_handed_back_in_training(data, model):
    network, _ = model
    network.train()
    modes: list[bool] = []
    hook = network.register_forward_hook(lambda *_: modes.append(network.training))
    run(data, model, tasks=["vqa"])
    hook.remove()
    assert network.training and set(modes) == {False}
    network.eval()


def test_a_baseline_draws_each_item_once_whatever_is_scored_with_it(data, model, monkeypatch):
    drawn: list[tuple[str, str]] = []

    def watched(task, items):
        def watch(name, draw):
            return lambda item: (drawn.append((name, item["id"])), draw(item))[1]

        return {name: watch(name, draw) for name, draw in fit(task, items).items()}

    monkeypatch.setattr(benchmarks.trivial, "fit", watched)
    run(data, model, tasks=["text-to-image", "sr4", "seg-tissue"], steps=(2, 1))
    assert len(drawn) == len(set(drawn)) > 30


def test_the_report_survives_the_disk(report, tmp_path):
    again = Report.load(report.save(tmp_path))
    assert [row.metric for row in again.rows] == [row.metric for row in report.rows]
    assert again.table() == report.table()


def test_an_unknown_task_and_nothing_to_score_are_told(data, model):
    with pytest.raises(ValueError, match="got task 'seg-heart', expected some of vqa"):
        AtlasBenchmark(datasets=data, tasks=["vqa", "seg-heart"])
    with pytest.raises(ValueError, match="Nothing to score: no items of seg-bone in test, test_subject"):
        run(data, model, tasks=["seg-bone"])
