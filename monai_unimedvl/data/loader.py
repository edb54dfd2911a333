# SPDX-License-Identifier: Apache-2.0
"""Packs through worker processes, with the state of exactly what was handed out.

Workers read ahead, so the state travels with each pack: what was read ahead when a run stops is read again.
`torchdata.StatefulDataLoader` over a `Mixture` keeps the same promise; `stateful_loader` takes it if there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from monai.utils import optional_import
from torch import Tensor
from torch.utils.data import DataLoader

from monai_unimedvl.data.mixture import Mixture, Pack
from monai_unimedvl.sequence import Segment


class PackLoader:
    """The packs of a mixture for one rank, in the order of one process that reads them all.

    Args:
        num_workers: processes that make packs; 0 makes them here.
        rank, ranks: of the processes that train together on different packs; None asks torch.distributed.
        ahead: packs that each worker keeps ready.

    Raises:
        ValueError: the mixture's lanes cannot be dealt evenly to ranks x workers.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        num_workers: int = 0,
        rank: int | None = None,
        ranks: int = 1,
        ahead: int = 2,
    ) -> None:
        self.mixture, self.num_workers, self.ahead = copy.copy(mixture), num_workers, ahead
        self.mixture.place = mixture.place if rank is None else (rank, ranks)
        self.mixture.check_lanes(num_workers)
        self._state = mixture.state_dict()

    def __iter__(self) -> Iterator[Pack]:
        """Packs from the state on; each is noted as it is handed out."""
        for pack in self.packs():
            self.note(pack)
            yield pack

    def packs(self) -> Iterator[Pack]:
        """Packs from the state on, for a caller who reads ahead and notes them when they are used."""
        self.mixture.load_state_dict(self._state)
        self.mixture.turn = self.mixture.next_turn() % max(1, self.num_workers)
        options: dict[str, Any] = {"prefetch_factor": self.ahead} if self.num_workers else {}
        loader = DataLoader(
            self.mixture, batch_size=None, num_workers=self.num_workers,
            collate_fn=bundle if self.num_workers else _same, **options,
        )  # fmt: skip
        running = iter(loader)
        try:
            for item in running:
                yield unbundle(item) if self.num_workers else item
        except ValueError as error:  # a worker's comes with its whole traceback
            said = str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
            raise ValueError(said) from error
        finally:  # now, and not when a traceback that still holds the iterator is forgotten
            getattr(running, "_shutdown_workers", lambda: None)()

    def note(self, pack: Pack) -> None:
        """This pack was used: the state is after it."""
        if "lanes" not in self._state:
            self._state = pack.state
        else:
            lanes = list(self._state["lanes"])
            lanes[pack.state["lane"]] = pack.state
            self._state = {**self._state, "lanes": lanes}

    def state_dict(self) -> dict[str, Any]:
        """The mixture's state after the last pack handed out; other ranks' lanes are as they were loaded."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; iterators that are running do not change."""
        self.mixture.load_state_dict(state)
        self._state = self.mixture.state_dict()


def stateful_loader(mixture: Mixture, num_workers: int = 0) -> Any:
    """torchdata's `StatefulDataLoader` of packs, or a `PackLoader` where torchdata is not installed.

    Both are iterated, and have `state_dict` and `load_state_dict`; their states are not interchangeable.
    """
    stateful, found = optional_import("torchdata.stateful_dataloader", name="StatefulDataLoader")
    mixture.check_lanes(num_workers)
    if not found:
        return PackLoader(mixture, num_workers=num_workers)
    return stateful(mixture, batch_size=None, num_workers=num_workers, collate_fn=_same)


class Parcel(NamedTuple):
    """A pack whose tensors lie one after another in one flat tensor for each type of number.

    A tensor that crosses from a worker takes a file handle, and a pack has hundreds of tensors.
    """

    pack: Pack
    flat: dict[str, Tensor]


class _Slot(NamedTuple):
    dtype: str
    start: int
    shape: tuple[int, ...]


def bundle(pack: Pack) -> Parcel:
    """A pack with slots in the place of its tensors, and the tensors' numbers."""
    found: dict[str, list[Tensor]] = {}
    lengths: dict[str, int] = {}

    def put(tensor: Tensor) -> _Slot:
        dtype = str(tensor.dtype)
        slot = _Slot(dtype, lengths.get(dtype, 0), tuple(tensor.shape))
        found.setdefault(dtype, []).append(tensor.detach().reshape(-1))
        lengths[dtype] = slot.start + tensor.numel()
        return slot

    samples = [[_exchanged(segment, Tensor, put) for segment in sample] for sample in pack.samples]
    return Parcel(pack._replace(samples=samples), {k: torch.cat(each) for k, each in found.items()})


def unbundle(parcel: Parcel) -> Pack:
    """The pack again; its tensors are views."""

    def take(slot: _Slot) -> Tensor:
        count = torch.Size(slot.shape).numel()
        return parcel.flat[slot.dtype][slot.start : slot.start + count].view(slot.shape)

    samples = [[_exchanged(segment, _Slot, take) for segment in sample] for sample in parcel.pack.samples]
    return parcel.pack._replace(samples=samples)


def _exchanged(segment: Segment, kind: type, exchange: Any) -> Segment:
    changed = {name: exchange(value) for name, value in vars(segment).items() if isinstance(value, kind)}
    return replace(segment, **changed)


def _same(pack: Pack) -> Pack:
    return pack
