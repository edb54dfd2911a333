# SPDX-License-Identifier: Apache-2.0
"""Layers compiled for training: what lies before and after attention becomes two fused functions.

Attention itself stays as it is, so a pack may hold any samples: lengths are symbols of the compiled code.
Opt in with `compile_layers(network)`. Without gradients (validation, inference) the plain code runs, and a
copy of the network (EMA) is compiled like its original.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

RECOMPILES = 64  # torch gives up after 8; a pack with or without drawings, autocast or not: each is a case


def compile_layers(network: nn.Module) -> nn.Module:
    """The same network; its layers run compiled whenever gradients are recorded.

    The first steps take a minute or two longer: each kind of pack is compiled when it first comes.

    Raises:
        ValueError: no layer can be compiled, or this machine has no C++ compiler for its CPU.
    """
    layers = [layer for layer in network.modules() if hasattr(layer, "compiled")]
    if not layers:
        raise ValueError(
            f"compile_layers found no layer in {type(network).__name__}, expected a UniMedVL: pass one."
        )
    check_compiler(network)
    for layer in layers:
        layer.compiled = True  # type: ignore[assignment]
    return network


def check_compiler(network: nn.Module) -> None:
    """Raise ValueError where weights lie on the CPU and nothing here compiles C++ for it."""
    on_cpu = any(p.device.type == "cpu" for p in network.parameters())
    compilers = filter(None, [os.environ.get("CXX"), "g++", "clang++", "cl"])
    if on_cpu and not any(map(shutil.which, compilers)):
        raise ValueError(
            "Compiling found no C++ compiler, expected g++ or clang++: install one, or go without."
        )


def chosen(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """`function`, compiled where that is asked for and gradients are recorded."""
    return fused(function) if compiled and torch.is_grad_enabled() else function


@lru_cache(maxsize=32)
def fused(function: Callable[..., Any], dynamic: bool | None = True) -> Callable[..., Any]:
    """Compiled once for all layers: weights are inputs of the compiled code.

    Args:
        dynamic: True makes one code for all sizes, False one for each; None one for the first and one for
            all that come after, in which only what has changed (the tokens) is open and loops over heads
            keep their numbers, which is much faster.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILES)
    return torch.compile(function, dynamic=dynamic)
