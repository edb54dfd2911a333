# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there: written aside, flushed, then moved; and how to read them again.

A run killed while it saves, or on a full disk, leaves the checkpoints before it as they were.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from monai_unimedvl import weights
from monai_unimedvl.atomic import PART, new_file
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.training.acceleration import is_sharded

META = "meta.pt"  # what Lightning calls the file of a sharded checkpoint that is not cut
PREFIX = "network."  # of the network's weights in the module's state


class AtomicCheckpointIO(TorchCheckpointIO):
    """torch's checkpoint files, whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            ValueError: it cannot be written; the checkpoints before it are whole.
        """
        path = Path(path)
        try:
            with new_file(path, durable=True) as aside, aside.open("wb") as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            raise ValueError(
                f"The checkpoint {path.name} cannot be written ({_reason(error)}); those before it are "
                "whole: free some space and go on with --resume."
            ) from error


class AtomicSharding(ModelParallelStrategy):
    """FSDP2 over all ranks, whose sharded checkpoints, a folder each, are whole or not there."""

    def __init__(self, ranks: int, **options: Any) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, **options)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Every rank writes its part aside; the first one moves the folder into place."""
        path = Path(self.broadcast(filepath))
        aside = path.with_name(f".{path.name}{PART}")  # the same name on every rank
        if self.global_rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, aside, storage_options)
        self.barrier()
        if self.global_rank == 0:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
        self.barrier()


def newest(folder: str | Path) -> Path | None:
    """The last checkpoint of a folder, by its step; None without one. What a kill left half is removed."""
    folder = Path(folder)
    for left in folder.glob(f".*{PART}"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    found = [path for path in folder.glob("*.ckpt") if path.is_file() or (path / META).is_file()]
    return max(found, key=step_of, default=None)


def step_of(path: Path) -> int:
    """After which step a checkpoint was written, by its name; 0 where that says none."""
    digits = "".join(c for c in path.stem.split("step=")[-1].split("-")[0] if c.isdigit())
    return int(digits or 0)


def read_network(checkpoint: str | Path) -> UniMedVL:
    """The network in a checkpoint of `UniMedVLModule`, one file or sharded, on the CPU in eval mode.

    With an average of the weights (`ema`) it is the average. Sharded checkpoints have an index that torch
    unpickles: read only your own.

    Raises:
        ValueError: no checkpoint there, or not one of ours.
    """
    path = Path(checkpoint)
    if not path.exists():
        raise ValueError(f"There is no checkpoint {path}: check the path.")
    try:
        file = path / META if path.is_dir() else path
        meta = torch.load(file, map_location="cpu", weights_only=True, mmap=path.is_file() or None)
        state = _read_shards(path) if path.is_dir() else meta["state_dict"]
        config = meta["network"]
    except (KeyError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} is no checkpoint of a training run of this package ({_reason(error)}): give a .ckpt "
            "that `unimedvl train` wrote."
        ) from error
    if any(".lora_" in name for name in state):
        raise ValueError(
            f"{path} is of adapters, whose base it does not hold: end the run with --resume, which writes "
            "them and the merged weights."
        )
    try:
        return _with(config, {n.removeprefix(PREFIX): x for n, x in state.items() if n.startswith(PREFIX)})
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the weights that its network has ({_reason(error)}), expected a whole "
            "checkpoint: take another one."
        ) from error


def average(network: UniMedVL, folder: str | Path, since: int) -> list[Path]:
    """Give `network` the mean weights of the later checkpoints of a folder; returns them, in order.

    Along a decaying rate the mean lies flatter than its members (after arXiv 1803.05407).

    Args:
        since: the step of the first of them; 0 leaves the network as it is.

    Raises:
        ValueError: a checkpoint of another network.
    """
    found = sorted(Path(folder).glob("*.ckpt"), key=step_of) if since > 0 else []
    paths = [path for path in found if step_of(path) >= since]
    if len(paths) < 2:
        return []
    states = [read_network(path).state_dict() for path in paths]
    try:
        mean = {
            name: torch.stack([state[name].float() for state in states]).mean(0).to(value.dtype)
            if value.is_floating_point()
            else value
            for name, value in states[-1].items()
        }
        network.load_state_dict(mean, strict=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoints in {folder} are of another network ({_reason(error)}), expected those of this "
            "run: give its folder."
        ) from error
    return paths


def blend(network: UniMedVL, start: str | Path | None, share: float) -> None:
    """Give `network` back a share of the weights that its training began with.

    What lies between two sets of weights on one course often keeps most of either (after arXiv 2109.01903).

    Args:
        start: the folder of weights that it began with; not read where the share is 0.
        share: 0 leaves the network as it is.

    Raises:
        ValueError: a share outside [0, 1), or one without weights, or of those of another network.
    """
    if not 0 <= share < 1 or (share and start is None):
        raise ValueError(
            f"blend got share={share} of start={start}, expected a share in [0, 1), and weights to keep it "
            "of: change either."
        )
    if not share:
        return
    before = weights.load(start, dtype=torch.float32)[0].state_dict()  # type: ignore[arg-type]
    state = network.state_dict()
    if {n: x.shape for n, x in before.items()} != {n: x.shape for n, x in state.items()}:
        raise ValueError(
            f"The weights in {Path(str(start)).name} are of another network than the one trained: give those "
            "that it began with."
        )
    network.load_state_dict(
        {
            name: torch.lerp(value, before[name].to(value), share) if value.is_floating_point() else value
            for name, value in state.items()
        }
    )


def whole(network: UniMedVL) -> UniMedVL | None:
    """The network with whole parameters: itself, or of a sharded one a copy on the first rank's CPU.

    Every rank must call it; the other ranks of a sharded network get None.
    """
    if not is_sharded(network):
        return network
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return _with(network.config, state) if state else None


def _with(config: dict[str, Any], state: dict[str, Tensor]) -> UniMedVL:
    with torch.device("meta"):
        network = from_config(config)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The weights of a sharded checkpoint, put together."""
    reader = dcp.FileSystemReader(path)
    entries = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith("state_dict.")
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix("state_dict."): x for name, x in state.items()}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
