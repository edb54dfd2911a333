# SPDX-License-Identifier: Apache-2.0
"""LoRA and QLoRA through `peft`: small trainable matrices beside frozen weights, for one expert or both.

    quantise(network, "int8")                               # QLoRA only; leave out for plain LoRA
    add_adapters(network, "generation", rank=4)             # everything else is frozen
    ... train as ever ...
    save_adapters(network, "mri_adapter")                   # 200 kB beside 7.8 MB
    network = merge_adapters(load_adapters(base, "mri_adapter"))

The folder is one of peft's (adapter_config.json, adapter_model.safetensors), so its own tools read it too.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from monai_unimedvl.atomic import into_folder
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.packages import needed

_EXPERT = r"decoder\.layers\.\d+\.(attention\.(q|k|v|out)\.{0}|mlp\.{0}\.(gate|up|down))"
TARGETS = {  # patterns over names of linear layers
    "understanding": _EXPERT.format("understanding"),
    "generation": _EXPERT.format("generation"),
    "both": _EXPERT.format("(understanding|generation)"),
    "connector": r"connector\.fc[12]",
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of names in peft's files
QUANTISED = ("int8", "nf4")


def add_adapters(
    network: UniMedVL,
    target: str = "both",
    *,
    rank: int = 4,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> UniMedVL:
    """The same network with adapters at zero, so that it says what it said; only they can be trained now.

    Args:
        target: "understanding", "generation", "both" or "connector".
        rank: of the added matrices; the default makes 1.3 % of the nano's parameters an expert.
        alpha: the adapters' output is multiplied by alpha / rank; None takes 2 * rank.
        dropout: of the adapters' input, in training.

    Raises:
        ValueError: unknown target, rank below 1, adapters there already, or no layer of that name.
    """
    if target not in TARGETS:
        raise ValueError(
            f"add_adapters got target={target!r}, expected one of {', '.join(TARGETS)}: use one."
        )
    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"add_adapters got rank={rank} and dropout={dropout}, expected a rank from 1 and a dropout in "
            "[0, 1): mend them."
        )
    if target == "connector" and network.connector is None:
        raise ValueError("The network has no vision, expected a connector to adapt: name an expert instead.")
    peft = _peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout,
        target_modules=TARGETS[target], bias="none",
    )  # fmt: skip
    return _inject(peft, network, config)


def take_adapters(network: UniMedVL, folder: str | Path) -> UniMedVL:
    """The same network, whose adapters now hold the numbers of a folder that was saved from the like."""
    state = load_file(Path(folder) / WEIGHTS)
    state = {name.removeprefix(PREFIX): x for name, x in state.items()}
    _peft().set_peft_model_state_dict(network, state, adapter_name="default")
    return network


def adapted(network: nn.Module) -> bool:
    """Whether the network has adapters that are not merged yet."""
    return any(True for _ in _adapted_layers(network))


def adapters_of(network: UniMedVL) -> str:
    """In words which adapters a network has, such as "both, rank 4"; "none" without."""
    if not adapted(network):
        return "none"
    config = network.peft_config["default"]
    return _in_words(config.target_modules, config.r)


def adapters_in(folder: str | Path) -> str:
    """The same of a folder that `save_adapters` wrote; "none" where there is no such folder."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        return "none"
    config = json.loads(path.read_text("utf8"))
    return _in_words(config["target_modules"], config["r"])


def save_adapters(
    network: UniMedVL, folder: str | Path, *, dtype: torch.dtype | None = torch.bfloat16
) -> Path:
    """Write the adapters alone; whole or not at all. Returns the folder.

    Args:
        dtype: of the numbers in the file; None keeps that of training, to the bit.

    Raises:
        ValueError: the network has none, or the folder is a file.
    """
    peft, folder = _peft(), Path(folder)
    if not adapted(network):
        raise ValueError("The network has no adapters to save: call add_adapters first.")
    config = network.peft_config["default"]
    state = peft.get_peft_model_state_dict(network, adapter_name="default")
    content = {PREFIX + name: x.detach().to("cpu", dtype).contiguous() for name, x in state.items()}
    try:
        config.inference_mode = True
        with into_folder(folder, last=(CONFIG,)) as aside:
            config.save_pretrained(aside)
            save_file(content, aside / WEIGHTS, metadata={"format": "pt", "base": network.adapter_base})
            (aside / WEIGHTS).chmod(0o644)
    finally:
        config.inference_mode = False
    return folder


