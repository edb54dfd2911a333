# SPDX-License-Identifier: Apache-2.0
"""The Lightning pair: a run that stops and goes on is the run that never stopped."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from tiny import MARKS, text, tiny_network

from monai_unimedvl import AtlasDataset
from monai_unimedvl.data.mixture import Mixture, Stream
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.datamodule import UniMedVLDataModule
from monai_unimedvl.training.engine import IterationUpdate
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.objective import Objective
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.presets import corpus, nano_mixture

STEPS, STOP = 6, 3


@pytest.fixture(scope="module")
def lessons() -> tuple[AtlasDataset, Tokenizer]:
    """Questions, drawings and edits from the sources that every installation has, and their tokenizer."""
    tasks = ["vqa", "text-to-image", "sr4", "seg-nuclei"]
    dataset = AtlasDataset(section="train", tasks=tasks, permissive_only=True, progress=False)
    return dataset, Tokenizer.train(corpus(dataset)[::20], 300)


def trained(
    folder: Path, lessons: tuple[AtlasDataset, Tokenizer], resume: Path | None = None
) -> tuple[UniMedVL, dict[str, Any], list[str]]:
    """A small network after all steps, the place of the mixture, and the losses logged."""
    dataset, tokenizer = lessons
    torch.manual_seed(0 if resume is None else 99)  # nothing may depend on the global generator
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    datamodule = UniMedVLDataModule(nano_mixture(dataset, tokenizer, budget=600))
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=STOP, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=-1, max_steps=STEPS, accelerator="cpu", gradient_clip_val=1.0, log_every_n_steps=1,
        logger=CSVLogger(folder, "log", "run"), callbacks=[keep], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = UniMedVLModule(network, tokenizer.marks, rates=Rates(warmup=2))
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    rows = list(csv.DictReader((folder / "log" / "run" / "metrics.csv").open()))
    return network, datamodule.state_dict(), [row["loss"] for row in rows]


def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(
    tmp_path: Path, lessons: tuple[AtlasDataset, Tokenizer]
) -> None:
    straight, place, losses = trained(tmp_path / "straight", lessons)
    resumed, again, rest = trained(tmp_path / "resumed", lessons, tmp_path / "straight" / f"step={STOP}.ckpt")
    assert len(set(losses)) == STEPS and rest == losses[STOP:]
    assert again == place and sum(place["taken"]) > STEPS
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def words(length: int = 5) -> Mixture:
    """Packs of one text."""
    stream = Stream("a", lambda index, generator: [str(index)], length, 1.0)
    return Mixture([stream], lambda said, draw: [text(1, 2, int(said[0]), loss=True)], budget=5)


def quiet(folder: Path, **options: Any) -> pl.Trainer:
    """A trainer that writes nothing."""
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def test_every_pack_has_noise_of_its_own_also_when_gradients_are_accumulated(tmp_path: Path) -> None:
    seeds: list[int] = []

    class Noted(Objective):
        def __call__(self, network: Any, samples: Any, marks: Any, generator: Any = None) -> Any:
            seeds.append(generator.initial_seed())
            return super().__call__(network, samples, marks, generator)

    module = UniMedVLModule(tiny_network(), MARKS, objective=Noted(), seed=2)
    trainer = quiet(tmp_path, max_steps=3, max_epochs=-1, accumulate_grad_batches=2)
    trainer.fit(module, datamodule=UniMedVLDataModule(words()))
    assert seeds == [2 * 1_000_003 + n for n in range(6)]


def test_a_trainer_without_an_end_is_refused(tmp_path: Path) -> None:
    for options in ({"max_epochs": 2}, {"max_epochs": -1}):
        with pytest.raises(ValueError, match="max_steps=-1, expected the number of steps"):
            quiet(tmp_path, **options).fit(
                UniMedVLModule(tiny_network(), MARKS), datamodule=UniMedVLDataModule(words())
            )


def test_a_norm_below_zero_to_clip_to_is_refused(tmp_path: Path) -> None:
    trainer = quiet(tmp_path, max_steps=1, max_epochs=-1, gradient_clip_val=-1.0)
    with pytest.raises(ValueError, match="gradient_clip_val=-1.0, expected a norm, or 0 for none"):
        trainer.fit(UniMedVLModule(tiny_network(), MARKS), datamodule=UniMedVLDataModule(words()))
    for clip in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"IterationUpdate got clip={clip}, expected a norm"):
            IterationUpdate(MARKS, clip=clip)


def test_the_state_of_a_checkpoint_is_that_of_the_last_pack_trained_on() -> None:
    module, packs = UniMedVLDataModule(words()), list(islice(words(), 4))
    fresh = module.state_dict()
    loader = iter(module.train_dataloader())
    read = [next(loader) for _ in range(3)]
    assert module.state_dict() == fresh
    assert module.on_after_batch_transfer(read[1], 0) is read[1]
    assert module.state_dict() == packs[1].state != packs[2].state
    again = next(iter(module.train_dataloader()))  # a new epoch begins after what was trained on, not read
    assert again.origins == packs[2].origins == read[2].origins
