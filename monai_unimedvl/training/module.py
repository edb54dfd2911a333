# SPDX-License-Identifier: Apache-2.0
"""The Lightning module: which parameters learn and how fast, around the one objective."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.compiling import compile_layers
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Marks
from monai_unimedvl.training.acceleration import is_sharded, recompute_layers, shard_layers
from monai_unimedvl.training.adapters import adapters_of
from monai_unimedvl.training.checks import check_terms, recount
from monai_unimedvl.training.objective import VALIDATION, Objective, pack_generator
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.parts import freeze, understanding
from monai_unimedvl.training.replay import Guard


class UniMedVLModule(pl.LightningModule):
    """Trains a `UniMedVL` on packs.

    Args:
        marks: control tokens of the tokenizer that made the packs.
        objective: the losses and their weights.
        rates: optimiser, rates and their course.
        frozen: parts or patterns of parameters that do not learn (`training.parts`). An objective that
            detaches understanding freezes what then gets no gradient.
        seed: of times and noise; each pack has a generator of its own, so a resumed run draws the same.
        guard: what happens when a loss or a gradient is no number.
        recompute: run the layers again in the backward pass, for memory.
        compiled: compile the layers.
    """

    def __init__(
        self,
        network: UniMedVL,
        marks: Marks,
        *,
        objective: Objective | None = None,
        rates: Rates | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
        guard: Guard | None = None,
        recompute: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.marks = network, marks
        self.objective, self.rates = objective or Objective(), rates or Rates()
        self.frozen, self.seed, self.guard = tuple(frozen), seed, guard or Guard()
        if self.objective.detach_understanding:
            self.frozen += understanding(network)
        self.learning = freeze(network, self.frozen)
        if recompute:
            recompute_layers(network)
        if compiled:
            compile_layers(network)
        self._last: tuple[Pack, int] | None = None

    def configure_model(self) -> None:
        """Cut the network over the ranks, where the strategy is `ModelParallelStrategy`."""
        if self.device_mesh is not None:
            self._refuse_sharded()
            half = torch.bfloat16 if "bf16" in str(self.trainer.precision) else None
            shard_layers(self.network, self.device_mesh["data_parallel"], half)

    def transfer_batch_to_device(self, batch: Pack, device: torch.device, dataloader_idx: int) -> Pack:
        """Packs stay on the CPU; the objective moves what the network needs."""
        return batch

    def training_step(self, batch: Pack, batch_idx: int) -> dict[str, Tensor]:
        """The losses of one pack."""
        number = self._number(batch, self.trainer.fit_loop.total_batch_idx)
        self._last = batch, number
        losses = self.objective(self.network, batch.samples, self.marks, pack_generator(self.seed, number))
        self._check(losses.loss, "loss")
        self.log_dict(
            {"text": losses.text, "flow": losses.flow, "loss": losses.loss, "tokens": float(batch.tokens)},
            prog_bar=True, batch_size=1,
        )  # fmt: skip
        return {"loss": losses.loss, "by_sample": losses.by_sample}

    def validation_step(self, batch: Pack, batch_idx: int) -> dict[str, Tensor]:
        """The same losses in eval mode, with times and noise that are the same in every pass."""
        chance = pack_generator(self.seed, VALIDATION + self._number(batch, batch_idx))
        losses = self.objective(self.network, batch.samples, self.marks, chance)
        self.log_dict(
            {"val_text": losses.text, "val_flow": losses.flow, "val_loss": losses.loss},
            prog_bar=True, batch_size=1, sync_dist=True,
        )  # fmt: skip
        return {"loss": losses.loss, "by_sample": losses.by_sample}

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser and its course, stepped every update.

        Raises:
            ValueError: the packs never end and the trainer has no `max_steps` to say when the rate falls; or
                Muon over sharded matrices.
        """
        total = self.trainer.estimated_stepping_batches
        if not 0 < total < inf:
            raise ValueError(
                f"The trainer has max_steps={self.trainer.max_steps}, expected the number of steps, because"
                " packs never end: set it."
            )
        if self.rates.optimizer == "muon" and is_sharded(self.network):
            raise ValueError(
                "Muon needs whole matrices, but this strategy cuts them over ranks: use optimizer='adamw'."
            )
        optimizer = self.rates.build(self.network)
        schedule = self.rates.course(optimizer, int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients, log it, and stop where it is no number.

        Raises:
            ValueError: a norm below 0, which would turn the gradients round.
        """
        if gradient_clip_val is not None and not gradient_clip_val >= 0:
            raise ValueError(
                f"The trainer has gradient_clip_val={gradient_clip_val}, expected a norm, or 0 for none: "
                "raise it."
            )
        if gradient_clip_algorithm == "value":
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        learning = [p for p in self.network.parameters() if p.grad is not None]
        if gradient_clip_val:
            norm = nn.utils.clip_grad_norm_(learning, gradient_clip_val)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in learning])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.trainer.scaler is None:  # a scaled loss may overflow: the scaler then skips the step
            self._check(norm, "norm of the gradient")
        self.log("gradient_norm", norm, batch_size=1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run may go on with another number of ranks: count its packs as they do.

        Raises:
            ValueError: with another rate, other packs an update, or other adapters.
        """
        check_terms(checkpoint.get("terms", {}), self._terms())
        recount(checkpoint, self.trainer.world_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put in the network's sizes, so that it alone can be turned into weights, and the run's terms."""
        checkpoint["network"] = self.network.config
        checkpoint["terms"] = self._terms()

    def _terms(self) -> dict[str, Any]:
        """What may not change while a run goes on."""
        each = self.trainer.accumulate_grad_batches
        return {
            "optimizer": self.rates.optimizer, "lr": self.rates.lr, "adapters": adapters_of(self.network),
            "batch": each * self.trainer.world_size, "accumulate": each,
        }  # fmt: skip

    def _number(self, batch: Pack, count: int) -> int:
        """The number of a pack over all ranks, as if one process had trained on them in turn."""
        return (
            batch.number if batch.number >= 0 else count * self.trainer.world_size + self.trainer.global_rank
        )

    def _check(self, value: Tensor, what: str) -> None:
        batch, number = self._last  # type: ignore[misc]
        self.guard.check(
            value, self.network, batch, marks=self.marks, objective=self.objective, seed=self.seed,
            number=number, what=what,
        )  # fmt: skip

    def _refuse_sharded(self) -> None:
        """EMA and Muon need whole parameters."""
        from pytorch_lightning.callbacks import WeightAveraging

        if any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "An average of the weights (ema) was asked for together with sharded parameters, which its "
                "copy of the model cannot hold: set ema to 0, or use strategy 'ddp'."
            )
