# SPDX-License-Identifier: Apache-2.0
"""Each claim of the findings that is words and not a number, held against the committed results.

A number in a finding is looked up when the page is made (`facts.py`); what is said of it is tested here, of
the two curves (e, f) in `test_findings_of_curves.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monai_unimedvl.networks.autoencoder import PatchCodec  # noqa: E402
from science import comparisons, facts, joint, plan, report  # noqa: E402
from science.comparisons import Line, place_words, read_items, volume, volumes  # noqa: E402

FINDINGS = sorted((plan.HERE / "findings").glob("?.md"))
RERUN: tuple[str, ...] = ()  # findings whose sentences wait for a run with other weights of the bundle


@cache
def results() -> comparisons.Results:
    return comparisons.Results(plan.RESULTS)


@cache
def lines(letter: str) -> dict[tuple[str, str, str], Line]:
    """(first, second, "caption, slab") -> line."""
    found = results().lines(plan.question(letter))
    return {(x.first, x.second, place_words(x.place)): x for x in found}


def of(letter: str, first: str, second: str) -> dict[str, Line]:
    """The rows of one pair, by their first column."""
    return {place: x for (a, b, place), x in lines(letter).items() if (a, b) == (first, second)}


def verdicts(letter: str, first: str, second: str, verdict: str) -> set[str]:
    return {place for place, line in of(letter, first, second).items() if line.verdict == verdict}


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_no_number_of_a_result_is_typed_into_a_finding(path: Path) -> None:
    text = re.sub(r"\{[^{}]*\}", "", path.read_text("utf8"))
    typed = re.findall(r"\d+\.\d+|[+-]\d+", text)
    if path.stem not in RERUN:
        assert set(typed) <= {"0.0005", "0.004"}, "look it up: facts.py"  # the rates of question g


@pytest.mark.parametrize(
    "told", ["joint|staged|caption, slab|mode", "joint|a|b|p", "joint|staged|no, slab|p"]
)
def test_a_finding_can_not_name_what_is_not_in_the_results(told: str) -> None:
    with pytest.raises(ValueError, match="not in the results: name arms, a row and a column"):
        facts.told(f"It is {{{told}}}.", plan.question("a"), results())


def test_a_finding_takes_its_numbers_from_the_table() -> None:
    line = of("a", "joint", "staged")["t1-to-pd, slab"]
    said = facts.told("{joint|staged|t1-to-pd,\n slab|seeds} {joint|staged|t1-to-pd, slab|volumes}",
                      plan.question("a"), results())  # fmt: skip
    assert said == ", ".join(f"{x:+.2f}" for x in line.by_seed) + " 1"


def test_two_settings_of_a_curve_are_told_as_in_its_table() -> None:
    question = plan.question("f")
    told = facts.told("{2 steps|8 steps|sr4, slab: PSNR|difference} {2 steps|8 steps|sr4, slab: PSNR|p}",
                      question, results()).split()  # fmt: skip
    (row,) = [row for t in report.settings_tables(question, results()) for row in t if row[0] == "8 steps"
              and "PSNR" in t[0][2]]  # fmt: skip
    assert told[0] in row[2] and f"p {told[1]}" in row[2]


def test_a_no_task_is_better_under_either_order() -> None:
    found = of("a", "joint", "staged")
    assert len(found) == 11
    for line in found.values():
        assert line.verdict == "none shown" and not line.told_by_seeds
    assert all(x > 0 for x in found["caption, slab"].by_seed)
    for place in ("seg-tissue, slab", "sr4, subject"):
        assert found[place].adjusted < 0.05 and sorted(x > 0 for x in found[place].by_seed).count(True) == 1
    assert [x > 0 for x in found["sr4, slab"].by_seed] == [True, False, False]
    assert [x > 0 for x in found["t1-to-pd, slab"].by_seed] == [False, False, True]
    for line in (found["seg-tissue, slab"], found["sr4, slab"]):
        baseline = line.baselines.get("bicubic", line.baselines.get("lookup", 0.0))
        assert max(line.difference.a, line.difference.b) < baseline


def test_b_verdicts_are_those_that_the_finding_lists() -> None:
    assert not {
        *verdicts("b", "understanding", "joint", "second"),
        *verdicts("b", "generation", "joint", "second"),
    }
    lost = {"text-to-image, slab", "sr4, slab", "t1-to-t2, slab", "t1-to-pd, slab"}
    assert verdicts("b", "generation", "joint", "first") == lost
    assert verdicts("b", "understanding", "joint", "first") == {"caption, slab"}
    assert verdicts("b", "understanding-half", "joint", "first") == {"caption, slab"}
    assert verdicts("b", "generation-half", "joint", "first") == {"text-to-image, slab"}
    gains = of("b", "generation-half", "joint")
    assert verdicts("b", "generation-half", "joint", "second") == {"seg-tissue, slab", "sr4, subject"}
    assert not any(gains[place].told_by_seeds for place in ("seg-tissue, slab", "sr4, subject"))
    assert 0 < gains["sr4, subject"].by_seed[0] < 0.001
    told = {place for place in lost if of("b", "generation", "joint")[place].told_by_seeds}
    assert told == {"text-to-image, slab", "t1-to-t2, slab"}
    halves = [of("b", "understanding-half", "joint")["caption, slab"], gains["text-to-image, slab"]]
    assert all(line.told_by_seeds for line in [of("b", "understanding", "joint")["caption, slab"], *halves])
    still = gains["t1-to-t2, slab"]
    assert still.verdict == "none shown" and still.difference.high < 0


def test_b_halves_have_as_many_updates_together_as_the_joint_run() -> None:
    steps = {name: arm.config["training"]["steps"] for name, arm in plan.question("b").arms.items()}
    assert steps["understanding"] + steps["generation"] == 2 * steps["joint"] == 960
    assert abs(sum(steps[name] for name in joint.HALVES) - steps["joint"]) <= 3
    finding = (plan.HERE / "findings" / "b.md").read_text("utf8")
    assert f"{steps['understanding-half']} + {steps['generation-half']} against {steps['joint']}" in finding


def test_the_readmes_conclude_what_the_rows_show() -> None:
    found = results().lines(plan.question("b"))
    said = joint.conclusion(found)
    assert said.startswith("No transfer is shown.")
    assert (
        "With equal updates for each network, joint training is worse in 5 of 11 rows and better in 0;"
        in said
    )
    assert "With equal updates in total, joint training is worse in 2 of 11 rows and better in 2;" in said
    for paper in joint.PAPERS:
        assert said in " ".join(paper.read_text("utf8").split())
    turned = [comparisons.replace(x, difference=_turned(x), by_seed=[-s for s in x.by_seed]) for x in found]
    assert joint.conclusion(turned).startswith("Transfer is seen in 5 rows.")


def _turned(line: Line) -> comparisons.Difference:
    told = line.difference
    return comparisons.replace(told, value=-told.value, low=-told.high, high=-told.low)


def test_c_one_gain_and_no_use_of_the_words_is_shown() -> None:
    own, none = of("c", "direct", "planned/own plan"), of("c", "direct", "planned/no plan")
    true = of("c", "planned/own plan", "planned/true plan")
    assert verdicts("c", "direct", "planned/own plan", "second") == {"seg-tissue, slab"}
    assert verdicts("c", "direct", "planned/own plan", "none shown") == {"seg-lobes, subject"}
    assert all(line.verdict == "none shown" for line in true.values())
    assert true["seg-tissue, slab"].difference.value < 0
    for found in (own, none, of("c", "direct", "planned/true plan")):
        for place, line in found.items():
            sides = (line.difference.a, line.difference.b)
            if place in ("seg-tissue, slab", "seg-lobes, slab"):
                assert max(sides) < line.baselines["lookup"]
            if place.startswith("seg-lobes"):
                assert max(sides) < 0.5 * line.baselines["usual place"]
    lobes = own["seg-lobes, subject"]
    assert min(lobes.difference.a, lobes.difference.b) > lobes.baselines["lookup"]


def test_d_translation_alone_is_better_and_its_samples_are_more() -> None:
    shares = {name: arm.config["stages"][0]["weights"] for name, arm in plan.question("d").arms.items()}
    assert shares["aligned"]["image-to-text"] / sum(shares["aligned"].values()) == 0.25
    assert set(shares["translation"]) == {"interleaved"}
    for arm in ("aligned", "ordinary"):
        assert len(verdicts("d", "translation", arm, "first")) == 4
        assert {round(x.difference.p, 6) for x in of("d", "translation", arm).values()} == {
            round(1 / 2001, 6)
        }
    assert verdicts("d", "ordinary", "aligned", "first") == {"t1-to-t2, slab", "t1-to-gm, slab"}
    for place in ("t1-to-t2, slab", "t1-to-pd, slab"):
        seeds = of("a", "joint", "staged")[place].by_seed
        arms = [of("d", "translation", arm)[place].difference.value for arm in ("aligned", "ordinary")]
        assert max(seeds) - min(seeds) > max(map(abs, arms))


def test_g_everything_learns_more_and_forgets_more_of_the_drawing() -> None:
    adapters = ("lora-both", "lora-generation", "lora-understanding")
    sharp = ("sr4, slab", "sr4, subject")
    for arm in adapters:
        found = of("g", "full", arm)
        assert found["pd-to-t2, slab"].verdict == "first"
        kept = {place for place, x in found.items() if x.verdict == "second"}
        assert kept == {
            "t1-to-t2, slab",
            "seg-tissue, slab",
            *(sharp[:1] if arm == "lora-generation" else sharp),
        }
        assert found["seg-tissue, slab"].adjusted == of("g", "full", "lora-both")["seg-tissue, slab"].adjusted
        assert found["pd-to-t2, slab"].adjusted == of("g", "full", adapters[-1])["pd-to-t2, slab"].adjusted
    for arm in ("full", *adapters):
        lost = {place for place, x in of("g", "untouched", arm).items() if x.verdict == "first"}
        further = {"lora-generation": set(), "lora-understanding": {"seg-tissue, slab", "vqa, subject"}}
        assert lost == {"t1-to-t2, slab", *sharp} | further.get(arm, {"seg-tissue, slab"})
    for place in ("vqa, slab", "vqa, subject"):
        line = of("g", "untouched", "lora-generation")[place]
        assert line.difference.moved == (0, 0)
    answers = {arm: of("g", "untouched", arm)["vqa, subject"].difference.value for arm in ("full", *adapters)}
    assert min(answers, key=answers.__getitem__) == "lora-understanding"


def test_g_adapters_on_understanding_learnt_least_and_kept_most_of_the_neighbour() -> None:
    arms = ("full", "lora-both", "lora-generation", "lora-understanding")
    learnt = [of("g", "untouched", arm)["pd-to-t2, slab"].difference.b for arm in arms]
    kept = [of("g", "untouched", arm)["t1-to-t2, slab"].difference.b for arm in arms]
    assert min(learnt) == learnt[-1] and max(kept) == kept[-1]


def test_the_page_counts_the_volumes_behind_its_images() -> None:
    seen: dict[str, set[str]] = {}
    for path in plan.RESULTS.glob("items-*.json"):
        for place, rows in read_items(plan.RESULTS, path.stem.removeprefix("items-")).items():
            seen.setdefault(place, set()).update(volumes(picture for _, picture in rows))
    assert seen["test/t1-to-t2"] == seen["test/t1-to-pd"] == {"avg152T1"}
    assert seen["test/t2-to-t1"] == {"avg152T2"} and seen["test/t1-to-gm"] == {"icbm09a"}
    assert len(seen["test/seg-tissue"]) == 5
    assert volume("itkT1_coronal/076") == volume("itkT1_axial/088") == "itkT1"
    assert volume("headct_bone/axial/3") == "headct_bone" and volume("ch2/run 3") == "ch2"
    row = next(t for name, t in report.pair_tables(plan.question("d"), results()))[1]
    assert row[2] == "22 / 22 / 1"


def test_the_page_says_how_large_the_networks_are() -> None:
    from monai_unimedvl.bundle import load
    from science.training import _nano

    shape = plan.question("b").arms["joint"].config["network"]
    codec = PatchCodec.fit(torch.rand(64, 3, 64, 64), patch=8, channels=shape["channels"])
    words: Any = range(shape["vocabulary"])  # only their number is asked for
    arms, nano = _nano(codec, words, shape), load("unimedvl_nano")[0]
    sizes = [round(sum(x.numel() for x in network.parameters()) / 1e6, 1) for network in (arms, nano)]
    said = f"Networks of {sizes[0]} million parameters (a to d) and the shipped nano of {sizes[1]} million"
    assert said in " ".join(report.HEAD.split())


def test_the_page_says_whether_the_bundle_still_has_the_weights_of_a_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (plan.HERE / "README.md").read_text("utf8")
    for letter in "efg":
        said = report.begun_with(plan.question(letter), results())
        assert said in page, (
            "the bundle has other weights: run.py --report says so, run.py --only e f measures"
        )
    (found,) = results().of(plan.question("f").arms["nano-drawn"], 1).values()
    monkeypatch.setattr(report, "shipped", lambda bundle: found["weights"])
    assert ", the ones that the bundle has now." in report.begun_with(plan.question("f"), results())
    monkeypatch.setattr(report, "shipped", lambda bundle: "0" * 64)
    assert ", not the ones that the bundle has now." in report.begun_with(plan.question("f"), results())
    assert not report.begun_with(plan.question("a"), results())


def test_the_page_says_which_old_results_name_a_commit_without_their_configuration(tmp_path: Path) -> None:
    said = " ".join(report.provenance(plan.HERE).split())
    lost = set()
    for found in _old():
        commit, arm = found["about"]["commit"], plan.question(found["question"]).arms[found["arm"]]
        folder = tmp_path / commit
        if not folder.is_dir():
            if subprocess.run(
                ["git", "cat-file", "-e", commit], cwd=plan.HERE, capture_output=True
            ).returncode:
                pytest.skip("the history of the project is not here")
            _configurations(commit, folder)
        there = (folder / f"{found['question']}.yaml").is_file()
        arms = plan.question(found["question"], folder).arms if there else {}
        if found["arm"] not in arms or arms[found["arm"]].digest != arm.digest:
            lost.add((found["arm"], found["seed"], commit))
    halves = {(name, seed, "29214bb") for name in joint.HALVES for seed in range(3)}
    assert lost == {("joint", 0, "d478c31"), *halves} and "six runs" in said


def _old() -> Iterable[dict]:  # type: ignore[type-arg]
    for path in sorted(plan.RESULTS.glob("*-seed*.json")):
        found = report.json.loads(path.read_text("utf8"))
        if "sources" not in found["about"]:
            yield found


def _configurations(commit: str, folder: Path) -> None:
    folder.mkdir()
    for name in ("base", *plan.LETTERS):
        where = f"{commit}:./configs/{name}.yaml"
        shown = subprocess.run(["git", "show", where], cwd=plan.HERE, capture_output=True)
        if not shown.returncode:
            (folder / f"{name}.yaml").write_bytes(shown.stdout)
