# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle, whatever it is called by; its hash; copies and zips. What lies in it: test_bundles.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from monai_unimedvl import bundle, weights
from monai_unimedvl.bundle import places
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.tensor_path import TensorPath
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder with the weights of a random network, in bfloat16."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["Which plane is this?"] * 4, 270)
    network = nano(PatchCodec(8, 12), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    path = tmp_path_factory.mktemp("shipped") / "some_bundle"
    path.mkdir()
    (path / "configs").mkdir()
    (path / "configs" / "metadata.json").write_text('{"version": "1"}')
    weights.save(network, tokenizer, path / "models", dtype=torch.bfloat16)
    return path


@pytest.fixture
def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of that bundle, as if it had come with the package."""
    monkeypatch.setattr(places, "BUNDLES", folder.parent)
    return folder.name


def test_a_name_a_bundle_and_its_weights_open_the_same_network(folder, shipped):
    states = [bundle.load(path)[0].state_dict() for path in (shipped, folder, folder / "models", str(folder))]
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in states[0])
    network, tokenizer = bundle.load(folder)
    assert not network.training and network.decoder.embed.weight.dtype == torch.float32
    assert tokenizer.decode(tokenizer.encode("Which plane?")) == "Which plane?"
    assert bundle.load(folder, dtype=torch.bfloat16)[0].decoder.embed.weight.dtype == torch.bfloat16


def test_the_shipped_bundles_are_those_of_the_checkout(root):
    assert places.BUNDLES == root / "bundles"
    assert bundle.DEFAULT in bundle.available()


def test_the_hash_follows_the_weights_and_nothing_else(folder, tmp_path):
    before = bundle.digest(folder)
    assert bundle.digest(folder / "models") == before and len(before) == 64
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "models" / "notes.txt").write_text("x")
    assert bundle.digest(tmp_path / "copy") == before
    network, tokenizer = bundle.load(tmp_path / "copy")
    network.decoder.embed.weight.data[0, 0] += 1
    weights.save(network, tokenizer, tmp_path / "copy" / "models", dtype=torch.bfloat16)
    assert bundle.digest(tmp_path / "copy") != before


def test_metadata_is_empty_for_bare_weights(folder):
    assert bundle.metadata(folder) == {"version": "1"} and bundle.metadata(folder / "models") == {}


def test_a_shipped_bundle_is_copied_whole_and_never_over_something(shipped, folder, tmp_path):
    path = bundle.copy(shipped, tmp_path / "deep" / "mine")
    assert bundle.metadata(path) == bundle.metadata(folder)
    with pytest.raises(ValueError, match="mine exists already, but a new folder is expected"):
        bundle.copy(shipped, path)
    with pytest.raises(ValueError, match="there is no bundle 'other', expected one of"):
        bundle.copy("other", tmp_path / "other")
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["mine"]


def test_a_copy_has_its_weights_in_model_pt_and_answers_as_the_safetensors(shipped, folder, tmp_path):
    path = bundle.copy(shipped, tmp_path / "mine")
    assert sorted(file.name for file in (path / "models").iterdir()) == [
        "config.json", "model.pt", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    held = torch.load(path / "models" / "model.pt", weights_only=True)
    network, tokenizer = bundle.load(path)
    around = TensorPath(network, tokenizer.encode("Which"), tokenizer.marks)
    assert set(held) == set(around.state_dict()), "MONAI's own verbs find every weight by name"
    expected = bundle.load(folder)[0].state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in network.state_dict().items())
    assert bundle.digest(path) == bundle.digest(folder), "the hash is of the weights, not of a file"
    weights.save(network, tokenizer, path / "models")
    assert not (path / "models" / "model.pt").exists(), "the old weights would be read in place of the new"


def test_the_same_bundle_packs_into_the_same_bytes(shipped, tmp_path):
    first, second = bundle.pack(shipped, tmp_path / "a"), bundle.pack(shipped, tmp_path / "b.zip")
    assert first.name == f"{shipped}_v1.zip" and first.read_bytes() == second.read_bytes()
    copied = bundle.copy(shipped, tmp_path / "copies" / shipped)
    assert bundle.pack(copied, tmp_path / "c").read_bytes() == first.read_bytes()
    names = ZipFile(first).namelist()
    assert f"{shipped}/models/model.pt" in names and all(name.startswith(f"{shipped}/") for name in names)
    with pytest.raises(ValueError, match="models has no configs/metadata.json, expected a bundle's folder"):
        bundle.pack(copied / "models")


def test_a_release_lists_its_zips_and_says_that_they_are_not_published(shipped, folder, tmp_path):
    assert tmp_path / "out" / "model_info.json" in bundle.release(tmp_path / "out")
    content = (tmp_path / "out" / f"{shipped}_v1.zip").read_bytes()
    listed = json.loads((tmp_path / "out" / "model_info.json").read_text("utf8"))[f"{shipped}_v1"]
    assert listed["checksum"] == hashlib.sha1(content).hexdigest() and listed["source"] == ""
    assert "not published" in listed["note"]
    bundle.release(tmp_path / "out", base="https://example.org/zips/")
    listed = json.loads((tmp_path / "out" / "model_info.json").read_text("utf8"))[f"{shipped}_v1"]
    assert listed["source"] == f"https://example.org/zips/{shipped}_v1.zip" and "note" not in listed


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the payload ran')",))


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {"w": Payload()},
            "model.pt holds a pickle that asks for [a-z_]*.?exec, expected plain tensors: nothing",
        ),
        ({"w": [1, 2]}, "model.pt holds list, expected tensors by name: save network.state_dict"),
        ({}, "model.pt is a placeholder without weights: fetch them as docs/README.md"),
        (b"\0\1\2", "model.pt is no readable torch file: fetch it again"),
        ({"network.w": torch.ones(1)}, "missing"),
    ],
)
def test_a_model_pt_that_holds_no_weights_is_refused_and_nothing_of_it_runs(
    folder, tmp_path, content, message
):
    shutil.copytree(folder, tmp_path / "mine")
    file = tmp_path / "mine" / "models" / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=message):
        bundle.load(tmp_path / "mine")


def test_what_cannot_be_opened_is_named_in_one_line(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"model 'nowhere' is neither a folder nor a shipped bundle \(.*unimedvl"
    ):
        bundle.load("nowhere")
    shutil.copytree(folder / "models", tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(ValueError, match="mute has weights but no tokenizer.json"):
        bundle.load(tmp_path / "mute")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare holds no model"):
        bundle.load(tmp_path / "bare")
    (tmp_path / "notes").write_text("x")
    with pytest.raises(ValueError, match="notes is a file, expected a folder"):
        bundle.load(tmp_path / "notes")
