# SPDX-License-Identifier: Apache-2.0
"""What a request of the OpenAI interface may say, and nothing else: an unknown field is an error.

Fields that OpenAI does not have (`top_k`, `repetition_penalty`, `think`, `steps`, `guidance`) go into the
client's `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**63, description="of the chance in it")]
Words = Annotated[str, Field(min_length=1, max_length=20_000)]


class Strict(BaseModel):
    """No coercion, no unknown fields, no numbers that are none."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=100_000)]


class ImageUrl(Strict):
    """An image inside the request: a data URL in base64. Nothing is fetched from anywhere."""

    url: Annotated[str, Field(min_length=1, json_schema_extra={"pattern": "^data:"})]
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Instruction(Strict):
    """What is told before the dialogue."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class User(Strict):
    """A turn of the user: words and images in order."""

    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None


class Assistant(Strict):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


Message = Annotated[Instruction | User | Assistant, Field(discriminator="role")]


class StreamOptions(Strict):
    """Whether the last piece of a stream tells the usage."""

    include_usage: bool = False


class Format(Strict):
    """Plain text only."""

    type: Literal["text"]


class Chat(Strict):
    """A request of /v1/chat/completions. Greedy by default (`temperature` 0)."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    think: bool = False
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    seed: Seed | None = None
    stop: Words | Annotated[list[Words], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0, description="0: not offered")] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0, description="0: not offered")] | None = None
    response_format: Format | None = None
    user: Annotated[str, Field(description="not kept, not logged")] | None = None


class Generation(Strict):
    """A request of /v1/images/generations."""

    prompt: Words
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    guidance: Annotated[float, Field(ge=1, le=20)] | None = None
    user: Annotated[str, Field(description="not kept, not logged")] | None = None


class Said(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: Said


class TopLogprob(BaseModel):
    """One of the likeliest words of a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A word with its natural log-probability under the model itself, before temperature."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Of all words of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class Reply(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: Reply
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None


class CachedTokens(BaseModel):
    """Tokens of the prompt that were not read anew."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens, marks included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Completion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    provenance: dict[str, Any] = Field(description="what is synthetic, and which weights made it")


class Image(BaseModel):
    """One image: a PNG in base64 that carries the mark of what is synthetic."""

    b64_json: str
    revised_prompt: str | None = None
    provenance: dict[str, Any]


class Images(BaseModel):
    """The answer of /v1/images/generations and /v1/images/edits."""

    created: int
    data: list[Image]
    output_format: Literal["png"] = "png"


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "monai-unimedvl"
    weights: str = Field(description="sha256")


class Models(BaseModel):
    """All that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether the network still answers, and how much there is to do."""

    status: Literal["ok", "failed"]
    model: str
    answers_waiting: int
    answers_running: int
    drawings_waiting: int
    drawings_running: int
