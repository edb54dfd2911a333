# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of monai-generative 0.2.3 in the classes of MONAI core, with equal outputs.

The one thing to know: the old attention blocks held a last layer, `proj_attn`, and never used it. Core's
`load_old_state_dict` copies it into a layer that is used, and the outputs change; here attention is built
without that layer (`include_fc=False`) and the idle weights are left behind. Cross-attention used its own.
Nothing of the old package is imported.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from monai.networks.layers import Conv
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.controlnet import ControlNet
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_unimedvl.weights.checkpoint import read_torch_file
from monai_unimedvl.weights.headers import read_header

Kind = Literal["AutoencoderKL", "DiffusionModelUNet", "ControlNet"]

CLASSES: dict[str, type[nn.Module]] = {
    "AutoencoderKL": AutoencoderKL,
    "DiffusionModelUNet": DiffusionModelUNet,
    "ControlNet": ControlNet,
}
# The weight that each kind has and the others lack: whatever stands before its name is the prefix.
ANCHORS = {
    "AutoencoderKL": "quant_conv_mu.conv.weight",
    "DiffusionModelUNet": "out.2.conv.weight",
    "ControlNet": "controlnet_mid_block.conv.weight",
}
ARGUMENTS = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}  # old -> core
OURS = ("include_fc", "use_combined_linear")  # arguments of core that the old layout decides
RULES = (
    (r"(?<!\.attn1)(?<!\.attn2)\.(to_[qkv])\.", r".attn.\1."),  # attention became a block of its own
    (r"\.to_out\.0\.", ".out_proj."),
    (r"\.upsampler\.conv\.conv\.", ".upsampler.postconv.conv."),
    (r"^(decoder\.blocks\.\d+)\.conv\.conv\.", r"\1.postconv.conv."),
)
IDLE = ".proj_attn."  # held and saved, never used
CORE_ONLY = re.compile(r"\.postconv\.|\.deconv\.|\.out_proj\.|(?<!\.attn1)(?<!\.attn2)\.attn\.to_[qkv]\.")
WRAPS = ("state_dict", "model", "network", "net")  # under which a training loop saves the weights


def from_generative(path: str | Path, kind: Kind, *, prefix: str | None = None, **config: Any) -> nn.Module:
    """A network of MONAI core, in float32 and eval mode, that computes what the old one did.

    Args:
        path: the state_dict as torch.save or safetensors wrote it; also one level down, as training loops
            save it (`state_dict`, `model`, `network`, `net`). Nothing in the file is run.
        kind: the class.
        prefix: what stands before the names, such as "module."; found by itself where there is only one.
        config: what the old class was built with; the old names of arguments and core's are both known.

    Raises:
        ValueError: the file, the kind or an argument does not fit; which, and what to do.
    """
    if kind not in CLASSES:
        raise ValueError(f"kind={kind!r} is not known: give one of {', '.join(get_args(Kind))}.")
    name = Path(path).name
    network = CLASSES[kind](**core_config(kind, **config))
    transposed = bool(config.get("use_convtranspose"))
    if transposed:
        _widen_transposed(network, config["spatial_dims"])
    weights = _strip(_tensors(Path(path)), kind, prefix, name)
    _fit(network, {_renamed(key, transposed): x for key, x in weights.items() if IDLE not in key}, name)
    return network.eval()


