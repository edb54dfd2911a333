# SPDX-License-Identifier: Apache-2.0
"""The science runner at toy scale, and that what is committed agrees with itself."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monai_unimedvl.data import atlas  # noqa: E402
from monai_unimedvl.data.atlas_pictures import Picture  # noqa: E402
from monai_unimedvl.data.atlas_runs import Asked, Run  # noqa: E402
from monai_unimedvl.evaluation import benchmarks  # noqa: E402
from monai_unimedvl.training.curriculum import PAPER  # noqa: E402
from monai_unimedvl.training.module import UniMedVLModule  # noqa: E402
from science import comparisons, curves, joint, lessons, plan, report, run, scoring, training  # noqa: E402

RESULTS = sorted(plan.RESULTS.glob("*-seed*.json"))
CONFIGS = sorted(plan.CONFIGS.glob("?.yaml"))
PLANES = ("axial", "coronal", "sagittal")


def pictures() -> list[Picture]:
    """Made-up slices of every section, with partners in T2 and PD and a tissue map."""
    chance, found = np.random.default_rng(0), []
    for section in ("train", "val", "test", "test_subject"):
        for n in range(6):
            blocks = chance.integers(0, 255, (8, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            plane = PLANES[n % 3]
            areas = {"thalamus": 150 * (n % 2)}
            facts = {"body": "head", "kind": "brain only", "level": "the ventricles", "areas": areas}
            maps = {"seg-tissue": blocks // 86, "t1-to-t2": 255 - blocks, "t1-to-pd": blocks // 2}
            found.append(
                Picture(f"made/{plane}/{section}{n}", "made", section, "MRI", "T1", plane, section, blocks,
                        float(n), facts, maps)
            )  # fmt: skip
    return found


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An atlas of made-up pictures, and few words to wait for."""
    found = pictures()
    monkeypatch.setattr(atlas, "load_pictures", lambda root, **_: (found, []))
    monkeypatch.setattr(benchmarks, "WORDS", {"vqa": 2, "caption": 3})


def toy(letter: str, name: str) -> plan.Arm:
    """An arm of the configurations, made small."""
    arm = plan.question(letter).arms[name]
    arm.config["network"] = {"hidden_size": 32, "num_layers": 1, "vocabulary": 300, "channels": 16}
    arm.config["vision"] = {"steps": 1, "batch": 4, "seed": 0}
    arm.config["training"] |= {"steps": 6, "budget": 600, "checkpoint_every": 1, "warmup": 1}
    arm.config["scoring"] |= {"questions": 1, "items": 2, "drawing": {"steps": 1, "guidance": 2.0}}
    return arm


