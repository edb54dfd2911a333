# SPDX-License-Identifier: Apache-2.0
"""What makes a network fit into memory without changing what it computes: recompute layers, shard them.

Names of modules and parameters stay as they are, so checkpoints of either kind fit each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from monai_unimedvl.networks.unimedvl import UniMedVL


def layers(network: UniMedVL) -> Iterator[nn.Module]:
    """The transformer layers of the decoder and of the vision encoder."""
    yield from network.decoder.layers
    if network.vision is not None:
        yield from network.vision.layers


def recompute_layers(network: UniMedVL) -> None:
    """Keep only what goes into a layer, and run it again in the backward pass: activation checkpointing."""
    for layer in layers(network):
        if not isinstance(layer.forward, _Recomputed):
            layer.forward = _Recomputed(layer.forward)  # type: ignore[method-assign]


class _Recomputed:
    """A forward that is run again in the backward pass; without gradients, the forward itself."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False)


def shard_layers(network: UniMedVL, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Cut the parameters over the ranks of a mesh (FSDP2), layer by layer, the rest together.

    Args:
        dtype: that parameters are gathered and computed in, gradients added in float32; None keeps theirs.
    """
    if is_sharded(network):
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    for layer in layers(network):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    whole = set(network.autoencoder.parameters())  # it encodes before the forward begins, and never learns
    fully_shard(network, mesh=mesh, mp_policy=policy, ignored_params=whole)


def is_sharded(network: nn.Module) -> bool:
    """Whether no rank has the parameters as a whole."""
    return any(hasattr(p, "full_tensor") for p in network.parameters())