def core_config(kind: Kind, **config: Any) -> dict[str, Any]:
    """The arguments under which core's class computes what the old one did.

    Raises:
        ValueError: an argument is missing, unknown, of another class, or a reference yet to be resolved.
    """
    config = dict(config)
    target = str(config.pop("_target_", kind)).split(".")[-1]
    if target != kind:
        raise ValueError(f"_target_ names {target}, but kind={kind!r}: give kind={target!r}.")
    for key, value in config.items():
        if isinstance(value, str):
            raise ValueError(
                f"{key}={value!r} is text, expected a value: resolve references first, with "
                "ConfigParser(config).get_parsed_content('network_def', instantiate=False).get_config()."
            )
        if key in OURS:
            raise ValueError(f"{key} is decided by the old layout: leave it out.")
    known = inspect.signature(CLASSES[kind]).parameters
    arguments = {ARGUMENTS.get(key, key): value for key, value in config.items()}
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(f"{kind} has no argument {unknown[0]!r}: it has {', '.join(known)}.")
    missing = [key for key, entry in known.items() if entry.default is entry.empty and key not in arguments]
    if missing:
        raise ValueError(f"{kind} needs {', '.join(missing)}: give the arguments it was trained with.")
    # With conditioning every attention is a transformer block, whose last layer was used.
    return {**arguments, "include_fc": bool(arguments.get("with_conditioning", False))}


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file by name, the wrapping of a training loop taken off."""
    if path.suffix == ".safetensors" and path.is_file():
        read_header(path)  # damaged files are told apart there
        return load_file(path)
    content = read_torch_file(path)
    for key in WRAPS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    held = content if isinstance(content, Mapping) else {}
    tensors = {str(key): x for key, x in held.items() if isinstance(x, Tensor)}
    if not tensors:
        came = ", ".join(map(str, list(held)[:4])) or type(content).__name__
        raise ValueError(
            f"{path.name} holds {came}, expected tensors by name, or such under {', '.join(WRAPS)}: "
            "save the old network's state_dict()."
        )
    return tensors


def _strip(weights: Mapping[str, Tensor], kind: str, prefix: str | None, name: str) -> dict[str, Tensor]:
    """The weights of the network, without what stands before their names."""
    if prefix is None:
        found = _prefixes(weights, kind)
        if len(found) > 1:
            raise ValueError(f"{name} holds {len(found)} networks of {kind}: give prefix, one of {found}.")
        if not found:
            other = [there for there in CLASSES if _prefixes(weights, there)]
            does = f"it looks like kind={other[0]!r}" if other else "take another file"
            raise ValueError(
                f"{name} has no weight {ANCHORS[kind]!r}, as every {kind} has, but {min(weights)!r} and "
                f"others: {does}."
            )
        prefix = found[0]
    taken = {key.removeprefix(prefix): x for key, x in weights.items() if key.startswith(prefix)}
    if not taken:
        raise ValueError(f"{name} has no weight that begins with {prefix!r}: its first is {min(weights)!r}.")
    core = next(filter(CORE_ONLY.search, taken), None)
    if core:
        raise ValueError(
            f"{name} holds {core!r}, a name of MONAI core: build monai.networks.nets.{kind} and call its "
            "load_state_dict."
        )
    return taken


def _prefixes(weights: Mapping[str, Tensor], kind: str) -> list[str]:
    """What stands before the anchor of a kind, wherever it is in the file."""
    anchor = ANCHORS[kind]
    starts = {key.removesuffix(anchor) for key in weights if key.endswith(anchor)}
    return sorted(start for start in starts if not start or start.endswith("."))


def _renamed(key: str, transposed: bool) -> str:
    """Core's name of an old weight."""
    for pattern, text in RULES:
        key = re.sub(pattern, text, key)
    return key.replace(".postconv.conv.", ".deconv.") if transposed else key


def _widen_transposed(network: nn.Module, spatial_dims: int) -> None:
    """Give the transposed convolutions the old kernel of 3; core's have 2."""
    for block in network.decoder.blocks:
        if hasattr(block, "deconv"):
            size = block.deconv.in_channels
            block.deconv = Conv["convtrans", spatial_dims](size, size, 3, 2, 1, output_padding=1)


def _fit(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load the weights, all of them and nothing else."""
    wanted = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    advice = "give the arguments that the network was trained with"
    for key in wanted:
        if key not in weights:
            raise ValueError(f"{name} lacks {key!r} of shape {wanted[key]}, as core names it: {advice}.")
        if tuple(weights[key].shape) != wanted[key]:
            raise ValueError(
                f"{name} has {key!r} of shape {tuple(weights[key].shape)}, the arguments ask for "
                f"{wanted[key]}: {advice}."
            )
    extra = sorted(set(weights) - set(wanted))
    if extra:
        raise ValueError(
            f"{name} has {extra[0]!r}, one of {len(extra)} weights beyond the arguments: {advice}."
        )
    network.load_state_dict(weights)
