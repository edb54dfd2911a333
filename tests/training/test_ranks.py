# SPDX-License-Identifier: Apache-2.0
"""Two processes with gloo: data parallel and FSDP2 learn what one process learns from the same packs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_ranks import STEPS, run

from monai_unimedvl import weights
from monai_unimedvl.cli import main
from monai_unimedvl.training.checkpoints import META, read_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks and, beside it, one process with twice the packs an update leave."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parents[1] / "two_ranks.py"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29631"]
    paths = os.pathsep.join([str(script.parents[1]), str(script.parent)])
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)], capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run(folder / "one", accumulate=2)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_process_learns_from_the_same_packs(out: Path, name: str) -> None:
    one, two = (weights.load(out / run / "1-small" / "weights")[0] for run in ("one", name))
    for (label, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4), f"{label}: {float((p - q).abs().max())}"


def test_a_sharded_checkpoint_becomes_a_folder_of_weights(
    out: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = out / "fsdp" / "1-small" / "checkpoints" / f"step={STEPS}.ckpt"
    assert (checkpoint / META).is_file() and len(list(checkpoint.glob("*.distcp"))) == 2
    assert not list(checkpoint.parent.glob(".*.part"))
    ended, _ = weights.load(out / "fsdp" / "1-small" / "weights")
    read = read_network(checkpoint)
    for (label, p), q in zip(ended.named_parameters(), read.parameters(), strict=True):
        assert torch.equal(p, q), label
    assert main(["consolidate", str(checkpoint), "--out", str(tmp_path / "w"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == [str(tmp_path / "w")]
    found, tokenizer = weights.load(tmp_path / "w")
    assert tokenizer is not None and torch.equal(found.latent_in.weight, ended.latent_in.weight)


def test_an_average_of_sharded_weights_is_refused(out: Path) -> None:
    said = [(out / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert all("ema" in text and "set ema to 0, or use strategy 'ddp'" in text for text in said)
