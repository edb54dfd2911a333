# SPDX-License-Identifier: Apache-2.0
"""What the findings of the two curves say in words, held against the committed results: pruning and drawing.

With other weights of the bundle these fail where a sentence of `findings/e.md` or `f.md` no longer holds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from science import comparisons, plan  # noqa: E402
from science.comparisons import Curve, Shift, heading, read_items, volumes  # noqa: E402

NEW, SLABS, SEEN = (
    f"{name}: exact match" for name in ("volumes never trained on", "held-out slabs", "training volumes")
)
LIKE, RANDOM = ", those that repeat", ", at random"
SHARES = ("0.2", "0.4", "0.55", "0.7", "0.8", "0.88")
EDITS = {
    heading((f"{section}/{task}", metric))
    for section, task, metric in (
        ("test", "sr4", "PSNR"), ("test", "sr4", "SSIM"), ("test_subject", "sr4", "PSNR"),
        ("test_subject", "sr4", "SSIM"), ("test", "seg-tissue", "Dice"), ("test", "t1-to-t2", "PSNR"),
        ("test", "t1-to-t2", "SSIM"),
    )
}  # fmt: skip


@cache
def results() -> comparisons.Results:
    return comparisons.Results(plan.RESULTS)


@cache
def curves(letter: str) -> list[Curve]:
    return results().curves(plan.question(letter))


def curve(letter: str, column: str) -> tuple[Curve, dict[str, Shift]]:
    """The curve that holds a column, and the shift of each setting in it to the base."""
    for found in curves(letter):
        for one in found.columns:
            if heading(one) == column:
                return found, {name: x for (name, c), x in found.shifts.items() if c == one}
    raise LookupError(column)


def twins(column: str, ending: str) -> dict[str, Shift]:
    """Question e: each setting with an ending against its twin, or with "every setting" against the guess."""
    found, _ = curve("e", column)
    (shifts,) = [x for (one, _), x in found.twins.items() if one == ending]
    return {name: x for (name, c), x in shifts.items() if heading(c) == column}


def shown(shifts: Mapping[str, Shift], ending: str) -> list[str]:
    """The shares at which a way of dropping is told from what it is held against."""
    return [name.split()[0] for name, x in shifts.items() if name.endswith(ending) and x.adjusted < 0.05]


def test_e_dropping_tokens_is_not_shown_to_cost_answers() -> None:
    end = f"0.88 of the tokens{LIKE}"
    lowest = []
    for column in (NEW, SLABS, SEEN):
        _, found = curve("e", column)
        pruned = {name: x for name, x in found.items() if name.endswith((LIKE, RANDOM))}
        assert len(pruned) == 2 * len(SHARES) and not shown(pruned, LIKE) and not shown(pruned, RANDOM)
        lowest.append(min(pruned.values(), key=lambda x: x.adjusted).adjusted)
        half = pruned[f"0.55 of the tokens{LIKE}"].difference
        assert -0.04 < half.low < half.value < 0 <= half.high  # "a loss of three points is not ruled out"
        assert (half.low < -0.025) == (column != SEEN)
        assert (pruned[end].difference.high < 0) == (column != SLABS)
    assert min(lowest) == curve("e", NEW)[1][end].adjusted
    assert curve("e", NEW)[1][end].difference.p < 0.05


def test_e_the_model_is_above_the_guess_but_not_shown_to_be_in_slabs() -> None:
    new, seen = (twins(column, "every setting") for column in (NEW, SEEN))
    assert [name for name, x in new.items() if x.adjusted >= 0.05] == [f"0.88 of the tokens{LIKE}"]
    assert all(x.difference.value > 0 for x in (*new.values(), *seen.values()))
    assert new["all tokens"].by_volume >= 0.05 and seen["all tokens"].difference.b == 1
    slabs = twins(SLABS, "every setting")
    assert all(x.difference.value < 0 and x.adjusted >= 0.05 for x in slabs.values())


def test_e_neither_way_of_dropping_is_shown_to_be_better() -> None:
    rows = {column: twins(column, LIKE) for column in (NEW, SLABS, SEEN)}
    assert all(x.adjusted >= 0.05 and x.by_volume >= 0.05 for found in rows.values() for x in found.values())
    new = {name.split()[0]: x.difference for name, x in rows[NEW].items()}
    assert [share for share in SHARES if new[share].high < 0] == ["0.88"]
    slabs = {name.split()[0]: x.difference.value for name, x in rows[SLABS].items()}
    assert [share for share in SHARES if slabs[share]] == ["0.2"]
    dropped = curve("e", NEW)[0].found["measured"]
    for name in ("volumes never trained on", "held-out slabs", "training volumes"):
        where = f"{name}/runs of slices/{SHARES[0]} of the tokens"
        ways = [dropped[f"{where}{ending}"]["dropped"] for ending in (LIKE, RANDOM)]
        assert ways[0] > ways[1] + 0.03


def test_f_edits_want_few_evaluations() -> None:
    for column in EDITS:
        found, shifts = curve("f", column)
        assert found.base == "2 steps" and set(shifts) == {"1 step", "4 steps", "8 steps", "20 steps"}
        one, four, eight, twenty = shifts.values()
        assert twenty.adjusted < 0.05 and round(twenty.difference.p * 2001, 6) == 1
        assert (eight.adjusted < 0.05) == (column != "t1-to-t2, slab: PSNR")
        assert (four.adjusted < 0.05) == (column != "sr4, subject: SSIM" and not column.startswith("t1"))
        assert (one.adjusted < 0.05) == (column not in ("t1-to-t2, slab: PSNR", "seg-tissue, slab: Dice"))
        assert (one.difference.value > 0) == (column == "seg-tissue, slab: Dice")
        assert (four.difference.value > 0) == (column == "t1-to-t2, slab: SSIM")
        assert max(eight.difference.value, twenty.difference.value) < 0
        (place,) = [c for c in found.columns if heading(c) == column]
        beside = found.found["baselines"]["/".join(place)]
        simple = max(beside.get("lookup", 0), beside.get("bicubic", 0))
        assert simple and min(x.difference.b for x in shifts.values()) > simple
    listed = read_items(plan.RESULTS, curves("f")[0].found["items"])
    assert len(volumes(picture for _, picture in listed["test/seg-tissue"])) == 5  # 2 / 2**5 = 0.0625
    assert curve("f", "seg-tissue, slab: Dice")[1]["20 steps"].by_volume == 0.0625
    assert curve("f", "t1-to-t2, slab: PSNR")[1]["20 steps"].by_volume == 1.0


def test_f_no_setting_of_drawings_is_told_from_the_shipped_one() -> None:
    slab, subject = (f"text-to-image, {name}: contrast and plane" for name in ("slab", "subject"))
    found, shifts = curve("f", slab)
    assert found.base == "20 steps, guidance 2" and len(shifts) == 19
    assert all(x.adjusted == 1.0 for x in found.shifts.values())
    largest = max(found.shifts.values(), key=lambda x: abs(x.difference.value))
    assert largest is shifts["2 steps, guidance 5"]
    names = ("2 steps", "4 steps", "8 steps", "20 steps")
    bare = [shifts[name].difference for name in names]
    new = [curve("f", subject)[1][name].difference for name in names]
    assert bare[0].b < bare[1].b < bare[2].b == bare[3].b and new[0].b < new[1].b == new[3].b < new[2].b
    assert max(x.value for x in (*bare, *new)) < 0 and min(x.value for x in (*bare, *new)) == new[0].value
    few = 0.05 / len(found.shifts)  # the first bound of Holm; k changes, all one way, have p = 2 / 2**k
    needed = next(k for k in range(1, 49) if 2 / 2**k < few)
    assert 0.2 < needed / bare[0].n < 0.3
    for column, same in ((slab, "ceiling"), (subject, "nearest training image")):
        (place,) = [c for c in found.columns if heading(c) == column]
        beside = found.found["baselines"]["/".join(place)]
        shipped = curve("f", column)[1]["2 steps"].difference.a
        rest = {name: beside[name] - shipped for name in ("ceiling", "nearest training image")}
        assert abs(rest.pop(same)) < 1e-3  # baselines have four digits
        assert all((x > 0) == (name == "nearest training image") for name, x in rest.items())


def test_f_near_copies_are_few_and_where_the_finding_says() -> None:
    copies = {}
    for name in ("slab", "subject"):
        _, shifts = curve("f", f"text-to-image, {name}: near copy")
        copies[name] = {setting: round(x.difference.b * x.difference.n) for setting, x in shifts.items()}
        copies[name]["as shipped"] = round(shifts["2 steps"].difference.a * shifts["2 steps"].difference.n)
    slab, subject = copies["slab"], copies["subject"]
    assert max(slab.values()) == slab["4 steps, guidance 2"] == 4 and slab["as shipped"] == 3
    none = {f"2 steps, guidance {g}" for g in (2, 3, 5)} | {"4 steps, guidance 5"}
    assert {setting for setting, number in slab.items() if not number} == none
    assert max(subject.values()) == subject["4 steps, guidance 2"] == 3 and subject["as shipped"] == 1
    for setting, number in subject.items():
        told = re.search(r"guidance ([\d.]+)", setting)
        guidance = 2.0 if setting == "as shipped" else 1.0 if told is None else float(told[1])
        assert (number == 0) == (guidance == 1 or guidance >= 3)
