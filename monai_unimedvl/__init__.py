# SPDX-License-Identifier: Apache-2.0
"""UniMedVL for MONAI: one model that reads and draws medical images and text.

Public names are found at first use, so `import monai_unimedvl` loads neither torch nor MONAI nor Lightning.
"""

from monai_unimedvl.packages import at_first_use

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

__getattr__, __dir__ = at_first_use(__name__, _ROOMS)
