# SPDX-License-Identifier: Apache-2.0
"""A run becomes a bundle: a checkpoint, adapters or weights, with card, manifest and no borrowed scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monai_unimedvl import bundle, weights
from monai_unimedvl.bundle.checks import verify
from monai_unimedvl.bundle.exporting import export
from monai_unimedvl.training.adapters import add_adapters, save_adapters


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """What UniMedVLModule's checkpoint holds of a network with other weights."""
    network, _ = bundle.load(whole)
    network.latent_out.weight.data += 0.25
    state = {f"network.{name}": x for name, x in network.state_dict().items()}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "run" / "checkpoints" / "step=7.ckpt"
    torch.save({"state_dict": state, "network": network.config}, file)
    return file, network


def same(path: Path, network: torch.nn.Module) -> bool:
    held = bundle.load(path)[0].state_dict()
    return all(torch.equal(x, held[name]) for name, x in network.state_dict().items())


@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_checkpoint_or_the_folder_of_its_run(checkpoint, whole: Path, tmp_path: Path, up: int) -> None:
    file, network = checkpoint
    run = [file, file.parent, file.parent.parent][up]
    path = export(run, tmp_path / "mine", base=whole, about="fine-tuned on twenty slices")
    assert same(path, network) and verify(path, run=False) == []
    meta = bundle.metadata(path)
    assert meta["version"] == "0.1.1" and meta["changelog"]["0.1.1"] == "fine-tuned on twenty slices"
    assert meta["eval_metrics"] == {} and "weights_of" not in meta
    manifest = json.loads((path / "models" / "manifest.json").read_text("utf8"))
    assert manifest["from"]["kind"] == "checkpoint" and manifest["base"]["weights"] == bundle.digest(whole)
    readme = (path / "docs" / "README.md").read_text("utf8")
    assert "Version 0.1.1: fine-tuned on twenty slices." in readme and "No scores yet" in readme


def test_adapters_are_merged(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need peft")
    network, _ = bundle.load(whole)
    add_adapters(network, "generation", rank=2)
    for name, p in network.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(p, std=0.1)
    save_adapters(network, tmp_path / "adapter")
    path = export(tmp_path / "adapter", tmp_path / "mine", base=whole)
    assert bundle.digest(path) != bundle.digest(whole)
    assert set(bundle.load(path)[0].state_dict()) == set(bundle.load(whole)[0].state_dict())
    assert (
        json.loads((path / "models" / "manifest.json").read_text("utf8"))["from"]["kind"]
        == "adapters, merged"
    )


def test_a_folder_of_weights(whole: Path, tmp_path: Path) -> None:
    network, tokenizer = bundle.load(whole)
    weights.save(network, tokenizer, tmp_path / "weights")
    assert same(export(tmp_path / "weights", tmp_path / "mine", base=whole), network)


def test_what_is_no_run_is_refused_and_nothing_is_written(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="empty holds no checkpoint, adapters or weights: point to the folder"
    ):
        export(tmp_path / "empty", tmp_path / "mine", base=whole)
    with pytest.raises(ValueError, match="gone does not exist, expected a checkpoint"):
        export(tmp_path / "gone", tmp_path / "mine", base=whole)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt is no checkpoint of a training run of this package"):
        export(tmp_path / "other.ckpt", tmp_path / "mine", base=whole)
    assert not (tmp_path / "mine").exists()
    with pytest.raises(ValueError, match="exists already"):
        export(whole, whole, base=whole)
