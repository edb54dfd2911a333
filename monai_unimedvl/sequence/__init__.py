# SPDX-License-Identifier: Apache-2.0
"""One packed sequence of segments: everything that the model reads or writes.

A sample is a list of segments; `pack` lays the samples side by side and says, in five numbers a token
(`Layout`), who is who. `visible` is the one rule of attention.
"""

from monai_unimedvl.sequence.layout import CAUSAL, Block, Layout, Part, Plan, Routes, visible
from monai_unimedvl.sequence.packing import PackedSequence, pack, step
from monai_unimedvl.sequence.segments import (
    Canvas,
    Marks,
    Prompt,
    Samples,
    Segment,
    Text,
    Turn,
    View,
    count_tokens,
)

__all__ = [
    "CAUSAL", "Block", "Canvas", "Layout", "Marks", "PackedSequence", "Part", "Plan", "Prompt", "Routes",
    "Samples", "Segment", "Text", "Turn", "View", "count_tokens", "pack", "step", "visible",
]  # fmt: skip
