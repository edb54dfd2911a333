# SPDX-License-Identifier: Apache-2.0
"""Stages one after the other in one process: what each leaves, resuming, logs, pictures, wrong settings."""

from __future__ import annotations

import csv
import logging
import signal
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from monai_unimedvl import provenance, weights
from monai_unimedvl.data.mixture import Stream
from monai_unimedvl.inferers import TextInferer
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.sequence import Turn, pack
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.adapters import load_adapters, merge_adapters
from monai_unimedvl.training.checkpoints import read_network
from monai_unimedvl.training.curriculum import PAPER, Curriculum
from monai_unimedvl.training.run import Material, to_segments, train
from monai_unimedvl.training.settings import Settings, read_config
from monai_unimedvl.training.sheets import Case

WORDS = ["Which plane is this?", "axial", "coronal", "Sharpen.", "A grey square."]


def picture(n: int) -> Tensor:
    """(3, 16, 16) in [0, 1], each its own"""
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(n))


def lessons() -> dict[str, list[Stream]]:
    """Four samples of each kind."""

    def stream(name: str, turns: Any, draws: bool = False) -> Stream:
        return Stream(name, lambda index, generator: turns(index), 4, 1.0, draws=draws)

    def said(question: list[Any], answer: list[Any]) -> list[Turn]:
        return [Turn("user", question), Turn("assistant", answer)]

    return {
        "text": [stream("text", lambda n: said([WORDS[0]], [WORDS[1 + n % 2]]))],
        "text-to-image": [stream("draw", lambda n: said([WORDS[4]], [picture(n)]), True)],
        "image-to-text": [stream("vqa", lambda n: said([picture(n), WORDS[0]], [WORDS[1 + n % 2]]))],
        "interleaved": [stream("sr4", lambda n: said([picture(n), WORDS[3]], [picture(n)]), True)],
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(WORDS * 20, 300)


@pytest.fixture
def network(tokenizer: Tokenizer) -> UniMedVL:
    torch.manual_seed(0)
    made = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    made.grids = {"view": [16, 16, 8], "canvas": [16, 16, 8]}
    return made


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "pytorch_lightning.utilities.rank_zero")


SETTINGS = Settings(
    precision="32-true", checkpoint_every=1, validate_every=2, log_every=1, validation_packs=1, pictures=2,
    loggers=("csv",), progress=False,
)  # fmt: skip
SMALL = Curriculum.scaled(7, lr=1e-2, max_tokens=60, ema=0.5)


def material() -> Material:
    held_out = lessons()
    cases = [Case([picture(9), "Sharpen."], picture(9)), Case(["A grey square."])]
    return Material(lessons(), held_out, cases=cases)


def moved(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name, x in one.items() if not torch.equal(x, other[name])}


def test_three_stages_run_in_one_call_and_leave_what_they_made(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL
) -> None:
    before = deepcopy(network.state_dict())
    scores: list[int] = []

    def score(scored: UniMedVL) -> dict[str, float]:
        assert not scored.training and scored is network
        scores.append(len(scores))
        return {"vqa exact match": 0.5}

    settings = replace(SETTINGS, out=str(tmp_path))
    folders = train(network, tokenizer, material(), settings, SMALL, score=score)
    assert [folder.name for folder in folders] == ["1-foundation", "2-instruction", "3-unified"]
    saved = [weights.load(folder / "weights")[0].state_dict() for folder in folders]
    learned = {name for name, p in network.named_parameters() if not name.startswith("autoencoder.")}
    vision = {name for name in learned if name.startswith("vision.")}
    assert vision & moved(saved[0], before)  # by name: test_curriculum; here: by what moved
    assert not vision & moved(saved[1], saved[0]) and not vision & moved(saved[2], saved[1])
    assert moved(saved[1], saved[0]) and moved(saved[2], saved[1])
    assert moved(saved[2], before) <= learned
    assert weights.load(folders[0] / "weights")[1] is not None  # with its tokenizer

    rows = list(csv.DictReader((folders[1] / "log" / "csv" / "metrics.csv").open()))
    columns = set(rows[0])
    wanted = {"loss", "text", "flow", "tokens", "gradient_norm", "tokens_per_second", "mfu", "val_loss"}
    assert wanted <= columns and {"score/vqa exact match", "lr-AdamW/understanding"} <= columns
    assert any(name.startswith("text/") for name in columns)
    assert any(name.startswith("val_text/") for name in columns)
    speeds = [float(row["mfu"]) for row in rows if row["mfu"]]
    assert speeds and all(0 < x < 1 for x in speeds)
    steps = {int(row["step"]) for row in rows if row["score/vqa exact match"]}
    assert steps == {0, 2, 3}  # before the first update, in between, at the end

    sheets = sorted((folders[1] / "pictures").glob("*.png"))
    assert [sheet.name for sheet in sheets] == ["step-000000.png", "step-000002.png", "step-000003.png"]
    assert Image.open(sheets[0]).size == (48, 32)  # source, drawing, truth; two rows
    assert provenance.verify(sheets[0])["task"] == "training samples"
    assert "1. Sharpen." in (folders[1] / "pictures" / "rows.txt").read_text()


