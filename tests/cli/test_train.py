# SPDX-License-Identifier: Apache-2.0
"""`unimedvl train` and `consolidate`: what a user types, right and wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Timer

import pytest
import torch

from monai_unimedvl import weights
from monai_unimedvl.cli import main
from monai_unimedvl.cli.train import MORE, _curriculum
from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.sequence import Text, View
from monai_unimedvl.training.objective import Objective
from monai_unimedvl.training.replay import FORMAT, save_pack
from monai_unimedvl.training.run import Material
from monai_unimedvl.training.settings import read_config
from monai_unimedvl.weights.headers import read_header


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code, and the one line on stderr."""
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.err.strip().splitlines()[-1] if captured.err.strip() else captured.out


def test_wrong_settings_are_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    for content, wanted in (
        ("acumulate: 2", "run.yaml has the key 'acumulate', which means nothing here: did you mean 'acc"),
        ("strategy: zero", "strategy is 'zero', expected one of"),
        ("lr: fast", "lr is 'fast', expected a number"),
        ("seed: a", "seed is 'a', expected a whole number"),
        ("score: -1", "score is -1, expected items of each task"),
        ("device: gpu", "device is 'gpu', expected one of auto, cpu, cuda, mps"),
        ("model: nowhere", "model 'nowhere' is neither a folder nor a shipped bundle"),
    ):
        config.write_text(content)
        code, line = said(capsys, "train", "--config", str(config), "--out", str(tmp_path / "out"))
        assert code == 2 and wanted in line, line
    code, line = said(capsys, "train", "--tasks", "sr5", "--out", str(tmp_path / "out"))
    assert code == 2 and "tasks has 'sr5', expected some of vqa" in line
    code, line = said(capsys, "train", "--replay", str(tmp_path / "pack.json"))
    assert code == 2 and "is no saved pack" in line
    code, line = said(capsys, "consolidate", str(tmp_path / "step=1.ckpt"))
    assert code == 2 and "There is no checkpoint" in line
    with pytest.raises(SystemExit):
        main(["train", "--stage", "4"])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_a_pipe_in_place_of_a_config_or_of_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run.yaml", "model.safetensors"):
        os.mkfifo(tmp_path / name)
        keep = os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK)  # who reads it all the same gets an end
        os.write(keep, b"[1]")
        Timer(2, os.close, [keep]).start()
    code, line = said(capsys, "train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"))
    assert code == 2 and "run.yaml is a folder, a pipe or a device, expected a file" in line
    with pytest.raises(ValueError, match="model.safetensors is a folder, a pipe or a device"):
        read_header(tmp_path / "model.safetensors")


def test_a_failed_pack_is_replayed_with_the_weights_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = nano(PatchCodec(8, 4), vocab_size=32, hidden_size=32, num_layers=1)
    weights.save(network, None, tmp_path / "weights")
    words = Text(torch.tensor([5, 6]), loss=True)
    broken = View(torch.full((4, 192), float("inf")), (2, 2))
    facts = {"format": FORMAT, "what": "loss", "value": "nan", "seed": 0, "number": 12,
             "marks": [1, 2, 3, 4], "objective": Objective().__dict__}  # fmt: skip
    path = save_pack(Pack([[words], [broken, words]], ["text/7/0", "vqa/3/1"], 12, {}), tmp_path, facts)
    assert main(["train", "--replay", str(path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["first"] == "vision.patch" and values["origins"] == ["text/7/0", "vqa/3/1"]
    assert main(["train", "--replay", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pack 12:") and lines[0].endswith("(loss was nan)")
    assert "text/7/0: text 3." in lines[1] and "vqa/3/1: text nan" in lines[2]
    assert "The first output that is no number is that of vision.patch." in lines


def test_a_rate_that_yaml_reads_as_text_is_the_rate(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lr: 1e-4\nsteps: 1e1\nstage: 1\ncurriculum: scaled\n")
    _, more = read_config(config, MORE)
    network = nano(PatchCodec(8, 4), vocab_size=32, hidden_size=32, num_layers=1)
    curriculum, stages = _curriculum(more, network, Material({}))
    assert stages == [1] and curriculum.rates.lr == 1e-4 == pytest.approx(curriculum.stage(1).lr)
    with pytest.raises(ValueError, match="stage is 'first', expected the number of one, or all"):
        _curriculum({"stage": "first"}, network, Material({}))


@pytest.mark.slow
def test_the_nano_is_fine_tuned_on_the_atlas_stopped_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.json"
    settings = {"max_tokens": 800, "checkpoint_every": 1, "validate_every": 2, "validation_packs": 1}
    config.write_text(json.dumps({**settings, "score": 2}))
    words = ["train", "--config", str(config), "--out", str(tmp_path / "run"), "--quiet"]
    words += ["--permissive-only", "--tasks", "sr4", "vqa", "text"]
    assert main([*words, "--max-steps", "2", "--json"]) == 0
    out = capsys.readouterr().out
    (saved,) = json.loads(out)["outputs"]
    network, tokenizer = weights.load(saved)
    assert tokenizer is not None and "\n" not in out.strip()
    folder = Path(saved).parent
    assert len(list((folder / "pictures").glob("step-*.png"))) == 2
    code, line = said(capsys, *words, "--max-steps", "3")
    assert code == 2 and "add --resume" in line
    (Path(saved) / "config.json").unlink()  # as if it had been stopped
    assert main([*words, "--max-steps", "3", "--resume"]) == 0
    checkpoint = folder / "checkpoints" / "step=3.ckpt"
    assert main(["consolidate", str(checkpoint), "--out", str(tmp_path / "w")]) == 0
    again, tokenizer = weights.load(tmp_path / "w")
    ended, _ = weights.load(saved)
    assert tokenizer is not None
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), ended.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(again.parameters(), network.parameters(), strict=True))
