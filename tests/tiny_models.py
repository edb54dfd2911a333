# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers models with a few thousand random numbers: dual and text encoders, a captioner."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = (
    "an axial mri ct of the head chest lung is clear describe this image what shows tumour left right".split()
)
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 64, "vocab_size": 64,
}  # fmt: skip
IMAGE = {"do_resize": True, "size": {"height": 16, "width": 16}}


def tokenizer() -> t.PreTrainedTokenizerFast:
    """Words, each a token."""
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", "<image>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 3)])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def dual_encoder(folder: Path, kind: str = "siglip") -> Path:
    """A SigLIP or CLIP of random numbers."""
    torch.manual_seed(0)
    if kind == "siglip":
        config = t.SiglipConfig(
            text_config={**TEXT, "projection_size": 16, "eos_token_id": 3}, vision_config=VISION
        )
        model, images = t.SiglipModel(config), t.SiglipImageProcessorPil(**IMAGE)
    else:
        config = t.CLIPConfig(
            text_config={**TEXT, "eos_token_id": 3}, vision_config=VISION, projection_dim=16
        )
        model, images = t.CLIPModel(config), t.CLIPImageProcessorPil(**IMAGE, do_center_crop=False)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def text_encoder(folder: Path) -> Path:
    """A BERT of random numbers, as E5 is one."""
    torch.manual_seed(0)
    t.BertModel(t.BertConfig(**TEXT)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def captioner(folder: Path) -> Path:
    """A LLaVA of random numbers."""
    torch.manual_seed(0)
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION), text_config=t.LlamaConfig(**TEXT, num_key_value_heads=2),
        image_token_index=4, vision_feature_layer=-1,
    )  # fmt: skip
    t.LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image> {% else %}"
        "{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    t.LlavaProcessor(
        image_processor=t.CLIPImageProcessorPil(**IMAGE, do_center_crop=False),
        tokenizer=tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    return folder
