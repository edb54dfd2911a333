# SPDX-License-Identifier: Apache-2.0
"""The data module: exact places of lanes and ranks, rejects kept, and what is wrong said at the start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import MARKS, text, tiny_network

from monai_unimedvl.data.mixture import Mixture, Stream
from monai_unimedvl.training import checks, datamodule
from monai_unimedvl.training.checks import check_ranks, check_tokenizer, recount
from monai_unimedvl.training.datamodule import UniMedVLDataModule, first_packs
from monai_unimedvl.training.module import UniMedVLModule


def mixture(lanes: int = 2, budget: int = 12, **options: Any) -> Mixture:
    """Packs of texts; sample 3 is too long."""

    def to_segments(said: list[int], draw: bool = False) -> list[Any]:
        return [text(*said, loss=True)]

    def read(index: int, generator: torch.Generator) -> list[int]:
        return [index] * (40 if index == 3 else 1 + index % 4)

    return Mixture([Stream("a", read, 10, 1.0)], to_segments, budget=budget, lanes=lanes, **options)


class Words:
    """A tokenizer of 24 ids."""

    def __init__(self, size: int = 24, marks: Any = MARKS) -> None:
        self.size, self.marks = size, marks

    def __len__(self) -> int:
        return self.size


def fitted(folder: Path, served: UniMedVLDataModule, steps: int, **options: Any) -> list[str]:
    """The origins of the packs that were trained on."""
    seen: list[str] = []

    class Noted(UniMedVLModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.extend(batch.origins)
            return super().training_step(batch, batch_idx)

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, max_steps=steps, max_epochs=-1, **options,
    )  # fmt: skip
    trainer.fit(Noted(tiny_network(), MARKS), datamodule=served)
    return seen


def test_lightning_trains_on_each_pack_once_also_over_epochs_and_validations(tmp_path: Path) -> None:
    straight = list(islice(mixture(), 6))
    served = UniMedVLDataModule(
        mixture(), validation=first_packs(mixture(seed=1), 2), rejects=tmp_path / "out" / "rejects.jsonl"
    )
    seen = fitted(tmp_path, served, 6, limit_train_batches=2, num_sanity_val_steps=1)
    assert seen == [origin for pack in straight for origin in pack.origins]
    assert [lane["packs"] for lane in served.state_dict()["lanes"]] == [3, 3]
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text("utf8").splitlines()
    assert json.loads(line)["code"] == "too-long" and json.loads(line)["id"].startswith("a/3/")


def test_the_state_of_two_ranks_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(islice(mixture(4), 12))
    ranks = [UniMedVLDataModule(mixture(4)) for _ in range(2)]
    for rank, served in enumerate(ranks):
        served._open(rank, 2)
        packs: Iterator[Any] = iter(served.train_dataloader())
        for pack in islice(packs, 3):
            served.on_after_batch_transfer(pack, 0)
    states = [served.state_dict() for served in ranks]
    gathering(monkeypatch, datamodule, states)
    resumed = UniMedVLDataModule(mixture(4))
    resumed.load_state_dict(ranks[0].state_dict())
    assert [p.origins for p in islice(resumed.train_dataloader(), 4)] == [p.origins for p in alone[6:10]]


def gathering(monkeypatch: pytest.MonkeyPatch, module: Any, values: list[Any]) -> None:
    """torch.distributed as it is among as many ranks as there are values."""

    def all_gather_object(every: list[Any], mine: Any) -> None:
        every[:] = values

    fake = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: len(values),
        all_gather_object=all_gather_object,
    )  # fmt: skip
    monkeypatch.setattr(module, "dist", fake)


def test_ranks_with_other_data_are_named_with_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = mixture().fingerprint(), mixture(budget=13).fingerprint()
    gathering(monkeypatch, checks, [one, one, other])
    with pytest.raises(ValueError, match="Rank 2 differs from rank 0 in budget, seed, lanes and lookahead"):
        check_ranks(one)
    gathering(monkeypatch, checks, [one, {**one, "stream 'a'": "0"}])
    with pytest.raises(ValueError, match="Rank 1 .* in stream 'a' .*copy the same shards"):
        check_ranks(one)
    gathering(monkeypatch, checks, [one, one])
    check_ranks(one)


def test_a_tokenizer_of_other_weights_is_refused_before_the_first_step(tmp_path: Path) -> None:
    network = tiny_network()
    check_tokenizer(Words(), network, MARKS)
    check_tokenizer(Words(22), network)
    check_tokenizer(None, network, MARKS)
    for size in (25, 12):
        with pytest.raises(ValueError, match=f"tokenizer has {size} ids and the weights have rows for 24"):
            check_tokenizer(Words(size), network)
    wrong = mixture()
    wrong.to_segments.tokenizer = Words(marks=(0, 1, 2, 3))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"tokenizer's marks are \(0, 1, 2, 3\), the training step uses"):
        fitted(tmp_path, UniMedVLDataModule(wrong), 1)


def test_ranks_that_would_wait_for_each_other_are_refused() -> None:
    served = UniMedVLDataModule(mixture(), validation=first_packs(mixture(), 3))
    served._open(0, 2)
    with pytest.raises(ValueError, match="3 validation packs for 2 ranks, expected a multiple"):
        served.val_dataloader()
    assert UniMedVLDataModule(mixture()).val_dataloader() == []
    with pytest.raises(ValueError, match="lanes=2, which 1 rank.*3 loader worker"):
        UniMedVLDataModule(mixture(), num_workers=3).train_dataloader()


def test_a_checkpoint_of_two_ranks_is_counted_as_one_process_counts() -> None:
    def checkpoint(ready: int, completed: int) -> dict[str, Any]:
        counts = {"ready": ready, "completed": completed}
        place = {"lanes": [{"packs": 5}, {"packs": 5}]}
        loop = {
            "epoch_loop.batch_progress": {
                "total": dict(counts),
                "current": dict(counts),
                "is_last_batch": False,
            }
        }
        return {"UniMedVLDataModule": place, "loops": {"fit_loop": loop}}

    found = checkpoint(5, 4)
    recount(found, 1)
    assert found == checkpoint(10, 9)
    recount(found, 2)
    assert found == checkpoint(5, 4)
    recount(found, 2)
    assert found == checkpoint(5, 4)
    for other in ({}, {**found, "UniMedVLDataModule": {"packs": None}}):
        before = json.dumps(other)
        recount(other, 3)
        assert json.dumps(other) == before
