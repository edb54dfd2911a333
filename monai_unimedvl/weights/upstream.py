# SPDX-License-Identifier: Apache-2.0
"""BAGEL and UniMedVL folders <-> ours: names of weights, and the config files beside them.

`RULES` and `AUTOENCODER_RULES` are the whole dictionary, read in both directions. Sizes that the files may
get wrong are taken from the weights themselves: the depth of decoder and ViT (vit_config.json counts one
layer more than is used, newer ones do not), the sides of the position tables, q/k norms, the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_unimedvl.weights.headers import Entry, find_weights, read_headers, read_json

CONFIG_FILES = ("llm_config.json", "vit_config.json", "bagel_config.json", "vae_config.json", "config.json")
Shapes = Mapping[str, tuple[int, ...]]

# What stands in braces below: a pattern, or a table ours -> theirs.
PLACES: dict[str, str | dict[str, str]] = {
    "n": r"\d+",
    "j": r"\d+",
    "w": "weight|bias",
    "qkv": "q|k|v",
    "qk": "q|k",
    "glu": "gate|up|down",
    "fc": "fc1|fc2",
    "expert": {".understanding": "", ".generation": "_moe_gen"},
    "norm": {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"},
    "vit_norm": {"norm1": "layer_norm1", "norm2": "layer_norm2"},
    "time": {"fc1": "0", "fc2": "2"},
    "coder": "encoder|decoder",
    "res": {name: name for name in ("norm1", "norm2", "conv1", "conv2")} | {"conv_shortcut": "nin_shortcut"},
    "mid": {"0": "block_1", "1": "block_2"},
    "attn": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    "end": {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"},
}

_LLM, _VIT = "language_model.model", "vit_model.vision_model"
_LAYER, _SELF = f"{_LLM}.layers.{{n}}", f"{_LLM}.layers.{{n}}.self_attn"
RULES = (
    ("decoder.embed.weight", f"{_LLM}.embed_tokens.weight"),
    ("decoder.head.weight", "language_model.lm_head.weight"),
    ("decoder.norm{expert}.weight", f"{_LLM}.norm{{expert}}.weight"),
    ("decoder.layers.{n}.{norm}{expert}.weight", f"{_LAYER}.{{norm}}{{expert}}.weight"),
    ("decoder.layers.{n}.attention.{qkv}{expert}.{w}", f"{_SELF}.{{qkv}}_proj{{expert}}.{{w}}"),
    ("decoder.layers.{n}.attention.out{expert}.{w}", f"{_SELF}.o_proj{{expert}}.{{w}}"),
    ("decoder.layers.{n}.attention.{qk}_norm{expert}.{w}", f"{_SELF}.{{qk}}_norm{{expert}}.{{w}}"),
    ("decoder.layers.{n}.mlp{expert}.{glu}.weight", f"{_LAYER}.mlp{{expert}}.{{glu}}_proj.weight"),
    ("vision.patch.{w}", f"{_VIT}.embeddings.patch_embedding.{{w}}"),
    ("vision.position.weight", f"{_VIT}.embeddings.position_embedding.weight"),
    ("vision.layers.{n}.{vit_norm}.{w}", f"{_VIT}.encoder.layers.{{n}}.{{vit_norm}}.{{w}}"),
    ("vision.layers.{n}.{qkv}.{w}", f"{_VIT}.encoder.layers.{{n}}.self_attn.{{qkv}}_proj.{{w}}"),
    ("vision.layers.{n}.out.{w}", f"{_VIT}.encoder.layers.{{n}}.self_attn.out_proj.{{w}}"),
    ("vision.layers.{n}.{fc}.{w}", f"{_VIT}.encoder.layers.{{n}}.mlp.{{fc}}.{{w}}"),
    ("vision.norm.{w}", f"{_VIT}.post_layernorm.{{w}}"),
    ("connector.{fc}.{w}", "connector.{fc}.{w}"),
    ("view_table", "vit_pos_embed.pos_embed"),
    ("latent_table", "latent_pos_embed.pos_embed"),
    ("time_embed.{time}.{w}", "time_embedder.mlp.{time}.{w}"),
    ("latent_in.{w}", "vae2llm.{w}"),
    ("latent_out.{w}", "llm2vae.{w}"),
)  # fmt: skip
AUTOENCODER_RULES = (  # decoder levels are counted from the other end there: see `_turn`
    ("net.{coder}.{end}.{w}", "{coder}.{end}.{w}"),
    ("net.{coder}.mid_block.resnets.{mid}.{res}.{w}", "{coder}.mid.{mid}.{res}.{w}"),
    ("net.{coder}.mid_block.attentions.0.{attn}.{w}", "{coder}.mid.attn_1.{attn}.{w}"),
    ("net.encoder.down_blocks.{n}.resnets.{j}.{res}.{w}", "encoder.down.{n}.block.{j}.{res}.{w}"),
    ("net.encoder.down_blocks.{n}.downsamplers.0.conv.{w}", "encoder.down.{n}.downsample.conv.{w}"),
    ("net.decoder.up_blocks.{n}.resnets.{j}.{res}.{w}", "decoder.up.{n}.block.{j}.{res}.{w}"),
    ("net.decoder.up_blocks.{n}.upsamplers.0.conv.{w}", "decoder.up.{n}.upsample.conv.{w}"),
)


def to_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a BAGEL / UniMedVL file under our names; unknown names are kept, for the strict report.

    Patch weights may be those of a Conv2d (out, 3, p, p) or linear (out, p*p*3); `vae_model.*` becomes
    `autoencoder.*`.

    Raises:
        ValueError: two names are the same once `module.` and the like are taken away.
    """
    names = {_bare(name): name for name in weights}
    if len(names) < len(weights):
        raise ValueError(
            "Two weights have the same name once `module.` is taken away: keep one copy of each."
        )
    inner = {name.removeprefix("vae_model."): names[name] for name in names if name.startswith("vae_model.")}
    ours = {}
    for name, full in names.items():
        if not name.startswith("vae_model."):
            mine = _rename(name, RULES, forward=False) or name
            ours[mine] = linear_patch(weights[full]) if mine == "vision.patch.weight" else weights[full]
    inside = autoencoder_to_ours({name: weights[full] for name, full in inner.items()})
    return ours | {f"autoencoder.{name}": x for name, x in inside.items()}


