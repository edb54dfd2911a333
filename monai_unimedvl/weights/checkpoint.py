# SPDX-License-Identifier: Apache-2.0
"""`model.pt`, the weights file of MONAI bundles: tensors by name, and nothing that could run.

Its names are those of the `TensorPath` around the network, which is the `network_def` of our bundles, so that
MONAI's own verbs load it too; here the prefix comes off again. Reading is torch's with weights_only=True.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

NAME = "model.pt"
PREFIX = "network."


def read_torch_file(file: Path) -> object:
    """What a file of torch.save holds, on the CPU, mapped where it allows that; nothing in it is run.

    Raises:
        ValueError: the file is damaged, missing, or a pickle of more than tensors and plain values.
    """
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old format cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(
            f"{file.name} cannot be read ({error.strerror or error}): check the path."
        ) from error
    except Exception as error:  # torch raises many kinds for damaged and for refused files
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise ValueError(
                f"{file.name} holds a pickle that asks for {wanted[1]}, expected plain tensors: nothing of "
                "it was run; take the file from its makers again, or save its state_dict() anew."
            ) from error
        raise ValueError(f"{file.name} is no readable torch file: fetch it again.") from error


def read_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """Tensors by the names of the network, mapped from the file where it allows that.

    Raises:
        ValueError: the file is damaged, holds anything but tensors, or no tensor at all.
    """
    file = Path(file)
    content = read_torch_file(file)
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        held = sorted({type(x).__name__ for x in content.values()} if isinstance(content, Mapping) else [])
        came = ", ".join(held[:3]) or type(content).__name__
        raise ValueError(f"{file.name} holds {came}, expected tensors by name: save network.state_dict().")
    if not content:
        raise ValueError(
            f"{file.name} is a placeholder without weights: fetch them as docs/README.md of its bundle says."
        )
    return {str(name).removeprefix(PREFIX): x for name, x in content.items()}


def checkpoint_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """The content of a `model.pt`; the same tensors give the same bytes.

    Args:
        weights: by the names of the network.
    """
    stream = io.BytesIO()
    named = {f"{PREFIX}{name}": weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    torch.save(named, stream)
    return stream.getvalue()
