# SPDX-License-Identifier: Apache-2.0
"""Training steps in Lightning against the same steps in a bare loop: same packs, noise, optimiser, clipping.

Lightning runs as `unimedvl train` makes it, with a CSV log, without validation and checkpoints. A unit is one
update on a pack of 3,000 atlas tokens.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from _timing import HEAD, Side, arguments, load_average, report, rows, take_turns
from torch import nn
from torch.utils.data import DataLoader

from monai_unimedvl.bundle import load
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.objective import pack_generator
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.parts import freeze
from monai_unimedvl.training.presets import nano_mixture

STEPS, RATES = 5, Rates(optimizer="adamw", warmup=1)


class _Tick(pl.Callback):
    """The clock, inside Lightning."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_train_start(self, *_: Any) -> None:
        self.tick()

    def on_train_batch_end(self, *_: Any) -> None:
        self.tick()


def main() -> None:
    options = arguments(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    load_ = load_average()
    network, tokenizer = load("unimedvl_nano")
    mixture = nano_mixture(AtlasDataset(None, "train", progress=False), tokenizer, budget=3000)
    packs = [mixture.next_pack() for _ in range(STEPS)]

    def bare(tick: Callable[[], None]) -> None:
        own = deepcopy(network).train()
        freeze(own)
        objective = UniMedVLModule(own, tokenizer.marks).objective
        optimizer = RATES.build(own)
        course = RATES.course(optimizer, STEPS)
        learning = [p for p in own.parameters() if p.requires_grad]
        tick()
        for n, pack in enumerate(packs):
            with torch.autocast("cpu", torch.bfloat16):
                losses = objective(own, pack.samples, tokenizer.marks, pack_generator(0, n))
            optimizer.zero_grad()
            losses.loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            course.step()
            tick()

    def lightning(tick: Callable[[], None]) -> None:
        module = UniMedVLModule(deepcopy(network).train(), tokenizer.marks, rates=RATES)
        loader = DataLoader(packs, batch_size=None, collate_fn=lambda pack: pack)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                accelerator="cpu", devices=1, precision="bf16-mixed", max_steps=STEPS, max_epochs=-1,
                gradient_clip_val=1.0, logger=pl.loggers.CSVLogger(folder), log_every_n_steps=10,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                callbacks=[_Tick(tick)],
            )  # fmt: skip
            trainer.fit(module, loader)

    sides: dict[str, Side] = {"bare loop": bare, "Lightning": lightning}
    watches = take_turns(sides, options.rounds or 4)
    report(__doc__.strip().split("\n\n")[0], [HEAD, *rows([], watches)], options, load_)


if __name__ == "__main__":
    main()
