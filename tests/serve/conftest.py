# SPDX-License-Identifier: Apache-2.0
"""A tiny network behind a real server on loopback, and the real client of OpenAI."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from serve_support import running, service_of
from tiny import tiny_network

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.serve import Service, application
from monai_unimedvl.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["which plane is this? axial coronal sagittal"] * 3, 290)


@pytest.fixture(scope="session")
def network(tokenizer: Tokenizer) -> UniMedVL:
    """A network that often ends its answers, so that they have different lengths."""
    network = tiny_network(decoder={"vocab_size": len(tokenizer), "max_context": 300}).eval()
    network.decoder.head.weight.data[tokenizer.marks.text_end] *= -1.5
    return network


@pytest.fixture(scope="module")
def service(network: UniMedVL, tokenizer: Tokenizer) -> Service:
    return service_of(network, tokenizer)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """Where it is served, without a key, to this machine."""
    with running(application(service)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
