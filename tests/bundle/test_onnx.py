# SPDX-License-Identifier: Apache-2.0
"""A bundle's tensor path as ONNX: onnxruntime draws what Python draws; what cannot be written is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from monai_unimedvl import bundle
from monai_unimedvl.bundle import onnx
from monai_unimedvl.cli import main
from monai_unimedvl.networks.tensor_path import TensorPath

SHARPEN = "Sharpen this image four times."


def drawn(file: Path, images: torch.Tensor) -> torch.Tensor:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


@pytest.mark.slow
def test_the_nano_draws_real_pictures_in_onnxruntime_as_in_python(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is of the extra onnx")
    samples = sorted((bundle.find("unimedvl_nano") / "samples").rglob("*.png"))
    pictures = [Image.open(file).convert("RGB").resize((64, 64)) for file in samples]
    images = torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 255
    file = tmp_path / "nano.onnx"
    settings = ["--set", f"instruction={SHARPEN}", "steps=3"]
    assert main(["bundle", "export", "unimedvl_nano", str(file), *settings, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["outputs"] == [str(file)] and said["largest_difference"] < 1e-4
    network, tokenizer = bundle.load("unimedvl_nano")
    path = TensorPath(network, tokenizer.encode(SHARPEN), tokenizer.marks, steps=3)
    for count in (1, len(images)):  # the batch is free
        assert_close(drawn(file, images[:count]), path(images[:count]), atol=1e-4, rtol=0)
    kept = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
    assert kept["weights"] == bundle.digest("unimedvl_nano") and "synthetic" in kept
    assert (kept["instruction"], kept["steps"]) == (SHARPEN, "3")


@pytest.mark.slow
def test_other_sizes_guidance_and_monais_own_verb(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX is of the extra onnx")
    from monai.bundle import onnx_export

    images = torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(1))
    file, worst = onnx.export_onnx(whole, tmp_path / "a.onnx", size=(40, 52), settings={"guidance": 2.0})
    network, tokenizer = bundle.load(whole)
    words = tokenizer.encode("Segment grey matter, white matter and CSF.")
    path = TensorPath(network, words, tokenizer.marks, steps=2, guidance=2.0)
    assert worst is not None and worst < 1e-4
    assert_close(drawn(file, images), path(images), atol=1e-4, rtol=0)
    config, meta = (str(whole / "configs" / name) for name in ("inference.json", "metadata.json"))
    onnx_export(
        net_id="network_def", filepath=str(tmp_path / "b.onnx"), config_file=config, meta_file=meta,
        ckpt_file=str(whole / "models" / "model.pt"), bundle_root=str(whole),
    )  # fmt: skip
    image = torch.rand(1, 3, 64, 64)
    path = TensorPath(network, words, tokenizer.marks, steps=2)
    assert_close(drawn(tmp_path / "b.onnx", image), path(image), atol=1e-4, rtol=0)


def test_what_cannot_be_written_is_refused_with_what_to_do(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"is '.*drawn.pt', expected a new one that ends in .onnx"):
        onnx.export_onnx(whole, tmp_path / "drawn.pt")
    with pytest.raises(ValueError, match="expected a new one that ends in .onnx: name another"):
        (tmp_path / "there.onnx").write_text("kept")
        onnx.export_onnx(whole, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "kept"
    for name in ("onnx", "onnxscript"):
        with monkeypatch.context() as without:
            for module in ("onnx", "onnxscript"):
                without.setitem(sys.modules, module, None if module == name else ModuleType(module))
            said = rf"^An ONNX file needs {name}, .* pip install 'monai-unimedvl\[onnx\]'\.$"
            with pytest.raises(ValueError, match=said):
                onnx.export_onnx(whole, tmp_path / "new.onnx")
    monkeypatch.setattr(onnx, "needed", lambda *_: None)
    with pytest.raises(ValueError, match="'words' is no setting here, expected one of instruction, seed"):
        onnx.export_onnx(whole, tmp_path / "new.onnx", settings={"words": "x"})
    with pytest.raises(ValueError, match="size is 0 64, expected rows and columns above 0"):
        onnx.export_onnx(whole, tmp_path / "new.onnx", size=(0, 64))
    with pytest.raises(ValueError, match="models has no configs/inference.json, expected a bundle"):
        onnx.export_onnx(whole / "models", tmp_path / "new.onnx")
    network, tokenizer = bundle.load(whole)
    path = TensorPath(network, [1], tokenizer.marks)
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    with pytest.raises(ValueError, match="an ONNX file holds 2: use this network in Python"):
        onnx.check(path)
    with pytest.raises(ValueError, match="float32 weights, these are quantised or of another type"):
        onnx.check(path.bfloat16())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["there.onnx", whole.name]
