# SPDX-License-Identifier: Apache-2.0
"""The tissue map in 3-D: each held-out slab as one volume through `VolumeInferer`, beside its slices.

The slices of a slab are stacked as they were shown, go through the whole path of volumes (cut, drawn, put
back, read off), and the labels are scored over all voxels of the slab at once.
  Z slices   H, W pixels
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.data.atlas import INSTRUCTIONS, LEGENDS
from monai_unimedvl.evaluation.baselines import Item, shown
from monai_unimedvl.evaluation.image import dice, labels_from_colours
from monai_unimedvl.evaluation.intervals import interval
from monai_unimedvl.evaluation.tables import ALL, Row
from monai_unimedvl.inferers import ImageInferer, Labels, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

TASK = "seg-tissue"
GROUP = f"{ALL}, as volumes"
FEWEST = 4  # slices of a volume
# of (row, column, slice), as axial slices are shown: towards the back, the left, the top; 3 mm pixels
AFFINE = np.array([[0.0, -3, 0, 0], [-3, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
PLACE = re.compile(r"[^/]+/([^/]+/[^/]+)/([+-]\d+)")  # task/source/plane/mm


def slabs(items: Sequence[Item]) -> list[list[Item]]:
    """Runs of neighbouring slices of one source and plane, `FEWEST` of them or more, in their order."""
    at: dict[str, dict[int, Item]] = defaultdict(dict)
    for item in items:
        if said := PLACE.fullmatch(item["id"]):
            at[said[1]][int(said[2])] = item
    found = []
    for slices in at.values():
        places = sorted(slices)
        gap = min((b - a for a, b in zip(places, places[1:], strict=False)), default=0)
        runs: list[list[int]] = []
        for place in places:
            if not runs or place - runs[-1][-1] != gap:
                runs.append([])
            runs[-1].append(place)
        found += [[slices[n] for n in run] for run in runs if len(run) >= FEWEST]
    return found


def stacked(slices: Sequence[Item]) -> MetaTensor:
    """The pictures of a slab as a volume (1, H, W, Z) in [0, 1]."""
    values = torch.stack([shown(item).mean(0) for item in slices], dim=-1)  # (H, W, Z)
    return MetaTensor(values.unsqueeze(0), affine=torch.from_numpy(AFFINE.copy()))


def volume_dice(labels: Tensor, slices: Sequence[Item]) -> float:
    """Mean Dice over the labels, each over all voxels of a slab: labels (Z, H, W)"""
    legend = LEGENDS[TASK]
    truth = labels_from_colours(torch.stack([item["truth"] for item in slices]), legend)
    width = truth.shape[-1]
    return float(dice(labels.reshape(1, -1, width), truth.reshape(1, -1, width), len(legend)).nanmean())


def measure(
    network: UniMedVL, tokenizer: Tokenizer, items: Sequence[Item], alone: Mapping[str, float], *,
    section: str, setting: str, steps: int, beside: Mapping[str, Tensor], seed: int = 0,
) -> list[Row]:  # fmt: skip
    """One row, a slab an item, or none where no slab is whole.

    Args:
        items: of the tissue task and one section. alone: id -> Dice of the slice drawn by itself.
        beside: name -> the items as drawn without a model (N, 3, H, W); these are scored as volumes too.
    """
    found = slabs(items)
    if not found:
        return []
    legend = LEGENDS[TASK]
    draw = VolumeInferer(
        ImageInferer(tokenizer, steps=steps, seed=seed), None, INSTRUCTIONS[TASK],
        output=Labels(legend, threshold=None), batch=64,
    )  # fmt: skip
    place = {item["id"]: n for n, item in enumerate(items)}
    scores: list[float] = []
    guesses: dict[str, list[float]] = defaultdict(list)
    for slices in found:
        made: Any = draw(stacked(slices), network)  # (1, H, W, Z)
        scores.append(volume_dice(made[0].as_subclass(Tensor).movedim(-1, 0), slices))
        guesses["its slices"].append(float(np.nanmean([alone[item["id"]] for item in slices])))
        for name, images in beside.items():
            maps = labels_from_colours(images[[place[item["id"]] for item in slices]], legend)
            guesses[name].append(volume_dice(maps, slices))
    low, high = interval(scores, seed=seed)
    means = {name: float(np.mean(values)) for name, values in guesses.items()}
    return [Row(TASK, section, GROUP, setting, "Dice", len(scores), float(np.mean(scores)), low, high, means)]