def to_upstream(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights without the autoencoder under the reference's names: the content of ema.safetensors.

    Raises:
        ValueError: a name the reference has no place for.
    """
    theirs = {}
    for name, x in weights.items():
        if not name.startswith("autoencoder."):
            theirs[_renamed(name, RULES)] = x
    return theirs


def autoencoder_to_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The content of ae.safetensors under the names of `FluxAutoencoder`; unknown names are kept."""
    bare = {_bare(name).removeprefix("vae_model."): x for name, x in weights.items()}
    levels = _levels(bare, r"(?:decoder\.up|encoder\.down)\.(\d+)\.")
    ours = {}
    for name, x in bare.items():
        mine = _rename(name, AUTOENCODER_RULES, forward=False) or name
        flat = ".attentions." in mine and x.dim() == 4  # a 1x1 convolution there is linear here
        ours[_turn(mine, levels)] = x.flatten(1) if flat else x
    return ours


def autoencoder_to_upstream(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `FluxAutoencoder` under the reference's names: the content of ae.safetensors."""
    levels = _levels(weights, r"net\.(?:decoder\.up_blocks|encoder\.down_blocks)\.(\d+)\.")
    theirs = {}
    for name, x in weights.items():
        wide = ".attentions." in name and x.dim() == 2
        theirs[_renamed(_turn(name, levels), AUTOENCODER_RULES)] = x[:, :, None, None] if wide else x
    return theirs


def read_config(folder: Path) -> dict[str, Any]:
    """Our config of an upstream folder, from its config files and the headers of its weights.

    Raises:
        ValueError: a file is missing or unreadable, or describes another model.
    """
    return config_to_ours(config_files(folder), main_shapes(read_headers(find_weights(folder))))


def config_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The config files that an upstream folder has, by name."""
    return {name: read_json(folder / name) for name in CONFIG_FILES if (folder / name).is_file()}


def main_shapes(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    """Shapes of the main weights under our names."""
    return {name: tuple(x.shape) for name, x in to_ours({k: v.meta() for k, v in entries.items()}).items()}


def config_to_ours(files: Mapping[str, Mapping[str, Any]], shapes: Shapes) -> dict[str, Any]:
    """Our config of an upstream folder.

    Args:
        files: parsed JSON by file name; llm_config.json and vit_config.json are required, vae_config.json and
            bagel_config.json (or config.json) optional: the released values stand in for what they leave out.
        shapes: name -> shape of the main weights, under our names.

    Raises:
        ValueError: a file or field is missing, or asks for what the released model does not have.
    """
    llm, vit = files.get("llm_config.json"), files.get("vit_config.json")
    model = {**files.get("config.json", {}), **files.get("bagel_config.json", {})}
    for name, content in (("llm_config.json", llm), ("vit_config.json", vit)):
        if content is None:
            raise ValueError(f"The folder has no {name}, which holds sizes: copy it from the released model.")
    assert llm is not None and vit is not None
    _expect("llm_config.json", llm, hidden_act="silu", rope_scaling=None, use_sliding_window=False)
    _expect("vit_config.json", vit, hidden_act="gelu_pytorch_tanh", num_channels=3)
    _expect(
        "the model's config", model, connector_act="gelu_pytorch_tanh", interpolate_pos=False, vit_rope=False
    )
    heads = _field("llm_config.json", llm, "num_attention_heads")
    decoder = {
        "vocab_size": _rows(shapes, "decoder.embed.weight") or _field("llm_config.json", llm, "vocab_size"),
        "hidden_size": _field("llm_config.json", llm, "hidden_size"),
        "mlp_dim": _field("llm_config.json", llm, "intermediate_size"),
        "num_layers": _levels(shapes, r"decoder\.layers\.(\d+)\.") or llm.get("num_hidden_layers", 28),
        "num_heads": heads,
        "num_kv_heads": llm.get("num_key_value_heads", heads),
        "rope_theta": float(llm.get("rope_theta", 1e6)),
        "norm_eps": float(llm.get("rms_norm_eps", 1e-6)),
        "tied": False,  # whatever the file says: the reference's loaders override it
        "qk_norm": not shapes or any(".q_norm." in name for name in shapes),
        "max_context": llm.get("max_position_embeddings", 32768),
    }
    return {
        "decoder": decoder,
        "vision": _vision(vit, model, shapes),
        "autoencoder": autoencoder_config(files.get("vae_config.json", {})),
        "latent_patch": model.get("latent_patch_size", 2),
        "latent_side": _side(shapes, "latent_table") or model.get("max_latent_size", 64),
        "table_base": 10000.0,
        "table_scale": 1.0,
        "prediction": "velocity",
        "timestep_shift": float(model.get("timestep_shift", 1.0)),
    }


def autoencoder_config(vae: Mapping[str, Any]) -> dict[str, Any]:
    """Our config of a FLUX autoencoder from vae_config.json; what it leaves out takes the released values."""
    names = {
        "ch": "channels",
        "ch_mult": "multipliers",
        "num_res_blocks": "num_res_blocks",
        "z_channels": "latent_channels",
        "scale_factor": "scale",
        "shift_factor": "shift",
    }
    _expect("vae_config.json", vae, in_channels=3, out_ch=3)
    released = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 16}
    released |= {"scale_factor": 0.3611, "shift_factor": 0.1159}
    sizes = {ours: vae.get(theirs, released[theirs]) for theirs, ours in names.items()}
    return {"kind": "flux", **sizes, "norm_groups": 32}


def config_to_upstream(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The config files of an upstream folder by name, so that the reference and `config_to_ours` read them.

    Raises:
        ValueError: the network has what the reference lacks (other autoencoders, tables, or predictions).
    """
    decoder, vision, vae = config["decoder"], config["vision"], config["autoencoder"]
    plain = {"prediction": "velocity", "table_base": 10000.0, "table_scale": 1.0}
    odd = [f"{key}={config[key]!r}" for key, value in plain.items() if config[key] != value]
    odd += [] if vae["kind"] == "flux" else [f"an autoencoder of kind {vae['kind']!r}"]
    odd += [] if vae.get("norm_groups", 32) == 32 else ["norm_groups other than 32"]
    odd += ["no vision encoder"] if vision is None else []
    odd += ["a tied head"] if decoder["tied"] else []
    if odd:
        raise ValueError(f"The reference has no place for {', '.join(odd)}: save in our own layout instead.")
    llm = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "layer_module": "Qwen2MoTDecoderLayer",
        "vocab_size": decoder["vocab_size"],
        "hidden_size": decoder["hidden_size"],
        "intermediate_size": decoder["mlp_dim"],
        "num_hidden_layers": decoder["num_layers"],
        "num_attention_heads": decoder["num_heads"],
        "num_key_value_heads": decoder["num_kv_heads"],
        "max_position_embeddings": decoder["max_context"],
        "rope_theta": decoder["rope_theta"],
        "rms_norm_eps": decoder["norm_eps"],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "qk_norm": decoder["qk_norm"],
    }
    vit = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["mlp_dim"],
        "num_hidden_layers": vision["num_layers"] + 1,  # the reference builds one less than the file says
        "num_attention_heads": vision["num_heads"],
        "patch_size": vision["patch_size"],
        "image_size": vision["patch_size"] * vision["grid_side"],
        "layer_norm_eps": vision["norm_eps"],
    }
    model = {
        "latent_patch_size": config["latent_patch"],
        "max_latent_size": config["latent_side"],
        "vit_max_num_patch_per_side": vision["grid_side"],
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "timestep_shift": config["timestep_shift"],
    }
    sizes = {
        "in_channels": 3,
        "out_ch": 3,
        "downsample": 2 ** (len(vae["multipliers"]) - 1),
        "ch": vae["channels"],
        "ch_mult": vae["multipliers"],
        "num_res_blocks": vae["num_res_blocks"],
        "z_channels": vae["latent_channels"],
        "scale_factor": vae["scale"],
        "shift_factor": vae["shift"],
    }
    return dict(zip(CONFIG_FILES, (llm, vit, model, sizes), strict=False))


