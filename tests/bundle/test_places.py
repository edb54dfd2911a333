# SPDX-License-Identifier: Apache-2.0
"""Where a bundle lies, and where what is made of it is kept: never in a shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from monai_unimedvl import bundle
from monai_unimedvl.bundle import places
from monai_unimedvl.training.keeping import keep

NANO = places.BUNDLES / places.DEFAULT


def test_bundle_root_is_the_working_directory_and_never_another_bundle(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = ConfigParser()
    parser.read_config(whole / "configs" / "inference.json")
    with pytest.raises(ValueError, match=r"read by itself, .*: set parser\['bundle_root'\] to that folder"):
        bundle.running(NANO.name)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("network_def")
    assert "read by itself" in str(caught.value.__cause__)
    parser["bundle_root"] = str(whole)
    assert parser.get_parsed_content("bundle_root") == str(whole)
    monkeypatch.chdir(whole)
    assert bundle.running(NANO.name) == str(whole)


def test_fine_tuning_leaves_a_shipped_bundle_as_it_came(tmp_path: Path) -> None:
    assert bundle.kept(NANO, "runs") == str(Path("runs") / "models")
    copied = bundle.copy(NANO.name, tmp_path / "mine")
    assert bundle.kept(copied, "runs") == str(copied / "models")
    network, tokenizer = bundle.load(NANO)
    keep(network, tmp_path / "runs" / "models", tokenizer)
    again, words = bundle.load(tmp_path / "runs" / "models")
    assert words.digest() == tokenizer.digest()
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in network.state_dict().items())