def load_adapters(network: UniMedVL, folder: str | Path, *, other_base: bool = False) -> UniMedVL:
    """The same network with the adapters of a folder, ready to answer, to train on or to be merged.

    Args:
        other_base: take them although they were trained on other weights.

    Raises:
        ValueError: no adapter there, or one for other sizes, another target or other weights.
    """
    peft, folder = _peft(), Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, expected a folder that save_adapters wrote: check it.")
    try:
        settings = json.loads((folder / CONFIG).read_text("utf8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            state = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            base = (file.metadata() or {}).get("base", "")
        config = peft.LoraConfig.from_pretrained(str(folder))
    except (json.JSONDecodeError, SafetensorError, TypeError) as error:
        raise ValueError(f"{folder} holds a damaged adapter ({error}): copy it again.") from error
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{folder} holds a {settings.get('peft_type')} adapter, expected LORA: save one.")
    config.inference_mode = False
    ours = fingerprint(network)
    if base and ours and base != ours and not other_base:
        raise ValueError(
            f"{folder.name} was trained on other weights (it says {base[:12]}, these are {ours[:12]}): load "
            "the base it belongs to, or pass other_base=True."
        )
    wanted = {name: tuple(x.shape) for name, x in _expected(network, config).items()}
    found = {name: tuple(x.shape) for name, x in state.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(
            f"{folder.name} does not fit the network: {len(wrong)} of {len(wanted)} tensors differ, first "
            f"{wrong[0]} ({found.get(wrong[0])} came, {wanted.get(wrong[0])} expected): load the right base."
        )
    _inject(peft, network, config)
    peft.set_peft_model_state_dict(network, state, adapter_name="default")
    return network


def merge_adapters(network: UniMedVL) -> UniMedVL:
    """The same network as a plain one: weights are base + adapter, and nothing of the adapters is left.

    Quantised weights come back whole, in the dtype of their adapter.

    Raises:
        ValueError: it has no adapters.
    """
    found = list(_adapted_layers(network))
    if not found:
        raise ValueError("The network has no adapters to merge: call add_adapters or load_adapters first.")
    for name, layer in found:
        _put(network, name, _plain(layer.get_base_layer(), layer.get_delta_weight("default"), layer.training))
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and _quantised(layer.weight):
            _put(network, name, _plain(layer, None, layer.training))
    del network.peft_config, network.adapter_base
    return network


def quantise(network: UniMedVL, kind: str = "int8") -> UniMedVL:
    """The same network with the experts' frozen matrices at 8 or 4 bits: the Q of QLoRA, before adapters.

    Args:
        kind: "int8" by torchao, on any device; "nf4" by bitsandbytes, on CUDA.

    Raises:
        ValueError: unknown kind, its package or device is missing, or adapters are there already.
    """
    if kind not in QUANTISED:
        raise ValueError(f"quantise got kind={kind!r}, expected one of {', '.join(QUANTISED)}: use one.")
    if adapted(network):
        raise ValueError("The network has adapters already: quantise first, then add_adapters.")
    device = network.decoder.embed.weight.device
    network.adapter_base = fingerprint(network)
    layers = [
        (name, layer) for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("decoder.layers.")
    ]  # fmt: skip
    if kind == "int8":
        torchao = needed("torchao.quantization", "int8", "quant")
        chosen = {layer for _, layer in layers}
        torchao.quantize_(
            network, torchao.Int8WeightOnlyConfig(), filter_fn=lambda layer, name: layer in chosen
        )
        return network
    bitsandbytes, there = optional_import("bitsandbytes")
    if not there or device.type != "cuda":
        came = f"a network on {device.type}" if there else "no bitsandbytes"
        raise ValueError(
            f"nf4 needs bitsandbytes and a CUDA device, found {came}: pip install bitsandbytes on a machine "
            "with one, or use kind='int8'."
        )
    for name, layer in layers:
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=torch.bfloat16,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        small.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        _put(network, name, small.to(device))
    return network


@torch.no_grad()
def fingerprint(network: UniMedVL) -> str:
    """sha256 over 64 numbers of every matrix of the decoder, rounded to bf16; "" where they are quantised.

    The same weights saved in float32 and in bf16 have the same one.
    """
    kept = getattr(network, "adapter_base", None)
    if kept is not None:
        return str(kept)
    digest = hashlib.sha256()
    for name, layer in network.decoder.named_modules():
        if isinstance(layer, nn.Linear):
            flat = layer.weight.detach().flatten()
            few = flat[:: max(1, len(flat) // 64)][:64]
            digest.update(f"{name} {tuple(layer.weight.shape)}".encode())
            digest.update(few.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()


def _inject(peft: Any, network: UniMedVL, config: Any) -> UniMedVL:
    if adapted(network):
        raise ValueError("The network has adapters already: merge them first.")
    base = fingerprint(network)
    network.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")  # we merge ourselves
        peft.inject_adapter_in_model(config, network)
    network.peft_config = {"default": config}
    network.adapter_base = base
    return network


def _in_words(pattern: Any, rank: int) -> str:
    name = next((name for name, known in TARGETS.items() if known == pattern), str(pattern))
    return f"{name}, rank {rank}"


def _adapted_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in list(network.named_modules()):
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            yield name, layer


def _expected(network: UniMedVL, config: Any) -> dict[str, Tensor]:
    """Names and shapes of an adapter for this network."""
    tensors = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "in_features") and re.fullmatch(str(config.target_modules), name):
            tensors[f"{name}.lora_A.weight"] = torch.empty(config.r, layer.in_features, device="meta")
            tensors[f"{name}.lora_B.weight"] = torch.empty(layer.out_features, config.r, device="meta")
    return tensors


@torch.no_grad()
def _plain(layer: Any, delta: Tensor | None, training: bool) -> nn.Linear:
    """A linear layer with the weight of another one, quantised or not, plus `delta`."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        bitsandbytes, _ = optional_import("bitsandbytes")
        weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    elif _quantised(weight):
        weight = weight.dequantize()
    if delta is not None:
        weight = (weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta).to(weight.dtype)
    made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made.train(training)


def _quantised(weight: Tensor) -> bool:
    return hasattr(weight, "quant_state") or type(weight).__name__ not in ("Parameter", "Tensor")


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


def _peft() -> Any:
    return needed("peft", "An adapter", "train")
