# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of packages that are no longer made, in the classes that took their place."""

from monai_unimedvl.compat.generative import core_config, from_generative

__all__ = ["core_config", "from_generative"]
