# SPDX-License-Identifier: Apache-2.0
"""Inferers in MONAI's sense: batches of prompts in, answers and images out."""

from monai_unimedvl.inferers.context import Branches, Context, segments_for
from monai_unimedvl.inferers.drawing import ImageInferer, InterleavedInferer
from monai_unimedvl.inferers.inferers import Answer, TextInferer
from monai_unimedvl.inferers.sampling import Sampling, Word, flow_steps, words

__all__ = [
    "Answer",
    "Branches",
    "Context",
    "ImageInferer",
    "InterleavedInferer",
    "Sampling",
    "TextInferer",
    "Word",
    "flow_steps",
    "segments_for",
    "words",
]
