# SPDX-License-Identifier: Apache-2.0
"""Adapters: they change their expert and nothing else, travel alone, and merge into what they said."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MARKS, canvas, text, tiny_network, view
from torch.testing import assert_close

from monai_unimedvl import weights
from monai_unimedvl.bundle import models
from monai_unimedvl.networks.layers import PerExpert
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import PackedSequence, pack
from monai_unimedvl.training.adapters import (
    CONFIG,
    TARGETS,
    WEIGHTS,
    adapted,
    add_adapters,
    fingerprint,
    load_adapters,
    merge_adapters,
    quantise,
    save_adapters,
)
from monai_unimedvl.training.objective import Objective, draw
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.parts import freeze

pytest.importorskip("peft", reason="peft is not installed: adapters need it (extra 'train')")


def sequence() -> PackedSequence:
    """A pack with everything in it, and a loss on words and on a drawing."""
    samples = [
        [view(2, 2), text(1, 2, loss=True), canvas(2, 2, noisy=True)],
        [canvas(1, 2), text(3, loss=True)],
    ]
    return pack(samples, MARKS)


def trained(network: UniMedVL, steps: int = 2) -> UniMedVL:
    """A few steps of plain gradient descent on what learns."""
    seq = sequence()
    chance = draw(seq, 1.0, torch.Generator().manual_seed(0))
    learning = [p for p in network.parameters() if p.requires_grad]
    for _ in range(steps):
        network.zero_grad()
        Objective().measure(network, seq, chance).loss.backward()
        with torch.no_grad():
            for p in learning:
                p -= 0.3 * p.grad
    return network


def outputs(network: UniMedVL) -> torch.Tensor:
    """Every state of the pack, and every velocity."""
    with torch.no_grad():
        found = network(sequence())
    return torch.cat([found.hidden.flatten(), found.velocity.flatten()])


@pytest.mark.parametrize("target", TARGETS)
def test_fresh_adapters_say_what_the_base_says_and_trained_ones_do_not(target: str) -> None:
    base = tiny_network()
    network = add_adapters(copy.deepcopy(base), target, rank=2)
    assert adapted(network) and torch.equal(outputs(network), outputs(base))
    assert not torch.allclose(outputs(trained(network)), outputs(base), atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_training_adapters_changes_no_parameter_of_the_base(target: str) -> None:
    base = tiny_network()
    network = trained(add_adapters(copy.deepcopy(base), target, rank=2))
    after = {n.replace(".base_layer", ""): p for n, p in network.named_parameters() if "lora_" not in n}
    assert after.keys() == dict(base.named_parameters()).keys()
    assert all(torch.equal(p, after[name]) for name, p in base.named_parameters())
    learning = [name for name, p in network.named_parameters() if p.requires_grad]
    assert learning and all("lora_" in name for name in learning)


def test_a_trainer_lets_the_adapters_learn_and_nothing_else() -> None:
    network = add_adapters(tiny_network(), "both", rank=2)
    learning = freeze(network, ["generation"])
    assert learning and all(".lora_" in name and ".understanding." in name for name in learning)
    groups = Rates(optimizer="adamw").build(network).param_groups
    assert [group["name"] for group in groups] == ["understanding"]


@pytest.mark.parametrize("expert, other", [("understanding", "generation"), ("generation", "understanding")])
def test_an_adapter_of_one_expert_changes_only_what_that_expert_says(expert: str, other: str) -> None:
    base = tiny_network()
    network = trained(add_adapters(copy.deepcopy(base), expert, rank=2))
    routes = sequence().plan.routes
    rows = {
        "understanding": slice(None, routes.understanding),
        "generation": slice(routes.understanding, None),
    }
    seen = 0
    for name, twins in base.named_modules():
        if isinstance(twins, PerExpert) and name.startswith("decoder.layers.") and "norm" not in name:
            size = next(twins.parameters()).shape[1]
            x = torch.randn(len(sequence()), size, dtype=torch.float64)
            before, after = twins(x, routes), network.get_submodule(name)(x, routes)
            assert torch.equal(before[rows[other]], after[rows[other]]), name
            assert not torch.equal(before[rows[expert]], after[rows[expert]]), name
            seen += 1
    assert seen == 10  # q, k, v, out and the feed-forward of two layers


def test_words_alone_do_not_notice_an_adapter_of_drawing() -> None:
    base, words = tiny_network(), pack([[view(2, 2), text(1, 2, 3)]], MARKS)
    network = trained(add_adapters(copy.deepcopy(base), "generation", rank=2))
    assert torch.equal(network(words).hidden, base(words).hidden)


@pytest.mark.parametrize("target", TARGETS)
def test_a_merged_network_equals_base_and_adapter(target: str) -> None:
    base = tiny_network()
    network = trained(add_adapters(copy.deepcopy(base), target, rank=2, alpha=3))
    wanted, names = outputs(network), dict(base.named_parameters()).keys()
    merged = merge_adapters(copy.deepcopy(network))
    assert_close(outputs(merged), wanted, atol=1e-12, rtol=0)
    assert dict(merged.named_parameters()).keys() == names and not adapted(merged)
    deltas = {n: m.get_delta_weight("default") for n, m in network.named_modules() if hasattr(m, "lora_A")}
    for name, p in merged.named_parameters():
        delta = deltas.get(name.removesuffix(".weight"), torch.zeros(()))
        assert torch.equal(p, base.get_parameter(name) + delta), name


def test_saved_adapters_come_back_to_the_bit_and_peft_itself_reads_them(tmp_path: Path) -> None:
    import peft

    base = tiny_network()
    network = trained(add_adapters(copy.deepcopy(base), rank=2))
    folder = save_adapters(network, tmp_path / "adapter", dtype=None)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["adapter", CONFIG, WEIGHTS]
    again = load_adapters(copy.deepcopy(base), folder)
    assert torch.equal(outputs(again), outputs(network))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
    with torch.no_grad():
        assert torch.equal(theirs(sequence()).hidden, network(sequence()).hidden)
    save_adapters(again, folder)  # a second save over the first, now in bf16
    half = load_file(folder / WEIGHTS)
    assert {x.dtype for x in half.values()} == {torch.bfloat16}


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_of_a_nano_adapter_is_below_a_twentieth_of_the_model(target: str, tmp_path: Path) -> None:
    folder = models("unimedvl_nano")
    network = from_config(json.loads((folder / "config.json").read_text("utf8"))["network"])
    save_adapters(add_adapters(network, target), tmp_path / "adapter")
    size = (tmp_path / "adapter" / WEIGHTS).stat().st_size
    assert size < 0.05 * (folder / "model.safetensors").stat().st_size


def test_the_fingerprint_knows_weights_and_not_their_dtype() -> None:
    network = tiny_network()
    half = copy.deepcopy(network).bfloat16()
    assert fingerprint(half.float()) == fingerprint(half) == fingerprint(network)
    assert fingerprint(tiny_network(seed=1)) != fingerprint(network)


def test_adapters_that_do_not_belong_here_get_one_line(tmp_path: Path) -> None:
    folder = save_adapters(trained(add_adapters(tiny_network(), rank=2)), tmp_path / "adapter")
    with pytest.raises(ValueError, match="was trained on other weights .* or pass other_base=True"):
        load_adapters(tiny_network(seed=1), folder)
    assert adapted(load_adapters(tiny_network(seed=1), folder, other_base=True))
    other = tiny_network(decoder={"mlp_dim": 32})
    with pytest.raises(ValueError, match="12 of 56 tensors differ, first decoder.layers.0.mlp"):
        load_adapters(other, folder, other_base=True)
    with pytest.raises(ValueError, match="has no adapter_config.json, expected a folder that save_adapters"):
        load_adapters(tiny_network(), tmp_path)
    state = load_file(folder / WEIGHTS)
    save_file({name: x for name, x in list(state.items())[1:]}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="1 of 56 tensors differ"):
        load_adapters(tiny_network(), folder)
    (folder / WEIGHTS).write_bytes(b"{}")
    with pytest.raises(ValueError, match="holds a damaged adapter"):
        load_adapters(tiny_network(), folder)


def test_what_cannot_be_adapted_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got target='all', expected one of understanding, generation, both"):
        add_adapters(tiny_network(), "all")
    with pytest.raises(ValueError, match="rank=0"):
        add_adapters(tiny_network(), rank=0)
    with pytest.raises(ValueError, match="has no vision, expected a connector"):
        add_adapters(tiny_network(vision=None), "connector")
    with pytest.raises(ValueError, match="has adapters already: merge them first"):
        add_adapters(add_adapters(tiny_network()))
    for verb in (merge_adapters, lambda network: save_adapters(network, tmp_path)):
        with pytest.raises(ValueError, match="The network has no adapters to"):
            verb(tiny_network())


def test_weights_with_adapters_beside_them_are_not_written(tmp_path: Path) -> None:
    network = add_adapters(tiny_network())
    for layout in ("ours", "upstream"):
        with pytest.raises(ValueError, match="call merge_adapters first, or save_adapters for the adapters"):
            weights.save(network, None, tmp_path / layout, layout=layout)
        assert not (tmp_path / layout).exists()
    weights.save(merge_adapters(network), None, tmp_path / "merged")
    assert weights.load(tmp_path / "merged")[0].config == network.config


def test_what_cannot_be_quantised_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="got kind='int2', expected one of int8, nf4"):
        quantise(tiny_network(), "int2")
    with pytest.raises(ValueError, match="has adapters already: quantise first"):
        quantise(add_adapters(tiny_network()))
    with pytest.raises(ValueError, match="nf4 needs bitsandbytes and a CUDA device, found"):
        quantise(tiny_network(), "nf4")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match="int8 needs torchao, which is not installed"):
        quantise(tiny_network(), "int8")


def test_adapters_learn_beside_an_int8_base_and_merge_into_whole_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: QLoRA on a CPU needs it (extra 'quant')")
    base = tiny_network().float()
    network = add_adapters(quantise(copy.deepcopy(base), "int8"), "generation", rank=2)
    seq = sequence()
    seq = seq.with_latents(seq.latents.float(), seq.times)
    with torch.no_grad():
        near, exact = network(seq).hidden, base(seq).hidden
    assert 0 < float((near - exact).abs().max()) < 0.2 * float(exact.abs().max())
    for name, p in network.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.1)
    folder = save_adapters(network, tmp_path / "adapter")
    assert adapted(load_adapters(copy.deepcopy(base), folder))  # the whole base takes it too
    with torch.no_grad():
        wanted = network(seq).hidden
        merged = merge_adapters(network)
        assert_close(merged(seq).hidden, wanted, atol=1e-4, rtol=1e-4)
    assert dict(merged.named_parameters()).keys() == dict(base.named_parameters()).keys()
    assert {type(p) for p in merged.parameters()} == {torch.nn.Parameter}
