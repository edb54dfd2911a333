# SPDX-License-Identifier: Apache-2.0
"""The smaller version of tests/benchmarks/fullsize.py: made, loaded for answering, asked, removed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from monai_unimedvl.weights.headers import read_header

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fullsize.py"


@pytest.fixture(scope="module")
def fullsize() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fullsize", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_synthetic_checkpoint_is_made_loaded_for_answering_and_asked(
    fullsize: ModuleType, tmp_path: Path
) -> None:
    seems = fullsize.make(tmp_path, "small")
    entries = read_header(tmp_path / "ema.safetensors")
    assert seems > 2 * sum(entry.nbytes for name, entry in entries.items() if "_moe_gen" in name)
    holes = [name for name, entry in entries.items() if not entry.read().any()]
    assert {"vae2llm.weight", "llm2vae.bias"} < set(holes) and len(holes) < 0.6 * len(entries)
    assert all("_moe_gen" in name for name in holes if ".layers." in name)
    cost = fullsize.ask(tmp_path, "int8")
    assert 0 < cost["weights"] < 0.7 * seems / 2**30 and cost["swap"] == 0


@pytest.mark.slow
def test_the_peak_of_loading_is_what_is_held_and_one_weight(
    fullsize: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 1024, "mlp_dim": 8192, "num_layers": 16, "vocab_size": 2048}
    monkeypatch.setitem(fullsize.SMALL, "decoder", {**fullsize.SMALL["decoder"], **sizes})
    fullsize.make(tmp_path, "small")
    code = (
        f"import sys, json; sys.path.insert(0, {str(SCRIPT.parent)!r}); import fullsize;"
        f"from pathlib import Path; print(json.dumps(fullsize.ask(Path({str(tmp_path)!r}), 'int8')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cost = json.loads(done.stdout.splitlines()[-1])
    assert cost["weights"] > 0.4  # GiB: enough to be seen beside what is imported
    # 0.33 is what the tokenizer's library and torch's scratch took; two copies would be 0.8 more
    assert cost["after_load"] - cost["imported"] < 1.15 * cost["weights"] + 0.45
