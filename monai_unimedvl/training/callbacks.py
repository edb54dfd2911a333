# SPDX-License-Identifier: Apache-2.0
"""What watches a Lightning run: speed, losses by task, validation with scores and pictures, averaged weights.

Pictures and scores are made inside a validation, so they see the averaged weights where there are any.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ProgressBar
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.training.acceleration import is_sharded
from monai_unimedvl.training.meter import Names, Speed, Tally, measured_flops, task_of
from monai_unimedvl.training.sheets import Sheets


class Averaging(EMAWeightAveraging):
    """Lightning's exponential average of the weights after every update, as in the reference.

    Validation runs on the average, checkpoints hold it beside the weights, and the run ends with it.

    Args:
        decay: 0.995 in UniMedVL (paper, Table 12).
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the model; `UniMedVLModule.configure_model` refuses to do so under sharding."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*with a model that overrides the configure_model")
            super().setup(trainer, pl_module, stage)


class Bar(ProgressBar):
    """A bar of updates on stderr, with the losses of the last step; validations stand still in it."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._on = True

    def disable(self) -> None:
        """As Lightning asks on all ranks but the first."""
        self._on = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step that the run begins with."""
        total, done = trainer.max_steps, trainer.global_step
        self._bar = tqdm(total=total, initial=done, desc="train", unit="step", disable=not self._on)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pack, batch_idx: int
    ) -> None:
        """Move it."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            shown = {k: x for k, x in trainer.progress_bar_metrics.items() if k in ("loss", "text", "flow")}
            self._bar.set_postfix({k: f"{float(x):.3f}" for k, x in shown.items()})  # type: ignore[arg-type]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close it."""
        if self._bar is not None:
            self._bar.close()


class Meter(pl.Callback):
    """Logs tokens a second, the share of the device's speed that is used, and losses by task and modality.

    Args:
        names: origin of a sample -> names that its losses are logged under. held_out_names: in validation.
        peak: floating-point operations a second of the device that count as full use; None measures a product
            of matrices at the start. 0 leaves the use out.
    """

    def __init__(
        self, names: Names = task_of, held_out_names: Names = task_of, peak: float | None = None
    ) -> None:
        self.tally, self.seen, self.speed = Tally(names), Tally(held_out_names), Speed(peak)
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the device."""
        if self.speed.peak is None:
            dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
            self.speed.peak = measured_flops(pl_module.device, dtype)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Pack, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._since = perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pack, batch_idx: int
    ) -> None:
        """Count the step; every `log_every_n_steps` write the means."""
        self.speed.add(pl_module.network, batch, perf_counter() - self._since)  # type: ignore[arg-type]
        self.tally.add(batch.origins, outputs["by_sample"])
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            _log(trainer, {**self.speed.read(trainer.world_size), **self.tally.means()})

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pack, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count a pack of the validation."""
        self.seen.add(batch.origins, outputs["by_sample"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the validation losses by task; before the first step too."""
        _log(trainer, self.seen.means("val_"))


class Scores(pl.Callback):
    """Logs what a function says of the network, at each validation.

    Args:
        score: network, in eval mode -> {name: value}.
    """

    def __init__(self, score: Callable[[UniMedVL], Mapping[str, float]]) -> None:
        self.score = score
        self.history: list[tuple[int, dict[str, float]]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, and log as `score/NAME`."""
        network: UniMedVL = pl_module.network  # type: ignore[assignment]
        if trainer.global_rank and not is_sharded(network):
            return
        found = {f"score/{name}": float(x) for name, x in self.score(network).items()}
        self.history.append((trainer.global_step, found))
        _log(trainer, found)


class Pictures(pl.Callback):
    """Writes a sheet of `Sheets` at each validation, also to TensorBoard, MLflow and W&B where they log."""

    def __init__(self, sheets: Sheets) -> None:
        self.sheets = sheets

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw and write the sheet."""
        network: UniMedVL = pl_module.network  # type: ignore[assignment]
        if not self.sheets.cases or (trainer.global_rank and not is_sharded(network)):
            return
        sheet = self.sheets.draw(network)  # sharded: every rank draws, the first one writes
        if trainer.is_global_zero:
            self.sheets.keep(sheet, trainer.global_step)
            for logger in trainer.loggers:
                _show(logger, sheet, trainer.global_step)


@rank_zero_only
def _log(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    for logger in trainer.loggers if values else ():
        logger.log_metrics(dict(values), step=trainer.global_step)


def _show(logger: Any, sheet: Tensor, step: int) -> None:
    """Hand a sheet to a logger that takes pictures."""
    kind = type(logger).__name__
    if kind == "TensorBoardLogger":
        logger.experiment.add_image("samples", sheet, step)
    elif kind == "WandbLogger":
        logger.log_image("samples", [sheet.movedim(0, -1).numpy()], step=step)
    elif kind == "MLFlowLogger":
        picture = sheet.movedim(0, -1).numpy()
        logger.experiment.log_image(logger.run_id, picture, key="samples", step=step)
