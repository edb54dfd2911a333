# SPDX-License-Identifier: Apache-2.0
"""The Lightning data module: a mixture as the training loader, its state in every checkpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from monai_unimedvl.data.loader import PackLoader
from monai_unimedvl.data.mixture import Mixture, Pack, merge
from monai_unimedvl.data.record import Reject, write_jsonl
from monai_unimedvl.training.checks import check_ranks, check_tokenizer

logger = logging.getLogger(__name__)


class UniMedVLDataModule(pl.LightningDataModule):
    """Serves the packs of a `Mixture`; a checkpoint holds the mixture's exact place.

    A run may go on with another number of ranks or workers, as long as they share the lanes evenly.

    Args:
        num_workers: processes that make packs, of each rank; 0 makes them in the training process.
        validation: packs of every validation, the ranks taking turns; see `first_packs`.
        rejects: file (.jsonl) for the samples that were left out, written with each checkpoint.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        num_workers: int = 0,
        validation: Sequence[Pack] = (),
        rejects: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.mixture, self.num_workers, self.validation = mixture, num_workers, list(validation)
        self.rejected: dict[str, Reject] = {}  # each sample once
        self._rejects = Path(rejects) if rejects is not None else None
        self._loader: PackLoader | None = None

    def setup(self, stage: str) -> None:
        """Refuse what would fail or mislead later: other data on another rank, a tokenizer of other weights.

        Raises:
            ValueError: one sentence with what differs.
        """
        if stage != "fit" or self.trainer is None:
            return
        share = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        self._open(share["rank"], share["num_replicas"])
        module = self.trainer.lightning_module
        tokenizer = getattr(self.mixture.to_segments, "tokenizer", None)
        if hasattr(module, "network"):
            check_tokenizer(tokenizer, module.network, getattr(module, "marks", None))
        if share["num_replicas"] > 1:
            check_ranks(self.mixture.fingerprint())

    def train_dataloader(self) -> Iterator[Pack] | Any:
        """The packs of this rank from the last one trained on."""
        return _Ahead(self._open())

    def val_dataloader(self) -> DataLoader | list[Any]:
        """The validation packs of this rank.

        Raises:
            ValueError: ranks would get different numbers of packs, and wait for each other for ever.
        """
        rank, ranks = self._open().mixture.place or (0, 1)
        if len(self.validation) % ranks:
            raise ValueError(
                f"UniMedVLDataModule got {len(self.validation)} validation packs for {ranks} ranks, expected "
                "a multiple: take some more or fewer."
            )
        if not self.validation:
            return []
        mine = self.validation[rank::ranks]
        return DataLoader(mine, batch_size=None, num_workers=0, collate_fn=_same)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Pack, dataloader_idx: int) -> Pack:
        """Note the place of the pack that is about to be trained on: the loader itself reads ahead."""
        if self.trainer is None or self.trainer.training:
            self._open().note(batch)
            for reject in batch.rejects:
                self._left_out(reject)
        return batch

    def transfer_batch_to_device(self, batch: Pack, device: torch.device, dataloader_idx: int) -> Pack:
        """Packs stay on the CPU; the objective moves what the network needs."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The mixture's counters after the last pack trained on, of all ranks."""
        state = self._open().state_dict()
        if self._rejects is not None and self.rejected:
            write_jsonl(self.rejected.values(), self._rejects)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            every: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(every, state)
            state = merge(every)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the mixture where the checkpoint left it."""
        self._open().load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        """Say how many samples were left out, and why."""
        if stage == "fit" and self.rejected:
            counts = Counter(reject.code for reject in self.rejected.values())
            said = ", ".join(f"{count} {code}" for code, count in counts.most_common())
            logger.warning("%d samples were left out of the packs: %s.", len(self.rejected), said)
            if self._rejects is not None:
                write_jsonl(self.rejected.values(), self._rejects)

    def _open(self, rank: int | None = None, ranks: int = 1) -> PackLoader:
        if self._loader is None:
            self._loader = PackLoader(self.mixture, num_workers=self.num_workers, rank=rank, ranks=ranks)
            if rank and self._rejects is not None:
                self._rejects = self._rejects.with_stem(f"{self._rejects.stem}-rank{rank}")
        return self._loader

    def _left_out(self, reject: Reject) -> None:
        """Keep it once, whatever the epoch; the first of each kind is also said."""
        if not any(other.code == reject.code for other in self.rejected.values()):
            logger.warning("Left out %s (%s): %s", reject.id, reject.code, reject.reason)
        self.rejected.setdefault(reject.id.rpartition("/")[0] or reject.id, reject)


def first_packs(mixture: Mixture, count: int) -> list[Pack]:
    """The first packs of a mixture, to validate on: always the same."""
    return list(islice(PackLoader(mixture, rank=0, ranks=1), count))


class _Ahead:
    """Packs for Lightning, which reads ahead: each `iter` begins after the last pack noted as trained on.

    It has no `state_dict`: Lightning would save that of what it read, beside that of the data module.
    """

    def __init__(self, loader: PackLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Pack]:
        return self.loader.packs()


def _same(pack: Pack) -> Pack:
    return pack