def test_a_run_goes_on_from_the_stage_and_step_where_it_stopped(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL
) -> None:
    settings = replace(SETTINGS, out=str(tmp_path / "a"), validate_every=0)
    straight, stopped = deepcopy(network), deepcopy(network)
    train(straight, tokenizer, material(), settings, SMALL, stages=[1, 2])
    settings = replace(settings, out=str(tmp_path / "b"))
    train(stopped, tokenizer, material(), settings, SMALL, stages=[1])
    folder = tmp_path / "b" / "2-instruction" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "a" / "2-instruction" / "checkpoints" / "step=2.ckpt").rename(folder / "step=2.ckpt")
    with pytest.raises(ValueError, match="holds what a run has made.*add --resume"):
        train(deepcopy(network), tokenizer, material(), settings, SMALL, stages=[1, 2])
    (tmp_path / "c" / "1-foundation" / "weights").mkdir(parents=True)  # of a run too short for a checkpoint
    with pytest.raises(ValueError, match="holds what a run has made.*choose another --out"):
        train(network, tokenizer, material(), replace(settings, out=str(tmp_path / "c")), SMALL, stages=[1])
    resumed = deepcopy(network)  # nothing of stage 1 in it
    train(resumed, tokenizer, material(), settings, SMALL, stages=[1, 2], resume=True)
    assert not moved(straight.state_dict(), resumed.state_dict())


def test_a_user_who_stops_a_run_is_heard(tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL) -> None:
    def stop(scored: UniMedVL) -> dict[str, float]:
        raise KeyboardInterrupt

    settings = replace(SETTINGS, out=str(tmp_path), pictures=0)
    with pytest.raises(KeyboardInterrupt):
        train(network, tokenizer, material(), settings, SMALL, score=stop)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "1-foundation" / "weights").exists()


