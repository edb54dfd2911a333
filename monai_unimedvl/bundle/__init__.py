# SPDX-License-Identifier: Apache-2.0
"""Bundles: open one (`load`), copy, pack, check, fetch, write and document them.

A bundle is a folder with `models/` (a weights folder: config.json, tokenizer.json, and model.pt or
model*.safetensors), `configs/` and `docs/`. Where a bundle is expected a bare weights folder will do, ours
or a released one.
"""

from monai_unimedvl.bundle.opening import digest, load
from monai_unimedvl.bundle.papers import document, scores, write_data_licences
from monai_unimedvl.bundle.places import DEFAULT, available, find, kept, metadata, models, running
from monai_unimedvl.bundle.shipping import compose, copy, pack, release

__all__ = [
    "DEFAULT",
    "available",
    "compose",
    "copy",
    "digest",
    "document",
    "find",
    "kept",
    "load",
    "metadata",
    "models",
    "pack",
    "release",
    "running",
    "scores",
    "write_data_licences",
]
