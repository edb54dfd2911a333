# SPDX-License-Identifier: Apache-2.0
"""Loading and saving: the same bits, whole or not at all, and one line for whatever does not fit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_unimedvl import weights
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import io
from monai_unimedvl.weights.headers import find_weights, read_header


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["an axial slice of the brain"] * 3, 280)


@pytest.fixture
def network(tokenizer: Tokenizer) -> UniMedVL:
    return nano(PatchCodec(8, 12), vocab_size=len(tokenizer), hidden_size=32, num_layers=1).eval()


@pytest.fixture
def saved(network: UniMedVL, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    weights.save(network, tokenizer, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def upstream_folder(golden: Path, tmp_path: Path) -> Path:
    for file in golden.iterdir():
        if not file.name.startswith("cases"):
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def assert_same(left: UniMedVL, right: UniMedVL) -> None:
    a, b = left.state_dict(), right.state_dict()
    assert a.keys() == b.keys() and left.config == right.config
    assert not [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]


def edit(folder: Path, change) -> None:
    """Rewrite model.safetensors after `change` has had its way with the weights."""
    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors")


def test_saved_weights_can_be_read_by_others(saved: Path) -> None:
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in saved.glob("*.safetensors"))


def test_save_then_load_gives_the_same_bits(saved: Path, network: UniMedVL, tokenizer: Tokenizer) -> None:
    again, words = weights.load(saved)
    assert_same(again, network)
    assert words.marks == tokenizer.marks and torch.equal(words.encode("axial"), tokenizer.encode("axial"))
    assert sorted(os.listdir(saved)) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_shards_hold_the_same_bits_and_keep_their_size(saved: Path, network: UniMedVL) -> None:
    limit = 100_000
    weights.save(network, None, saved, max_shard_bytes=limit)
    shards = sorted(saved.glob("model-*.safetensors"))
    largest = max(x.nbytes for x in network.state_dict().values())
    assert len(shards) > 2 and not (saved / "model.safetensors").exists()
    assert all(sum(x.nbytes for x in load_file(shard).values()) <= max(limit, largest) for shard in shards)
    assert_same(weights.load(saved)[0], network)
    (saved / "model.safetensors.index.json").unlink()  # the names alone tell the shards, too
    assert_same(weights.load(saved)[0], network)


def test_saving_over_an_older_checkpoint_leaves_nothing_of_it(saved: Path, network: UniMedVL) -> None:
    weights.save(network, None, saved, max_shard_bytes=100_000)
    weights.save(network, None, saved, max_shard_bytes=200_000)
    weights.save(network, None, saved)
    assert [file.name for file in saved.glob("model*")] == ["model.safetensors"]
    assert not list(saved.glob(".saving-*"))


def test_a_loaded_network_can_be_saved_onto_the_files_it_is_mapped_from(
    saved: Path, network: UniMedVL
) -> None:
    mapped, words = weights.load(saved)
    weights.save(mapped, words, saved)
    assert_same(weights.load(saved)[0], network)
    assert_same(mapped, network)


def test_a_save_that_fails_leaves_the_old_checkpoint_alone(
    saved: Path, network: UniMedVL, monkeypatch
) -> None:
    changed = nano(
        PatchCodec(8, 12), vocab_size=len(network.decoder.embed.weight), hidden_size=32, num_layers=1
    )

    def full(*_, **__) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(io, "save_file", full)
    with pytest.raises(ValueError, match=r"could not be written \(No space left on device\), and is as it w"):
        weights.save(changed, None, saved)
    assert_same(weights.load(saved)[0], network)
    assert not list(saved.glob(".saving-*"))


def test_a_folder_caught_in_the_middle_of_a_save_is_not_read(
    saved: Path, network: UniMedVL, monkeypatch
) -> None:
    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.save(network, None, saved)
    with pytest.raises(ValueError, match=r"saved holds no model, expected config.json"):
        weights.load(saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saving_in_half_precision_rounds_weights_and_keeps_the_codec(saved, network, dtype) -> None:
    weights.save(network, None, saved, dtype=dtype)
    again, _ = weights.load(saved)
    assert again.latent_in.weight.dtype == again.view_table.dtype == dtype
    assert torch.equal(again.latent_in.weight, network.latent_in.weight.to(dtype))
    assert torch.equal(again.autoencoder.basis, network.autoencoder.basis)
    whole, _ = weights.load(saved, dtype=torch.float32)
    assert {x.dtype for x in whole.state_dict().values()} == {torch.float32}


def test_loading_to_a_device_and_dtype_takes_both(saved: Path) -> None:
    network, _ = weights.load(saved, dtype=torch.float64, device="cpu")
    assert {x.dtype for x in network.state_dict().values()} == {torch.float64}


def test_training_a_mapped_network_does_not_touch_the_file(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    mapped, _ = weights.load(saved)
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.add_(1)
    assert (saved / "model.safetensors").read_bytes() == before


def test_golden_shards_with_and_without_an_index_load(upstream_folder: Path) -> None:
    expected, _ = weights.load(upstream_folder)
    content = list(load_file(upstream_folder / "model.safetensors").items())
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(content[:50]), dict(content[50:])]
    for name, part in zip(names, parts, strict=True):
        save_file(part, upstream_folder / name)
    (upstream_folder / "model.safetensors").unlink()
    assert_same(weights.load(upstream_folder)[0], expected)
    index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    (upstream_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(weights.load(upstream_folder)[0], expected)
    (upstream_folder / names[1]).unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 shards, first model-00002-of-00002.safetensors"):
        weights.load(upstream_folder)


def test_golden_ema_is_taken_before_model_and_the_other_autoencoder_name_is_known(
    upstream_folder: Path,
) -> None:
    content = load_file(upstream_folder / "model.safetensors")
    save_file({name: x + 1 for name, x in content.items()}, upstream_folder / "ema.safetensors")
    (upstream_folder / "ae.safetensors").rename(upstream_folder / "vae_model.safetensors")
    network, _ = weights.load(upstream_folder)
    assert torch.equal(network.latent_in.bias, content["vae2llm.bias"] + 1)
    assert find_weights(upstream_folder)[0].name == "ema.safetensors"


def test_golden_embedding_grows_by_the_marks_a_tokenizer_lacks(upstream_folder: Path, caplog) -> None:
    tokenizer = Tokenizer.train(["an axial slice of the brain"] * 9, 280)
    engine = json.loads(tokenizer.engine.to_str())
    engine["model"]["vocab"] |= {f"filler{i}": i for i in range(len(tokenizer), 320)}
    for mark in ("<|vision_start|>", "<|vision_end|>"):
        engine["model"]["vocab"] = {k: v for k, v in engine["model"]["vocab"].items() if k != mark}
    engine["added_tokens"] = [t for t in engine["added_tokens"] if "vision" not in t["content"]]
    engine["model"]["vocab"] |= {"filler-a": 2, "filler-b": 3}
    (upstream_folder / "tokenizer.json").write_text(json.dumps(engine))
    network, words = weights.load(upstream_folder)
    assert words.added == ("<|vision_start|>", "<|vision_end|>") and len(words) == 322
    embed = network.decoder.embed.weight
    assert embed.shape == (322, 64) and network.decoder.head.weight.shape == (322, 64)
    torch.testing.assert_close(embed[321], embed[:320].mean(0))
    assert network.config["decoder"]["vocab_size"] == 322
    assert "the embedding grew by rows that are untrained" in caplog.text
    engine["model"]["vocab"] |= {f"more{i}": i for i in range(320, 330)}
    (upstream_folder / "tokenizer.json").write_text(json.dumps(engine))
    with pytest.raises(ValueError, match=r"The tokenizer has 332 ids, the embedding 320 rows: take both"):
        weights.load(upstream_folder)


def test_missing_and_unexpected_weights_are_listed_by_part(saved: Path) -> None:
    def change(content) -> None:
        for name in [name for name in content if name.startswith(("connector.", "vision.layers.0."))]:
            del content[name]
        content["decoder.adapter.weight"] = torch.zeros(1)

    edit(saved, change)
    with pytest.raises(
        ValueError,
        match=r"^The weights of saved do not fit the network: 20 missing \(vision 16: vision.layers.0\S+, "
        r"vision.layers.0\S+, 14 more; connector 4: .*, 2 more\); 1 unexpected \(elsewhere 1: "
        r"decoder.adapter.weight\): fetch the checkpoint again, or save it whole\.$",
    ):
        weights.load(saved)


def test_a_checkpoint_of_other_sizes_says_which(saved: Path, network: UniMedVL, tokenizer: Tokenizer) -> None:
    config = (saved / "config.json").read_text()
    other = nano(PatchCodec(8, 12), vocab_size=len(tokenizer), hidden_size=64, num_layers=1)
    weights.save(other, tokenizer, saved)
    (saved / "config.json").write_text(config)
    with pytest.raises(
        ValueError,
        match=r"misshapen .*the weights have hidden_size 64 and not 32, mlp_dim 192 and not 96.*from one",
    ):
        weights.load(saved)


def test_golden_sizes_that_contradict_the_config_are_named(upstream_folder: Path) -> None:
    llm = json.loads((upstream_folder / "llm_config.json").read_text())
    (upstream_folder / "llm_config.json").write_text(json.dumps({**llm, "intermediate_size": 256}))
    with pytest.raises(ValueError, match=r"18 misshapen \(generation expert 9: .*mlp_dim 128 and not 256"):
        weights.load(upstream_folder)


def test_golden_folder_without_its_autoencoder_says_what_to_add(upstream_folder: Path) -> None:
    (upstream_folder / "ae.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"missing \(autoencoder 244: .*put ae.safetensors beside them, or load"
    ):
        weights.load(upstream_folder)


def test_golden_understanding_only_checkpoint_says_so(upstream_folder: Path) -> None:
    edit(upstream_folder, lambda content: [content.pop(name) for name in list(content) if "_moe_gen" in name])
    with pytest.raises(ValueError, match=r"generation expert 43: .*this checkpoint only understands"):
        weights.load(upstream_folder)


def test_deeper_weights_than_the_config_says_are_unexpected(saved: Path, network: UniMedVL) -> None:
    def change(content) -> None:
        for name in [name for name in content if name.startswith("decoder.layers.0.")]:
            content[name.replace("layers.0.", "layers.1.")] = content[name].clone()

    edit(saved, change)
    with pytest.raises(
        ValueError, match=r"unexpected \(generation expert \d+: .*holds more than the config says"
    ):
        weights.load(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pth"])
def test_pickles_are_refused_with_the_mend(upstream_folder: Path, name: str) -> None:
    (upstream_folder / "model.safetensors").unlink()
    (upstream_folder / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"{name} is a pickle, which can run code .*safetensors.torch.save_file"
    ):
        weights.load(upstream_folder)
    with pytest.raises(ValueError, match=r"is a pickle"):
        weights.load(upstream_folder / name)


def test_damaged_files_are_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for content, message in [
        (
            whole[:-10],
            r"model.safetensors is cut off or damaged: \d+ bytes, its header promises \d+; fetch it",
        ),
        (whole + b"0", r"model.safetensors is cut off or damaged"),
        (whole[: header // 2], r"model.safetensors is cut off inside its header"),
        (b"", r"model.safetensors does not start like a safetensors file"),
        (b"PK\x03\x04" + whole, r"model.safetensors does not start like a safetensors file"),
        (
            whole[:8] + b"x" * header + whole[8 + header :],
            r"model.safetensors has no readable safetensors header",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", r"Git LFS pointer.*git lfs pull"),
    ]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            weights.load(saved)


def test_folders_that_hold_no_model_are_named(saved: Path, network: UniMedVL, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere: check the path"):
        weights.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model.safetensors is a file, expected a folder: pass .*saved, if"):
        weights.load(saved / "model.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no model"):
        weights.load(tmp_path / "empty")
    content = json.loads((saved / "config.json").read_text())
    (saved / "model.safetensors").rename(saved / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"saved holds no weights, expected model.safetensors, whole or in shards"
    ):
        weights.load(saved)
    (saved / "other.safetensors").rename(saved / "model.safetensors")
    (saved / "config.json").write_text(json.dumps({**content, "version": 7}))
    with pytest.raises(ValueError, match=r"has version 7, expected 1 and a network: update monai_unimedvl"):
        weights.load(saved)
    content["network"]["decoder"]["width"] = 3
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config cannot be built \(.*'width'\): mend config.json"):
        weights.load(saved)


def test_index_and_shards_that_contradict_are_named(saved: Path, network: UniMedVL) -> None:
    weights.save(network, None, saved, max_shard_bytes=100_000)
    first, second = sorted(saved.glob("model-*.safetensors"))[:2]
    shutil.copyfile(first, second)
    with pytest.raises(
        ValueError, match=rf"is in {first.name} and in {second.name}: remove the file too many"
    ):
        weights.load(saved)
    (saved / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../secret.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"index.json has no usable weight_map"):
        weights.load(saved)


def test_saving_what_cannot_be_saved_is_refused(
    saved: Path, network: UniMedVL, golden: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"layout='comfy', expected one of ours, upstream, bagel"):
        weights.save(network, None, tmp_path / "x", layout="comfy")
    with pytest.raises(ValueError, match=r"dtype=torch.int8, expected a floating one"):
        weights.save(network, None, tmp_path / "x", dtype=torch.int8)
    with pytest.raises(ValueError, match=r"is a file, expected a folder"):
        weights.save(network, None, saved / "config.json")
    with pytest.raises(ValueError, match=r"no place for prediction='image'"):
        weights.save(network, None, tmp_path / "x", layout="upstream")
    with pytest.raises(ValueError, match=r"saved holds a checkpoint in the other layout"):
        weights.save(weights.load(golden)[0], None, saved, layout="upstream")
    with pytest.raises(ValueError, match=r"The network has no content \(meta device\)"):
        weights.save(network.to("meta"), None, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_headers_tell_shapes_without_reading_weights(saved: Path, network: UniMedVL) -> None:
    entries = read_header(saved / "model.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: tuple(x.shape) for name, x in network.state_dict().items()
    }


def test_another_tokenizer_of_the_same_size_is_refused(saved: Path, tokenizer: Tokenizer) -> None:
    other = Tokenizer.train(["zebra quiz vexing jukebox fjord"] * 9, len(tokenizer))
    assert len(other) == len(tokenizer) and other.marks == tokenizer.marks
    other.save(saved)
    with pytest.raises(ValueError, match=r"saved holds tokenizer \w{12}, but its weights were trained with"):
        weights.load(saved)


def test_weights_saved_without_a_tokenizer_keep_the_one_they_know(
    saved: Path, network: UniMedVL, tokenizer: Tokenizer
) -> None:
    weights.save(network, None, saved)
    assert json.loads((saved / "config.json").read_text())["tokenizer"] == tokenizer.digest()
