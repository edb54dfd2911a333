# SPDX-License-Identifier: Apache-2.0
"""Whole bundles out of the shipped ones: a folder (`copy`), a zip (`pack`), all with a list (`release`).

The default bundle is whole; another shipped one holds what is its own, and `compose` adds what all share
(from the default one and `shared/fragments`), the sample images, and `model.pt` with the trained weights. The
same content gives the same zip, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from safetensors.torch import load_file

from monai_unimedvl.atomic import new_folder, write
from monai_unimedvl.bundle import places
from monai_unimedvl.provenance.facts import sha256
from monai_unimedvl.weights.checkpoint import NAME, checkpoint_bytes
from monai_unimedvl.weights.headers import find_weights

DATE = (2022, 5, 30, 0, 0, 0)  # of every file in a zip, as the model zoo has it
INCLUDE = re.compile(r"^<!-- shared: (\S+\.md) -->$", re.M)
UNPUBLISHED = "not published: made by `make release`; put the zip where you like and its address here"
COMMON = (  # of the default bundle, in all the others too
    "LICENSE", "configs/evaluate.json", "configs/logging.conf", "configs/multi_gpu_train.json",
    "configs/train.json", "configs/train_lightning.json", "docs/data_license.txt",
)  # fmt: skip
JUNK = (".DS_Store", "__pycache__")


def compose(name: str) -> dict[str, bytes]:
    """The files of a whole bundle: path inside it -> content.

    Raises:
        ValueError: no such bundle, or its weights do not lie where its metadata says.
    """
    if name not in places.available():
        shipped = ", ".join(places.available()) or "none"
        raise ValueError(f"there is no bundle {name!r}, expected one of {shipped}: name one.")
    folder, default = places.BUNDLES / name, _read(places.BUNDLES / places.DEFAULT)
    own = {path: x for path, x in _read(folder).items() if not path.endswith(".safetensors")}
    files = _read(places.BUNDLES / places.SHARED)
    files |= {path: x for path, x in default.items() if path in COMMON or path.startswith("samples/")}
    files |= own
    if "configs/train.json" in files.keys() - own.keys() and "configs/inference.json" in files:
        files["configs/train.json"] = _drawing_alike(files)
    fragments = {path: files.pop(path).decode() for path in [*files] if path.startswith("fragments/")}
    for path in [path for path in files if path.endswith(".md")]:
        text = INCLUDE.sub(lambda found: fragments[f"fragments/{found[1]}"].strip(), files[path].decode())
        files[path] = text.replace("BUNDLE_NAME", name).encode()
    return dict(sorted((files | _weights(name, folder)).items()))


def _drawing_alike(files: Mapping[str, bytes]) -> bytes:
    """The common train.json, which draws as this inference.json does: MONAI's `load` takes the former."""
    train, drawing = (json.loads(files[f"configs/{name}.json"]) for name in ("train", "inference"))
    made = dict(drawing["network_def"])
    for name, value in drawing["displayable_configs"].items():
        reference, plain = f"@displayable_configs#{name}", drawing[value.removeprefix("@")]
        for key, text in made.items():
            if text == reference:
                made[key] = plain
            elif isinstance(text, str) and f"{reference})" in text:
                made[key] = text.replace(reference, repr(plain))
    train["network_def"] = made
    return (json.dumps(train, indent=4, ensure_ascii=False) + "\n").encode()


def copy(name: str, folder: str | Path) -> Path:
    """A shipped bundle to use and change: written whole to `folder`, which must not exist yet, or not at all.

    Raises:
        ValueError: no such bundle, or `folder` exists or cannot be made.
    """
    return put(compose(name), folder)


def put(files: Mapping[str, bytes], folder: str | Path) -> Path:
    """Files as a new folder, whole or not at all.

    Raises:
        ValueError: `folder` exists or cannot be made.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already, but a new folder is expected: choose another name.")
    with new_folder(folder) as aside:
        for path, content in files.items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_bytes(content)
    return folder


def pack(path: str | Path, out: str | Path | None = None) -> Path:
    """A bundle as a zip that `download` and MONAI read; returns its path.

    Args:
        path: a shipped bundle's name, or a bundle's folder, whose name the bundle then has.
        out: the zip, or a folder for NAME_vVERSION.zip; None is the working directory.

    Raises:
        ValueError: no bundle there, or the zip cannot be written.
    """
    name, files = contents(path)
    version = json.loads(files["configs/metadata.json"]).get("version", "0")
    target = Path(out) if out is not None else Path()
    if target.suffix != ".zip":
        target = target / f"{name}_v{version}.zip"
    write(target, _zipped(name, files))
    return target


def release(out: str | Path, *, base: str = "") -> list[Path]:
    """Zips of all shipped bundles and the model zoo's list of them, model_info.json.

    Args:
        out: folder.
        base: address under which the zips will lie; without it the list says that they are not published.
    """
    out = Path(out)
    listed, written = {}, []
    for name in places.available():
        path = pack(name, out)
        address = f"{base.rstrip('/')}/{path.name}" if base else ""
        listed[path.stem] = {
            "checksum": hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest(),  # the zoo's kind
            "sha256": sha256(path),
            "source": address,
            **({} if base else {"note": UNPUBLISHED}),
        }
        written.append(path)
    write(out / "model_info.json", json.dumps(listed, indent=4) + "\n")
    return [*written, out / "model_info.json"]


def contents(path: str | Path) -> tuple[str, dict[str, bytes]]:
    """Name and files of a shipped bundle, composed, or of a bundle's folder as it is.

    Raises:
        ValueError: neither.
    """
    if str(path) in places.available():
        return str(path), compose(str(path))
    folder = places.find(path)
    if not (folder / "configs" / "metadata.json").is_file():
        raise ValueError(
            f"{folder} has no configs/metadata.json, expected a bundle's folder: check the path."
        )
    return folder.resolve().name, _read(folder)


def _weights(name: str, own: Path) -> dict[str, bytes]:
    """models/: the weights as model.pt, beside them config and tokenizer; empty for a bundle without any."""
    folder = places.models(own)
    if folder == own:
        return {f"models/{NAME}": checkpoint_bytes({})}
    files = {f"models/{path}": x for path, x in _read(folder).items() if not path.endswith(".safetensors")}
    tensors = {key: x for file in find_weights(folder, ("model",)) for key, x in load_file(file).items()}
    return {**files, f"models/{NAME}": checkpoint_bytes(tensors)}


def _read(folder: Path) -> dict[str, bytes]:
    """Every file of a folder: path inside it -> content."""
    if not folder.is_dir():
        return {}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if not set(path.parts) & set(JUNK) and not path.name.endswith(".part")
    }


def _zipped(name: str, files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with ZipFile(stream, "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(files):
            entry = ZipInfo(f"{name}/{path}", DATE)
            entry.compress_type, entry.external_attr = ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[path])
    return stream.getvalue()
