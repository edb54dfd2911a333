# SPDX-License-Identifier: Apache-2.0
"""A build gives the same manifest whoever did it and however often it was killed, and loses nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import invented
import numpy as np
import pytest
from invented import HERE, Invented, build, dies_once, files, plan

from monai_unimedvl.cli import main
from monai_unimedvl.data import jobs as jobs_module
from monai_unimedvl.data.engines import run_all
from monai_unimedvl.data.ingest.base import write_png
from monai_unimedvl.data.licences import kind_of
from monai_unimedvl.data.pipeline import build_dataset
from monai_unimedvl.data.plan import Pipeline, read_pipeline, resolved
from monai_unimedvl.data.shards import check_shards

pytest.importorskip("pyarrow", reason="shards need the extra 'data'")
pytest.importorskip("imagehash", reason="fingerprints need the extra 'data'")
pytest.importorskip("jinja2", reason="the report needs the extra 'data'")


def test_a_build_adds_up_and_opens_elsewhere(tmp_path: Path) -> None:
    manifest = build(tmp_path / "corpus", plan())
    steps = {step["step"]: step for step in manifest["steps"]}
    assert [step["step"] for step in manifest["steps"]] == [
        "invented 1",
        "dedup",
        "doubled",
        "brighter",
        "split",
    ]
    assert steps["invented 1"] | {"reasons": 0} == {
        "step": "invented 1", "in": 40, "kept": 36, "rejected": 4, "records": 36, "rejects": 4, "reasons": 0
    }  # fmt: skip
    assert steps["dedup"]["reasons"] == {"duplicate": 4}
    assert steps["doubled"]["records"] == 2 * steps["dedup"]["kept"] == steps["brighter"]["in"]
    for before, after in (("dedup", "doubled"), ("brighter", "split")):
        assert steps[before]["kept"] == steps[after]["in"]
    assert manifest["records"] == steps["split"]["kept"] == sum(s["rows"] for s in manifest["shards"])
    assert len(manifest["shards"]) > 1 and set(manifest["counts"]["split"]) == {"train", "test"}
    folder = tmp_path / "corpus"
    check_shards(folder)
    assert not (folder / ".work").exists()
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert Counter(reject["code"] for reject in rejects) == manifest["rejected"]
    assert all(reject["reason"].endswith(".") and reject["step"] for reject in rejects)
    pandas = pytest.importorskip("pandas", reason="datasets brings it")
    frame = pandas.concat(pandas.read_parquet(path) for path in folder.glob("shard-*.parquet"))
    assert len(frame) == manifest["records"] == frame["id"].nunique()
    assert frame.groupby("patient")["split"].nunique().max() == 1
    assert json.loads(frame["facts"].iloc[0]).keys() == {"bright"}
    page = (folder / "report.html").read_text("utf8")
    assert "duplicate 4" in page and "data:image/png;base64" in page
    text = (folder / "card.md").read_text("utf8")
    assert "| CC0-1.0 | free |" in text and "patient" in text and str(tmp_path) not in text + page


def test_any_number_of_workers_gives_the_same_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert build(one, plan(count=20)) == build(two, plan(count=20), workers=2)
    assert files(one) == files(two)


def test_a_second_run_does_nothing_and_another_pipeline_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    manifest = build(out, plan(count=8))
    (out / "letter.txt").write_text("keep me")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / ".work").mkdir()  # as a kill after the last word leaves it
    assert build(out, plan(count=8)) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="holds a corpus of another pipeline"):
        build(out, plan(count=9))
    with pytest.raises(ValueError, match="holds other files"):
        build(out, plan(count=9), restart=True)
    assert (out / "letter.txt").read_text() == "keep me" and not (out / "manifest.json").exists()


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    each = Invented.each
    monkeypatch.setattr(Invented, "each", lambda self, part: read.append(part) or each(self, part))
    broken = ValueError("the plug was pulled")

    def stop_at_shards(job: dict[str, Any]) -> dict[str, Any]:
        raise broken

    with monkeypatch.context() as during:
        during.setattr(jobs_module, "_write_one", stop_at_shards)
        with pytest.raises(ValueError, match="plug was pulled"):
            build(tmp_path / "corpus", plan(count=24))
    assert sorted(read) == list(range(24))
    with pytest.raises(ValueError, match="was begun with another pipeline"):
        build(tmp_path / "corpus", plan(count=23))
    (tmp_path / "corpus" / ".card.md.0f4ecb0e.part").write_text("half a card")  # as a kill leaves it
    build(tmp_path / "corpus", plan(count=24))
    assert len(read) == 24
    build(tmp_path / "whole", plan(count=24))
    assert files(tmp_path / "corpus") == files(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_same_files_and_survives_the_death_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    monkeypatch.setenv("PYTHONPATH", str(Path(invented.__file__).parent))  # its workers import the steps
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    try:
        local = build(tmp_path / "local", plan(count=20))
        assert build(tmp_path / "ray", plan(count=20), engine="ray", workers=2) == local
        assert files(tmp_path / "ray") == files(tmp_path / "local")
        jobs = [{"name": f"job {n}", "mark": str(tmp_path / "mark"), "deadly": n == 3} for n in range(8)]
        done = list(run_all(dies_once, jobs, engine="ray", workers=2))
        assert (tmp_path / "mark").exists()
        assert sorted(each["name"] for each in done) == [f"job {n}" for n in range(8)]
    finally:
        ray.shutdown()


def test_a_bare_image_of_which_words_were_made_is_no_loss(tmp_path: Path) -> None:
    write_png(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), tmp_path / "in" / "cyst")
    source = {"step": "ingest", "kind": "images", "path": str(tmp_path / "in"), "modality": "xray"}
    told: dict[str, Any] = {"name": "bare", "sources": [{**source, "dataset": "d", "public": True}]}
    assert build(tmp_path / "out", {**told, "steps": [{"step": "textify"}]})["rejected"] == {"bare-image": 1}
    with pytest.raises(ValueError, match=r"nothing was kept .*nothing-to-learn 1"):
        build(tmp_path / "bare", {**told, "steps": []})


def test_a_commercial_corpus_refuses_licences_by_name(tmp_path: Path) -> None:
    for licence, kind in (
        ("CC-BY-NC-4.0", "non-commercial"),
        ("unknown", "unknown"),
        ("CC-BY-ND-4.0", "no derivatives"),
    ):
        with pytest.raises(ValueError, match=rf"these licences are in it: {licence} \({kind}\)"):
            build(tmp_path / licence, plan(licence=licence), commercial=True)
    assert build(tmp_path / "free", plan(licence="CC-BY-4.0"), commercial=True)["licences"].keys() == {
        "CC-BY-4.0"
    }


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("BSD-3-Clause (images: ICBM notice, free use)", "free"),
        ("MIT License", "free"),
        ("Apache-2.0 OR GPL-2.0-only", "free"),
        ("MIT AND GPL-3.0-or-later", "share alike"),
        ("Apache-2.0 AND CC-BY-NC-4.0", "non-commercial"),
        ("MIT and ask the author", "unknown"),
        ("images: no known restrictions", "unknown"),
        ("", "unknown"),
    ],
)
def test_of_joined_licences_the_strictest_holds(licence: str, kind: str) -> None:
    assert kind_of(licence) == kind


def test_an_optional_source_that_is_not_there_is_named_on_the_card(tmp_path: Path) -> None:
    told = plan(count=8)
    far = {"step": "ingest", "kind": "images", "path": "package:no_such_package/x", "dataset": "far"}
    told["sources"].append({**far, "modality": "xray", "public": True})
    with pytest.raises(
        ValueError, match="source 2 .ingest-images far.: package 'no_such_package' is not installed"
    ):
        build(tmp_path / "a", told)
    told["sources"][1]["optional"] = True
    manifest = build(tmp_path / "b", told)
    assert manifest["absent"] == ["ingest-images far"]
    assert "Not there when it was built: ingest-images far" in (tmp_path / "b" / "card.md").read_text("utf8")


@pytest.mark.parametrize(
    "told, said",
    [
        ("sources: [", "is no YAML"),
        ("steps: []", "has no sources, expected a mapping with name"),
        ("sources: [{step: INVENTED}]\nstepps: []", "has .'stepps'., expected"),
        ("sources: [{step: INVENTED}]\nbatch: 0", "batch is 0"),
        ("sources: [{step: INVENTED}]\nshards: {size: 3}", "shards has no option 'size'"),
        ("sources: [{step: dedup}]", "source 1 is the step 'dedup', expected one that reads"),
        ("sources: [{step: INVENTED, licnce: x}]", "no option 'licnce' .did you mean 'licence'"),
        ("sources: [{step: INVENTED}]\nsteps: [{step: dedupe}]", "'dedupe' is not known .did you mean"),
        ("sources: [{step: INVENTED}]\nsteps: [{step: INVENTED}]", "step 'invented' reads files"),
        ("sources: [{step: INVENTED, steps: [{step: split}]}]", "step 'split' of a source decides on all"),
        ("sources: [{step: INVENTED, count: 0}]", "none of the sources"),
        ("sources: [dedup]", "mappings"),
    ],
)  # fmt: skip
def test_a_pipeline_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, told: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(told.replace("INVENTED", f"'{HERE}:Invented'"))
    with pytest.raises(ValueError, match=said):
        build_dataset(tmp_path / "p.yaml", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists(), "nothing was begun, so that the mended pipeline starts anew"


def test_nothing_kept_and_a_folder_of_other_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was kept of what the sources hold .darker 1."):
        build(tmp_path / "out", {**plan(count=1), "steps": [{"step": f"{HERE}:Brighter", "least": 256}]})
    with pytest.raises(ValueError, match="unexpected 1.: report it, and run again once"):
        build(tmp_path / "odd", {**plan(count=1), "steps": [{"step": f"{HERE}:Broken"}]})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds other files, expected a new folder"):
        build(tmp_path / "mine", plan())
    with pytest.raises(ValueError, match="engine is 'spark' with 1 workers, expected local or ray"):
        build(tmp_path / "x", plan(), engine="spark")


def test_what_a_fault_broke_is_done_again_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, record: Any) -> Any:
        raise KeyboardInterrupt if record.id == stop else LookupError

    def mended(self: Any, record: Any) -> Any:
        return [record]

    early = {**plan(count=12), "steps": [{"step": f"{HERE}:Broken"}, *plan()["steps"]]}
    late = {**plan(count=12), "steps": [{"step": "dedup"}, {"step": f"{HERE}:Broken"}, {"step": "split"}]}
    for name, told, stop in (("all", early, ""), ("late", late, ""), ("some", early, "r5")):
        monkeypatch.setattr(invented.Broken, "each", fails)
        with pytest.raises(KeyboardInterrupt if stop else ValueError):
            build(tmp_path / name, told)
        monkeypatch.setattr(invented.Broken, "each", mended)
        assert "unexpected" not in build(tmp_path / name, told)["rejected"]
        build(tmp_path / f"{name} whole", told)
        assert files(tmp_path / name) == files(tmp_path / f"{name} whole")


def test_a_part_that_breaks_does_not_undo_what_rests_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(self: Any, record: Any) -> Any:
        if record.id in ("r0", "r1", "r2", "r3"):  # all of the first part
            raise LookupError
        return [record]

    def stopped(self: Any, records: Any) -> Any:
        raise KeyboardInterrupt

    told = {**plan(count=12), "steps": [{"step": f"{HERE}:Broken"}, *plan()["steps"]]}
    monkeypatch.setattr(invented.Broken, "each", odd)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(invented.Brighter, "stream", stopped)  # after the second pass
        build(tmp_path / "out", told)
    passes = sorted((tmp_path / "out" / ".work").glob("pass-*/part-*"))
    assert len(passes) == 6
    before = [path.stat().st_mtime_ns for path in passes]
    build(tmp_path / "out", told, keep_work=True)
    assert [path.stat().st_mtime_ns for path in passes] == before


def test_two_builds_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="files are locked on POSIX only")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (tmp_path / "out" / ".work").mkdir(parents=True)
    with (tmp_path / "out" / ".work" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for restart in (False, True):
            with pytest.raises(ValueError, match="is being built by another process"):
                build(tmp_path / "out", plan(), restart=restart)


def test_paths_may_name_a_package_or_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(resolved("package:skimage/data")).is_dir()
    monkeypatch.setenv("UNIMEDVL_CACHE", "/cache")
    assert resolved(["atlas:stardist-0.9.2", 3]) == ["/cache/stardist-0.9.2", 3]
    assert (
        Pipeline(name="a", sources=[{"step": "x"}]).digest
        != Pipeline(name="b", sources=[{"step": "x"}]).digest
    )


def test_the_command_builds_says_what_became_of_everything_and_finds_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.yaml").write_text(json.dumps({**plan(), "name": "ours"}))
    assert read_pipeline(tmp_path / "ours.yaml").name == "ours"
    assert main(["data", "build", str(tmp_path / "ours.yaml"), "--out", str(tmp_path / "c"), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "invented 1: 40 in = 36 kept + 4 rejected" in said and "licences: CC0-1.0" in said
    assert "patients were told from each other" in said
    assert "Patients known by pseudonym" in (tmp_path / "c" / "card.md").read_text()
    path = tmp_path / "c" / "manifest.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({name: told for name, told in before.items() if name != "patients_told_by"}))
    assert main(["data", "build", str(tmp_path / "ours.yaml"), "--out", str(tmp_path / "c"), "--quiet"]) == 0
    assert "patients were told" not in capsys.readouterr().out, "a corpus of an older version does not know"
    assert main(["data", "leaks", str(tmp_path / "c")]) == 0
    assert "In more than one split: 0 patient, 0 study, 0 picture." in capsys.readouterr().out
    assert (
        main(["data", "prints", str(tmp_path / "c"), "--name", "b", "--out", str(tmp_path / "b.jsonl")]) == 0
    )
    assert "fingerprints of b" in capsys.readouterr().out
    assert main(["data", "build", "nowhere.yaml", "--out", str(tmp_path / "d")]) == 2
    said = capsys.readouterr().err
    assert "nowhere.yaml is no file, expected a pipeline in YAML, or the name of one here (atlas)" in said