def test_a_run_of_adapters_leaves_them_alone_and_merged_and_goes_on_from_them(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: adapters need it (extra 'train')")
    torch.nn.init.normal_(
        network.latent_out.weight, std=0.1
    )  # a fresh head is 0, and frozen it teaches nothing
    settings = replace(SETTINGS, out=str(tmp_path), validate_every=0, adapters="both", rank=2)
    trained, before = deepcopy(network), network.state_dict()
    (folder,) = train(trained, tokenizer, material(), settings, SMALL, stages=[1])
    merged, _ = weights.load(folder / "weights")
    changed = moved(merged.state_dict(), before)
    assert changed and all(".understanding." in name or ".generation." in name for name in changed)
    again = merge_adapters(load_adapters(deepcopy(network), folder / "adapters"))
    assert not moved(again.state_dict(), merged.state_dict())
    resumed = deepcopy(network)
    train(resumed, tokenizer, material(), settings, SMALL, stages=[1], resume=True)
    assert not moved(trained.state_dict(), resumed.state_dict())
    other = replace(settings, rank=4)
    with pytest.raises(ValueError, match="adapters both, rank 2, this one has adapters both, rank 4"):
        train(deepcopy(network), tokenizer, material(), other, SMALL, stages=[1], resume=True)
    with pytest.raises(ValueError, match="is of adapters, whose base it does not hold"):
        read_network(next((folder / "checkpoints").glob("*.ckpt")))
    with pytest.raises(ValueError, match="quantise is 'int8' without adapters"):
        Settings(quantise="int8")


@pytest.mark.parametrize(
    "changes, lr, said",
    [
        ({}, 1e-3, r"with lr 0.01, this one has lr 0.001, expected the same: resume with the configuration"),
        ({"batch": 2}, 1e-2, "with batch 1, this one has batch 2"),
        ({"adapters": "both"}, 1e-2, "with adapters none, this one has adapters both, rank 4"),
    ],
)
def test_a_run_does_not_go_on_under_other_terms(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL, changes: dict[str, Any], lr: float, said: str
) -> None:
    if "adapters" in changes:
        pytest.importorskip("peft", reason="peft is not installed: adapters need it (extra 'train')")
    settings = replace(SETTINGS, out=str(tmp_path), validate_every=0)
    train(deepcopy(network), tokenizer, material(), settings, SMALL, stages=[1])
    folder = tmp_path / "1-foundation"
    if "adapters" in changes:  # also where the stage is done
        with pytest.raises(ValueError, match=said):
            other = replace(settings, **changes)
            train(deepcopy(network), tokenizer, material(), other, SMALL, stages=[1], resume=True)
    (folder / "weights" / "config.json").unlink()  # as if it had been stopped
    other_rate = Curriculum.scaled(7, lr=lr, max_tokens=60, ema=0.5)
    other = replace(settings, **changes)
    with pytest.raises(ValueError, match=said):
        train(deepcopy(network), tokenizer, material(), other, other_rate, stages=[1], resume=True)
    for path in (folder / "checkpoints").glob("*.ckpt"):  # those from before do not say their terms
        content = torch.load(path, weights_only=True)
        del content["terms"]
        torch.save(content, path)
    if "adapters" not in changes:
        train(deepcopy(network), tokenizer, material(), other, other_rate, stages=[1], resume=True)


def test_settings_are_read_from_a_file_and_wrong_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("accumulate: 2\nprecision: 32-true\nmodel: my_bundle\n")
    settings, more = read_config(path, ["model"])
    assert (settings.accumulate, settings.precision, more) == (2, "32-true", {"model": "my_bundle"})
    for content, said in (
        ("acumulate: 2", "run.yaml has the key 'acumulate', .* did you mean 'accumulate'"),
        ("[1, 2]", "holds list, expected names and values"),
        ("a: 1\nb: [", "is neither YAML nor JSON, at line 2: name settings"),
        ("strategy: zero", "strategy is 'zero', expected one of auto, ddp, fsdp"),
        ("loggers: [neptune]", "loggers has 'neptune'"),
        ("keep: 0", "keep is 0, expected at least 1"),
        ("keep: many", "keep is 'many', expected a whole number: write one"),
        ("seed: a", "seed is 'a', expected a whole number"),
        ("accumulate: 1.5", "accumulate is 1.5, expected a whole number"),
        ("clip: .nan", "clip is nan, expected a number"),
        ("compiled: 1", "compiled is 1, expected true or false"),
        ("loggers: csv", "loggers is 'csv', expected a list"),
        ("out: [a]", r"out is \['a'\], expected text"),
        ("device: gpu", "device is 'gpu', expected one of auto, cpu, cuda, mps"),
        ("clip: -1", "clip is -1.0, expected at least 0: raise it"),
        ("validate_every: -1", "validate_every is -1, expected at least 0"),
        ("batch: 0", "batch is 0, expected at least 1"),
        ("lanes: 0", "lanes is 0, expected at least 1"),
        ("devices: 0", "devices is 0, expected at least 1"),
        ("accumulate: 0", "accumulate is 0, expected at least 1"),
        ("lr: fast", "lr is 'fast', expected a number"),
        ("lr:", "lr is None, expected a number"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            read_config(path, {"lr": float})
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="is neither YAML nor JSON: name settings"):
        read_config(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_config(tmp_path / "nothing.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("clip: 1e-1\nkeep: 1e1\nbatch: '4'\npeak_flops: 2e12\nprecision: 32\nlr: 1e-4\n")
    settings, more = read_config(path, {"lr": float})
    assert (settings.clip, settings.keep, settings.batch, settings.peak_flops) == (0.1, 10, 4, 2e12)
    assert settings.precision == "32" and more == {"lr": 1e-4}


def test_ranks_are_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Settings().ranks == (1, 1) and Settings(devices=4, nodes=2).ranks == (4, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert Settings().ranks == (2, 3)


def test_half_precision_weights_learn_in_float32_and_are_written_as_they_came(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL
) -> None:
    slow = Curriculum.scaled(7, lr=1e-4, max_tokens=60, ema=0.98)  # steps and an average that bfloat16 loses
    half = network.bfloat16()
    saved = []
    for number, start in enumerate((deepcopy(half), deepcopy(half).float())):
        settings = replace(SETTINGS, out=str(tmp_path / str(number)), validate_every=0)
        (folder,) = train(start, tokenizer, material(), settings, slow, stages=[1])
        saved.append(weights.load(folder / "weights")[0].state_dict())
    learned, whole = saved
    names = [name for name, _ in network.named_parameters()]
    rounded = {name: whole[name].bfloat16() for name in names}
    assert not moved(rounded, learned)
    assert {x.dtype for x in learned.values()} == {torch.bfloat16}
    assert len(moved({name: learned[name] for name in names}, half.state_dict())) > 20


def test_stages_in_half_precision_go_on_from_what_is_written(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL
) -> None:
    settings = replace(SETTINGS, out=str(tmp_path / "straight"), validate_every=0)
    straight, killed = deepcopy(network).bfloat16(), deepcopy(network).bfloat16()
    train(straight, tokenizer, material(), settings, SMALL, stages=[1, 2])
    settings = replace(settings, out=str(tmp_path / "killed"))
    train(deepcopy(killed), tokenizer, material(), settings, SMALL, stages=[1])
    train(killed, tokenizer, material(), settings, SMALL, stages=[1, 2], resume=True)
    assert not moved(straight.state_dict(), killed.state_dict())


def test_half_precision_weights_are_pictured_and_scored_while_parts_of_them_learn(
    tmp_path: Path, tokenizer: Tokenizer, network: UniMedVL
) -> None:
    settings = replace(SETTINGS, out=str(tmp_path), precision="bf16-mixed")
    picture_of = Material(lessons(), lessons(), cases=[Case([picture(9), "Sharpen."], picture(9))])

    def score(scored: UniMedVL) -> dict[str, float]:
        TextInferer(tokenizer, max_new_tokens=2)([[picture(3), WORDS[0]]], scored)
        return {"asked": 1.0}

    (folder,) = train(network.bfloat16(), tokenizer, picture_of, settings, SMALL, stages=[2], score=score)
    assert list((folder / "pictures").glob("*.png"))


def test_a_network_of_squares_is_shown_squares(tokenizer: Tokenizer) -> None:
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=64, num_layers=1)
    stage = replace(PAPER[2], view=None, canvas=None)
    network.grids = {"view": [64, 64, 8], "canvas": [64, 64, 8]}
    view, _ = to_segments(network, tokenizer, stage)([torch.zeros(3, 20, 40), "axial"])
    assert view.grid == (8, 8)  # type: ignore[union-attr]
    network.grids = {"view": [64, 32, 8], "canvas": [64, 32, 8]}
    view, _ = to_segments(network, tokenizer, stage)([torch.zeros(3, 20, 40), "axial"])
    assert view.grid == (4, 8)  # type: ignore[union-attr]


def test_what_comes_after_a_drawing_is_taught_with_it_in_view(tokenizer: Tokenizer) -> None:
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=64, num_layers=1).eval()
    segments = to_segments(network, tokenizer, replace(PAPER[2], view=None, canvas=None))

    def last_words(drawn: float) -> Tensor:
        turns = [
            Turn("user", [torch.zeros(3, 64, 64), "draw it"]),
            Turn("assistant", [torch.full((3, 64, 64), drawn), "it is dark"]),
        ]
        seq = pack(network.encode([segments(turns, draw=True)]), tokenizer.marks)
        return network(seq).hidden[seq.label_at]  # of the explanation

    assert not torch.equal(last_words(0.0), last_words(1.0))
