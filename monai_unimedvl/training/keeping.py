# SPDX-License-Identifier: Apache-2.0
"""The best weights of a fine-tuning run, where a bundle has its weights: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.handlers import CheckpointSaver
from torch import nn

from monai_unimedvl.atomic import write
from monai_unimedvl.networks.tensor_path import TensorPath
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.checkpoints import read_network
from monai_unimedvl.weights.checkpoint import NAME, PREFIX, checkpoint_bytes
from monai_unimedvl.weights.io import our_config


class KeepBest(CheckpointSaver):
    """Handler of an evaluator: `model.pt` becomes the network whose key metric, a loss, is the lowest so far.

    MONAI's own saver writes into the old file; here it is replaced as a whole, so that a kill or a full disk
    leaves the weights of before.

    Args:
        folder: of the weights: `models` of a bundle.
        network: a `TensorPath`, whose names MONAI's verbs expect in the file.
        tokenizer: for a folder that holds no weights yet, which then becomes one that `load` reads.
    """

    def __init__(self, folder: str | Path, network: TensorPath, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(
            save_dir=str(folder), save_dict={"network": network}, save_key_metric=True,
            key_metric_filename=NAME, key_metric_negative_sign=True,
        )  # fmt: skip
        self._key_metric_checkpoint.save_handler = _Whole(  # type: ignore[union-attr]
            Path(folder), network.network, tokenizer
        )


class _Whole:
    """What ignite's Checkpoint writes with."""

    def __init__(self, folder: Path, network: UniMedVL, tokenizer: Tokenizer | None) -> None:
        self.folder, self.network, self.tokenizer = folder, network, tokenizer

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Any = None) -> None:
        state = {name.removeprefix(PREFIX): x for name, x in checkpoint.items()}
        write(self.folder / NAME, checkpoint_bytes(state))
        _describe(self.network, self.tokenizer, self.folder)

    def remove(self, filename: str) -> None:
        """Nothing: the next one replaces the file."""


def keep(network: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write a network's weights as the `model.pt` of a folder, whole or not at all; returns the file.

    Args:
        network: a `UniMedVL`, or a `TensorPath` around one.
        tokenizer: for a folder that holds no weights yet.
    """
    inner = network.network if isinstance(network, TensorPath) else network
    file = Path(folder) / NAME
    write(file, checkpoint_bytes(inner.state_dict()))
    _describe(inner, tokenizer, Path(folder))
    return file


def _describe(network: nn.Module, tokenizer: Tokenizer | None, folder: Path) -> None:
    """config.json and the tokenizer's files, where there are none."""
    if tokenizer is not None and not (folder / "config.json").exists():
        tokenizer.save(folder)
        content = our_config(network, tokenizer.digest())  # type: ignore[arg-type]
        write(folder / "config.json", json.dumps(content, indent=2) + "\n")


def keep_checkpoint(checkpoint: str | Path, folder: str | Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write the weights in a Lightning checkpoint as the `model.pt` of a folder; returns the file.

    Raises:
        ValueError: no checkpoint of ours there.
    """
    return keep(read_network(checkpoint), folder, tokenizer)