@pytest.mark.slow
def test_an_arm_trains_goes_on_after_a_kill_and_is_reported(
    made_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, steps = toy("b", "joint"), []
    plain = UniMedVLModule.training_step

    def counted(self: Any, batch: Any, index: int) -> Any:
        steps.append(self.trainer.global_step)
        if len(steps) == 4:
            raise MemoryError("killed")
        return plain(self, batch, index)

    monkeypatch.setattr(UniMedVLModule, "training_step", counted)
    runner = run.Runner(tmp_path / "cache", tmp_path / "results")
    with pytest.raises(MemoryError):
        runner.run(arm, 0)
    assert plan.result(arm, 0, tmp_path / "results") is None
    assert runner.run(arm, 0)
    assert steps == [0, 1, 0, 1, 1, 0, 1]  # three stages of two; the step that was killed is taken again
    assert not runner.run(arm, 0)  # done is done

    found = plan.result(arm, 0, tmp_path / "results")
    assert found is not None and found["cpu_seconds"] > 0 and len(found["vision"]) == 64
    assert set(found["scores"]) == {
        f"{section}/{task}"
        for section in ("test", "test_subject")
        for task in ("vqa", "caption", "text-to-image", "sr4", "seg-tissue", "t1-to-t2", "t1-to-pd")
    }
    question = plan.question("b")
    question.arms["joint"] = arm
    results = comparisons.Results(tmp_path / "results")
    scores = results.scores(question, "joint", "test/sr4", "PSNR")
    assert scores is not None and len(scores.items) == 2 and set(scores.seeds) == {0}
    assert "generation only, seed 2" in report.missing(question, results)


def test_arms_of_a_seed_begin_alike_around_one_vision_encoder(made_up: None, tmp_path: Path) -> None:
    config = toy("b", "joint").config
    dataset = atlas.AtlasDataset(None, "train", progress=False)
    one, _, mark = training.start(config, dataset, tmp_path, 0)
    same, _, again = training.start(config, dataset, tmp_path, 0)
    other, _, still = training.start(config, dataset, tmp_path, 1)
    assert mark == again == still
    for (name, x), y, z in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
        if name.startswith("vision."):
            assert torch.equal(x, z)
    assert not torch.equal(one.decoder.embed.weight, other.decoder.embed.weight)


def test_a_plan_stands_before_what_is_drawn_and_nowhere_else(made_up: None) -> None:
    dataset = atlas.AtlasDataset(None, "train", progress=False)
    planned = lessons.Planned(dataset)
    for i, entry in enumerate(dataset.entries):
        before, after = dataset[i]["turns"][1].parts, planned[i]["turns"][1].parts
        if entry.task in ("sr4", "seg-tissue", "t1-to-t2", "t1-to-pd"):
            assert (
                str(after[0]).startswith(entry.picture.plane.capitalize()) and len(after) == len(before) + 1
            )
        else:
            assert len(after) == len(before)


def test_aligned_questions_are_answered_by_the_pictures_they_show(made_up: None) -> None:
    stream = lessons.aligned(
        atlas.AtlasDataset(None, "train", tasks=["t1-to-t2", "t1-to-pd"], progress=False)
    )
    seen = set()
    for n in range(60):
        asked, told = stream.read(n % stream.length, torch.Generator().manual_seed(n))  # type: ignore[misc]
        shown = [part for part in asked.parts if isinstance(part, Tensor)]
        words = " ".join(part for part in asked.parts if isinstance(part, str))
        seen.add(len(shown))
        if len(shown) == 3:
            assert told.parts[0] in ("A", "B") and not torch.equal(shown[1], shown[2])
        else:
            assert str(told.parts[0]) in words
    assert seen == {1, 2, 3}


def test_one_stage_has_the_samples_of_the_three() -> None:
    staged, joint = (plan.question("a").arms[name].config["stages"] for name in ("staged", "joint"))
    total = sum(stage["share"] for stage in staged)
    for kind, share in joint[0]["weights"].items():
        parts = [s["share"] / total * s["weights"][kind] / sum(s["weights"].values()) for s in staged]
        assert 100 * sum(parts) == pytest.approx(share, abs=0.01)
    assert all(stage["weights"] == joint[0]["weights"] for stage in joint)
    assert [s["lr"] for s in staged] == [s["lr"] for s in joint] == [s.lr / PAPER[0].lr for s in PAPER]
    assert [s["share"] * 1000 for s in staged] == [s.steps for s in PAPER]
    assert [s["weights"] for s in staged] == [dict(s.weights) for s in PAPER]
    assert [tuple(s.get("frozen", ())) for s in staged] == [s.frozen for s in PAPER]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_gives_stages_that_use_all_its_steps(path: Path) -> None:
    question = plan.question(path.stem)
    for arm in question.arms.values():
        if "curve" not in arm.config and arm.config["training"]["steps"]:
            assert sum(s.steps for s in training.stages_of(arm.config)) == arm.config["training"]["steps"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_of_a_configuration_and_of_its_items(path: Path) -> None:
    found = json.loads(path.read_text("utf8"))
    arm = plan.question(found["question"]).arms[found["arm"]]
    assert found["digest"] == arm.digest, "it was run with other values: run it again"
    assert path.name == f"{arm.name}-seed{found['seed']}.json" and found["cpu_seconds"] < 15 * 60
    content = (plan.RESULTS / f"items-{found['items']}.json").read_bytes().removesuffix(b"\n")
    assert hashlib.sha256(content).hexdigest()[:12] == found["items"]


def test_the_page_was_made_of_these_results() -> None:
    page = (plan.HERE / "README.md").read_text("utf8")
    assert f"<!-- made of {report.sources(plan.HERE)} -->" in page, "write it anew: run.py --report"
    for path in CONFIGS:
        shown = f"![{plan.question(path.stem).title}](plots/{path.stem}.png)" in page
        assert shown == (plan.HERE / "plots" / f"{path.stem}.png").is_file()


@pytest.mark.slow
def test_the_page_says_what_the_results_say() -> None:
    assert (plan.HERE / "README.md").read_text("utf8") == report.render(plan.HERE)


@pytest.mark.slow
@pytest.mark.parametrize("paper", joint.PAPERS, ids=lambda path: path.parent.name)
def test_the_papers_say_what_the_results_say(paper: Path, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(re.sub(r"\d\.\d{3}", "0.123", paper.read_text("utf8")))
    joint.write_all(plan.HERE, [copy])
    said = [text.split("<!-- joint -->")[1].split("<!-- /joint -->")[0] for text in
            (copy.read_text("utf8"), paper.read_text("utf8"))]  # fmt: skip
    assert said[0] == said[1] and "| sr4 | slab | PSNR |" in said[0]


def test_sharpness_is_a_share_of_the_truths() -> None:
    truth = torch.rand(2, 3, 8, 8)
    shares = scoring.sharpness(torch.stack([truth[0], 0.5 * truth[1]]), truth)
    assert shares.tolist() == pytest.approx([1.0, 0.25])


def test_a_verdict_needs_the_interval_and_all_seeds() -> None:
    a = {str(n): 0.1 * (n % 3) for n in range(30)}
    difference = comparisons.compare(a, {name: x + 0.2 for name, x in a.items()})

    def verdict(by_seed: list[float], p: float) -> str:
        return comparisons.Line("test/sr4", "PSNR", "x", "y", difference, by_seed, {}, {}, p).verdict

    assert verdict([0.2, 0.1], 0.01) == "second" and verdict([0.2, 0.1], 0.2) == "none shown"
    assert verdict([0.2, -0.1], 0.01) == "none shown"


def test_the_commonest_answer_is_guessed_for_each_question() -> None:
    import prune

    told = [("plane", "axial"), ("plane", "axial"), ("plane", "coronal"), ("body", "head")]
    asked = [Asked(*one) for one in told]
    assert prune.commonest(asked) == [1.0, 1.0, 0.0, 1.0]
    assert plan.question("e").values["guess"] == curves.BLIND


def test_no_section_of_pruning_is_called_held_out_where_it_was_trained_on() -> None:
    sections = plan.question("e").arms["nano-pruned"].config["sweep"]["sections"]
    assert sections["volumes never trained on"] == ["test_subject"]
    assert sorted(sections["held-out slabs"]) == ["test", "val"] and sections["training volumes"] == ["train"]


def test_a_new_result_names_the_code_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"rev-parse": "abc1234", "status": " M tests/benchmarks/science/run.py"}
    monkeypatch.setattr(run, "_git", lambda *words: said[words[0]])
    about = run.circumstances()
    assert about["commit"] == "abc1234" and about["changed"] is True and len(about["sources"]) == 64
    said["status"] = ""
    assert run.circumstances()["changed"] is False
    before = run.sources_hash()
    monkeypatch.setattr(run, "MAKERS", run.MAKERS[1:])
    assert run.sources_hash() != before
    for name in run.MAKERS:  # what a maker imports makes results, too
        imported = re.findall(
            r"^from science(?:\.(\w+))? import ([\w, ]+\w)", (plan.HERE / f"{name}.py").read_text(), re.M
        )
        parts = {part for module, names in imported for part in ([module] if module else names.split(", "))}
        assert parts - {"joint", "report"} <= {*run.MAKERS, "curves"}


def test_a_curve_of_pruning_holds_runs_by_volume_and_the_guess_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prune

    nothing = np.zeros((4, 4), np.uint8)
    found = [
        Run(
            (Picture(str(n), f"volume{n // 2}", "s", "MRI", "T1", "axial", "test", nothing),),
            (Asked("plane", "axial"), Asked("body", said)),
        )
        for n, said in enumerate(("head", "head", "chest"))
    ]
    monkeypatch.setattr(curves, "load_pictures", lambda root: ([], []))
    monkeypatch.setattr(curves, "runs", lambda pictures, sections, length, stride: found)
    monkeypatch.setattr(prune, "answers", lambda *_: (np.array([True, False] * 3), 0.5, 1.0))
    arm = plan.question("e").arms["nano-pruned"]
    made = curves._pruned(arm, run.Runner(tmp_path, tmp_path), None, None)
    values = {"arm": arm.name, "digest": arm.digest, "weights": "0" * 64, "cpu_seconds": 1.0, **made}
    plan.save(values, plan.result_path(arm.name, 0, tmp_path))
    first, likeness, guess = report.settings_tables(plan.question("e"), comparisons.Results(tmp_path))
    assert first[0][1] == "volumes never trained on: exact match (6 / 3 / 2)" and len(first[0]) == 4
    assert first[-1][0] == curves.BLIND and first[-1][1].startswith("0.833, +0.333 ")
    assert len(likeness) == 7 and "by volume" in likeness[1][1]
    assert guess[0][0] == f"every setting, less {curves.BLIND}" and guess[1][1].startswith("0.500, -0.333 ")
