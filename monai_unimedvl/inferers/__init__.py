# SPDX-License-Identifier: Apache-2.0
"""Inferers in MONAI's sense: batches of prompts in, answers and images out."""

from monai_unimedvl.inferers.chain import Answerd
from monai_unimedvl.inferers.context import Branches, Context, segments_for
from monai_unimedvl.inferers.drawing import ImageInferer, InterleavedInferer
from monai_unimedvl.inferers.engine import Engine, QueueFull, Request, Token
from monai_unimedvl.inferers.groups import GroupInferer
from monai_unimedvl.inferers.inferers import Answer, TextInferer
from monai_unimedvl.inferers.outputs import Colour, Grey, Labels
from monai_unimedvl.inferers.sampling import Sampling, Word, flow_steps, words
from monai_unimedvl.inferers.volume import PlacedAnswer, Tiles, VolumeInferer

__all__ = [
    "Answer",
    "Answerd",
    "Branches",
    "Colour",
    "Context",
    "Engine",
    "Grey",
    "GroupInferer",
    "ImageInferer",
    "InterleavedInferer",
    "Labels",
    "PlacedAnswer",
    "QueueFull",
    "Request",
    "Sampling",
    "TextInferer",
    "Tiles",
    "Token",
    "VolumeInferer",
    "Word",
    "flow_steps",
    "segments_for",
    "words",
]
