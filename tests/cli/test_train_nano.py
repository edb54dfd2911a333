# SPDX-License-Identifier: Apache-2.0
"""`unimedvl train-nano`: sittings that end and go on, one run a folder, scores beside the shipped ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_unimedvl import bundle
from monai_unimedvl.bundle import legs
from monai_unimedvl.cli import train_nano
from monai_unimedvl.evaluation import Report, Row
from monai_unimedvl.evaluation.reproduction import matches, table, worst

# a leg that counts to its last step, a checkpoint each, and then writes its weights
COUNT = """
import pathlib, sys, time
folder, steps, pause = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
first = max((int(p.stem.split("=")[-1]) for p in (folder / "checkpoints").iterdir()), default=0)
for step in range(first + 1, steps + 1):
    time.sleep(pause)
    (folder / "checkpoints" / f"epoch=0-step={step}.ckpt").touch()
    print("step", step, flush=True)
(folder / "weights").mkdir()
(folder / "weights" / "config.json").write_text("{}")
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Legs that count in place of training; the folder of their list."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text("{}")
    two = [{"name": "a", "configs": ["a"], "steps": 4, "minutes": 1},
           {"name": "b", "configs": ["b"], "steps": 2, "minutes": 1, "start": "a"}]  # fmt: skip
    (tmp_path / "legs.json").write_text(json.dumps({"legs": two, "every": 1, "longest": 1}))

    def command(chain, leg, out, **options):
        pause = os.environ.get("PAUSE", "0")
        return [sys.executable, "-c", COUNT, str(legs.folder_of(out, leg)), str(leg.steps), pause]

    monkeypatch.setattr(legs, "command", command)
    monkeypatch.setattr(train_nano, "_check_sources", lambda options: None)
    monkeypatch.setattr(train_nano, "_compare", lambda chain, out, options: (["compared"], {}))
    return tmp_path


def words(folder: Path, *more: str) -> tuple[str, ...]:
    return ("train-nano", "--legs", str(folder / "legs.json"), "--out", str(folder / "out"), *more)


def test_all_legs_are_run_in_their_order_and_then_compared(command, counting):
    code, out, err = command(*words(counting), own_model=True)
    assert code == 0, err
    assert out.index("budget: ") < out.index("leg a: from step 0 of 4") < out.index("leg b: from step 0 of 2")
    assert "leg b: done" in out and out.rstrip().endswith("compared")
    again = command(*words(counting), own_model=True)
    assert again[0] == 0 and "from step" not in again[1], "what is done is not done twice"


def test_a_sitting_ends_when_its_time_is_up_and_the_next_goes_on(command, counting, monkeypatch):
    monkeypatch.setenv("PAUSE", "0.4")
    code, out, err = command(*words(counting, "--minutes", "0.016", "--sittings", "1"), own_model=True)
    assert code == 0, err
    assert "its time was up" in out and "left: a, b (at step" in out
    done = legs.checkpoint(counting / "out", legs.read_chain(counting / "legs.json").legs[0])[0]
    assert 1 <= done < 4
    monkeypatch.setenv("PAUSE", "0")
    code, out, _ = command(*words(counting), own_model=True)
    assert code == 0 and f"leg a: from step {done} of 4" in out and "compared" in out


def test_a_leg_that_fails_or_stands_still_is_told_with_its_log(command, counting, monkeypatch):
    stuck = [sys.executable, "-c", "print('no luck')"]
    monkeypatch.setattr(legs, "command", lambda *_, **__: stuck)
    code, _, err = command(*words(counting), own_model=True)
    assert code == 2 and "leg 'a' got no further than step 0" in err and "log.txt" in err
    monkeypatch.setattr(legs, "command", lambda *_, **__: [sys.executable, "-c", "raise SystemExit(3)"])
    code, _, err = command(*words(counting), own_model=True)
    assert code == 2 and "stopped with code 3" in err
    assert "no luck" in (counting / "out" / "a" / "log.txt").read_text()


def test_a_sitting_within_the_encoders_own_training_is_told_and_gone_on_from(command, counting, monkeypatch):
    step = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True); p.touch()"
    encoder = counting / "out" / "a" / "vision" / "step=200.ckpt"
    usual = legs.command
    monkeypatch.setattr(legs, "command", lambda *_, **__: [sys.executable, "-c", step, str(encoder)])
    code, out, err = command(*words(counting, "--sittings", "1"), own_model=True)
    assert code == 0 and "leg a: at step 0" in out and "left: a, b" in out, err
    monkeypatch.setattr(legs, "command", usual)
    code, out, _ = command(*words(counting), own_model=True)
    assert code == 0 and "leg a: from step 0 of 4, its encoder from step 200, at most" in out


