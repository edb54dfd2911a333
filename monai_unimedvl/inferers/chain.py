# SPDX-License-Identifier: Apache-2.0
"""Asking and drawing as steps of a MONAI chain: behind a stock network, in `Compose` or an engine."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from monai_unimedvl.inferers.inferers import TextInferer
from monai_unimedvl.inferers.volume import PlacedAnswer, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.transforms.image import ToRGB


class Answerd(MapTransform):
    """Ask about the picture or volume under each key; the answer, as text, comes under another key.

    Args:
        keys: of pictures (1 or 3, H, W) in [0, 1], or, with a `VolumeInferer`, of volumes (1, X, Y, Z).
            `LoadImaged` gives flat pictures as (C, W, H): put `Transposed(keys, [0, 2, 1])` behind it.
        inferer: a `TextInferer`, or a `VolumeInferer` of one.
        network: the model; it stays outside of the chain's cache.
        question: what is asked.
        names: where the answers go, one a key; "answer" for a single key.
        allow_missing_keys: pass over keys that are not there.

    Raises:
        ValueError: not one name a key.
    """

    def __init__(
        self, keys: KeysCollection, inferer: TextInferer | VolumeInferer, network: UniMedVL, question: str, *,
        names: KeysCollection = "answer", allow_missing_keys: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(keys, allow_missing_keys)
        self.names = (names,) if isinstance(names, str) else tuple(names)  # type: ignore[arg-type]
        if len(self.names) != len(self.keys):
            raise ValueError(
                f"Answerd got {len(self.names)} names for {len(self.keys)} keys, expected one each."
            )
        self.inferer, self.network, self.question = inferer, network, question

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new mapping with the answers in it; several answers about one volume are lines."""
        result = dict(data)
        for key, name in self.key_iterator(result, self.names):
            result[name] = self._answer(result[key])
        return result

    def _answer(self, image: Any) -> str:
        if isinstance(self.inferer, VolumeInferer):
            answers = self.inferer(image, self.network, self.question)
            assert isinstance(answers, list)
            return "\n".join(str(one) for one in answers if isinstance(one, PlacedAnswer))
        picture = ToRGB()(image if isinstance(image, Tensor) else MetaTensor(torch.as_tensor(image)))
        (answer,) = self.inferer([[picture, self.question]], self.network)
        return answer.text


AnswerD = AnswerDict = Answerd
