# SPDX-License-Identifier: Apache-2.0
"""From layout to layout: the same bits, nothing half-written, and what other runtimes ask for."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from monai_unimedvl import weights
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import bagel, io
from monai_unimedvl.weights.converting import convert


@pytest.fixture
def theirs(golden: Path, tmp_path: Path) -> Path:
    """A folder in the reference's layout, with a tokenizer."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for file in golden.iterdir():
        if not file.name.startswith("cases") and file.is_file():
            shutil.copyfile(file, folder / file.name)
    Tokenizer.train(["an axial slice of the brain"] * 9, 300).save(folder)
    return folder


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of more than 200 KB cannot be written."""
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_there_and_back_again_gives_the_same_bits(theirs: Path, tmp_path: Path) -> None:
    ours = convert(theirs, tmp_path / "ours")
    back = convert(ours, tmp_path / "back", layout="upstream")
    before, after = load_file(theirs / "model.safetensors"), load_file(back / "ema.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].reshape(after[name].shape), after[name]) for name in before)
    assert load_file(back / "ae.safetensors").keys() == load_file(theirs / "ae.safetensors").keys()
    assert json.loads((back / "vit_config.json").read_text())["num_hidden_layers"] == 3  # one more than used
    assert {file.name for file in ours.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_shards_keep_what_only_drawing_needs_apart(theirs: Path, tmp_path: Path) -> None:
    ours = convert(theirs, tmp_path / "ours", max_shard_bytes=500_000, dtype=torch.bfloat16)
    held = [set(load_file(shard)) for shard in sorted(ours.glob("model-*.safetensors"))]
    assert len(held) > 3
    kinds = [{io._draws(name) for name in names} for names in held]
    assert all(len(kind) == 1 for kind in kinds) and kinds == sorted(kinds, key=lambda kind: max(kind))
    network, _ = weights.load(ours)
    assert network.latent_in.weight.dtype == torch.bfloat16


def test_the_bagel_layout_has_what_runtimes_ask_for(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"autoencoder has .*'ch': \d+.* have the FLUX sizes built in"):
        convert(theirs, tmp_path / "no", layout="bagel")
    assert not (tmp_path / "no").exists()
    monkeypatch.setattr(bagel, "FLUX", {})
    made = convert(theirs, tmp_path / "bagel", layout="bagel")
    config = json.loads((made / "config.json").read_text())
    assert config["model_type"] == "bagel" and config["architectures"] == ["BagelForConditionalGeneration"]
    assert config["llm_config"]["layer_module"] == "Qwen2MoTDecoderLayer"
    assert config["vae_config"].keys() == {"z_channels", "downsample"} and config["max_latent_size"] > 0
    index = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    for file in ("ema.safetensors", "ae.safetensors"):
        assert set(load_file(made / file)) == {name for name, where in index.items() if where == file}
    from transformers import AutoTokenizer, Qwen2Tokenizer, SiglipImageProcessor

    known = Tokenizer.load(made)
    for kind in (AutoTokenizer, Qwen2Tokenizer):
        read = kind.from_pretrained(made)
        assert read("an axial slice")["input_ids"] == known.encode("an axial slice").tolist()
    assert SiglipImageProcessor.from_pretrained(made).image_mean[0] == 0.5
    network, _ = weights.load(made)  # and we read it, too
    assert torch.equal(network.latent_in.weight, weights.load(theirs)[0].latent_in.weight)


def test_a_partial_fine_tune_becomes_a_whole_folder(theirs: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    part = tmp_path / "part"
    part.mkdir()
    bias = load_file(theirs / "model.safetensors")["vae2llm.bias"] + 1
    save_file({"vae2llm.bias": bias}, part / "ema.safetensors")
    whole = convert(part, tmp_path / "whole", base=theirs)
    network, tokenizer = weights.load(whole)
    assert torch.equal(network.latent_in.bias, bias) and tokenizer is not None


def test_tensors_of_pickles_are_read_and_code_in_them_is_not_run(theirs: Path, tmp_path: Path) -> None:
    torch.save(load_file(theirs / "model.safetensors"), theirs / "ema.pt")
    torch.save(load_file(theirs / "ae.safetensors"), theirs / "ae.pt")
    expected, _ = weights.load(theirs)
    for file in theirs.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"is a pickle, which can run code"):
        weights.load(theirs)
    network, _ = weights.load(convert(theirs, tmp_path / "safe"))
    assert all(torch.equal(x, expected.state_dict()[name]) for name, x in network.state_dict().items())

    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("run",))

    torch.save({"a": Bad()}, theirs / "ema.pt")
    with pytest.raises(ValueError, match=r"ema.pt holds a pickle that asks for \S*print, .* nothing of it"):
        convert(theirs, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_disk_that_is_full_leaves_nothing(theirs: Path, tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(ValueError, match=r"full could not be written \(.*\), and is as it was: make room"):
        convert(theirs, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_too_little_room_is_known_before_anything_is_written(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(io.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ValueError, match=r"The weights take 0.0 GB, but .* has room for 0.0 GB: choose anoth"
    ):
        convert(theirs, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_a_folder_with_something_in_it_is_left_alone(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"used is not empty, expected a new folder: choose another name"):
        convert(theirs, tmp_path / "used")
    assert [file.name for file in (tmp_path / "used").iterdir()] == ["mine.txt"]
