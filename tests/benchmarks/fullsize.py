# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of the released size is made, loaded for answering in 8 bits, asked, and removed.

Shapes, names and files are those of the released folder (one file of 29 GB), values are random. What
answering needs is written; the generation expert and the autoencoder are holes in the files, so they take no
disk, and would be zeros if anything read them. The load runs in a process of its own: its memory is its own
peak (VmHWM), with everything that is imported and every page of the files that is mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl import weights
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config, released
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import upstream
from monai_unimedvl.weights.headers import GENERATION

LIMIT = 13.0  # GiB at the peak
SMALL: dict[str, Any] = {
    "decoder": {
        "vocab_size": 512, "hidden_size": 256, "mlp_dim": 704, "num_layers": 3, "num_heads": 4,
        "num_kv_heads": 2,
    },
    "vision": {"hidden_size": 64, "mlp_dim": 128, "num_layers": 2, "num_heads": 2, "grid_side": 27},
    "autoencoder": {"kind": "flux", "channels": 32, "multipliers": [1, 1], "num_res_blocks": 1},
}  # fmt: skip
WORDS = ["is the ventricle visible in this axial slice of the brain"] * 3


def shapes(size: str) -> UniMedVL:
    """The network without memory."""
    with torch.device("meta"):
        return released() if size == "released" else from_config(SMALL)


def make(folder: Path, size: str, seed: int = 0) -> int:
    """Write the checkpoint; returns the bytes that it seems to have."""
    network = shapes(size)
    for name, content in upstream.config_to_upstream(network.config).items():
        (folder / name).write_text(json.dumps(content), "utf8")
    Tokenizer.train(WORDS, 300).save(folder)
    inside = {f"{k}.{name}": x for k in ["net"] for name, x in network.autoencoder.net.state_dict().items()}
    total = _write(folder / "ae.safetensors", upstream.autoencoder_to_upstream(inside), r"", seed)
    main = upstream.to_upstream(network.state_dict())
    return total + _write(folder / "ema.safetensors", main, GENERATION, seed)


def ask(folder: Path, quantize: str | None) -> dict[str, Any]:
    """Load for answering and say one word about a picture; what it cost."""
    from monai_unimedvl.inferers import TextInferer

    imported = _memory()
    begin = time.perf_counter()
    network, tokenizer = weights.load(
        folder, parts=weights.ANSWERING, dtype=torch.bfloat16, quantize=quantize,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    loaded, at_load = time.perf_counter() - begin, _memory()
    assert tokenizer is not None and not any(x.is_meta for x in (*network.parameters(), *network.buffers()))
    begin = time.perf_counter()
    picture = torch.rand(3, 378, 378, generator=torch.Generator().manual_seed(0))
    (said,) = TextInferer(tokenizer, max_new_tokens=1)([[picture, "is the ventricle visible"]], network)
    assert len(said.ids) == 1 or said.stop_reason == "end", said
    assert all(map(torch.isfinite, map(torch.tensor, said.logprobs))), said
    return {
        "imported": imported["VmRSS"], "load_s": loaded, "after_load": at_load["VmHWM"],
        "answer_s": time.perf_counter() - begin, "peak": _memory()["VmHWM"], "swap": _memory()["VmSwap"],
        "weights": sum(x.nbytes for x in (*network.parameters(), *network.buffers())) / 2**30,
    }  # fmt: skip


def run(size: str, quantize: str | None, where: str | None) -> dict[str, Any]:
    """Make, load in a process of its own, remove."""
    folder = Path(tempfile.mkdtemp(prefix="fullsize-", dir=where))
    try:
        begin = time.perf_counter()
        seems = make(folder, size)
        made = time.perf_counter() - begin
        takes = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        command = [sys.executable, __file__, "--load", str(folder), "--quantize", quantize or "none"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        cost = json.loads(done.stdout.splitlines()[-1])
        return {"made_s": made, "seems": seems / 2**30, "takes": takes / 2**30, **cost}
    finally:
        shutil.rmtree(folder)


def _write(file: Path, tensors: Mapping[str, torch.Tensor], holes: str, seed: int) -> int:
    """A safetensors file in bfloat16; weights whose names match `holes` are left as holes."""
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + 2 * x.numel()]}
        at += 2 * x.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    chance = torch.Generator().manual_seed(seed)
    normal = torch.randn(1 << 24, generator=chance).mul_(0.02).bfloat16()  # 32 MB, again and again
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, x in tensors.items():
            if re.search(holes, name):
                stream.seek(2 * x.numel(), os.SEEK_CUR)
                continue
            for piece in _pieces(x.numel(), normal, "norm" in name and name.endswith("weight")):
                stream.write(piece.view(torch.uint8).numpy().data)
        stream.truncate(8 + len(text) + at)
    return file.stat().st_size


def _pieces(count: int, normal: torch.Tensor, ones: bool) -> Iterable[torch.Tensor]:
    while count > 0:
        piece = normal[:count]
        yield torch.ones_like(piece) if ones else piece
        count -= len(piece)


def _memory() -> dict[str, float]:
    """GiB of this process by /proc: VmRSS now, VmHWM at its peak, VmSwap."""
    text = Path("/proc/self/status").read_text("utf8")
    return {name: int(kb) / 2**20 for name, kb in re.findall(r"(?m)^(Vm\w+):\s+(\d+) kB", text)}


def main() -> None:
    """The released size, into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["released", "small"], default="released")
    parser.add_argument("--quantize", choices=["int8", "int4", "nf4", "none"], default="int8")
    parser.add_argument("--folder", help="where the checkpoint is made (16 GB on disk)")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="only print: leave RESULTS.md as it is")
    options = parser.parse_args()
    options.rounds = None
    torch.set_num_threads(options.threads)
    quantize = None if options.quantize == "none" else options.quantize
    if options.load is not None:
        print(json.dumps(ask(options.load, quantize)))
        return
    from _timing import load_average, report

    load = load_average()
    if options.size == "released":
        free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free / 2**30
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        if free < 20 or memory + _cached() < 15:
            print(f"fullsize needs 20 GiB of disk and 15 GiB of memory, found {free:.0f} and {memory:.0f}")
            return
    cost = run(options.size, quantize, options.folder)
    assert cost["peak"] <= LIMIT and cost["swap"] == 0, cost
    cells = [
        ["checkpoint", "seems", "on disk", "made in", "weights held", "load", "peak of load", "first word",
         "**peak of all**", "swap"],
        [f"{options.size}, {options.quantize}", f"{cost['seems']:.1f} GiB", f"{cost['takes']:.1f} GiB",
         f"{cost['made_s']:.0f} s", f"{cost['weights']:.2f} GiB", f"{cost['load_s']:.0f} s",
         f"{cost['after_load']:.2f} GiB", f"{cost['answer_s']:.0f} s", f"**{cost['peak']:.2f} GiB**",
         f"{cost['swap']:.0f}"],
    ]  # fmt: skip
    about = (
        "A synthetic checkpoint of the released shapes is loaded for answering, and says one word about a "
        "picture of 378 x 378 (729 tokens). Memory is VmHWM of the process, wanted at most "
        f"{LIMIT:g} GiB; seconds are of the wall clock."
    )
    report(about, cells, options, load)


def _cached() -> float:
    found = re.search(r"(?m)^Cached:\s+(\d+) kB", Path("/proc/meminfo").read_text("utf8"))
    return int(found[1]) / 2**20 if found else 0.0


if __name__ == "__main__":
    main()
