# SPDX-License-Identifier: Apache-2.0
"""Killed at a random moment and resumed is never killed; two ranks are one process: to the bit, on CPU."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.atlas_records import atlas_records
from monai_unimedvl.data.shards import write_shards

pytest.importorskip("pyarrow", reason="shards need the extra 'data'")
pytestmark = pytest.mark.slow
STEPS = 8
SCRIPT = Path(__file__).with_name("run_law.py")
Order = dict[int, tuple[list[str], float]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some real records of each kind."""
    folder = tmp_path_factory.mktemp("kill") / "shards"
    tasks = ["vqa", "text-to-image", "sr4"]
    dataset = AtlasDataset(section="train", tasks=tasks, permissive_only=True, progress=False)
    found = list(atlas_records(dataset))
    write_shards([r for t in tasks for r in islice((r for r in found if r.sub_task_type == t), 60)], folder)
    return folder


def command(shards: Path, out: Path, *, ranks: int = 1, workers: int = 0, resume: bool = False) -> list[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    said = [str(SCRIPT), str(shards), str(out), str(STEPS), str(workers), *(["resume"] if resume else [])]
    return [sys.executable, *launcher, *said]


def run(*args: Any, **options: Any) -> tuple[dict[str, Any], Order]:
    """A run to its end: its last checkpoint, and what was trained on."""
    done = subprocess.run(
        command(*args, **options), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return result(args[1])


def result(out: Path) -> tuple[dict[str, Any], Order]:
    order: Order = {}
    for path in sorted(out.glob("order-*.jsonl")):
        for line in path.read_text().splitlines():
            number, origins, loss = json.loads(line)
            assert order.setdefault(number, (origins, loss)) == (origins, loss)  # trained again after a kill
    last = out / "1-law" / "checkpoints" / f"step={STEPS}.ckpt"
    return torch.load(last, weights_only=True), order


def kill_at_random(shards: Path, out: Path, **options: Any) -> int:
    """Start a run and kill all its processes at a random moment; returns the newest checkpoint's step."""
    process = subprocess.Popen(
        command(shards, out, **options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    chance = random.Random(time.time_ns())
    goal, until = chance.randint(1, STEPS - 3), time.monotonic() + 300
    while newest(out) < goal and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(chance.random() * 0.2)
    family = psutil.Process(process.pid).children(recursive=True)  # torchrun's ranks are groups of their own
    os.killpg(process.pid, signal.SIGKILL)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    assert not psutil.wait_procs(family, timeout=60)[1], "a rank that lives on writes beside the next run"
    return newest(out)


def newest(out: Path) -> int:
    found = (out / "1-law" / "checkpoints").glob("step=*.ckpt")
    return max((int(path.stem.split("=")[1]) for path in found), default=0)


def assert_same(one: tuple[dict[str, Any], Order], other: tuple[dict[str, Any], Order]) -> None:
    """The same packs with the same losses, the same weights, averages, optimiser and places."""
    assert one[1] == other[1] and sorted(one[1]) == list(range(2 * STEPS))
    for part in ("state_dict", "optimizer_states", "UniMedVLDataModule", "current_model_state"):
        assert (part in one[0]) == (part in other[0])
        if part in one[0]:
            assert flat(one[0][part]) == flat(other[0][part]), part


def flat(value: Any) -> Any:
    """A nested state with tensors as bytes, so that == means equal to the bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {str(key).removeprefix("module."): flat(each) for key, each in value.items()}
    return [flat(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Order]:
    """One process, no workers, never killed: each update accumulates two packs."""
    return run(shards, tmp_path_factory.mktemp("straight") / "run")


def test_one_process_with_two_workers_killed_and_resumed_is_never_killed(
    shards: Path, straight: tuple[dict[str, Any], Order], tmp_path: Path
) -> None:
    step = kill_at_random(shards, tmp_path / "run", workers=2)
    assert 0 < step < STEPS
    assert_same(run(shards, tmp_path / "run", workers=2, resume=True), straight)


def test_two_ranks_killed_and_resumed_are_one_process_never_killed(
    shards: Path, straight: tuple[dict[str, Any], Order], tmp_path: Path
) -> None:
    step = kill_at_random(shards, tmp_path / "run", ranks=2, workers=1)
    assert 0 < step < STEPS
    assert_same(run(shards, tmp_path / "run", ranks=2, workers=1, resume=True), straight)


def test_a_run_killed_on_two_ranks_goes_on_in_one_process(
    shards: Path, straight: tuple[dict[str, Any], Order], tmp_path: Path
) -> None:
    step = kill_at_random(shards, tmp_path / "run", ranks=2)
    assert 0 < step < STEPS
    assert_same(run(shards, tmp_path / "run", workers=2, resume=True), straight)


def test_ranks_with_other_shards_stop_at_the_start_and_say_so(shards: Path, tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"rank{rank}").mkdir()
    script = tmp_path / "other.py"
    script.write_text(
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "import run_law\n"
        "run_law.main(sys.argv[2 + int(os.environ['RANK'])], sys.argv[4], 2, 0, False)\n"
    )
    records = [r for r in _records(shards)][:-1]
    write_shards(records, tmp_path / "other")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script),
         str(SCRIPT.parent), str(shards), str(tmp_path / "other"), str(tmp_path / "run")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "Rank 1 differs from rank 0 in stream " in done.stderr and "copy the same shards" in done.stderr


def _records(shards: Path) -> Any:
    from monai_unimedvl.data.corpus import Corpus

    return Corpus(shards)
