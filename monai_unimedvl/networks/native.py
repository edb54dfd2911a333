# SPDX-License-Identifier: Apache-2.0
"""The next word of a few samples by code of our own (`words/`, C++): all layers and the head in one call.

torch's products of two to eight rows read weights at half of what memory gives, its attention of one row over
a long past at a third, and each call takes longer than a small layer. `compile_words` asks for a C++ compiler
anyway; it builds this once a machine, in the user's cache folder.
  B samples   D hidden size   E head size   V vocabulary
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from monai_unimedvl.atomic import new_file
from monai_unimedvl.networks.layers import angles

if TYPE_CHECKING:
    from monai_unimedvl.networks.cache import KVCache
    from monai_unimedvl.networks.decoder import Decoder

SOURCE = Path(__file__).with_name("words") / "words.cpp"
COMPILERS = ("g++", "clang++")
FLAGS = (
    "-O2", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-w",
)  # fmt: skip
KNOWN = {  # of the network: of its weights
    torch.float32: (torch.float32, torch.int8),
    torch.bfloat16: (torch.bfloat16, torch.int8),
    torch.float64: (torch.float64,),  # for laws
}
KINDS = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.int8: 2}
LINEARS = ("q", "k", "v", "out", "gate", "up", "down")
MACHINE = ("flags", "Features", "model name", "CPU")  # lines of /proc/cpuinfo
Bare = tuple[tuple[Any, ...], tuple[Any, ...]]
log = logging.getLogger(__name__)


class Linear(ctypes.Structure):
    """A weight as it lies; `words/` names the fields of this and of those below."""

    _fields_: ClassVar = [
        ("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("kind", ctypes.c_int64), ("outputs", ctypes.c_int64), ("inputs", ctypes.c_int64),
    ]  # fmt: skip


class Norm(ctypes.Structure):
    """A norm's weight, or none."""

    _fields_: ClassVar = [("weight", ctypes.c_void_p), ("eps", ctypes.c_double)]


class Layer(ctypes.Structure):
    """The understanding expert of a layer."""

    _fields_: ClassVar = [
        *((name, Norm) for name in ("norm1", "q_norm", "k_norm", "norm2")),
        *((name, Linear) for name in LINEARS),
    ]


class Network(ctypes.Structure):
    """All layers, the last norm and the head."""

    _fields_: ClassVar = [
        ("layers", ctypes.POINTER(Layer)),
        *((name, ctypes.c_int64) for name in ("num_layers", "num_heads", "num_kv_heads", "head_size")),
        ("norm", Norm), ("head", Linear),
    ]  # fmt: skip


class Past(ctypes.Structure):
    """A cache, and which of its samples speak."""

    _fields_: ClassVar = [
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("half", "samples", "capacity")),
        ("at", ctypes.POINTER(ctypes.c_int64)), ("lengths", ctypes.POINTER(ctypes.c_int64)),
    ]  # fmt: skip


