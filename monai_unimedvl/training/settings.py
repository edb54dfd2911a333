# SPDX-License-Identifier: Apache-2.0
"""How a run goes, as plain values: the keys of a config file, checked one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import lcm
from pathlib import Path
from typing import Any

import yaml

from monai_unimedvl.training.curriculum import check_keys
from monai_unimedvl.training.precision import mixed
from monai_unimedvl.training.values import fit, fit_fields

LOGGERS = ("csv", "tensorboard", "mlflow", "wandb")
STRATEGIES = ("auto", "ddp", "fsdp")
DEVICES = ("auto", "cpu", "cuda", "mps")
FROM_ZERO = (
    "clip", "workers", "lookahead", "validate_every", "validation_packs", "pictures", "peak_flops",
)  # fmt: skip
FROM_ONE = (
    "accumulate", "batch", "devices", "nodes", "lanes", "rank", "checkpoint_every", "keep", "log_every",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How a run goes, whatever it learns; the keys of a `--config` file besides `curriculum` and `data`.

    Args:
        out: folder of the run.
        precision: of the forward: "bf16-mixed", "32-true" ... as Lightning names them; "auto" takes the first
            where the device multiplies in bfloat16, else the second.
        device: "cpu", "cuda", or "auto". devices: processes on this machine; None takes what a launcher
            (torchrun, SLURM) says, else 1. nodes: machines.
        strategy: "auto", "ddp", or "fsdp" (parameters cut over the ranks).
        accumulate: packs an update, of each rank. batch: packs an update of all ranks together, instead: the
            same config then does the same on any number of ranks. clip: norm of the gradient; 0: none.
        workers: processes that make packs, of each rank. lanes: see `Mixture`; None is the smallest multiple
            of 8 that ranks x workers share evenly, so that 1, 2, 4 or 8 of them get the same packs.
        lookahead: samples that wait while smaller ones fill a pack.
        checkpoint_every, keep: updates between checkpoints, and how many of the last are kept.
        validate_every: updates between validations, with pictures and scores; 0 never validates.
        validation_packs: packs of a validation. pictures: pictures of a validation.
        recompute: activation checkpointing. compiled: compile the layers.
        adapters: train LoRA beside frozen weights: "understanding", "generation", "both" or "connector".
        rank: of the adapters. quantise: "int8" or "nf4", the frozen matrices of the experts (QLoRA).
        loggers: of "csv", "tensorboard", "mlflow" and "wandb".
        peak_flops: of one device, for the share of it that is used; None measures, 0 leaves it out.
        progress: show bars.
    """

    out: str = "runs"
    seed: int = 0
    precision: str = "auto"
    device: str = "cpu"
    devices: int | None = None
    nodes: int | None = None
    strategy: str = "auto"
    accumulate: int = 1
    batch: int | None = None
    clip: float = 1.0
    workers: int = 0
    lanes: int | None = None
    lookahead: int = 0
    checkpoint_every: int = 50
    keep: int = 3
    log_every: int = 10
    validate_every: int = 50
    validation_packs: int = 2
    pictures: int = 5
    recompute: bool = False
    compiled: bool = False
    adapters: str | None = None
    rank: int = 4
    quantise: str | None = None
    loggers: Sequence[str] = ("csv", "tensorboard")
    peak_flops: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in fit_fields(given, Settings).items():
            object.__setattr__(self, name, value)  # frozen: text that is a number becomes it
        if unknown := [name for name in self.loggers if name not in LOGGERS]:
            raise ValueError(
                f"loggers has {unknown[0]!r}, expected some of {', '.join(LOGGERS)}: choose among these."
            )
        for name, known in (("strategy", STRATEGIES), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}: use one."
                )
        if self.quantise and not self.adapters:
            raise ValueError(
                f"quantise is {self.quantise!r} without adapters, but quantised weights cannot learn: add "
                "adapters, or leave quantise out."
            )
        for least, names in enumerate((FROM_ZERO, FROM_ONE)):
            for name in names:
                if (value := getattr(self, name)) is not None and value < least:
                    raise ValueError(f"{name} is {value}, expected at least {least}: raise it.")

    @property
    def forward_precision(self) -> str:
        """`precision`, decided for the device."""
        return mixed(self.device) if self.precision == "auto" else self.precision

    @property
    def packs_each(self) -> int:
        """Packs an update, of each rank.

        Raises:
            ValueError: the ranks cannot share `batch` evenly.
        """
        local, nodes = self.ranks
        if self.batch is None:
            return self.accumulate
        if self.batch % (local * nodes):
            raise ValueError(
                f"batch is {self.batch} packs for {local * nodes} ranks, expected a multiple: choose another."
            )
        return self.batch // (local * nodes)

    @property
    def shared_lanes(self) -> int:
        """Lanes of the mixture."""
        local, nodes = self.ranks
        return self.lanes or lcm(8, local * nodes * max(1, self.workers))

    @property
    def ranks(self) -> tuple[int, int]:
        """Processes on each machine, and machines; a launcher's word where the settings have none."""
        local = self.devices or int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or 1
        world = int(os.environ.get("WORLD_SIZE", local))
        return local, self.nodes or max(1, world // local)


def read_config(
    path: str | Path, more: Sequence[str] | Mapping[str, Any] = ()
) -> tuple[Settings, dict[str, Any]]:
    """A YAML or JSON file of settings -> the settings, and the values under the keys in `more`.

    Args:
        more: names, or names and the kinds of their values, as `fit` has them.

    Raises:
        ValueError: no such file, not a mapping, a value of another kind than its setting, or an unknown key:
            named, with the nearest known one.
    """
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for ever
        raise ValueError(f"The config {path} is a folder, a pipe or a device, expected a file: name one.")
    try:
        content = yaml.safe_load(Path(path).read_text("utf8")) or {}  # JSON is YAML
    except OSError as error:
        raise ValueError(f"The config {path} cannot be read ({error.strerror}): check the file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        at = getattr(error, "problem_mark", None)
        where = f", at line {at.line + 1}" if at else ""
        raise ValueError(
            f"The config {path} is neither YAML nor JSON{where}: name settings as in docs/TRAINING.md."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"The config {path} holds {type(content).__name__}, expected names and values.")
    names = [f.name for f in fields(Settings)]
    check_keys(content, [*names, *more], f"The config {Path(path).name}")
    own = {key: value for key, value in content.items() if key in names}
    kinds = more if isinstance(more, Mapping) else dict.fromkeys(more, Any)
    others = {key: fit(value, kinds[key], key) for key, value in content.items() if key not in names}
    return Settings(**own), others