def _vision(vit: Mapping[str, Any], model: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Sizes of the ViT; its depth from the weights, else one less than the file says."""
    return {
        "hidden_size": _field("vit_config.json", vit, "hidden_size"),
        "mlp_dim": _field("vit_config.json", vit, "intermediate_size"),
        "num_layers": _levels(shapes, r"vision\.layers\.(\d+)\.") or vit.get("num_hidden_layers", 27) - 1,
        "num_heads": _field("vit_config.json", vit, "num_attention_heads"),
        "patch_size": vit.get("patch_size", 14),
        "grid_side": _side(shapes, "vision.position.weight") or model.get("vit_max_num_patch_per_side", 70),
        "norm_eps": float(vit.get("layer_norm_eps", 1e-6)),
    }


def _field(file: str, content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise ValueError(f"{file} has no field {name!r}: take the file of the released model.")
    return content[name]


def _expect(file: str, content: Mapping[str, Any], **wanted: Any) -> None:
    """Fields that may be left out, but not differ: other values are another model."""
    for name, value in wanted.items():
        if content.get(name, value) != value:
            raise ValueError(
                f"{file} has {name}={content[name]!r}, only {value!r} is supported: use another model."
            )


def _rows(shapes: Shapes, name: str) -> int:
    return shapes[name][0] if shapes.get(name) else 0


def _side(shapes: Shapes, name: str) -> int:
    return isqrt(_rows(shapes, name))


def _levels(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that `pattern` finds, 0 if it finds none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _bare(name: str) -> str:
    """The name without what wrappers put in: `module.` anywhere, `bagel.` in front."""
    return re.sub(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.", "", name).removeprefix("bagel.")


def _turn(name: str, levels: int) -> str:
    """Decoder level i counted from the other end: up.0 is the full resolution there, the last one here."""
    return re.sub(r"(?<=up_blocks\.)\d+", lambda match: str(levels - 1 - int(match[0])), name)


def linear_patch(weight: Tensor) -> Tensor:
    """(out, 3, p, p) or (out, p, p, 3) or (out, p*p*3) -> (out, p*p*3) in the order row, column, channel"""
    if weight.dim() == 4 and weight.shape[1] == 3:
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    theirs = _rename(name, rules, forward=True)
    if theirs is None:
        raise ValueError(
            f"The reference has no name for {name}: merge or remove it, or save in our own layout."
        )
    return theirs


def _rename(name: str, rules: Iterable[tuple[str, str]], *, forward: bool) -> str | None:
    """The name on the other side, or None; forward is ours -> theirs."""
    for ours, theirs in rules:
        source, target = (ours, theirs) if forward else (theirs, ours)
        match = re.fullmatch(_pattern(source, forward), name)
        if match:
            return target.format(
                **{key: _word(key, word, forward) for key, word in match.groupdict().items()}
            )
    return None


@lru_cache
def _pattern(template: str, forward: bool) -> str:
    """The regular expression of one side of a rule."""

    def words(key: str) -> str:
        place = PLACES[key]
        if isinstance(place, str):
            return place
        return "|".join(re.escape(word) for word in (place if forward else place.values()))

    parts = re.split(r"\{(\w+)\}", template)  # text, place, text, place, ..., text
    return "".join(f"(?P<{part}>{words(part)})" if i % 2 else re.escape(part) for i, part in enumerate(parts))


def _word(key: str, word: str, forward: bool) -> str:
    place = PLACES[key]
    if isinstance(place, str):
        return word
    return place[word] if forward else {theirs: ours for ours, theirs in place.items()}[word]
