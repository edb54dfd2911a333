# SPDX-License-Identifier: Apache-2.0
"""Greedy words, one after the other: ours against transformers' Qwen2ForCausalLM.generate of the same shape.

Both have the same random weights, read the same 128 words, and must say the same. A unit is one word, from
one to the next: prefill and start-up are left out on both sides. UniMedVL itself has two more norms a layer,
on queries and keys, which Qwen2 lacks: a side shows what they cost. Weights in 8 and 4 bits are held against
transformers in bfloat16. The linear layers alone are the floor of any decoder on these products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from _timing import HEAD, Side, Watch, arguments, load_average, report, rows, take_turns
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM
from transformers.generation.streamers import BaseStreamer

from monai_unimedvl.inferers import Context, Sampling, words
from monai_unimedvl.networks.compiling import fused
from monai_unimedvl.networks.decoding import NextWord, compile_words, one_row
from monai_unimedvl.networks.quantised import quantised
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Marks, Text
from monai_unimedvl.weights.upstream import to_upstream

READ = 128  # words
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {  # sizes, words (the first is not timed), rounds
    "nano: hidden 160, 4 layers": (
        {"vocab_size": 640, "hidden_size": 160, "mlp_dim": 480, "num_layers": 4, "num_heads": 5,
         "num_kv_heads": 5, "rope_theta": 1e4},
        17, 8,
    ),
    "27M: hidden 512, 8 layers": (
        {"vocab_size": 8192, "hidden_size": 512, "mlp_dim": 1408, "num_layers": 8, "num_heads": 8,
         "num_kv_heads": 2, "rope_theta": 1e4},
        9, 5,
    ),
    "0.5B: hidden 896, 24 layers": (
        {"vocab_size": 151936, "hidden_size": 896, "mlp_dim": 4864, "num_layers": 24, "num_heads": 14,
         "num_kv_heads": 2, "rope_theta": 1e6},
        6, 2,
    ),
}  # fmt: skip


def network(
    shape: dict[str, Any], dtype: torch.dtype, weights: dict[str, Tensor] | None = None, normed: bool = True
) -> UniMedVL:
    """A network of random understanding weights, or of those given; the rest stays without memory."""
    with torch.device("meta"):
        made = from_config(
            {
                "decoder": {**shape, "tied": True, "qk_norm": weights is not None and normed},
                "vision": None,
                "autoencoder": {"kind": "patch", "patch": 2, "latent_channels": 3},
            }
        )
    chance = torch.Generator().manual_seed(0)
    filled = {name: x for name, x in (weights or {}).items() if not x.is_meta}
    for name, p in made.named_parameters():
        if name.startswith("decoder.") and ".generation." not in name and name not in filled:
            x = torch.empty(p.shape, dtype=dtype)
            x.fill_(1) if "norm" in name else x.normal_(std=p.shape[-1] ** -0.5, generator=chance)
            filled[name] = x
    filled["decoder.embed.weight"][-3] = 0  # text_end scores 0 and is never the likeliest: nobody stops
    made.load_state_dict(filled, strict=False, assign=True)
    return made.eval()


def ours(network: UniMedVL, marks: Marks, prompt: Tensor, count: int, said: list[int]) -> Side:
    """Through `Context` and `words`, as the inferers do."""
    context = Context(network, SimpleNamespace(tokenizer=SimpleNamespace(marks=marks)), samples=1)
    context.read([[Text(prompt)]])

    def side(tick: Callable[[], None]) -> None:
        said.clear()
        for spoken in words(context.fork([0]), Sampling(max_new_tokens=count)):
            tick()
            said.append(spoken[0].id)

    return side


def linears(network: UniMedVL, count: int) -> Side:
    """Every product of a word, and nothing else: by our own code, or compiled by torch where it is not."""
    own = NextWord(compile_words(network)).native
    network.decoder.compiled_words = False  # it is asked for by others as it comes
    layers = [
        (layer.weight, None, layer.bias)
        for module in network.decoder.layers
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "generation" not in name
    ]
    layers.append((network.decoder.embed.weight, None, None))
    rows_ = [torch.randn(1, weight.shape[1]).to(weight.dtype) for weight, _, _ in layers]
    product = fused(one_row, dynamic=False)

    @torch.no_grad()
    def side(tick: Callable[[], None]) -> None:
        for _ in range(count):
            tick()
            if own is not None:
                own.products(1)
                continue
            for x, linear in zip(rows_, layers, strict=True):
                product(x, linear)

    return side


def few_bits(network: UniMedVL, kind: str) -> UniMedVL:
    """The understanding expert and the head in 8 or 4 bits, as `load(quantize=...)` leaves them."""
    for layer in network.decoder.layers:
        own, mlp = layer.attention, layer.mlp.understanding
        for twins in (own.q, own.k, own.v, own.out):
            part = twins.understanding
            twins.understanding = quantised(part.weight, part.bias, kind, part.weight.dtype)
        for name in ("gate", "up", "down"):
            part = getattr(mlp, name)
            setattr(mlp, name, quantised(part.weight, part.bias, kind, part.weight.dtype))
    head = network.decoder.embed.weight
    network.decoder.head = quantised(head, None, kind, head.dtype)
    return network


def theirs(model: Qwen2ForCausalLM, marks: Marks, prompt: Tensor, count: int, said: list[int]) -> Side:
    """Through `generate`, with its own cache of the prompt."""
    ids = torch.tensor([marks.text_start, *prompt.tolist(), marks.text_end, marks.text_start])
    with torch.no_grad():
        past = model(ids[None, :-1], use_cache=True).past_key_values
    kept = [(layer.keys, layer.values) for layer in past.layers]

    class Ticks(BaseStreamer):
        def __init__(self, tick: Callable[[], None]) -> None:
            self.tick, self.is_prompt = tick, True

        def put(self, value: Tensor) -> None:
            if not self.is_prompt:
                self.tick()
            self.is_prompt = False

        def end(self) -> None:
            pass

    def side(tick: Callable[[], None]) -> None:
        cache = DynamicCache()
        for n, (keys, values) in enumerate(kept):
            cache.update(keys, values, n)
        found = model.generate(
            ids[None], attention_mask=torch.ones_like(ids[None]), past_key_values=cache, do_sample=False,
            max_new_tokens=count, streamer=Ticks(tick),
        )  # fmt: skip
        said[:] = found[0, len(ids) :].tolist()

    return side


def twin(network: UniMedVL, shape: dict[str, Any]) -> Qwen2ForCausalLM:
    """transformers' model on the same weights, without a copy."""
    config = Qwen2Config(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"], intermediate_size=shape["mlp_dim"],
        num_hidden_layers=shape["num_layers"], num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"], rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    weights = {n: x for n, x in network.state_dict().items() if n.startswith("decoder.") and not x.is_meta}
    named = {name.removeprefix("language_model."): x for name, x in to_upstream(weights).items()}
    named.setdefault("lm_head.weight", named["model.embed_tokens.weight"])
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.load_state_dict(named, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are in no state dict
    return model.eval()


FLOOR = "its linear layers alone, compiled"
SIDES = ("as it comes", "compiled", "compiled, query and key norms", "int8", "int8, compiled", "int4", FLOOR)
ABOUT = (
    "Greedy decoding, batch 1, after 130 words: milliseconds a word. "
    "In bfloat16 the two round differently, and the words of a random network can part."
)
COLUMNS = ["shape", "weights", *HEAD]


def measured(
    label: str, dtype: torch.dtype, rounds: int | None = None, chosen: Sequence[str] = SIDES
) -> tuple[dict[str, Watch], list[list[str]]]:
    """transformers first, then the sides that are chosen, in turns; and their rows under `COLUMNS`."""
    shape, count, usual = SHAPES[label]
    marks = Marks(*range(shape["vocab_size"] - 4, shape["vocab_size"]))
    chance = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, shape["vocab_size"] - 4, (READ,), generator=chance)
    plain = network(shape, dtype)
    weights = dict(plain.state_dict())
    said: dict[str, list[int]] = {"transformers": []}
    sides = {"transformers": theirs(twin(plain, shape), marks, prompt, count, said["transformers"])}
    for name in chosen:
        kind, bits = name.split(",")[0], name.startswith("int")
        if name == FLOOR:
            sides[name] = linears(plain, count)
            continue
        if bits and dtype != torch.bfloat16:
            continue
        made = plain if name == "as it comes" else network(shape, dtype, weights, normed="norms" in name)
        made = few_bits(made, kind) if bits else made
        made = compile_words(made) if "compiled" in name else made
        sides[name] = ours(made, marks, prompt, count, said.setdefault(name, []))
    watches = take_turns(sides, rounds or usual)
    same = count
    for name in ("as it comes", "compiled"):
        if name in said:
            same = sum(a == b for a, b in zip(said["transformers"], said[name], strict=True))
            assert dtype == torch.bfloat16 or same == count, f"said {said[name]}"
    about = f"{str(dtype).removeprefix('torch.')}, {same}/{count} words equal"
    return watches, rows([label, about], watches)


def main() -> None:
    """Every shape in both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    cells = [COLUMNS]
    for label in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            cells += measured(label, dtype, options.rounds)[1]
    report(ABOUT, cells, options, load)


if __name__ == "__main__":
    main()
