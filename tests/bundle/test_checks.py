# SPDX-License-Identifier: Apache-2.0
"""`verify` finds what is wrong with a bundle, says where and what to do, and runs nothing it distrusts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monai_unimedvl import bundle
from monai_unimedvl.bundle.checks import verify

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


def edit(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / name).read_text("utf8"))
    change(content)
    (folder / name).write_text(json.dumps(content, indent=4), "utf8")


def test_a_whole_bundle_is_in_order(whole: Path) -> None:
    assert verify(whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", bundle.available())
def test_every_shipped_bundle_is_in_order_and_can_be_exported(name: str, tmp_path: Path) -> None:
    assert verify(bundle.copy(name, tmp_path / name), export=True) == []


def meta(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "configs/metadata.json", change)


def config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "configs/inference.json", change)


BREAKS = {
    "bad json": (
        lambda f: (f / "configs" / "inference.json").write_text('{\n"a": 1,\n"b" 2\n}'),
        "configs/inference.json:3: no JSON: Expecting ':' delimiter; mend it at column 5.",
    ),
    "missing key": (
        meta(lambda m: m.pop("task")),
        "configs/metadata.json: the file: 'task' is a required property; add it.",
    ),
    "wrong type": (
        meta(lambda m: m["network_data_format"]["inputs"]["image"].update(num_channels="three")),
        r"configs/metadata.json:\d\d+: network_data_format.inputs.image.num_channels: 'three' is not of type",
    ),
    "other schema": (
        meta(lambda m: m.update(schema="https://example.org/meta_schema_20190101.json")),
        "configs/metadata.json:2: schema is 'https://example.org/meta_schema_20190101.json', expected one",
    ),
    "other version": (
        meta(lambda m: m["required_packages_version"].update({"monai-unimedvl": "99.0.0"})),
        r"metadata.json:\d+: the bundle was made with monai-unimedvl 99.0.0, here is 0.1.0; run `pip install",
    ),
    "no such package": (
        meta(lambda m: m["required_packages_version"].update({"no-such-thing": "1.0"})),
        "the bundle needs no-such-thing 1.0, which is not installed; run `pip install no-such-thing==1.0`.",
    ),
    "no version": (
        meta(lambda m: m.update(numpy_version="newest")),
        "numpy has version 'newest', expected one like 1.2.3; mend it.",
    ),
    "changelog": (
        meta(lambda m: m.update(version="0.2.0")),
        r"configs/metadata.json:\d+: changelog has no entry '0.2.0', the version; write what changed in it.",
    ),
    "missing file": (
        lambda f: (f / "LICENSE").unlink(),
        "LICENSE: the file is missing; take it from",
    ),
    "large file that is missing": (
        lambda f: (f / "large_files.yml").write_text(
            "large_files:\n- path: models/big.pt\n  url: https://example.org/big.pt\n"
        ),
        "large_files.yml:2: models/big.pt is not there; run `python -m monai.bundle download_large_files`",
    ),
    "large file of another hash": (
        lambda f: (f / "large_files.json").write_text(
            json.dumps({"large_files": [{"path": "LICENSE", "hash_val": "ab", "hash_type": "md5"}]})
        ),
        "large_files.json:1: LICENSE has another md5; fetch it again.",
    ),
    "large file of an unknown hash": (
        lambda f: (f / "large_files.json").write_text(
            json.dumps({"large_files": [{"path": "LICENSE", "hash_val": "ab", "hash_type": "crc"}]})
        ),
        "large_files.json:1: LICENSE has a hash_type 'crc'; use sha256 or sha512 or sha1 or md5.",
    ),
    "large files that are no list": (
        lambda f: (f / "large_files.yml").write_text("large_files: [1]"),
        "large_files.yml: no list of files: ",
    ),
    "published version": (
        lambda f: (f.parent / "model_info.json").write_text(json.dumps({f"{f.name}_v0.1.0": {}})),
        r"configs/metadata.json:\d+: version 0.1.0 is in model_info.json, so it is published; give",
    ),
    "logging that runs code": (
        lambda f: (f / "configs" / "logging.conf").write_text(
            "[loggers]\nkeys=root\n[handler_a]\nclass=StreamHandler\nargs=(sys.stdout,)\n"
            "[handler_b]\nclass=os.system\n"
        ),
        "configs/logging.conf:7: class of handler_b is 'os.system'; name a handler of Python's own",
    ),
    "logging that computes": (
        lambda f: (f / "configs" / "logging.conf").write_text(
            "[handler_a]\nclass=handlers.RotatingFileHandler\nargs=(os.path.join('a'),)\n"
        ),
        r"configs/logging.conf:3: args of handler_a is \"\(os.path.join\('a'\),\)\"; name a handler",
    ),
    "python": (
        lambda f: (f / "scripts.py").write_text("print(1)"),
        "scripts.py: a bundle holds no code; move it into a package",
    ),
    "pickle": (
        lambda f: (f / "models" / "extra.pkl").write_bytes(b"x"),
        "models/extra.pkl: the file may hold a pickle, which can run code; remove or convert it.",
    ),
    "unknown target": (
        config(lambda c: c["inferer"].update(_target_="monai.inferers.NoSuchInferer")),
        r"configs/inference.json:\d+: inferer._target_: 'monai.inferers.NoSuchInferer' does not exist; name",
    ),
    "foreign target": (
        config(lambda c: c["inferer"].update(_target_="subprocess.run")),
        "inferer._target_: 'subprocess.run' is of no known package; name something of monai, monai_unimedvl",
    ),
    "expression": (
        config(lambda c: c.update(run=["$__import__('os').system('true')"])),
        "run.0: it uses '__import__'; write it with references",
    ),
    "private": (
        config(lambda c: c.update(run=["$@device.__class__"])),
        "run.0: it uses '__class__'; write it with",
    ),
    "import": (
        config(lambda c: c.update(imports=["$import os"])),
        "imports.0: it imports os; write it with",
    ),
    "torch.load": (
        config(lambda c: c.update(run=["$torch.load('x')"])),
        "run.0: it uses 'load'; write it with",
    ),
    "other weights": (
        lambda f: torch.save({"network.x": torch.ones(1)}, f / "models" / "model.pt"),
        "models/model.pt: .*missing.*",
    ),
    "papers": (
        lambda f: (f / "docs" / "README.md").write_text("# Model Overview\n"),
        "docs/README.md: there is no section 'Limitations'; add it.",
    ),
    "properties": (
        config(lambda c: c.pop("evaluator")),
        "configs/inference.json: properties: .*evaluator.*; mend the config",
    ),
    "output": (
        meta(lambda m: m["network_data_format"]["outputs"]["pred"].update(num_channels=5)),
        "configs/inference.json: input and output: .*; mend the config or the metadata.",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_wrong_is_found_with_its_line_and_mend(whole: Path, name: str) -> None:
    break_it, message = BREAKS[name]
    break_it(whole)
    said = "\n".join(map(str, verify(whole)))
    assert re.search(message, said), said


def test_an_expression_that_is_distrusted_is_not_run(whole: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    edit(
        whole, "configs/inference.json", lambda c: c.update(bundle_root=f"$open({str(mark)!r}, 'w').close()")
    )
    assert "it uses 'open'" in "\n".join(map(str, verify(whole)))
    assert not mark.exists()
    with pytest.raises(ValueError, match="nowhere is no folder, expected a bundle"):
        verify(tmp_path / "nowhere")
