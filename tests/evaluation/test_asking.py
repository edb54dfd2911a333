# SPDX-License-Identifier: Apache-2.0
"""A run that is killed goes on where it was: nothing is asked twice, and the numbers are the same."""

from __future__ import annotations

import json

import pytest
import torch

from monai_unimedvl.evaluation import AtlasBenchmark, Drawing
from monai_unimedvl.evaluation.asking import FOLDER, Kept, Made, Request, Said, ask, here, weights_hash


class Killed(Exception):
    """Stands for a machine that goes down."""


@pytest.fixture(scope="module")
def benchmark(data):
    return AtlasBenchmark(datasets=data, tasks=["vqa", "caption", "sr4"], progress=False)


def counting(network, tokenizer, asked, after=None):
    """An engine that remembers what it was asked, and dies."""

    def engine(names, build):
        for name, made in here(network, tokenizer)(names, build):
            if after is not None and len(asked) >= after:
                raise Killed
            asked.append(name)
            yield name, made

    return engine


def run(benchmark, model, **options):
    return benchmark.run(*model, drawing=Drawing(1, 1.0), steps=1, batch=2, progress=False, **options)


def test_a_killed_run_goes_on_and_asks_nothing_twice(benchmark, model, tmp_path):
    whole: list[str] = []
    expected = run(benchmark, model, engine=counting(*model, whole))
    asked: list[str] = []
    for deaths in (3, 5):
        with pytest.raises(Killed):
            run(benchmark, model, engine=counting(*model, asked, after=deaths), out=tmp_path)
    found = run(benchmark, model, engine=counting(*model, asked), out=tmp_path)
    assert sorted(asked) == sorted(whole) and len(set(asked)) == len(asked) > 8
    assert found.rows == expected.rows and str(found.predictions) == str(expected.predictions)
    assert all(torch.equal(found.images[name], image) for name, image in expected.images.items())


def test_answers_of_another_run_are_not_taken(benchmark, model, tmp_path):
    run(benchmark, model, out=tmp_path)
    with pytest.raises(ValueError, match="answers of a run with another limit and items: finish that run"):
        run(benchmark, model, out=tmp_path, limit=1)
    network, tokenizer = model
    before = weights_hash(network)
    network.latent_out.weight.data += 1
    assert weights_hash(network) != before
    with pytest.raises(ValueError, match="another weights: finish that run"):
        run(benchmark, model, out=tmp_path)
    network.latent_out.weight.data -= 1


def test_an_engine_may_answer_in_any_order(benchmark, model):
    def backwards(names, build):
        yield from here(*model)(list(reversed(names)), build)

    assert run(benchmark, model, engine=backwards).rows == run(benchmark, model).rows


def test_what_was_made_comes_back_from_the_disk(tmp_path):
    kept = Kept(tmp_path, {"seed": 0})
    words = Made((Said("Ja. \u4e2d", -0.25, 2, "end"), Said("", None, None, "end")))
    images = Made(images=torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2))
    kept.put("test/vqa/words/000000", words)
    kept.put("test/sr4/2 steps/000000", images)
    again = Kept(tmp_path, {"seed": 0})
    assert again.get("test/vqa/words/000000") == words and again.get("test/vqa/words/000064") is None
    found = again.get("test/sr4/2 steps/000000")
    assert torch.equal(found.images, images.images) and again.found == 2
    assert json.loads((tmp_path / FOLDER / "run.json").read_text()) == {"seed": 0}
    again.clear()
    assert not list(tmp_path.iterdir())


def test_pixels_that_are_no_numbers_are_told(model, monkeypatch):
    class Broken:
        def __init__(self, tokenizer, **options):
            pass

        def __call__(self, prompts, network):
            return [torch.zeros(3, 4, 4), torch.full((3, 4, 4), float("nan"))]

    monkeypatch.setattr("monai_unimedvl.evaluation.asking.ImageInferer", Broken)
    with pytest.raises(ValueError, match="Image 1 of a request was drawn with pixels that are no numbers"):
        ask(*model, Request([["a"], ["b"]], size=(4, 4), drawing=Drawing(1, 1.0), seeds=(0, 1)))