class Native:
    """Scores of the next word of some samples. It holds on to the weights as they are now.

    Args:
        code: of `library`.
        bare: for each layer what lies before and behind attention: linears (weight, scale, bias), norms
            (weight, eps), None for none.
        norm, head: behind the layers.
    """

    def __init__(
        self, code: ctypes.CDLL, decoder: Decoder, bare: Sequence[Bare], norm: Any, head: Any
    ) -> None:
        self.kept: list[Tensor] = []  # what the addresses below point to
        self.dtype, self.theta = decoder.embed.weight.dtype, decoder.rope_theta
        self.real = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.code = code
        self.call = code.words_double if self.real == torch.float64 else code.words_float
        self.layers = (Layer * len(bare))(*(self._layer(*parts) for parts in bare))
        self.size, self.vocabulary = decoder.head_size, len(head[0])
        heads = decoder.config["num_heads"], decoder.num_kv_heads
        self.network = Network(
            self.layers, len(bare), *heads, self.size, self._norm(norm), self._linear(head)
        )

    def __call__(self, x: Tensor, samples: Sequence[int], cache: KVCache) -> Tensor:
        """x (B, D), a word of each of `samples` -> (B, V); its keys and values go behind the past."""
        x = x.to(self.real, copy=True)
        position = torch.tensor([cache.positions[s] for s in samples])
        turned = angles(position, self.size, self.theta)  # (B, E/2)
        cos, sin = (code.to(self.dtype).to(self.real) for code in (turned.cos(), turned.sin()))
        scores = x.new_empty(len(x), self.vocabulary)
        numbers = ctypes.c_int64 * len(x)
        past = Past(
            cache.keys.data_ptr(), cache.values.data_ptr(), self.dtype == torch.bfloat16,
            cache.keys.shape[1], cache.capacity, numbers(*samples),
            numbers(*(cache.lengths[s] for s in samples)),
        )  # fmt: skip
        self.call(
            ctypes.byref(self.network), ctypes.byref(past), ctypes.c_int64(len(x)),
            *(ctypes.c_void_p(one.data_ptr()) for one in (x, cos, sin, scores)),
            ctypes.c_int(torch.get_num_threads()),
        )  # fmt: skip
        return scores

    def products(self, rows: int) -> None:
        """All products of `rows` words and nothing else, not for doubles: what no word can go below."""
        linears = [self.network.head, *(getattr(layer, name) for layer in self.layers for name in LINEARS)]
        widest = max(max(one.inputs, one.outputs) for one in linears)
        x, found = torch.zeros(2, rows, widest)
        self.code.products_float(
            ctypes.byref(self.network), ctypes.c_int64(rows),
            *(ctypes.c_void_p(one.data_ptr()) for one in (x, found)), ctypes.c_int(torch.get_num_threads()),
        )  # fmt: skip

    def _layer(self, before: Sequence[Any], after: Sequence[Any]) -> Layer:
        norm1, q, k, v, q_norm, k_norm = before
        out, norm2, *mlp = after
        norms = map(self._norm, (norm1, q_norm, k_norm, norm2))
        return Layer(*norms, *map(self._linear, (q, k, v, out, *mlp)))

    def _norm(self, norm: Any) -> Norm:
        return Norm(None, 0.0) if norm is None else Norm(self._real(norm[0]), norm[1])

    def _linear(self, linear: Any) -> Linear:
        weight, scale, bias = linear
        self.kept.append(weight.detach())
        rest = (None if x is None else self._real(x) for x in (scale, bias))
        return Linear(weight.data_ptr(), *rest, KINDS[weight.dtype], *weight.shape)

    def _real(self, x: Tensor) -> int:
        self.kept.append(x.detach().to(self.real).contiguous())
        return self.kept[-1].data_ptr()


def native(decoder: Decoder, bare: Sequence[Bare], norm: Any, head: Any) -> Native | None:
    """The code for these weights, or None where they or the machine are not of its kind."""
    dtype = decoder.embed.weight.dtype
    parts = [one for layer in bare for half in layer for one in half] + [head]
    weights = [part[0] for part in parts if part is not None and len(part) == 3]
    if dtype not in KNOWN or not all(
        weight.device.type == "cpu" and weight.is_contiguous() and weight.dtype in KNOWN[dtype]
        for weight in weights
    ):
        return None
    code = library()
    return None if code is None else Native(code, decoder, bare, norm, head)


@lru_cache
def library() -> ctypes.CDLL | None:
    """The code, built where it is not there yet; None, and a warning, where it cannot be."""
    compiler = next(filter(None, map(shutil.which, filter(None, [os.environ.get("CXX"), *COMPILERS]))), None)
    if compiler is None or platform.system() == "Windows":
        return None
    try:
        path = folder() / f"words-{_stamp(compiler)}.so"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with new_file(path) as part:
                _build(compiler, part)
        code = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("Words are decoded by torch's code, as our own could not be built: %s", error)
        return None
    code.words_float.restype = code.words_double.restype = code.products_float.restype = None
    return code


def folder() -> Path:
    """Where it lies: `$XDG_CACHE_HOME`, else `~/.cache`, and in it `monai_unimedvl/native`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "monai_unimedvl" / "native"


def _build(compiler: str, path: Path) -> None:
    """With threads where the compiler has them."""
    for threads in (["-fopenmp"], []):
        command = [compiler, *FLAGS, *threads, str(SOURCE), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise OSError(done.stderr.strip().split("\n")[0])


def _stamp(compiler: str) -> str:
    """Another for another source, compiler or processor: homes may be shared between machines."""
    told = [
        path.read_text("utf8") for path in sorted(SOURCE.parent.iterdir()) if path.suffix in (".h", ".cpp")
    ]
    told += [*FLAGS, compiler, subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout]
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf8").split("\n") if info.is_file() else [platform.processor()]
    told += [platform.machine(), *sorted({line for line in lines if line.startswith(MACHINE)})]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
