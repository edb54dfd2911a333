# SPDX-License-Identifier: Apache-2.0
"""Instances to an archive by STOW-RS (DICOM PS3.18, 10.5), through dicomweb-client.

User and password come from ~/.netrc, as for any client made of `requests`; a bearer token from a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_unimedvl.delivery.destination import Destination, Trust, Verdict, hushed
from monai_unimedvl.packages import needed

AT_ONCE, BYTES = 50, 32_000_000  # of one request, at most; a larger file goes alone
ANSWER = 60  # seconds
NEVER = (400, 405, 406, 409, 410, 413, 415, 422)  # what no later try will change


def stow(to: Destination, paths: Sequence[Path], trust: Trust | None = None) -> Iterator[Verdict]:
    """A verdict for each file, in order, as the archive answers.

    Raises:
        ValueError: a token or certificate that cannot be read.
    """
    session = _session(trust or Trust())
    web = needed("dicomweb_client", "STOW-RS", "delivery")
    client = web.DICOMwebClient(to.url, session=session, timeout=ANSWER)
    client.set_http_retry_params(retry=False)  # the queue does that, and remembers
    for group in _groups(paths):
        with hushed():
            yield from _post(client, group)


def _post(client: Any, paths: Sequence[Path]) -> Iterator[Verdict]:
    import pydicom
    import requests

    instances = [pydicom.dcmread(path) for path in paths]
    try:
        said = client.store_instances(instances)
    except requests.HTTPError as error:
        code = 0 if error.response is None else error.response.status_code
        if code in NEVER and len(paths) > 1:  # one bad instance must not take the others with it
            for path in paths:
                yield from _post(client, [path])
            return
        state = "refused" if code in NEVER else "wait"
        yield from (Verdict(state, f"the archive answered HTTP {code}") for _ in paths)  # type: ignore[arg-type]
        return
    except (requests.RequestException, OSError) as error:
        yield from (Verdict("wait", f"no answer from the archive ({type(error).__name__})") for _ in paths)
        return
    except (ValueError, TypeError, KeyError) as error:
        yield from (Verdict("wait", f"no answer in DICOM ({type(error).__name__})") for _ in paths)
        return
    kept = {item.ReferencedSOPInstanceUID for item in said.get("ReferencedSOPSequence", None) or ()}
    failed = {
        item.ReferencedSOPInstanceUID: item.get("FailureReason")
        for item in said.get("FailedSOPSequence", None) or ()
    }
    for instance in instances:
        uid = instance.SOPInstanceUID
        if uid in failed:
            code = int(failed[uid] or 0)
            busy = 0xA700 <= code <= 0xA7FF or code == 0x0110  # out of resources; processing failure
            yield Verdict("wait" if busy else "refused", f"the archive kept it not (reason 0x{code:04X})")
        elif uid in kept:
            yield Verdict("sent")
        else:
            yield Verdict("wait", "the archive did not say that it keeps it")


def _groups(paths: Sequence[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for path in paths:
        own = path.stat().st_size
        if group and (len(group) == AT_ONCE or size + own > BYTES):
            yield group
            group, size = [], 0
        group.append(path)
        size += own
    if group:
        yield group


def _session(trust: Trust) -> Any:
    import requests

    session = requests.Session()
    if trust.authorities:
        session.verify = str(trust.authorities)
    if trust.certificate:
        session.cert = str(trust.certificate)
    if trust.token:
        try:
            token = trust.token.read_text("utf8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--token-file {trust.token} cannot be read: check the path.") from error
        if not token or len(token.split()) != 1:
            raise ValueError(f"--token-file {trust.token} holds no single token: put one line into it.")
        session.auth = _Bearer(token)
    for path in (trust.authorities, trust.certificate):
        if path and not Path(path).is_file():
            raise ValueError(f"certificate {path} does not exist: give a PEM file.")
    return session


class _Bearer:
    """Puts the token on each request; as `auth` it is dropped when a redirect leaves the host."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request
