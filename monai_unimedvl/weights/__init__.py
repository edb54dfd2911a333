# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: `load` a released folder or one of ours, `save` ours. Safetensors only, no pickle."""

from monai_unimedvl.weights.io import load, save

__all__ = ["load", "save"]
