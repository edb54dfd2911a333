# SPDX-License-Identifier: Apache-2.0
"""Words by code of our own: the numbers of the decoder's forward, and torch's code where it cannot be had."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_support import Golden
from networks.test_decoding import Adapted, int8, own, read
from tiny import text, tiny_network
from torch.testing import assert_close

from monai_unimedvl.networks import native
from monai_unimedvl.networks.decoding import NextWord, compile_words
from monai_unimedvl.networks.unimedvl import UniMedVL

LENGTHS = (1, 40, 3, 17, 16, 15, 5, 2, 33, 1, 9)  # more samples than are multiplied at once; blocks of 16
SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "tied, no norms": {"tied": True, "qk_norm": False},
    "vectors": {"hidden_size": 192, "mlp_dim": 101, "num_heads": 6, "num_kv_heads": 1},
    "five heads": {"hidden_size": 80, "mlp_dim": 32, "num_heads": 5, "num_kv_heads": 5},
    "wide heads": {"hidden_size": 128, "mlp_dim": 32, "num_heads": 2, "num_kv_heads": 1},
}
needed = pytest.mark.skipif(native.library() is None, reason="needs g++ or clang++ on Linux or macOS")


@torch.no_grad()
def check(network: UniMedVL, samples: list[int], atol: float, words: int = 2) -> None:
    """A few words by `NextWord`, and by the forward of the decoder."""
    prompts = [[text(*(n % 20 for n in range(count)))] for count in LENGTHS]
    first, second = read(network, prompts), read(network, prompts)
    flat = NextWord(compile_words(network))
    assert flat.native is not None
    for ids in torch.arange(words * len(samples)).view(words, -1) % 20:
        wanted = own(network, first, ids, samples)
        found = flat(ids, samples, second)
        assert found.dtype == (torch.float64 if wanted.dtype == torch.float64 else torch.float32)
        assert_close(found, wanted.to(found.dtype), atol=atol, rtol=0)
        assert wanted.std() > 0.1
    assert (first.lengths, first.positions) == (second.lengths, second.positions)
    assert_close(first.keys, second.keys, atol=atol, rtol=0)
    assert_close(first.values, second.values, atol=atol, rtol=0)


@needed
@pytest.mark.parametrize("samples", [[1], [2, 0], [8, 1, 4], list(range(11))], ids=len)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_words_equal_the_forward(samples: list[int], shape: str) -> None:
    check(tiny_network(decoder=SHAPES[shape]), samples, 1e-11)


@needed
@pytest.mark.parametrize("shape", ["small", "vectors", "wide heads"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_native_words_in_every_precision(bits: int, shape: str) -> None:
    network = tiny_network(decoder=SHAPES[shape])
    scale = 0.1 if shape != "small" else 1.0  # of weights, so that half precision says something
    for p in network.decoder.layers.parameters():
        p.data *= scale if p.dim() == 2 else 1
    network = network.bfloat16() if bits == 16 else network.float()
    network = int8(network) if bits == 8 else network
    for samples in ([1], [2, 0], [8, 1, 4]):
        check(network, samples, 0.12 if bits == 16 else 1e-4, words=1)


@needed
def test_native_words_are_the_same_with_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.torch, "get_num_threads", lambda: 2)
    check(tiny_network(decoder=SHAPES["vectors"]), [1, 2, 3], 1e-11)


@needed
def test_scores_that_are_no_numbers_stay_so() -> None:
    network = compile_words(tiny_network().float())
    network.decoder.layers[1].mlp.understanding.gate.weight.data[3] = torch.nan
    found = NextWord(network)(torch.tensor([4]), [0], read(network, [[text(1, 2)]]))
    assert found.isnan().all()


@needed
def test_weights_that_leave_the_network_stay_as_long_as_they_are_read() -> None:
    network = compile_words(tiny_network().float())
    flat, cache = NextWord(network), read(network, [[text(1, 2)], [text(1, 2)]])
    wanted = flat(torch.tensor([4]), [0], cache)
    for p in network.decoder.layers.parameters():
        p.data = torch.full_like(p, 7.0)
    assert_close(flat(torch.tensor([4]), [1], cache), wanted)


def test_what_is_no_plain_layer_keeps_torchs_code(tiny: UniMedVL) -> None:
    own_q = tiny.decoder.layers[0].attention.q
    own_q.understanding = Adapted(own_q.understanding)
    assert NextWord(compile_words(tiny)).native is None
    assert NextWord(compile_words(tiny_network().half())).native is None
    assert NextWord(compile_words(int8(tiny_network()))).native is None  # 8 bits of a network of doubles


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, in which nothing is built yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_code_that_cannot_be_built_is_said_and_done_without(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = elsewhere / "g++"
    broken.write_text("#!/bin/sh\necho 'words.cpp:1: error: no' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
    assert "could not be built: words.cpp:1: error: no" in caplog.text
    assert not [*native.folder().iterdir()]
    monkeypatch.setattr(native, "COMPILERS", ())
    monkeypatch.delenv("CXX")
    native.library.cache_clear()
    assert native.library() is None


@pytest.mark.slow
@needed
def test_the_code_is_built_once_for_a_machine_into_a_folder_of_ones_own(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "FLAGS", ("-O0", *native.FLAGS[1:]))
    built: list[Path] = []
    build = native._build
    monkeypatch.setattr(native, "_build", lambda compiler, path: (built.append(path), build(compiler, path)))
    assert native.library() is not None
    native.library.cache_clear()
    assert native.library() is not None
    assert len(built) == 1
    assert stat.S_IMODE(native.folder().stat().st_mode) == 0o700


@needed
def test_golden_words_come_native_too(gold: Golden) -> None:
    network = compile_words(gold.build().requires_grad_(False))
    for case in ("text", "vqa"):
        gold.check_answer(case, network)
    gold.check_batch(network)
