# SPDX-License-Identifier: Apache-2.0
"""A loss that is no number stops the run, names the records, and leaves a pack that can be replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from monai.engines import SupervisedTrainer
from tiny import MARKS, canvas, text, tiny_network, view
from torch import Tensor
from torch.utils.data import DataLoader

from monai_unimedvl import weights
from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.training.engine import IterationUpdate
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.objective import Objective
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.replay import Guard, NotFinite, load_pack, replay, save_pack

RATES = Rates(optimizer="adamw", lr=1e-2, warmup=0)


def good(n: int) -> Pack:
    samples = [[text(3), view(2, 2, n), text(5, loss=True)], [text(7), canvas(2, 2, n, noisy=True)]]
    return Pack(samples, [f"vqa/{n}/0", f"sr4/{n}/0"], 20, {})


def bad(n: int) -> Pack:
    """A view with a hole."""
    found = good(n)
    broken = view(2, 2, n)
    broken.patches[1, 1] = float("nan")
    return found._replace(samples=[[text(3), broken, text(5, loss=True)], found.samples[1]])


def fit(network: UniMedVL, packs: list[Pack], folder: Path, **options: Any) -> None:
    module = UniMedVLModule(network, MARKS, rates=RATES, seed=3, guard=Guard(folder / "failed"), **options)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=len(packs), max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(packs, batch_size=None, collate_fn=lambda x: x))


def test_a_loss_that_is_no_number_stops_the_run_and_can_be_replayed(tmp_path: Path) -> None:
    network = tiny_network()
    with pytest.raises(NotFinite, match=r"loss of pack 2 is nan.*records are vqa/9/0, sr4/9/0; .*--replay"):
        fit(network, [good(0), good(1), bad(9), good(2)], tmp_path)
    files = {path.name for path in (tmp_path / "failed").iterdir()}
    assert files == {"pack.json", "pack.safetensors", "weights"}
    before, _ = weights.load(tmp_path / "failed" / "weights")  # two good steps, not the third
    for (name, p), q in zip(network.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q), name
    batch, facts = load_pack(tmp_path / "failed" / "pack.json")
    assert batch.origins == ["vqa/9/0", "sr4/9/0"] and facts["number"] == 2 and facts["what"] == "loss"
    found = replay(before, batch, facts)
    assert torch.isnan(found.losses.loss) and found.first == "vision.patch"
    text_sum, _, flow_sum, _ = found.losses.by_sample.unbind(1)
    assert torch.isnan(text_sum[0]) and torch.isfinite(flow_sum[1])  # the first sample is the one
    assert all(p.grad is None for p in before.parameters())


def test_a_gradient_that_is_no_number_stops_the_run_before_the_update(tmp_path: Path) -> None:
    network = tiny_network()
    before = network.latent_in.weight.detach().clone()
    network.latent_in.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NotFinite, match="norm of the gradient of pack 0 is (nan|inf)"):
        fit(network, [good(0), good(1)], tmp_path)
    assert torch.equal(network.latent_in.weight, before)


def test_a_good_pack_replays_its_losses_to_the_bit(tmp_path: Path) -> None:
    network, objective = tiny_network(), Objective(text_weight=0.5)
    chance = torch.Generator().manual_seed(3 * 1_000_003 + 4)
    wanted = objective(network, good(1).samples, MARKS, chance)
    facts = {"format": "monai_unimedvl pack 1", "seed": 3, "number": 4, "marks": list(MARKS),
             "objective": objective.__dict__}  # fmt: skip
    path = save_pack(good(1), tmp_path, facts)
    batch, read = load_pack(path)
    found = replay(network, batch, read)
    assert all(torch.equal(a, b) for a, b in zip(found.losses, wanted, strict=True))
    assert found.first is None and found.gradients == ()


def test_every_kind_of_segment_comes_back(tmp_path: Path) -> None:
    segments = [
        text(1, 2, dropped=True), text(3, loss=True), view(1, 2, dropped=True),
        replace(canvas(1, 2, noisy=True), base=torch.ones(2, 12, dtype=torch.float64)),
        replace(canvas(2, 1), latents=None, image=torch.rand(3, 8, 4), time=0.5),
    ]  # fmt: skip
    found, _ = load_pack(save_pack(Pack([segments], ["a/b/c/0"], 9, {}), tmp_path, {"format": FORMAT}))
    assert found.origins == ["a/b/c/0"] and found.tokens == 9
    for mine, other in zip(found.samples[0], segments, strict=True):
        assert type(mine) is type(other)
        for name, value in vars(other).items():
            same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
            assert same(getattr(mine, name), value), name


FORMAT = "monai_unimedvl pack 1"


def test_what_is_no_saved_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no saved pack"):
        load_pack(tmp_path / "nothing.json")
    path = save_pack(good(0), tmp_path, {"format": "another"})
    with pytest.raises(ValueError, match="has format 'another'"):
        load_pack(path)
    (tmp_path / "pack.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is no saved pack"):
        load_pack(tmp_path)
    assert json.loads(path.read_text())["origins"] == ["vqa/0/0", "sr4/0/0"]


def test_monais_trainer_stops_too(tmp_path: Path) -> None:
    network = tiny_network()
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=[good(0), bad(1)], network=network, decollate=False,
        optimizer=RATES.build(network), loss_function=torch.nn.Identity(),
        iteration_update=IterationUpdate(MARKS, guard=Guard(tmp_path)),
    )  # fmt: skip
    with pytest.raises(NotFinite, match="pack 1 is nan"):
        trainer.run()
    assert load_pack(tmp_path)[0].origins == ["vqa/1/0", "sr4/1/0"]
