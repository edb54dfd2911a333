# SPDX-License-Identifier: Apache-2.0
"""The weights that are being served: those that the app came with, or the newest that training has published.

    model/serving.json         which weights, replaced as a whole once training is done
    model/tuned/STAMP/models/  weights of one training

A training that is killed has published nothing, so the weights of before go on serving.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl import bundle
from monai_unimedvl.atomic import write
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

POINTER = "serving.json"
TUNED = "tuned"


@dataclass(frozen=True)
class Opened:
    """A model in memory.

    Args:
        digest: sha256 of its weights.
        source: the bundle or folder it was opened from.
    """

    network: UniMedVL
    tokenizer: Tokenizer
    digest: str
    source: str


class Served:
    """The model of an app, opened once for each device and again when other weights are published.

    Args:
        home: the app's folder `model`.
        name: the bundle or folder of weights that it came with.
    """

    def __init__(self, home: str | Path, name: str = bundle.DEFAULT) -> None:
        self.home, self.name = Path(home), name
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, Opened]] = {}

    def told(self) -> dict[str, Any]:
        """What the pointer says: `weights`, `digest`, and the `labels` and `modality` that were taught.

        Raises:
            ValueError: it is damaged.
        """
        file = self.home / POINTER
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text("utf8"))
            assert isinstance(found, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise ValueError(
                f"model/{POINTER} is damaged, expected JSON: remove it to serve the weights that"
                " the app came with."
            ) from error
        return found

    @property
    def source(self) -> str:
        """The bundle or folder whose weights are served now."""
        weights = self.told().get("weights")
        return str(self.home / weights) if weights else self.name

    def opened(self, device: str = "cpu") -> Opened:
        """The model on a device; a request that has it keeps it, whatever is published meanwhile.

        Raises:
            ValueError: the weights cannot be read.
        """
        device = device if device == "cpu" or torch.cuda.is_available() else "cpu"
        source = self.source
        with self._lock:
            kept = self._kept.get(device)
            if kept is None or kept[0] != source:
                network, tokenizer = bundle.load(source, device=device)
                kept = source, Opened(network, tokenizer, bundle.digest(source), source)
                self._kept[device] = kept
                logger.info("serving weights %s on %s", kept[1].digest[:12], device)
            return kept[1]

    def publish(self, folder: Path, told: Mapping[str, Any]) -> None:
        """Serve the weights in a folder of `home` from now on.

        Args:
            folder: a bundle or weights.
            told: kept beside: scores, labels, modality.
        """
        content = {
            "weights": str(folder.relative_to(self.home)),
            "digest": bundle.digest(folder),
            **told,
        }
        write(self.home / POINTER, json.dumps(content, indent=2) + "\n")
