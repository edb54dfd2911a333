# SPDX-License-Identifier: Apache-2.0
"""The Lightning module: optimiser, schedule and logging around the one objective."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Marks
from monai_unimedvl.training.objective import Objective
from monai_unimedvl.training.optimizer import MuonAdamW, warmup_stable_decay


class UniMedVLModule(pl.LightningModule):
    """Trains a `UniMedVL` on packs.

    Args:
        marks: control tokens of the tokenizer that made the packs.
        matrix_lr, lr: rates of Muon (matrices inside layers) and AdamW (the rest).
        warmup: steps of linear warm-up. decay: last share of the steps, over which the rate falls to 0.
        seed: of times and noise; each pack has a generator of its own, so a resumed run draws the same.
    """

    def __init__(
        self,
        network: UniMedVL,
        marks: Marks,
        *,
        objective: Objective | None = None,
        matrix_lr: float = 4e-3,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup: int = 100,
        decay: float = 0.4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.marks = network, marks
        self.objective = objective or Objective()
        self.rates = {"matrix_lr": matrix_lr, "lr": lr, "weight_decay": weight_decay}
        self.warmup, self.decay, self.seed = warmup, decay, seed

    def training_step(self, batch: Pack, batch_idx: int) -> Tensor:
        """The loss of one pack."""
        drawn = self.trainer.fit_loop.total_batch_idx  # not the step: accumulated packs must differ in noise
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + drawn)
        losses = self.objective(self.network, batch.samples, self.marks, generator)
        self.log_dict(
            {"text": losses.text, "flow": losses.flow, "loss": losses.loss, "tokens": float(batch.tokens)},
            prog_bar=True, batch_size=1,
        )  # fmt: skip
        return losses.loss

    def configure_optimizers(self) -> dict[str, Any]:
        """MuonAdamW with warm-up, a stable stretch, and linear decay, stepped every batch.

        Raises:
            ValueError: the packs never end and the trainer has no `max_steps` to say when the rate falls.
        """
        total = self.trainer.estimated_stepping_batches
        if not 0 < total < inf:
            raise ValueError(
                f"The trainer has max_steps={self.trainer.max_steps}, expected the number of steps, because"
                " packs never end: set it."
            )
        optimizer = MuonAdamW(self.network, **self.rates)
        factor = partial(warmup_stable_decay, warmup=self.warmup, total=int(total), decay=self.decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
