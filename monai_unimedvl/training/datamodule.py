# SPDX-License-Identifier: Apache-2.0
"""The Lightning data module: a mixture as the training loader, its state in every checkpoint."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from monai_unimedvl.data.mixture import Mixture, Pack


class UniMedVLDataModule(pl.LightningDataModule):
    """Serves the packs of a `Mixture`; a checkpoint holds the mixture's exact place."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self._trained = mixture.state_dict()

    def train_dataloader(self) -> DataLoader:
        """Packs as they come, in this process: the state then is the state of what was trained on."""
        return DataLoader(self.mixture, batch_size=None, num_workers=0, collate_fn=lambda pack: pack)

    def on_after_batch_transfer(self, batch: Pack, dataloader_idx: int) -> Pack:
        """Note the place of the pack that is about to be trained on: the loader itself reads ahead."""
        self._trained = batch.state
        return batch

    def transfer_batch_to_device(self, batch: Pack, device: torch.device, dataloader_idx: int) -> Pack:
        """Packs stay on the CPU; the objective moves what the network needs."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The mixture's counters after the last pack trained on."""
        return self._trained

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the mixture where the checkpoint left it."""
        self.mixture.load_state_dict(state_dict)
        self._trained = state_dict
