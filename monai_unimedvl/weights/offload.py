# SPDX-License-Identifier: Apache-2.0
"""Weights that do not fit on the accelerator: on the CPU or in their files, and brought when needed.

By accelerate's hooks. Weights on "disk" are read from the checkpoint itself, nothing is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.packages import needed
from monai_unimedvl.weights.source import Source

WHOLE = ["Layer", "VisionLayer"]  # modules whose weights stay together
ASIDE = ("cpu", "disk")


class Offload:
    """Where each weight goes.

    Args:
        network: without memory.
        device_map: "auto", or names of modules -> device, "cpu" or "disk"; "" is everything else.
        dtype: of the weights, to count them.

    Raises:
        ValueError: accelerate is not installed; a map with two accelerators, or that leaves weights out.
    """

    def __init__(
        self, network: UniMedVL, device_map: str | Mapping[str, Any], dtype: torch.dtype | None
    ) -> None:
        self.accelerate = needed("accelerate", "device_map", "train")
        if device_map == "auto":
            device_map = self.accelerate.infer_auto_device_map(
                network, no_split_module_classes=WHOLE, dtype=dtype
            )
        if isinstance(device_map, str):
            raise ValueError(f"device_map={device_map!r} is not known, expected 'auto' or a mapping.")
        self.network, self.map = network, _plain(network, device_map)
        fast = sorted({str(where) for where in self.map.values()} - set(ASIDE))
        if len(fast) > 1:
            raise ValueError(
                f"device_map names {', '.join(fast)}, expected at most one accelerator beside cpu and disk: "
                "the cache lies on one device."
            )
        self.main = fast[0] if fast else "cpu"
        if self.main.isdigit():
            self.main = f"cuda:{self.main}"
        if str(self.device("decoder.embed.weight")) != self.main:
            self.map["decoder.embed"] = self.main  # its device is where everything begins

    def device(self, name: str) -> str:
        """Where a weight is put: a device, or "disk"."""
        module = name
        while module and module not in self.map:
            module, _, _ = module.rpartition(".")
        where = str(self.map.get(module, self.main))  # the network's own tables lie with its beginning
        return f"cuda:{where}" if where.isdigit() else where

    def dispatch(self, source: Source) -> UniMedVL:
        """The filled network with hooks that bring what is aside."""
        index = {}
        for name in self.network.state_dict():
            if self.device(name) != "disk":
                continue
            place = source.places.get(name)
            if place is None or place.shape != place.entry.shape:
                raise ValueError(
                    f"{name} cannot stay on disk, as it is not kept there as it is used: map it to 'cpu'."
                )
            index[name] = {
                "safetensors_file": str(place.entry.file),
                "weight_name": place.name,
                "dtype": str(place.entry.dtype).removeprefix("torch."),
            }
        options = {"offload_index": index, "offload_buffers": True} if index else {}
        tables = {name: self.main for name, _ in self.network.named_buffers(recurse=False)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*do not match any submodules")  # it wants them, too
            return self.accelerate.dispatch_model(
                self.network, {**self.map, **tables}, main_device=self.main, force_hooks=True, **options
            )


def _plain(network: UniMedVL, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """The map without "": every module that holds weights of its own is under one of its names.

    Raises:
        ValueError: a name that is no module or weight, or weights that are under none.
    """
    known = {name for name, _ in network.named_modules()} | set(network.state_dict())
    odd = [name for name in device_map if name not in known]
    if odd:
        raise ValueError(
            f"device_map names {odd[0]!r}, which is no module of the network: use names as "
            "'decoder.layers.0'."
        )
    found = {name: where for name, where in device_map.items() if name}
    for weight in network.state_dict():
        above = weight.split(".")
        if any(".".join(above[:n]) in found for n in range(1, len(above) + 1)):
            continue
        if "" not in device_map:
            raise ValueError(
                f"device_map says nothing about {weight}: add its module, or '' for everything else."
            )
        found[weight.rpartition(".")[0]] = device_map[""]
    found.pop("", None)
    return found
