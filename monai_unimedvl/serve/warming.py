# SPDX-License-Identifier: Apache-2.0
"""Layers compiled before the first client comes, so that nobody waits for it."""

from __future__ import annotations

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.decoding import compile_words
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

TWICE = 4_000_000_000  # bytes of weights of which a second copy, laid out for oneDNN, is affordable


def warm(network: UniMedVL, tokenizer: Tokenizer) -> UniMedVL:
    """The same network, compiled, after a few words for one and for two, and a small drawing.

    Large networks are not held twice: only their words are compiled.

    Raises:
        ValueError: no C++ compiler for the CPU.
    """
    size = sum(p.numel() * p.element_size() for p in network.decoder.parameters())
    if size > TWICE:
        compile_words(network)
    else:
        make_fast(network)
    speak = TextInferer(tokenizer, max_new_tokens=3, repetition_penalty=1.1)
    speak([["Which plane is this?"]], network)
    speak([["Which plane is this?"], ["Is a ventricle visible?"]], network)
    if size <= TWICE:
        stride = 2 * network.canvas_stride
        draw = ImageInferer(tokenizer, size=(stride, stride), steps=1, guidance=Guidance(text=2.0))
        draw([["Axial T1 MRI"]], network)
    return network
