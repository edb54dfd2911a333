# SPDX-License-Identifier: Apache-2.0
"""Where results go: `dicom://ARCHIVE@host:104` for C-STORE, `dicom+tls://...` for the same by TLS,
`https://host/dicom-web` for STOW-RS."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

CALLING = "UNIMEDVL"
TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]{0,15}")  # PS3.5, VR AE
LOUD = ("pynetdicom", "dicomweb_client", "pydicom", "urllib3", "requests")


@dataclass(frozen=True)
class Destination:
    """An archive.

    Args:
        called, calling: application entity titles, of C-STORE.
        url: of the DICOMweb service; empty for C-STORE.
    """

    scheme: str
    host: str
    port: int
    called: str = ""
    calling: str = CALLING
    url: str = ""

    @property
    def web(self) -> bool:
        """Whether results go by STOW-RS."""
        return bool(self.url)


@dataclass(frozen=True)
class Trust:
    """Files in PEM that a connection by TLS needs beyond what the system trusts.

    Args:
        authorities: certificates of who signed the archive's.
        certificate: our own certificate with its key, where the archive asks for one.
        token: a file whose only line is the bearer token of a DICOMweb service.
    """

    authorities: Path | None = None
    certificate: Path | None = None
    token: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of one instance.

    Args:
        state: "sent"; "wait": try again later; "refused": the archive will never take it as it is.
        why: in words, without anything out of the instance.
    """

    state: Literal["sent", "wait", "refused"]
    why: str = ""


def destination(text: str, calling: str | None = None) -> Destination:
    """The archive that a text names.

    Raises:
        ValueError: it names none, or holds a password.
    """
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme in ("http", "https") and parts.hostname and port != 0:
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"--to {parts.scheme}://{parts.hostname} holds a user, password or query, which would be kept"
                " on disk: put the user into ~/.netrc, or a token into --token-file."
            )
        standard = 443 if parts.scheme == "https" else 80
        return Destination(parts.scheme, parts.hostname, port or standard, url=text.rstrip("/"))
    if parts.scheme in ("dicom", "dicom+tls") and parts.hostname and port and not parts.password:
        asked = parse_qs(parts.query)
        own = calling or asked.get("calling", [CALLING])[0]
        called = parts.username or ""
        for title in (called, own):
            if not TITLE.fullmatch(title):
                raise ValueError(
                    f"--to {text}: {title!r} is no application entity title, expected 1 to 16 plain"
                    " characters: dicom://ARCHIVE@host:104."
                )
        return Destination(parts.scheme, parts.hostname, port, called, own)
    raise ValueError(
        f"--to {text!r} came, but dicom://ARCHIVE@host:104, dicom+tls://ARCHIVE@host:2762 or"
        " https://host/dicom-web is expected: name the archive so."
    )


@contextmanager
def hushed() -> Iterator[None]:
    """Keep the libraries from logging and warning: at DEBUG they show UIDs, names and whole datasets."""
    before = {name: logging.getLogger(name).level for name in LOUD}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in LOUD:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