def test_a_folder_has_one_run_at_a_time(command, counting):
    with train_nano._alone(counting / "out"):
        code, _, err = command(*words(counting), own_model=True)
    assert code == 2 and "held by another run" in err


def test_a_sitting_needs_some_time(command, counting):
    code, out, err = command(*words(counting, "--minutes", "-3"), own_model=True)
    assert code == 2 and "--minutes -3 came, expected a number above 0" in err and not out
    for endless in ("nan", "inf"):
        code, out, err = command(*words(counting, "--minutes", endless), own_model=True)
        assert code == 2 and f"--minutes {endless} came, expected a number above 0" in err and not out


def test_the_budget_alone_starts_nothing(command, counting):
    code, out, _ = command(*words(counting, "--budget"), own_model=True)
    assert code == 0 and "packages" in out and not (counting / "out").exists()


def test_json_is_alone_on_stdout(command, counting):
    for more, key in ((["--budget"], "done"), (["--sittings", "1"], "left")):
        code, out, err = command(*words(counting, "--json", *more), own_model=True)
        assert code == 0 and key in json.loads(out) and "budget: " in err


def test_scores_stand_beside_the_shipped_interval():
    def row(metric, value, low, high):
        task = "sr4" if metric == "PSNR" else "text-to-image"
        return Row(task, "test", "all", "", metric, 9, value, low, high)

    shipped = [row("PSNR", 28.0, 27.5, 28.5), row("contrast", 0.9, 0.85, 0.95), row("MMD", 0.02, 0.01, 0.03)]
    here = [row("PSNR", 27.0, 26.5, 27.4), row("contrast", 0.97, 0.9, 0.99), row("MMD", 0.005, 0.0, 0.02)]
    found = matches(here, shipped)
    assert [one.verdict for one in found] == ["worse", "better", "better"]
    assert matches(shipped, shipped)[0].verdict == "inside"
    assert matches([row("PSNR", 27.4, 26.9, 27.9)], shipped)[0].verdict == "near"
    assert "inside 0, better 2, near 0, worse 1, no number 0." in table(found) and worst(found) == [
        "sr4, test, all, PSNR: 27.00, shipped 28.00 (27.50 to 28.50)"
    ]
    with pytest.raises(ValueError, match="share no row"):
        matches([row("SSIM", 1.0, 1.0, 1.0)], shipped)
    nan = float("nan")
    for one, other in ((row("PSNR", nan, nan, nan), shipped[0]), (shipped[0], row("PSNR", 28.0, nan, nan))):
        found = matches([one], [other])
        assert found[0].verdict == "no number" and "no number 1." in table(found) and len(worst(found)) == 1
    assert matches([row("MMD", nan, 0.0, 1.0)], shipped)[0].verdict == "no number", "where lower is better"


@pytest.mark.slow
def test_tiny_legs_survive_a_kill_and_end_with_weights_and_a_comparison(tmp_path, monkeypatch):
    pytest.importorskip("nilearn", reason="the atlas corpus starts from nilearn's ICBM152 maps")
    configs = bundle.find() / "configs"
    content = json.loads((configs / "legs.json").read_text("utf8"))
    for leg in content["legs"]:
        leg |= {"steps": 2, "settings": {"budget": 600, "compiled": False}}
    content["legs"][0]["settings"] |= {"vision_steps": 1}
    content["legs"][1]["settings"] |= {"averaged_since": 1}
    settings = {"limit": 1, "tasks": ["sr4"]}
    content |= {"every": 1, "evaluation": {"minutes": 1, "settings": settings}}
    for path in configs.glob("pretrain*.json"):
        (tmp_path / path.name).write_text(path.read_text("utf8"))
    (tmp_path / "legs.json").write_text(json.dumps(content))
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "UNIMEDVL_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-m", "monai_unimedvl", *words(tmp_path, "--partial", "--cores", "1", "--quiet")]
    first = tmp_path / "out" / content["legs"][0]["name"]
    killed = subprocess.Popen(run, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    while not list(first.glob("checkpoints/*.ckpt")) and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"leg {first.name}: from step 0" not in done.stdout, "it began anew after the kill"
    for leg in content["legs"]:
        network, _ = bundle.load(tmp_path / "out" / leg["name"] / "weights")
        assert sum(p.numel() for p in network.parameters()) > 1e6
        assert bool(network.config["strokes"]) == ("start" in leg)
    assert Report.load(tmp_path / "out" / "scores").find("sr4", "PSNR").n == 1
    text = (tmp_path / "out" / "comparison.md").read_text("utf8")
    assert "| sr4 | test | all | PSNR, 2 steps |" in text and "no comparison of like" in text
