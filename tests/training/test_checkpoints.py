# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are whole or not there, on a full disk and when killed, and become weights again."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import MARKS, text, tiny_network
from torch.utils.data import DataLoader

from monai_unimedvl import weights
from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.training.callbacks import Averaging
from monai_unimedvl.training.checkpoints import (
    AtomicCheckpointIO,
    average,
    blend,
    newest,
    read_network,
    whole,
)
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.optimizer import Rates

RATES = Rates(optimizer="adamw", lr=1e-1, schedule="constant", warmup=0)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process can grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, kept)


def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(tmp_path: Path) -> None:
    saver, path = AtomicCheckpointIO(), tmp_path / "run" / "last.ckpt"
    saver.save_checkpoint({"x": torch.arange(50_000)}, path)
    with full_disk(100_000), pytest.raises(ValueError, match="last.ckpt cannot be written .*--resume"):
        saver.save_checkpoint({"x": torch.zeros(50_000, dtype=torch.long)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["x"], torch.arange(50_000))


KILLED = """
import sys, time, torch
from pathlib import Path
from monai_unimedvl.training.checkpoints import AtomicCheckpointIO
real = torch.save
def slow(content, stream):
    real(content, stream)
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
saver, path = AtomicCheckpointIO(), Path(sys.argv[1])
saver.save_checkpoint({"x": torch.ones(10)}, path)
torch.save = slow
saver.save_checkpoint({"x": torch.zeros(10)}, path)
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_checkpoint_before_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "step=1.ckpt"
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "writing\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(list(tmp_path.iterdir())) == 2  # the half-written one lies beside
    assert newest(tmp_path) == path and [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(10))


def test_the_newest_checkpoint_is_that_of_the_last_step(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing") is None
    for name in ("step=9.ckpt", "step=100.ckpt", "step=20.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "step=300.ckpt").mkdir()  # a sharded one without its last file
    assert newest(tmp_path) == tmp_path / "step=100.ckpt"
    (tmp_path / "step=300.ckpt" / "meta.pt").touch()
    assert newest(tmp_path) == tmp_path / "step=300.ckpt"


def fit(network: UniMedVL, folder: Path, steps: int, resume: Path | None = None) -> None:
    """Updates with an average of the weights, and a checkpoint after each."""
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, plugins=[AtomicCheckpointIO()],
        callbacks=[Averaging(decay=0.5), keep],
    )  # fmt: skip
    packs = [Pack([[text(1), text(n % 5, loss=True)]], [f"a/{n}/0"], 6, {}, number=n) for n in range(9)]
    start = 0 if resume is None else int(resume.stem.split("=")[1])
    loader = DataLoader(packs[start:], batch_size=None, collate_fn=lambda x: x)
    trainer.fit(UniMedVLModule(network, MARKS, rates=RATES), loader, ckpt_path=resume, weights_only=True)


def test_the_average_of_the_weights_is_saved_resumed_and_what_the_run_ends_with(tmp_path: Path) -> None:
    weight = lambda network: network.decoder.head.weight.detach().clone()  # noqa: E731
    straight = tiny_network()
    fit(straight, tmp_path / "a", 4)
    raw = [weight(_raw(tmp_path / "a" / f"step={n}.ckpt")) for n in (1, 2, 3, 4)]
    average = raw[0]
    for x in raw[1:]:
        average = average + 0.5 * (x - average)
    assert torch.allclose(weight(straight), average, atol=1e-12)  # the run ends with the average
    read = read_network(tmp_path / "a" / "step=4.ckpt")
    assert torch.equal(weight(read), weight(straight)) and not read.training
    resumed = tiny_network(seed=9)
    fit(resumed, tmp_path / "b", 4, tmp_path / "a" / "step=2.ckpt")
    for (name, p), q in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def _raw(path: Path) -> UniMedVL:
    """The network of a checkpoint before averaging."""
    found = torch.load(path, weights_only=True)["current_model_state"]
    network = tiny_network()
    network.load_state_dict({name.removeprefix("network."): x for name, x in found.items()})
    return network


def test_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    network, name = tiny_network(), "network.decoder.embed.weight"
    for step in (100, 20, 3):  # told apart by their number, not by their name
        state = {f"network.{key}": value + step for key, value in network.state_dict().items()}
        torch.save({"network": network.config, "state_dict": state}, tmp_path / f"epoch=0-step={step}.ckpt")
    before = network.decoder.embed.weight.clone()
    assert average(network, tmp_path, 0) == [] == average(
        network, tmp_path, 101
    ) and network.decoder.embed.weight.equal(before)
    assert [path.stem[-3:] for path in average(network, tmp_path, 20)] == ["=20", "100"]
    assert torch.allclose(network.decoder.embed.weight, before + 60)
    torch.save({"network": network.config, "state_dict": {name: before}}, tmp_path / "epoch=0-step=101.ckpt")
    with pytest.raises(ValueError, match="step=101.ckpt does not hold the weights that its network has"):
        average(network, tmp_path, 20)
    for step, one in ((102, tiny_network(decoder={"num_layers": 1})), (103, network)):
        state = {f"network.{key}": value for key, value in one.state_dict().items()}
        torch.save({"network": one.config, "state_dict": state}, tmp_path / f"epoch=0-step={step}.ckpt")
    with pytest.raises(ValueError, match="are of another network"):
        average(network, tmp_path, 102)


def test_a_share_of_the_weights_at_the_start_is_kept(tmp_path: Path) -> None:
    first, last = tiny_network(), tiny_network()
    with torch.no_grad():
        for p in last.parameters():
            p.add_(torch.randn_like(p))
    weights.save(first, None, tmp_path / "start")
    between = deepcopy(last)
    blend(between, tmp_path / "start", 0.25)
    for name, value in between.state_dict().items():
        expected = 0.75 * last.state_dict()[name] + 0.25 * first.state_dict()[name]
        assert torch.allclose(value, expected, atol=1e-6)
    kept = deepcopy(last)
    blend(kept, None, 0)
    assert all(value.equal(last.state_dict()[name]) for name, value in kept.state_dict().items())
    for start, share in ((None, 0.25), (tmp_path / "start", 1), (tmp_path / "start", -0.1)):
        with pytest.raises(ValueError, match=f"blend got share={share} of start="):
            blend(last, start, share)
    with pytest.raises(ValueError, match="start are of another network than the one trained"):
        blend(tiny_network(decoder={"num_layers": 1}), tmp_path / "start", 0.5)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no checkpoint"):
        read_network(tmp_path / "a.ckpt")
    torch.save({"x": 1}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="is no checkpoint of a training run"):
        read_network(tmp_path / "b.ckpt")
    (tmp_path / "c.ckpt").write_bytes(b"PK cut")
    with pytest.raises(ValueError, match="is no checkpoint of a training run"):
        read_network(tmp_path / "c.ckpt")
    network = tiny_network()
    assert whole(network) is network
