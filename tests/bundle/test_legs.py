# SPDX-License-Identifier: Apache-2.0
"""The legs of a training: what is said before it starts, and what a leg is run with, from the start or on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monai_unimedvl.bundle import legs, places
from monai_unimedvl.data.fetch import licences
from monai_unimedvl.training import precision


def chain_file(folder: Path, **changed) -> Path:
    """Two legs beside empty configs."""
    for name in ("a", "b", "free"):
        (folder / f"{name}.json").write_text("{}")
    said = {
        "legs": [
            {"name": "first", "configs": ["a"], "steps": 4, "minutes": 150, "about": "all together"},
            {"name": "second", "configs": ["a", "b"], "steps": 2, "minutes": 20, "start": "first",
             "settings": {"budget": 600}},
        ],
        "permissive": ["free"], "longest": 100, "every": 2, "cores": 2, "seed": 3, "disk": 700,
        "evaluation": {"minutes": 10},
    }  # fmt: skip
    file = folder / "legs.json"
    file.write_text(json.dumps(said | changed))
    return file


def test_the_budget_says_hours_cores_sittings_seed_disk_packages_and_licences(tmp_path):
    chain = legs.read_chain(chain_file(tmp_path))
    text = "\n".join(chain.budget())
    assert "3.0 hours on 2 cores, in 3 sittings of at most 100 minutes" in text
    assert "leg first: 4 steps, about 150 minutes in 2 sitting(s): all together" in text
    assert "seed: 3; disk: 700 MB" in text and "seed: 9" in "\n".join(chain.budget(seed=9))
    assert all(f"{name} {version}  [{licence}]" in text for name, version, licence, _ in licences())
    assert "GPL-2.0" in text and "GPL-2.0" not in "\n".join(chain.budget(permissive_only=True))


def test_the_budget_is_that_of_the_numbers_that_the_cpu_multiplies_fast(tmp_path, monkeypatch):
    chain = legs.read_chain(chain_file(tmp_path))
    slow = replace(chain, legs=(replace(chain.legs[0], float32=290), chain.legs[1]))
    for fast, hours in ((True, 3.0), (False, 5.3)):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda fast=fast: fast)
        assert f"{hours} hours on 2 cores, in {3 if fast else 4} sittings" in slow.budget()[0]
        assert f"about {150 if fast else 290} minutes in {2 if fast else 3} sitting(s)" in slow.budget()[1]
        assert chain.budget()[0].startswith("budget: 3.0 hours")


def test_a_leg_is_begun_with_its_configs_and_goes_on_from_its_last_checkpoint(tmp_path):
    chain = legs.read_chain(chain_file(tmp_path))
    first, second = chain.legs

    def settings(leg, **options):
        words = legs.command(chain, leg, tmp_path / "out", **options)
        assert words[1:4] == ["-m", "monai.bundle", "run"]
        return dict(zip(words[4::2], words[5::2], strict=True))

    fresh = settings(first)
    assert fresh["--config_file"] == str([str(tmp_path / "a.json")]) and fresh["--max_steps"] == "4"
    assert fresh["--seed"] == "3" and "--resume" not in fresh and "--start" not in fresh
    assert fresh["--train#trainer#callbacks#0#every_n_train_steps"] == "2"
    assert fresh["--train#trainer#callbacks#0#save_top_k"] == "1"
    free = settings(second, permissive_only=True, seed=7, root="scans")
    assert free["--config_file"] == str([str(tmp_path / f"{name}.json") for name in ("a", "b", "free")])
    assert free["--start"] == str(tmp_path / "out" / "first" / "weights") and free["--budget"] == "600"
    assert free["--seed"] == "7" and free["--dataset_dir"] == "scans"
    (tmp_path / "b.json").write_text('{"averaged_since": 1}')
    assert settings(second)["--train#trainer#callbacks#0#save_top_k"] == "-1", "the mean needs them all"
    checkpoints = legs.folder_of(tmp_path / "out", first) / "checkpoints"
    checkpoints.mkdir(parents=True)
    for step in (2, 10, 4):
        (checkpoints / f"epoch=0-step={step}.ckpt").touch()
    (checkpoints / ".epoch=0-step=12.ckpt.part").touch()  # what a kill left half
    on = settings(first)
    assert [path.name for path in checkpoints.glob(".*")] == []
    assert on["--resume"].endswith("step=10.ckpt") and on["--vision_steps"] == "0"
    assert not legs.is_done(tmp_path / "out", first)


@pytest.mark.parametrize(
    "leg, said",
    [
        ({"name": "first"}, "expected a word that no other leg has"),
        ({"start": "third"}, "starts from 'third', expected an earlier one"),
        ({"steps": 3}, "has 3 steps, expected a multiple of 2"),
        ({"configs": ["gone"]}, "needs gone.json, which is not beside it"),
        ({"width": 3}, "is not a list of legs"),
    ],
)
def test_legs_that_cannot_be_run_are_told_before_any_starts(tmp_path, leg, said):
    file = chain_file(tmp_path)
    content = json.loads(file.read_text())
    content["legs"][1] |= leg
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        legs.read_chain(file)


def test_a_file_that_is_not_there_or_has_no_leg_is_told(tmp_path):
    with pytest.raises(ValueError, match="is not there, expected the legs of a training"):
        legs.read_chain(tmp_path / "none.json")
    with pytest.raises(ValueError, match="has no leg"):
        legs.read_chain(chain_file(tmp_path, legs=[]))


def test_the_shipped_legs_can_be_run_and_none_but_the_first_begins_anew():
    chain = legs.read_chain()
    assert chain.legs[0].start is None and all(leg.start for leg in chain.legs[1:])
    assert chain.longest <= 100 and chain.permissive == ("pretrain_permissive",)
    named = {name for leg in chain.legs for name in leg.configs} | set(chain.permissive)
    there = {path.stem for path in (places.find() / "configs").glob("pretrain*.json")}
    assert named == there, "a config of the training is in no leg, or the other way round"
    for leg in chain.legs:
        said: dict[str, int] = {}
        for name in leg.configs:
            said |= json.loads((places.find() / "configs" / f"{name}.json").read_text("utf8"))
        assert said["max_steps"] == leg.steps, f"{leg.name}: legs.json and its configs differ"
