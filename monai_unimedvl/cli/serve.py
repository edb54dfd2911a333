# SPDX-License-Identifier: Apache-2.0
"""`unimedvl serve`: one model behind OpenAI's interface, and a page to look at images and ask.

Only the standard library is imported at the top: the parser needs the options.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from monai_unimedvl.cli import options as o

KEY = "UNIMEDVL_API_KEY"
HERE = ("127.0.0.1", "localhost", "::1")


def add_options(verb: argparse.ArgumentParser) -> None:
    """What can be said of a server."""
    verb.add_argument(
        "--model", default="unimedvl_nano", help="bundle or folder of weights (default: %(default)s)"
    )
    verb.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    verb.add_argument("--name", help="what clients call the model (default: the folder's name)")
    reach = verb.add_argument_group("who is served")
    reach.add_argument("--host", default=HERE[0], help="address to listen at (default: this machine only)")
    reach.add_argument("--port", type=o.whole(0), default=8000, help="0 takes a free one (default: 8000)")
    reach.add_argument(
        "--api-key-file", metavar="FILE",
        help=f"its first line is the key that clients must send (or set {KEY}); needed beyond this machine",
    )  # fmt: skip
    reach.add_argument(
        "--allow-host", action="append", metavar="NAME", default=[],
        help="another name under which this server may be addressed; may be given again",
    )  # fmt: skip
    reach.add_argument("--tls-cert", metavar="FILE", help="certificate, for https")
    reach.add_argument("--tls-key", metavar="FILE", help="its private key")
    much = verb.add_argument_group("how much")
    much.add_argument("--running", type=o.whole(1), default=8, help="answers side by side (default: 8)")
    much.add_argument("--waiting", type=o.whole(1), default=64, help="that may wait; then 429 (default: 64)")
    much.add_argument("--seconds", type=o.whole(1), default=300, help="to an answer at most (default: 300)")
    much.add_argument("--max-words", type=o.whole(1), default=1024, help="of an answer (default: 1024)")
    much.add_argument(
        "--compile", action="store_true",
        help="compile the layers before serving: takes a minute, and pays from a hidden size of about 512",
    )  # fmt: skip
    much.add_argument("--max-mb", type=o.whole(1), default=32, help="of a request (default: 32)")
    verb.add_argument(
        "--samples", metavar="FOLDER",
        help="scans that the page offers, by file name (default: public ones, where they were fetched)",
    )  # fmt: skip


def serve(options: Namespace) -> tuple[list[str], dict[str, Any]]:
    """Serve until stopped."""
    try:
        import uvicorn

        from monai_unimedvl.serve import Limits, Service, application
        from monai_unimedvl.serve.panel import folder_samples
    except ImportError as error:
        raise ValueError(
            f"serving needs {error.name}, which is not installed: pip install 'monai-unimedvl[serve]'."
        ) from error
    if bool(options.tls_cert) != bool(options.tls_key):
        raise ValueError("--tls-cert and --tls-key belong together: give both or none.")
    key = key_of(options)
    if options.host not in HERE and key is None:
        raise ValueError(
            f"--host {options.host} lets others in, but no key is set: give --api-key-file FILE or set {KEY}."
        )
    samples = folder_samples(Path(options.samples)) if options.samples else None
    listening = _listen(options.host, options.port)
    port = listening.getsockname()[1]
    model = _model(options)
    limits = Limits(
        body=options.max_mb * 2**20, seconds=options.seconds, running=options.running,
        waiting=options.waiting, words=options.max_words,
    )  # fmt: skip
    service = Service(
        model.network, model.tokenizer, name=options.name or Path(options.model).name, digest=model.digest,
        limits=limits,
    )  # fmt: skip
    hosts = None if options.host not in HERE else {"localhost", "127.0.0.1", "[::1]", *options.allow_host}
    app = application(service, key=key, hosts=hosts, samples=samples)
    shown = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{'https' if options.tls_cert else 'http'}://{shown}:{port}"
    if not options.quiet:
        print(f"serving {service.name} at {url} (page) and {url}/v1 (OpenAI's interface)", file=sys.stderr)
        print("research software, not for diagnosis; stop with Ctrl-C", file=sys.stderr)
    logging.getLogger("monai_unimedvl").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app, log_level="warning" if options.quiet else "info", server_header=False,
        timeout_graceful_shutdown=10, limit_concurrency=1000, ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])
    return [f"served {service.name}"], {"url": url, "model": service.name}


def key_of(options: Namespace) -> str | None:
    """The key: the first line of --api-key-file, else of the environment; never on the command line, where
    every user of the machine would see it.

    Raises:
        ValueError: see `serve.keys`.
    """
    from monai_unimedvl.serve.keys import checked, read_key

    if options.api_key_file:
        return read_key(options.api_key_file, "--api-key-file")
    key = os.environ.get(KEY, "").strip()
    return checked(key, KEY) if key else None


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
        ValueError: it is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"--host {host} --port {port} cannot be listened at ({reason}): choose another --port."
        ) from error
    return made


def _model(options: Namespace) -> Any:
    from monai_unimedvl.cli.verbs import Model

    model = Model(options.model, options.device)
    network = model.network  # opened before anybody asks
    if options.compile:
        from monai_unimedvl.serve.warming import warm

        warm(network, model.tokenizer)
    return model
