# SPDX-License-Identifier: Apache-2.0
"""`serve --compile`: what is compiled, and that answers and drawings have been through it."""

from __future__ import annotations

import pytest

from monai_unimedvl.networks.decoding import compile_words
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.serve import warming
from monai_unimedvl.tokenizer import Tokenizer


@pytest.mark.parametrize("twice, called", [(1 << 40, "make_fast"), (0, "compile_words")])
def test_small_networks_are_held_twice_and_large_ones_only_compiled(
    network: UniMedVL, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, twice: int, called: str
) -> None:
    asked, forwards, forward = [], [], network.forward
    for function in (make_fast, compile_words):
        name = function.__name__
        monkeypatch.setattr(warming, name, lambda _, name=name: asked.append(name))
    monkeypatch.setattr(network, "forward", lambda *a, **k: forwards.append(1) or forward(*a, **k))
    monkeypatch.setattr(warming, "TWICE", twice)
    assert warming.warm(network, tokenizer) is network
    assert asked == [called]
    assert len(forwards) >= (4 if called == "make_fast" else 2)  # two batches of prompts; and a drawing
