# SPDX-License-Identifier: Apache-2.0
"""The queue loses nothing: whatever the archive says, and wherever the power goes."""

from __future__ import annotations

import builtins
import os
import re
from datetime import UTC, datetime, timedelta

import pydicom
import pytest

from monai_unimedvl.delivery import outbox as module
from monai_unimedvl.delivery.destination import Verdict
from monai_unimedvl.delivery.outbox import Outbox, instances

TO = "dicom://ARCHIVE@127.0.0.1:11112"


class Sink:
    """A sender that says what it is told to, and remembers the bytes it was given."""

    def __init__(self, *verdicts):
        self.verdicts, self.got, self.kept = verdicts or (Verdict("sent"),), [], []

    def __call__(self, to, paths, trust):
        for number, path in enumerate(paths):
            self.got.append(path.read_bytes())
            verdict = self.verdicts[number % len(self.verdicts)]
            if verdict.state == "sent":
                self.kept.append(self.got[-1])
            yield verdict


def test_what_is_added_is_sent_once_with_a_receipt(tmp_path, files):
    box, sink = Outbox(tmp_path / "q"), Sink()
    for path in [*files, files[0]]:  # adding twice changes nothing
        box.add(path, TO)
    assert len(box.waiting()) == 4
    done = box.flush(sender=sink)
    assert (done.sent, done.waiting, done.refused) == (4, 0, 0)
    assert sorted(sink.got) == sorted(path.read_bytes() for path in files)
    assert box.flush(sender=sink).sent == 0
    assert (tmp_path / "q" / "sent.jsonl").read_text().count("\n") == 4
    assert not list((tmp_path / "q" / "waiting").iterdir())


def test_what_could_not_be_sent_waits_longer_each_time(tmp_path, files, monkeypatch):
    box, now = Outbox(tmp_path / "q"), datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(module, "_now", lambda: now)
    box.add(files[0], TO)
    pauses = []
    for _ in range(13):
        assert box.flush(sender=Sink(Verdict("wait", "no connection"))).waiting == 1
        pauses.append(box.due_in())
        early = now + timedelta(seconds=pauses[-1] - 1)
        monkeypatch.setattr(module, "_now", lambda at=early: at)
        idle = Sink()
        assert box.flush(sender=idle).waiting == 1 and not idle.got  # not due yet
        now = early + timedelta(seconds=1)
        monkeypatch.setattr(module, "_now", lambda at=now: at)
    assert pauses[:4] == [5, 10, 20, 40] and pauses[-1] == 3600
    (entry,) = Outbox(tmp_path / "q").waiting()  # another process sees the same
    assert entry.tries == 13 and entry.why == "no connection"
    assert box.flush(sender=Sink()).sent == 1


def test_what_is_refused_is_kept_apart_until_it_is_asked_for_again(tmp_path, files):
    box = Outbox(tmp_path / "q")
    for path in files:
        box.add(path, TO)
    done = box.flush(sender=Sink(Verdict("sent"), Verdict("refused", "kind not supported")))
    assert (done.sent, done.waiting, done.refused) == (2, 0, 2)
    assert {entry.why for entry in box.refused()} == {"kind not supported"}
    assert box.again() == 2 and len(box.waiting()) == 2 and not box.refused()
    assert box.flush(sender=Sink()).sent == 2


def test_a_power_cut_at_any_step_loses_nothing(tmp_path, files, monkeypatch):
    """Every call that changes the disk is the last one, in turn; then the queue is opened again."""

    class Cut(BaseException):
        pass

    os_fsync = os.fsync

    def run(folder, cut_at):
        """Add and send all; returns what was accepted, what the archive keeps, and whether power went."""
        calls = 0
        accepted, sink = [], Sink(Verdict("sent"), Verdict("wait", "busy"), Verdict("refused", "kind"))

        def counted(real):
            def call(*words, **options):
                nonlocal calls
                calls += 1
                if calls >= cut_at:
                    raise Cut
                return None if real is os_fsync else real(*words, **options)  # nobody pulls the plug here

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "fsync", "write"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                box = Outbox(folder)
                for path in files:
                    box.add(path, TO)
                    accepted.append(path.read_bytes())
                box.flush(sender=sink)
            except Cut:
                return accepted, sink.kept, True
        return accepted, sink.kept, False

    for cut_at in range(1, 200):
        folder = tmp_path / f"q{cut_at}"
        accepted, before, cut = run(folder, cut_at)
        box, after = Outbox(folder), Sink()
        box.again()
        box.flush(sender=after, all_now=True)
        assert not box.waiting() and not box.refused()
        assert set(accepted) <= {*before, *after.kept}, f"lost by a cut at call {cut_at}"
        if not cut:
            break
    assert not cut and cut_at > 40


def test_only_one_process_sends_at_a_time(tmp_path, files):
    box = Outbox(tmp_path / "q")
    box.add(files[0], TO)

    def busy(to, paths, trust):
        with pytest.raises(ValueError, match="another process is sending from"):
            Outbox(tmp_path / "q").flush(sender=Sink())
        yield Verdict("sent")

    assert box.flush(sender=busy).sent == 1


def test_a_full_disk_is_said_and_nothing_half_written_is_left(tmp_path, files, monkeypatch):
    box, opened = Outbox(tmp_path / "q"), builtins.open

    def full(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="0.dcm cannot be put into the queue .No space left"):
        box.add(files[0], TO)
    assert not box.waiting() and opened


def test_files_are_found_in_folders_and_others_refused(tmp_path, files):
    assert instances([files[0].parent]) == (files, 1)
    with pytest.raises(ValueError, match="manifest.json is no DICOM file"):
        instances([files[0].parent / "manifest.json"])
    with pytest.raises(ValueError, match="absent does not exist"):
        instances([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no DICOM file"):
        instances([tmp_path / "empty"])
    (tmp_path / "cut.dcm").write_bytes(files[0].read_bytes()[:300])
    with pytest.raises(ValueError, match="cut.dcm is no whole DICOM instance"):
        Outbox(tmp_path / "q").add(tmp_path / "cut.dcm", TO)


def test_what_no_model_made_is_not_sent(tmp_path, files):
    box, header = Outbox(tmp_path / "q"), pydicom.dcmread(files[0])
    del header.SyntheticData
    header.save_as(tmp_path / "real.dcm")
    with pytest.raises(ValueError, match="real.dcm is not marked as synthetic"):
        box.add(tmp_path / "real.dcm", TO)
    box.add(tmp_path / "real.dcm", TO, unmarked=True)
    assert len(box.waiting()) == 1


def test_names_in_the_queue_are_hashes(tmp_path, files):
    box = Outbox(tmp_path / "q")
    box.add(files[0], TO)
    box.flush(sender=Sink(Verdict("wait", "busy")))
    box.add(files[1], TO)
    box.flush(sender=Sink(Verdict("sent")))
    for path in (tmp_path / "q").rglob("*"):
        assert re.fullmatch(r"[0-9a-f]{24}\.(dcm|json)|waiting|refused|lock|sent\.jsonl", path.name)
        if path.suffix in (".json", ".jsonl"):
            assert "Doe" not in path.read_text() and "1.2.826" not in path.read_text()
