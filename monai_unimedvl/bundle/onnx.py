# SPDX-License-Identifier: Apache-2.0
"""The tensor path of a bundle as one ONNX file: pictures of one size in, drawings out, with any runtime.

What a config fixes (instruction, steps, seed, guidance) is fixed in the file, and written in its properties
with the hash of the weights. The batch is free. What the file draws is synthetic, and nothing marks it so.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import
from torch import Tensor

from monai_unimedvl import __version__
from monai_unimedvl.atomic import new_file
from monai_unimedvl.bundle import places
from monai_unimedvl.bundle.opening import digest
from monai_unimedvl.networks.quantised import is_quantised
from monai_unimedvl.networks.tensor_path import TensorPath
from monai_unimedvl.packages import needed

LARGEST = 1_900_000_000  # bytes of weights; an ONNX file holds 2 GiB
SETTINGS = "displayable_configs"


def export_onnx(
    path: str | Path, out: str | Path, *, size: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Path, float | None]:  # fmt: skip
    """The `network_def` of a bundle as an ONNX file: "image" (N, 3, H, W) in [0, 1] -> "pred", the same.

    Args:
        path: a bundle's name or folder.
        out: the new file, *.onnx.
        size: H and W; None takes the square of the largest canvas. Pictures of other sizes are not taken.
        settings: values of the config's `displayable_configs`, such as instruction, prompt, steps, seed.

    Returns:
        The file, and the largest difference from Python on two random pictures; None without onnxruntime.

    Raises:
        ValueError: no new *.onnx file, onnx is not installed, an unknown setting, a wrong size, or a network
            that ONNX cannot hold.
    """
    out = Path(out)
    if out.suffix != ".onnx" or out.exists() or not out.parent.is_dir():
        raise ValueError(f"the file is {str(out)!r}, expected a new one that ends in .onnx: name another.")
    for name in ("onnx", "onnxscript"):
        needed(name, "An ONNX file", "onnx")
    folder, values = places.find(path), dict(settings or {})
    network_def, given = _network_def(folder, values)
    check(network_def)
    longest, _, stride = network_def.network.grids["canvas"]
    rows, columns = size or [longest // stride * stride] * 2
    if min(rows, columns) < 1:
        raise ValueError(f"size is {rows} {columns}, expected rows and columns above 0: correct it.")
    pictures = torch.rand(2, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    properties = {
        "software": f"monai_unimedvl {__version__}", "bundle": folder.resolve().name, "weights": digest(path),
        "synthetic": "pred is synthetic: mark it so wherever it is kept", **given,
    }  # fmt: skip
    with new_file(out) as made:
        _write(network_def, pictures, made, properties)
        worst = _difference(network_def, pictures, made)
    return out, worst


def check(path: TensorPath) -> None:
    """Raise ValueError where ONNX cannot hold a tensor path."""
    weights = [*path.parameters(), *path.buffers()]
    size = sum(x.numel() * x.element_size() for x in weights)
    if is_quantised(path) or any(x.is_floating_point() and x.dtype != torch.float32 for x in weights):
        raise ValueError(
            "ONNX is written of float32 weights, these are quantised or of another type: load the bundle "
            "without."
        )
    if size > LARGEST:
        raise ValueError(
            f"the weights have {size / 1e9:.1f} GB, and an ONNX file holds 2: use this network in Python."
        )


def _network_def(folder: Path, values: Mapping[str, Any]) -> tuple[TensorPath, dict[str, Any]]:
    """The network of a bundle's config, with some of its settings changed, and all settings."""
    file = folder / "configs" / "inference.json"
    if not file.is_file():
        raise ValueError(f"{folder.name} has no configs/inference.json, expected a bundle: copy or name one.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")
        parser = ConfigParser()
        parser.read_config(str(file))
    known = dict(parser.get(SETTINGS) or {})
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name!r} is no setting here, expected one of {', '.join(known)}: correct it.")
        parser[f"{SETTINGS}#{name}"] = value
    parser["bundle_root"], parser["device"] = str(folder), "cpu"
    made = parser.get_parsed_content("network_def")
    if not isinstance(made, TensorPath):
        raise ValueError(f"network_def is a {type(made).__name__}, expected a TensorPath: name one there.")
    return made.eval(), {name: parser.get_parsed_content(f"{SETTINGS}#{name}") for name in known}


def _write(path: TensorPath, pictures: Tensor, file: Path, properties: Mapping[str, Any]) -> None:
    """Export, with a free batch, and its properties."""
    batch = torch.export.Dim("N", min=1, max=4096)
    logging.disable(logging.WARNING)  # operators of packages that are not here
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                path, (pictures,), dynamo=True, dynamic_shapes={"image": {0: batch}}, external_data=False,
                input_names=["image"], output_names=["pred"], verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        said = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(
            f"this network has operators that ONNX lacks ({said}): use TorchScript, `python -m monai.bundle "
            "ckpt_export`."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    assert made is not None
    for name, value in properties.items():
        made.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    made.save(file, external_data=False)


def _difference(path: TensorPath, pictures: Tensor, file: Path) -> float | None:
    """Between onnxruntime and torch."""
    onnxruntime, has = optional_import("onnxruntime")
    if not has:
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (drawn,) = session.run(None, {"image": pictures.numpy()})
    return float((torch.from_numpy(drawn) - path(pictures)).abs().max())
