# SPDX-License-Identifier: Apache-2.0
"""Each thing that can be wrong with a folder of weights has a finding, with what mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_unimedvl import weights
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights.converting import convert
from monai_unimedvl.weights.doctor import Finding, examine
from monai_unimedvl.weights.headers import Entry


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train(["an axial slice of the brain"] * 3, 280)
    folder = tmp_path_factory.mktemp("doctor") / "good"
    weights.save(nano(PatchCodec(8, 12), vocab_size=280, hidden_size=32, num_layers=1), tokenizer, folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "folder"))


@pytest.fixture
def theirs(golden: Path, tmp_path: Path) -> Path:
    found = tmp_path / "theirs"
    found.mkdir()
    for file in golden.iterdir():
        if not file.name.startswith("cases") and file.is_file():
            shutil.copyfile(file, found / file.name)
    Tokenizer.train(["an axial slice of the brain"] * 9, 300).save(found)
    return found


def change(file: Path, how: Callable[[dict[str, torch.Tensor]], None]) -> None:
    content = load_file(file)
    how(content)
    save_file(content, file)


def one(found: list[Finding], level: str) -> Finding:
    """The only finding of a level."""
    (wanted,) = [finding for finding in found if finding.level == level]
    return wanted


def test_a_good_folder_is_told_in_full_without_reading_a_weight(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Entry, "read", None)
    found = examine(good)
    assert found.ok and found.works == ["answering", "drawing"] and not found.findings
    assert found.kind == "UniMedVL, the shape of the nano, our layout"
    assert found.sizes["layers"] == 1 and found.sizes["words"] == 280
    assert found.parts["understanding expert"][2] == ("float32",)
    answering, drawing = (need.sizes for need in found.needs)
    assert answering["as it is"] < drawing["as it is"]
    assert answering["with --quantize int4"] < answering["with --quantize int8"] < answering["as it is"]
    assert sum(size for _, size, _ in found.parts.values()) == drawing["as it is"]
    assert found.lines()[-1] == "loads for answering and drawing"


def test_upstream_folders_are_told_apart_by_their_files(theirs: Path) -> None:
    shutil.copyfile(theirs / "model.safetensors", theirs / "ema.safetensors")
    found = examine(theirs)
    assert found.ok and "layout of BAGEL / UniMedVL" in found.kind
    assert one(found.findings, "note").what == (
        "ema.safetensors is read, the average of the weights (EMA); model.safetensors beside it is not read"
    )
    vit = json.loads((theirs / "vit_config.json").read_text())
    (theirs / "vit_config.json").write_text(json.dumps({**vit, "num_hidden_layers": 2}))
    warning = one(examine(theirs).findings, "warning")
    assert "we take the weights' 2, but the reference's scripts would build 1" in warning.what
    assert warning.mend == "unimedvl convert FOLDER NEW_FOLDER --layout upstream"


def test_missing_parts_name_the_jobs_that_are_left(theirs: Path) -> None:
    (theirs / "ae.safetensors").unlink()
    found = examine(theirs)
    assert found.ok and found.works == ["answering"]
    assert "put ae.safetensors beside them" in one(found.findings, "warning").what
    assert "parts=weights.ANSWERING" in one(found.findings, "warning").mend
    change(
        theirs / "model.safetensors",
        lambda content: [content.pop(name) for name in list(content) if "_moe_gen" in name],
    )
    found = examine(theirs)
    assert found.works == ["answering"] and "this checkpoint only underst" in found.findings[-1].what
    assert weights.load(theirs, parts=weights.ANSWERING)[1] is not None  # as it says


def test_a_cut_off_shard_is_named_and_the_others_are_read(folder: Path) -> None:
    network, _ = weights.load(folder)
    weights.save(network, None, folder, max_shard_bytes=60_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-100])
    found = examine(folder)
    assert not found.ok and found.parts
    error = one(found.findings, "error")
    assert f"{shards[1].name} is cut off or damaged" in error.what
    assert error.mend.startswith(f"fetch {shards[1].name} alone again: hf download")
    shards[1].unlink()
    assert "lacks 1 of" in one(examine(folder).findings, "error").what


def test_a_fine_tune_without_its_base_is_told(theirs: Path, folder: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    bias = load_file(theirs / "model.safetensors")["vae2llm.bias"]
    save_file({"vae2llm.bias": bias}, part / "ema.safetensors")
    error = one(examine(part).findings, "error")
    assert error.mend == "load(FOLDER, base=BASE), or unimedvl convert FOLDER NEW_FOLDER --base BASE"
    convert(part, tmp_path / "whole", base=theirs)  # as it says
    change(
        folder / "model.safetensors",
        lambda content: [content.pop(name) for name in list(content) if "decoder.layers" not in name],
    )
    assert "base=BASE" in one(examine(folder).findings, "error").mend


def test_narrow_floats_load_with_a_flag_and_integers_do_not(folder: Path) -> None:
    def narrow(content: dict[str, torch.Tensor]) -> None:
        content.update({name: x.to(torch.float8_e4m3fn) for name, x in content.items()})

    change(folder / "model.safetensors", narrow)
    found = examine(folder)
    assert found.ok and "dtype=torch.bfloat16" in found.findings[0].mend

    def integers(content: dict[str, torch.Tensor]) -> None:
        content["decoder.layers.0.attention.q.understanding.weight"] = torch.zeros(32, 32, dtype=torch.int8)

    change(folder / "model.safetensors", integers)
    found = examine(folder)
    assert not found.ok and "another program quantised these weights" in one(found.findings, "error").what


@pytest.mark.parametrize(
    "files, kind, mend",
    [
        (
            {"adapter_config.json": '{"r": 8}'},
            "LoRA adapters (peft), rank 8",
            "unimedvl bundle export FOLDER",
        ),
        ({".metadata": "", "__0_0.distcp": ""}, "a sharded checkpoint of a", "unimedvl consolidate FOLDER"),
        (
            {"config.json": '{"model_type": "qwen2"}'},
            "a qwen2 model of transformers",
            "take a folder of UniM",
        ),
        (
            {"config.json": '{"model_type": "bagel"}'},
            "a bagel model of transfor",
            "copy both from the releas",
        ),
        ({"llm_config.json": "{}", "ema.pt": "x"}, "as torch pickles", "unimedvl convert FOLDER NEW_FOLDER"),
        ({"notes.md": ""}, "unknown", ""),
    ],
)
def test_other_kinds_of_folders_are_named(
    files: dict[str, str], kind: str, mend: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    found = examine(tmp_path)
    assert not found.ok and kind in found.kind
    assert one(found.findings, "error").mend.startswith(mend)


def test_adapters_among_the_weights_are_seen(folder: Path) -> None:
    change(folder / "model.safetensors", lambda content: content.update({"x.lora_A.weight": torch.zeros(1)}))
    assert "merge_adapters" in one(examine(folder).findings, "error").mend


@pytest.mark.parametrize(
    "name, kind, mend",
    [
        ("pytorch_model.bin", "a torch pickle", "unimedvl convert"),
        ("last.ckpt", "a Lightning checkpoint", "unimedvl consolidate"),
        ("model.pt", "weights of a MONAI bundle", "unimedvl doctor BUNDLE"),
        ("model.safetensors", "weights of ", "unimedvl doctor FOLDER"),
    ],
)
def test_single_files_lead_to_their_folder(folder: Path, name: str, kind: str, mend: str) -> None:
    if not (folder / name).exists():
        (folder / name).write_bytes(b"PK")
    found = examine(folder / name)
    assert not found.ok and found.kind.startswith(kind) and one(found.findings, "error").mend.startswith(mend)


def test_tokenizers_that_are_not_there_or_of_another_model_are_errors(folder: Path) -> None:
    Tokenizer.train(["zebra quiz vexing jukebox fjord"] * 9, 280).save(folder)
    assert "but its weights were trained with" in one(examine(folder).findings, "error").what
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    found = examine(folder)
    assert not found.ok and one(found.findings, "error").what == "there is no tokenizer"


def test_links_and_nothing_at_all_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert "cp -L" in one(examine(folder).findings, "error").mend
    with pytest.raises(ValueError, match=r"There is no file or folder .*nowhere: check the path"):
        examine(tmp_path / "nowhere")
