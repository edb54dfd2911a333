# SPDX-License-Identifier: Apache-2.0
"""Neighbouring slices are drawn as one image, and fitted to those that are there already."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import GroupInferer, ImageInferer, VolumeInferer
from monai_unimedvl.inferers.groups import windows
from monai_unimedvl.inferers.outputs import Grey
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer

NEXT = 1e-5  # what a neighbour changes at least: more than rounding, whatever the random network


@pytest.fixture
def slices() -> list[Tensor]:
    """Three pictures (3, 16, 16): the size of the network, so that nothing is resampled."""
    return list(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(4)))


def test_runs_are_cut_into_groups_that_overlap() -> None:
    assert list(windows(iter("abcdefg"), 3, 1)) == [
        (["a", "b", "c"], 0), (["c", "d", "e"], 1), (["e", "f", "g"], 1)
    ]  # fmt: skip
    assert list(windows(iter(["a", "b", "c", "d", None, "e", None, None, "f", "g"]), 3, 2)) == [
        (["a", "b", "c"], 0), (["b", "c", "d"], 2), (["e"], 0), (["f", "g"], 0)
    ]  # fmt: skip
    assert list(windows(iter("abcd"), 3, 0)) == [(["a", "b", "c"], 0), (["d"], 0)]


def test_slices_of_a_group_see_each_other(tiny: UniMedVL, tokenizer: Tokenizer, slices: list[Tensor]) -> None:
    infer = GroupInferer(tokenizer, steps=2)
    (group,) = infer([[*slices, "plane?"]], tiny)
    assert len(group) == 3 and all(one.shape == (3, 16, 16) for one in group)
    # one slice fewer in the drawing, with the same prompt, changes the others: they are not drawn alone
    alone = [ImageInferer(tokenizer, steps=2)([[*slices, "plane?"]], tiny)[0]]
    assert float((group[2] - alone[0]).abs().max()) > NEXT
    (again,) = GroupInferer(tokenizer, steps=2)([[*slices, "plane?"]], tiny)
    assert all(torch.equal(a, b) for a, b in zip(group, again, strict=True))


def test_a_group_goes_on_after_a_group_from_what_was_given(
    tiny: UniMedVL, tokenizer: Tokenizer, slices: list[Tensor]
) -> None:
    drawn, ask = Turn("assistant", [1 - part for part in slices[:2]]), Turn("user", ["plane?"])
    infer = GroupInferer(tokenizer, count=3, steps=1)
    (from_scan,) = infer([[Turn("user", [*slices[:2], "axial"]), drawn, ask]], tiny)
    (from_words,) = infer([[Turn("user", ["axial"]), drawn, ask]], tiny)
    assert len(from_scan) == len(from_words) == 2  # not four, and not three


def test_each_slice_begins_at_its_own_source(
    tiny: UniMedVL, tokenizer: Tokenizer, slices: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    from monai_unimedvl.inferers import guided

    real = guided.pack
    monkeypatch.setattr(
        guided, "pack", lambda samples, *a, **k: seen.append(samples) or real(samples, *a, **k)
    )
    GroupInferer(tokenizer, steps=1, guidance=Guidance(text=2.0, image=2.0))([[*slices, "plane?"]], tiny)
    full, wordless, imageless = seen[0]
    sources = torch.stack([canvas.base for canvas in full])
    assert not torch.equal(sources[0], sources[1]) and [c.joined for c in full] == [False, True, True]
    assert torch.equal(sources, torch.stack([canvas.base for canvas in wordless]))
    assert all(canvas.base is None for canvas in imageless), "without images there is nothing to begin at"


def test_known_slices_stay_and_bind_the_others(
    tiny: UniMedVL, tokenizer: Tokenizer, slices: list[Tensor]
) -> None:
    infer = GroupInferer(tokenizer, steps=3)
    given = slices[1].double()
    coded = patchify(tiny.autoencoder.encode_stage_2_inputs(given[None] * 2 - 1)[0], tiny.latent_patch)
    (group,) = infer([[*slices, "plane?"]], tiny, [[given, None, None]])
    assert_close(group[0], tiny.decode(coded, (4, 4)), atol=1e-6, rtol=0)
    (other,) = infer([[*slices, "plane?"]], tiny, [[1 - given, None, None]])
    assert float((group[1] - other[1]).abs().max()) > NEXT


def test_words_alone_give_a_group_of_count(tiny: UniMedVL, tokenizer: Tokenizer) -> None:
    made = GroupInferer(tokenizer, count=2, steps=1, size=(4, 4), same_noise=False)(
        [["axial"], ["coronal"]], tiny
    )
    assert [len(group) for group in made] == [2, 2] and made[0][0].shape == (3, 4, 4)
    same = GroupInferer(tokenizer, count=2, steps=1, size=(4, 4))([["axial"]], tiny)[0]
    assert not torch.equal(same[1], made[0][1])


@pytest.mark.parametrize("same", [True, False])
def test_slices_of_a_group_begin_at_one_noise_unless_told_otherwise(
    tiny: UniMedVL, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    from monai_unimedvl.inferers import groups

    seen: list[list[Tensor]] = []
    real = groups.flow_steps
    monkeypatch.setattr(groups, "flow_steps", lambda *a, **k: seen.append(k["noise"]) or real(*a, **k))
    GroupInferer(tokenizer, count=2, steps=1, size=(4, 4), same_noise=same)([["axial"]], tiny)
    ((first, second),) = seen
    assert torch.equal(first, second) == same


def test_groups_of_a_volume_are_fitted_to_the_last_slices_of_the_one_before(
    tiny: UniMedVL, tokenizer: Tokenizer
) -> None:
    made: list[tuple[list[Tensor | None], list[Tensor]]] = []

    class Watched(GroupInferer):
        def __call__(self, batch, network, known=None):  # type: ignore[no-untyped-def, override]
            (drawn,) = super().__call__(batch, network, known)
            made.append((list(known[0]), drawn))
            return [drawn]

    values = MetaTensor(torch.rand(1, 8, 8, 5), affine=torch.eye(4))
    VolumeInferer(Watched(tokenizer, count=3, overlap=1, steps=1), output=Grey("one"))(values, tiny, "plane?")
    (nothing, first), (fitted, _) = made
    assert nothing == [None] * 3 and fitted[1:] == [None, None]
    assert fitted[0] is first[2]


def test_a_volume_is_drawn_in_groups(tiny: UniMedVL, tokenizer: Tokenizer) -> None:
    values = torch.rand(1, 8, 8, 7)
    values[..., 5] = 0  # ends a run; the last slice is alone
    infer = VolumeInferer(GroupInferer(tokenizer, count=3, overlap=1, steps=2), output=Grey("one"))
    result = infer(MetaTensor(values, affine=torch.eye(4)), tiny, "plane?").as_subclass(Tensor)
    alone = VolumeInferer(ImageInferer(tokenizer, steps=2), output=Grey("one"))
    separate = alone(MetaTensor(values, affine=torch.eye(4)), tiny, "plane?").as_subclass(Tensor)
    assert result.shape == values.shape and float(result[..., 5].abs().max()) == 0
    assert_close(result[..., 6], separate[..., 6])
    assert all(float((result[..., i] - separate[..., i]).abs().max()) > NEXT for i in range(5))


def test_what_makes_no_group_is_refused(tiny: UniMedVL, tokenizer: Tokenizer, slices: list[Tensor]) -> None:
    for arguments, message in [
        ({"count": 1}, "count=1, overlap=1, expected 2 or more"),
        ({"overlap": 3}, "overlap=3, expected 2 or more slices and an overlap below them"),
        ({"think": True}, "think=True, which is for single drawings"),
    ]:
        with pytest.raises(ValueError, match=message):
            GroupInferer(tokenizer, **arguments)
    infer = GroupInferer(tokenizer, steps=1)
    with pytest.raises(ValueError, match="prompt 0 has 1 images of 1 sizes, but a group has two or more"):
        infer([[slices[0], "x"]], tiny)
    with pytest.raises(ValueError, match="2 known slices for a group of 3"):
        infer([[*slices, "x"]], tiny, [[None, None]])
    for wrong, message in ((slices[0] * 255, r"expected"), (slices[0] * math.nan, "NaN")):
        with pytest.raises(ValueError, match=f"a known slice has .*{message}"):
            infer([[*slices, "x"]], tiny, [[None, wrong, None]])
    with pytest.raises(ValueError, match="known slices of 2 prompts, expected 1"):
        infer([[*slices, "x"]], tiny, [[], []])
