# SPDX-License-Identifier: Apache-2.0
"""What a `VolumeInferer` makes inside a MONAI engine, into files that are marked as synthetic."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.utils.enums import CommonKeys
from torch import Tensor

from monai_unimedvl.provenance import save_text, save_volume
from monai_unimedvl.training.results import FILE, SaveResults
from monai_unimedvl.transforms.image import meta_of

logger = logging.getLogger(__name__)


class SaveVolumes(SaveResults):
    """Handler: one NIfTI, or one JSON of answers, for each volume of a batch, named after its file.

    The engine's inferer is a `VolumeInferer` that has its instruction, its batches (B, C, X, Y, Z) are of
    MONAI's loaders, and what is drawn lies in the space of its source. Arguments: as `SaveResults`.

    Raises:
        ValueError: at the start of a run, an inferer whose slices have different seeds.
    """

    def attach(self, engine: Engine) -> None:
        """As `SaveResults`; a file is sealed with one seed, so all of its slices must have it."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, _check_seed)

    def __call__(self, engine: Any) -> None:
        """Write the predictions of the last batch."""
        inferer, made = engine.inferer, engine.state.output[CommonKeys.PRED]
        for place, volume in enumerate(decollate_batch(engine.state.batch[self.image])):
            name = meta_of(volume, FILE)
            file = Path(str(name)) if name else None
            facts = self._facts(inferer.inferer, place, [inferer.instruction], file, -1)
            stem = "-".join(filter(None, [file.name.split(".")[0] if file else "", self.name]))
            if isinstance(made[place], Tensor):
                path = self.folder / f"{stem}.nii.gz"
                for channel, values in enumerate(made[place].as_subclass(Tensor)):
                    path = self.folder / (f"{stem}-{channel}.nii.gz" if channel else f"{stem}.nii.gz")
                    save_volume(values, volume.affine, path, facts)
            else:
                path = self.folder / f"{stem}.json"
                save_text("\n".join(map(str, made[place])), path, facts)
            self.written.append(path)
            logger.info("%s: wrote %s", facts.prompt, path)


def _check_seed(engine: Any) -> None:
    inner = engine.inferer.inferer
    several = not isinstance(getattr(inner, "seed", 0), int)
    if several or getattr(inner, "generator", None) is not None:
        came = "several seeds" if several else "a generator"
        raise ValueError(
            f"SaveVolumes got {type(inner).__name__} with {came}, expected one seed for all slices, which "
            "the file is sealed with: write seed=0, or another whole number."
        )
