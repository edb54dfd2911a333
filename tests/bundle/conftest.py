# SPDX-License-Identifier: Apache-2.0
"""A whole bundle around a random network of one layer, and a server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from monai_unimedvl import bundle, weights
from monai_unimedvl.bundle.shipping import put
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights.checkpoint import checkpoint_bytes

NAME = "unimedvl_image_translation"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Path -> content of a bundle with a small random network."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["Segment grey matter, white matter and CSF. Which plane is this?"] * 3, 300)
    network = nano(PatchCodec(8, 12), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    torch.nn.init.normal_(network.latent_out.weight, std=0.3)
    folder = tmp_path_factory.mktemp("random")
    weights.save(network, tokenizer, folder)
    made = bundle.compose(NAME)
    for file in folder.iterdir():
        if file.suffix == ".json":
            made[f"models/{file.name}"] = file.read_bytes()
    made["models/model.pt"] = checkpoint_bytes(network.state_dict())
    return made


@pytest.fixture
def whole(files: dict[str, bytes], tmp_path: Path) -> Path:
    """The same as a folder."""
    return put(files, tmp_path / NAME)


@pytest.fixture
def zipped(whole: Path, tmp_path: Path) -> Path:
    """The same as a zip."""
    return bundle.pack(whole, tmp_path / "made.zip")


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, bytes]], str]]:
    """{path: content} -> the address of a server on loopback that has them."""
    servers: list[ThreadingHTTPServer] = []

    def start(pages: dict[str, bytes]) -> str:
        class Pages(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = pages.get(self.path.split("?")[0])
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
