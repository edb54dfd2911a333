# SPDX-License-Identifier: Apache-2.0
"""Instances to an archive by C-STORE (DICOM PS3.4, annex B), through pynetdicom."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_unimedvl.delivery.destination import Destination, Trust, Verdict, hushed
from monai_unimedvl.packages import needed

AT_ONCE = 100  # instances in one association; it may propose 128 contexts
CONNECT, ANSWER = 10, 60  # seconds
# PS3.7 annex C and PS3.4 B.2.3: what no later try will change.
NEVER = {
    0x0117: "invalid instance",
    0x0122: "kind of object not supported",
    0x0211: "unrecognised operation",
    0x0212: "mistyped argument",
}


def c_store(to: Destination, paths: Sequence[Path], trust: Trust | None = None) -> Iterator[Verdict]:
    """A verdict for each file, in order, as the archive answers.

    Raises:
        ValueError: a certificate that cannot be read.
    """
    for first in range(0, len(paths), AT_ONCE):
        with hushed():
            yield from _associate(to, paths[first : first + AT_ONCE], trust or Trust())


def _associate(to: Destination, paths: Sequence[Path], trust: Trust) -> Iterator[Verdict]:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    entity = needed("pynetdicom", "C-STORE", "delivery").AE(ae_title=to.calling)
    entity.connection_timeout = entity.acse_timeout = CONNECT
    entity.dimse_timeout = entity.network_timeout = ANSWER
    wanted: dict[tuple[str, str], None] = {}
    for path in paths:
        meta = pydicom.filereader.read_file_meta_info(path)
        for syntax in (str(meta.TransferSyntaxUID), ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            wanted.setdefault((str(meta.MediaStorageSOPClassUID), syntax))
    for kind, syntax in wanted:  # one syntax each: else the archive chooses one that the file is not in
        entity.add_requested_context(kind, syntax)
    secure = (_context(trust), to.host) if to.scheme == "dicom+tls" else None
    link = entity.associate(to.host, to.port, ae_title=to.called, tls_args=secure)
    if not link.is_established:
        why = "the archive refused the association" if link.is_rejected else "no connection to the archive"
        yield from (Verdict("wait", why) for _ in paths)
        return
    try:
        for path in paths:
            if not link.is_established:
                yield Verdict("wait", "the archive broke the association off")
                continue
            try:
                yield _verdict(link.send_c_store(path))
            except ValueError:
                yield Verdict("refused", "the archive takes no objects of this kind and transfer syntax")
            except RuntimeError:
                yield Verdict("wait", "the archive broke the association off")
    finally:
        if link.is_established:
            link.release()


def _verdict(answer: Any) -> Verdict:
    code = answer.get("Status")
    code = getattr(code, "value", code)
    if code is None:
        return Verdict("wait", "the archive did not answer")
    if code == 0x0000 or 0xB000 <= code <= 0xBFFF or code in (0x0001, 0x0107, 0x0116):  # warnings: it is kept
        return Verdict("sent")
    if code in NEVER:
        return Verdict("refused", f"{NEVER[code]} (status 0x{code:04X})")
    if 0xA900 <= code <= 0xA9FF or 0xC000 <= code <= 0xCFFF:
        return Verdict("refused", f"the archive cannot understand the object (status 0x{code:04X})")
    return Verdict("wait", f"the archive could not take it now (status 0x{code:04X})")


def _context(trust: Trust) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=trust.authorities)
        if trust.certificate:
            context.load_cert_chain(trust.certificate)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"a certificate cannot be used ({reason}): give PEM files.") from error
    return context
