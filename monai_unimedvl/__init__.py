# SPDX-License-Identifier: Apache-2.0
"""UniMedVL for MONAI: one model that reads and draws medical images and text.

Public names are found at first use, so `import monai_unimedvl` loads neither torch nor MONAI nor Lightning.
"""

from importlib import import_module

__version__ = "0.1.0"

_ROOMS = {
    "load": "bundle",
    "recipe": "transforms",
    "UniMedVL": "networks.unimedvl",
    "TextInferer": "inferers",
    "ImageInferer": "inferers",
    "InterleavedInferer": "inferers",
    "VolumeInferer": "inferers",
    "evaluate": "evaluation.benchmarks",
    "AtlasDataset": "data.atlas",
    "Record": "data.record",
    "build_dataset": "data.pipeline",
    "Curriculum": "training.curriculum",
    "UniMedVLModule": "training.module",
    "UniMedVLDataModule": "training.datamodule",
}

__all__ = [*_ROOMS, "__version__"]


def __getattr__(name: str) -> object:
    """The public name out of its room."""
    if name not in _ROOMS:
        raise AttributeError(f"monai_unimedvl has no public name {name!r}; it has {', '.join(_ROOMS)}.")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
