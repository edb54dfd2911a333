# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: `load` a released folder or one of ours, `save` ours. Safetensors only, no pickle."""

from monai_unimedvl.weights.io import save
from monai_unimedvl.weights.loading import ANSWERING, DRAWING, load

__all__ = ["ANSWERING", "DRAWING", "load", "save"]
