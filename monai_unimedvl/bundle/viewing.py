# SPDX-License-Identifier: Apache-2.0
"""What the stock bundle app of MONAI Label calls in our bundles: a picture in, numbers a pixel and words out.

That app hands a mapping from step to step (`pre_transforms`), gives the inferer a tensor and `network_def`,
writes the prediction as one image, and what it finds under "result" as JSON (`post_transforms`).
  N pictures   H rows   W columns   h, w drawn ones
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.tensor_path import TensorPath
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.transforms.choosing import Choice, choose, modality_of, place
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.image import resize
from monai_unimedvl.transforms.masks import ColoursToLabels
from monai_unimedvl.transforms.stored import place_of

RESULT = "result"  # where MONAI Label looks for what goes out as JSON
FLAT = np.diag(
    [-1.0, -1.0, 1.0, 1.0]
)  # from columns and rows of a picture without a place to RAS, as ITK has it


class OnePictured(MapTransform):
    """A file as the picture that the model sees; of a volume the middle slice.

    Args:
        keys: of the paths.
        modality: of files that do not say, such as NIfTI.
    """

    def __init__(self, keys: KeysCollection, modality: str = "mri") -> None:
        super().__init__(keys)
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """{key: path} -> {key: (3, H, W) in [0, 1]}, with "original_affine" from (column, row, slice) to RAS

        Raises:
            ValueError: a file that is no image.
        """
        made = dict(data)
        for key in self.key_iterator(made):
            path = Path(made[key])
            try:
                modality, _ = modality_of(path)
            except ValueError:
                if not path.exists():
                    raise
                modality = self.modality
            (picture, *_), _ = choose(path, Choice(modality, slice="middle", square=True))
            whole = put_back(picture, picture)
            place = place_of(whole)
            picture.meta["original_affine"] = FLAT if place is None else place
            made[key] = picture
        return made


class Instructed(Inferer):
    """An inferer of prompts for callers that have pictures and a network, and no words.

    Args:
        inferer: what draws; None gives an empty mask, for bundles that only speak.
        words: the instruction.
        reads: False draws from the words alone, one drawing a picture.
    """

    def __init__(self, inferer: ImageInferer | None, words: str = "", *, reads: bool = True) -> None:
        super().__init__()
        self.inferer, self.words, self.reads = inferer, words, reads

    def __call__(  # type: ignore[override]
        self, inputs: Tensor | Sequence[Prompt], network: UniMedVL | TensorPath, *args: Any, **kwargs: Any
    ) -> Any:
        """(N, 3, H, W) in [0, 1] -> (N, 3, H, W); prompts go through as they are."""
        inner = network.network if isinstance(network, TensorPath) else network
        if not isinstance(inputs, Tensor):
            assert self.inferer is not None
            return self.inferer(inputs, inner)
        pictures = [one.as_subclass(Tensor) for one in inputs]
        if self.inferer is None:
            return torch.zeros_like(inputs.as_subclass(Tensor))
        prompts: list[Prompt] = [[one, self.words] if self.reads else [self.words] for one in pictures]
        drawn = self.inferer(prompts, inner)
        width, height = inputs.shape[-1], inputs.shape[-2]
        return torch.stack([resize(one.cpu(), (width, height), (0.0, 1.0)) for one in drawn])


class AsNumbersd(MapTransform):
    """A drawing as one number a pixel, on the pixels of the file: labels where it is a mask, else greys.

    Args:
        keys: of the drawings.
        image: of the picture that it was drawn from.
        instruction: that was followed; those of masks say which colours mean what.
    """

    def __init__(self, keys: KeysCollection, image: str = "image", instruction: str = "") -> None:
        super().__init__(keys)
        self.image = image
        task = next((name for name, words in INSTRUCTIONS.items() if words == instruction), "")
        self.legend = LEGENDS.get(task)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """{key: (3, h, w) in [0, 1]} -> {key: (W, H) or, with a place in mm, (W, H, 1) uint8}"""
        made = dict(data)
        picture = made[self.image]
        for key in self.key_iterator(made):
            drawn = made[key].as_subclass(Tensor).cpu()
            made[RESULT] = {**(made.get(RESULT) or {}), "synthetic": True}
            if self.legend is not None:
                flat = put_back(ColoursToLabels(self.legend, None).labels(drawn), picture)
                names = {name: n for n, name in enumerate(self.legend, 1)}
                made[RESULT]["labels"] = names
            else:
                flat = (put_back(drawn, picture).mean(0).clamp(0, 1) * 255).round()
            values = flat.as_subclass(Tensor).to(torch.uint8).T
            placed = (picture.meta.get("source") or {}).get("affine") is not None
            made[key] = values[..., None] if placed else values
        return made


class AskAboutd(MapTransform):
    """Answers about a picture, under "result": {"answer": ..., "read": ...}.

    Args:
        keys: of the picture.
        inferer: what answers.
        network: the model.
        questions: name in the result -> question.
    """

    def __init__(
        self, keys: KeysCollection, inferer: TextInferer, network: UniMedVL, questions: Mapping[str, str]
    ) -> None:
        super().__init__(keys)
        self.inferer, self.network, self.questions = inferer, network, dict(questions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new mapping with the answers in it."""
        made = dict(data)
        for key in self.key_iterator(made):
            picture = made[key].as_subclass(Tensor)
            answers = self.inferer([[picture, words] for words in self.questions.values()], self.network)
            said = {name: one.text for name, one in zip(self.questions, answers, strict=True)}
            where = place(made[key].meta["source"])
            made[RESULT] = {**(made.get(RESULT) or {}), **said, "read": where, "synthetic": True}
        return made
