# SPDX-License-Identifier: Apache-2.0
"""C-STORE and STOW-RS against archives that keep, refuse and stall; nothing of a patient in a log."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import ssl
import subprocess

import pydicom
import pytest
from delivery.conftest import NAME, ROOT, instance
from pydicom.uid import CTImageStorage, MRImageStorage

from monai_unimedvl.cli import main
from monai_unimedvl.delivery.destination import Trust, destination
from monai_unimedvl.delivery.outbox import Outbox

pynetdicom = pytest.importorskip("pynetdicom", reason="the extra delivery is not installed")


@pytest.fixture
def send(tmp_path, capfd):
    """`unimedvl send` with a queue of this test: exit code, stdout, stderr."""

    def run(*words):
        try:
            code = main(["send", *map(str, words), "--queue", str(tmp_path / "q")])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capfd.readouterr()

    return run


def test_c_store_brings_every_instance_whole(send, files, archive):
    code, out, err = send(files[0].parent, "--to", archive.to)
    assert code == 0 and out == "4 sent, 0 wait, 0 refused\n"
    assert err == "left out 1 files that are no DICOM\n"
    assert sorted(archive.kept) == [0, 1, 2, 3]
    for number, path in enumerate(files):
        assert archive.kept[number] == pydicom.dcmread(path)
    assert send()[1] == "0 sent, 0 wait, 0 refused\n" and archive.calls == 4


def test_one_bad_file_leaves_nothing_in_the_queue(send, files, archive, tmp_path):
    files[2].write_bytes(files[2].read_bytes()[:-100])
    code, out, err = send(*files, "--to", archive.to)
    assert (code, out) == (2, "") and "2.dcm is no whole DICOM instance" in err
    assert send("--list")[1] == "0 waiting\n0 refused\n" and not archive.calls


def test_an_archive_that_is_away_gets_everything_later(send, files, archive):
    with socket.socket() as closed:  # bound and not listening: nobody answers here
        closed.bind(("127.0.0.1", 0))
        away = f"dicom://ARCHIVE@127.0.0.1:{closed.getsockname()[1]}"
        code, out, _ = send(*files[:2], "--to", away, "--quiet")
    assert code == 1 and "0 sent, 2 wait, 0 refused" in out and "2 x no connection to the archive" in out
    code, out, _ = send(*files[2:], "--to", archive.to)
    assert code == 1 and "2 sent, 2 wait" in out and sorted(archive.kept) == [2, 3]
    code, out, _ = send("--list")
    assert code == 0 and out.startswith("2 waiting") and "2 tries  no connection" in out


def test_each_status_has_its_end(send, files, archive):
    statuses = {0: 0x0000, 1: 0xB000, 2: 0xA700, 3: 0xA900}
    archive.answer = statuses.__getitem__
    code, out, _ = send(*files, "--to", archive.to)
    assert code == 1 and "2 sent, 1 wait, 1 refused" in out
    assert "could not take it now (status 0xA700)" in out
    assert "1 x the archive cannot understand the object (status 0xA900)" in out
    archive.answer = lambda number: 0
    code, out, _ = send("--again")
    assert code == 0 and "2 sent" in out and sorted(archive.kept) == [0, 1, 2, 3]


def test_a_kind_that_an_archive_does_not_take_is_refused_and_the_rest_goes(send, files, archive, tmp_path):
    instance(9, CTImageStorage).save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    code, out, _ = send(*files, tmp_path / "ct.dcm", "--to", archive.to)
    assert code == 1 and "4 sent, 0 wait, 1 refused" in out and "takes no objects of this kind" in out


def test_an_archive_that_knows_us_not_lets_us_wait(send, files, archive):
    code, out, _ = send(files[0], "--to", archive.to.replace("ARCHIVE", "OTHER"))
    assert code == 1 and "refused the association" in out


def test_a_queue_goes_on_by_itself_when_asked(send, files, archive, monkeypatch):
    archive.answer = lambda number: 0xA700 if archive.calls < 6 else 0
    monkeypatch.setattr("monai_unimedvl.delivery.outbox.FIRST", 0.01)
    monkeypatch.setattr("monai_unimedvl.cli.send.LONGEST", 0.02)
    code, out, err = send(*files, "--to", archive.to, "--tries", "3")
    assert code == 0 and "4 sent" in out and "next try in" in err


def test_stow_brings_every_instance(send, files, web, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    code, out, _ = send(*files, "--to", web.to, "--token-file", tmp_path / "token")
    assert code == 0 and "4 sent" in out
    assert web.kept[3].PatientName == NAME and web.kept[3].PixelData == instance(3).PixelData
    assert web.requests[0]["Authorization"] == "Bearer secret"
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "q").rglob("*.json*"))


def test_stow_failures_have_their_ends(send, files, web):
    web.answer = {0: 0, 1: 0xA700, 2: 0xA900, 3: 0}.__getitem__
    code, out, _ = send(*files, "--to", web.to)
    assert code == 1 and "2 sent, 1 wait, 1 refused" in out
    web.answer = lambda number: 0x10000 + 503
    code, out, _ = send("--again")
    assert code == 1 and "0 sent, 2 wait, 0 refused" in out and "2 x the archive answered HTTP 503" in out
    web.answer = lambda number: 0x10000 + 400 if number == 2 else 0  # one bad one among good ones
    code, out, _ = send()
    assert code == 1 and "1 sent, 0 wait, 1 refused" in out and sorted(web.kept) == [0, 1, 3]


def test_nothing_of_a_patient_is_in_logs_or_messages(send, files, archive, web, caplog):
    caplog.set_level(logging.DEBUG)
    answers = iter([0, 0xA700, 0xA900, 0xC000] * 2)
    archive.answer = web.answer = lambda number: next(answers)
    shown = ""
    for there in (archive, web):
        _, out, err = send(*files, "--to", there.to)
        shown += out + err
    _, out, _ = send("--list", "--json")
    shown += out + caplog.text
    assert "sent" in caplog.text  # ours is there
    for secret in (NAME, "Doe", ROOT, "47QX11"):
        assert secret not in shown


BAD = [
    (["{0}", "--to", "pacs:104"], "dicom://ARCHIVE@host:104.*is expected"),
    (["{0}", "--to", "dicom://pacs:104"], "'' is no application entity title"),
    (["{0}", "--to", "dicom://A@pacs"], "is expected: name the archive so"),
    (["{0}", "--to", "dicom://ABCDEFGHIJKLMNOPQ@pacs:104"], "is no application entity title"),
    (["{0}", "--to", "dicom://A@pacs:99999"], "is expected: name the archive so"),
    (["{0}", "--to", "https://me:secret@pacs/dicom-web"], "holds a user, password or query"),
    (["{0}", "--to", "ftp://pacs"], "is expected: name the archive so"),
    (["{0}"], "files came without --to"),
    (["--to", "dicom://A@pacs:104"], "--to came without files"),
    (["absent.dcm", "--to", "dicom://A@pacs:104"], "absent.dcm does not exist"),
    (["--out", "x"], "send writes no file"),
]


@pytest.mark.parametrize("words, message", BAD, ids=range(len(BAD)))
def test_what_does_not_fit_is_one_line_and_exit_code_2(words, message, send, files):
    code, out, err = send(*(word.format(files[0]) for word in words))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert re.search(message, err), err
    assert "secret" not in err


def test_a_token_or_certificate_that_is_not_there_is_named(tmp_path, files):
    box = Outbox(tmp_path / "q")
    box.add(files[0], "https://127.0.0.1:9/dicom-web")
    for trust in (Trust(token=tmp_path / "absent"), Trust(authorities=tmp_path / "absent")):
        with pytest.raises(ValueError, match="absent"):
            box.flush(trust=trust)
    assert len(box.waiting()) == 1 and box.waiting()[0].tries == 0


def test_the_calling_title_is_kept_with_the_entry(send, files, archive, tmp_path):
    archive.answer = lambda number: 0xA700
    send(files[0], "--to", archive.to, "--calling", "STATION1")
    (entry,) = Outbox(tmp_path / "q").waiting()
    assert destination(entry.to).calling == "STATION1" and os.sep not in entry.id


def test_c_store_by_tls_trusts_only_who_it_is_told_to(send, files, tmp_path):
    """A server that signed its own certificate, and asks for ours."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    pair = tmp_path / "pair.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    made = [openssl, *words.split(), "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run(made, check=True, capture_output=True)
    pair.write_text((tmp_path / "key").read_text() + (tmp_path / "certificate").read_text())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "certificate")
    context.load_cert_chain(pair)
    context.verify_mode = ssl.CERT_REQUIRED
    entity = pynetdicom.AE("ARCHIVE")
    entity.add_supported_context(MRImageStorage)
    got = []
    handlers = [(pynetdicom.evt.EVT_C_STORE, lambda event: got.append(event.dataset) or 0)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
    to = f"dicom+tls://ARCHIVE@127.0.0.1:{server.socket.getsockname()[1]}"
    try:
        code, out, _ = send(files[0], "--to", to)
        assert code == 1 and "1 x no connection" in out and not got
        code, out, _ = send("--ca", tmp_path / "certificate", "--certificate", pair)
        assert code == 0 and "1 sent" in out and len(got) == 1
        code, _, err = send(files[1], "--to", to, "--ca", files[0])
        assert code == 2 and "a certificate cannot be used" in err
    finally:
        server.shutdown()
