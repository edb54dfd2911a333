# SPDX-License-Identifier: Apache-2.0
"""Names on the Hub, against a server on loopback that plays it: what is fetched, and what is said if not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest

from monai_unimedvl import bundle, weights
from monai_unimedvl.networks.absent import absent_parts
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights.hub import is_name

REPOSITORY, COMMIT = "somebody/model", "a" * 40


class Hub(BaseHTTPRequestHandler):
    """Lists and gives the files of one repository."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        api, files = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        if path.startswith(files):
            name = path.removeprefix(files).split("/", 1)[1]
            if name in self.files:
                self.asked += [name] if body else []
                return self._send(self.files[name], body)
        elif path.startswith(f"{api}/tree/"):
            each = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return self._send(json.dumps(each).encode(), body)
        elif path == api or path.startswith(f"{api}/revision/"):
            about = {
                "id": REPOSITORY,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in self.files],
            }
            return self._send(json.dumps(about).encode(), body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = Tokenizer.train(["an axial slice of the brain"] * 3, 280)
    network = nano(PatchCodec(8, 12), vocab_size=280, hidden_size=32, num_layers=1)
    weights.save(network, tokenizer, folder, max_shard_bytes=60_000)
    (folder / "optimizer.00000-of-00001.pt").write_bytes(b"not for us")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """The server, with an empty cache and the network allowed."""
    monkeypatch.setattr(Hub, "files", files)
    monkeypatch.setattr(Hub, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_name_is_fetched_once_and_then_taken_from_the_cache(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = weights.load(REPOSITORY)
    assert tokenizer is not None and not absent_parts(network)
    assert "optimizer.00000-of-00001.pt" not in hub.asked
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again, _ = bundle.load(f"{REPOSITORY}@{COMMIT}")
    assert not hub.asked
    ours, theirs = again.state_dict(), network.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_files_that_hold_nothing_of_the_parts_are_not_fetched(hub: type[Hub]) -> None:
    index = json.loads(hub.files["model.safetensors.index.json"])["weight_map"]
    drawing = {file for name, file in index.items() if ".generation." in name}
    needed = {file for name, file in index.items() if ".understanding." in name or "vision" in name}
    assert drawing - needed
    network, _ = weights.load(REPOSITORY, parts=weights.ANSWERING)
    assert absent_parts(network) == ["generation", "autoencoder"]
    assert not (drawing - needed) & set(hub.asked) and needed <= set(hub.asked)


def test_offline_and_unknown_names_say_what_to_do(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"the Hub has no nobody/nothing that you may read \(RepositoryNotF"):
        weights.load("nobody/nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError,
        match=r"^There is no folder somebody/other, somebody/other is not in the local cache, and HF_HUB_OFFL"
        r"INE is set: .* run `hf download somebody/other --local-dir FOLDER`, and pass that folder\.$",
    ):
        bundle.load("somebody/other")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # before it tries again
    with pytest.raises(ValueError, match=r"`hf download somebody/other --local-dir FOLDER`"):
        weights.load("somebody/other")


def test_paths_are_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "last").mkdir(parents=True)
    assert is_name("somebody/model") and is_name("somebody/model@v1.0")
    assert not is_name("runs/last") and not is_name("a/b/c") and not is_name("/weights") and not is_name("x")
    assert not is_name(Path("somebody/model")) and not is_name("../weights")
