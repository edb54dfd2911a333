# SPDX-License-Identifier: Apache-2.0
"""The two loops of inference: the next words, and the steps of a flow.

Both are generators that yield as they go.

  B samples that still speak   V vocabulary   D hidden size
  N drawings   Z latent tokens of all drawings   C numbers a latent token
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_unimedvl import flow
from monai_unimedvl.inferers.context import Context
from monai_unimedvl.inferers.guided import Guided
from monai_unimedvl.networks.decoding import NextWord


@dataclass(frozen=True)
class Sampling:
    """How the next word is chosen, by the processors of transformers.

    Args:
        max_new_tokens: words of an answer at most.
        temperature: 0 takes the likeliest word; above, words are drawn from softmax(logits / temperature).
        top_k: draw among that many likeliest words; 0 for all.
        top_p: draw among the likeliest words that together have this probability.
        repetition_penalty: above 1 words that the answer already has become less likely. The prompt's words
            do not count: naming what was asked about is no repetition.

    Raises:
        ValueError: a value out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 is off)"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {wanted}: change it.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest word is taken, without chance."""
        return self.temperature == 0

    @cached_property
    def processors(self) -> Any:
        """A `LogitsProcessorList`, or None where there is nothing to do."""
        sampled = not self.greedy
        if not sampled and self.repetition_penalty == 1:
            return None
        from transformers.generation import logits_process as hf  # seconds to import: only who needs it pays

        steps: list[Any] = []
        if self.repetition_penalty != 1:
            steps.append(hf.RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if sampled:
            steps += [_below_zero, hf.TemperatureLogitsWarper(float(self.temperature))]
            if self.top_k:
                steps.append(hf.TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                steps.append(hf.TopPLogitsWarper(self.top_p))
        return hf.LogitsProcessorList(steps)


class Word(NamedTuple):
    """One word of one sample, its log-probability before any processor, and why it is the last, or None.

    `stop` is "end" (the model said so), "length" (max_new_tokens) or "context" (no room for more). `id` is
    None with "end", and with "context" where there was no room for a single word.
    """

    sample: int
    id: int | None
    logprob: float
    stop: str | None = None


@torch.no_grad()
def words(
    context: Context,
    options: Sampling,
    generators: Sequence[torch.Generator] | None = None,
    samples: Sequence[int] | None = None,
) -> Iterator[list[Word]]:
    """The answers of `samples`, word by word; a sample that has finished is no longer computed.

    The context goes on with the answers: after the loop it is as if they had been read (see `Context.close`).

    Args:
        generators: one on the CPU for each sample, so that no answer depends on its neighbours; None will
            do when greedy.
        samples: who speaks; None for all samples of the context.

    Raises:
        ValueError: the network's scores are not numbers.
    """
    network, cache, marks = context.network, context.cache, context.marks
    context.close()
    room = network.decoder.max_context
    active = list(range(len(context)) if samples is None else samples)
    chance = dict(zip(active, generators, strict=True)) if generators is not None else {}
    full = [s for s in active if cache.lengths[s] + 3 > room]  # text_start, a word and text_end
    if full:
        yield [Word(s, None, 0.0, "context") for s in full]
        active = [s for s in active if s not in full]
    if active:
        longest = max(cache.lengths[s] for s in active)
        cache.reserve(min(longest + min(options.max_new_tokens, 256) + 2, room))
    device = network.decoder.embed.weight.device
    ids = torch.full((len(active),), marks.text_start, device=device)
    said = ids.new_empty(len(active), 0)  # (B, n)
    next_word = NextWord(network)
    while active:
        logits = next_word(ids, active, cache)  # (B, V)
        ids = choose(logits, options, said, [chance[s] for s in active] if chance else None)  # (B,)
        logprobs = logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)  # (B,)
        spoken, staying = [], []
        for row, (s, id_, logprob) in enumerate(zip(active, ids.tolist(), logprobs.tolist(), strict=True)):
            if logprob != logprob:
                raise ValueError(
                    "The network's scores are not numbers (NaN): check its weights and the images."
                )
            stop = None
            if id_ == marks.text_end:
                stop = "end"
            elif said.shape[1] + 1 == options.max_new_tokens:
                stop = "length"
            elif cache.lengths[s] + 3 > room:  # this word, the next, text_end
                stop = "context"
            if stop is None:
                staying.append(row)
            else:
                context.unread[s] = [id_] if stop == "end" else [id_, marks.text_end]
            spoken.append(Word(s, None if stop == "end" else id_, logprob, stop))
        if options.processors is not None:
            said = torch.cat([said, ids.unsqueeze(1)], dim=1)
        else:
            said = said.new_empty(len(active), said.shape[1] + 1)
        if len(staying) < len(active):
            active = [active[row] for row in staying]
            ids, said = ids[staying], said[staying]
        yield spoken


@torch.no_grad()
def flow_steps(
    context: Context,
    grids: Sequence[tuple[int, int]],
    guidance: flow.Guidance,
    *,
    steps: int,
    shift: float,
    noise: Sequence[Tensor],
    together: int = 1,
    starts: Sequence[Tensor | None] | None = None,
    known: Sequence[Tensor | None] | None = None,
    solver: str = "euler",
    skip: flow.Skip | None = None,
) -> Iterator[tuple[float, list[Tensor]]]:
    """Draw N pictures from noise: yields, after each step, the time reached and the N latents.

    The branches of guidance are samples of one pack, or of one each where drawings are large (see `Guided`);
    those that its interval or its scales switch off, and those that repeat another, are not computed. The
    layout of each pack is built once. The context stays as it was.

    Args:
        context: its samples are the N prompts, then the N without their last text, then the N without
            images, as far as there are branches (see `Branches`).
        grids: latent tokens down and across of each drawing.
        noise: N tensors (h*w, C).
        together: so many drawings that follow each other belong to one sample and are drawn as one image
            (see `Canvas.joined`); the context then has N / together samples a branch.
        starts: latents (h*w, C) that each drawing may start from; None takes the last image of the context.
        known: latents (h*w, C) of drawings that are there already: the others are drawn to fit them.
        steps: evaluations of the network at most, for each branch of guidance.
        solver, skip: see `flow.Stepper` and `flow.Skip`; branches are evaluated or left out together.

    Raises:
        ValueError: fewer than one step, an unknown solver; guidance needs a branch that the context does not
            have.
    """
    times = flow.schedule(flow.intervals(steps, solver), shift).tolist()
    stepper = flow.Stepper(solver, steps, None if skip is None else skip.fresh())
    halves = ((t + t_next) / 2 for t, t_next in zip(times, times[1:], strict=False))
    asked = [*times[:-1], *(halves if solver == "midpoint" else ())]
    context.close()
    velocity = Guided(context, grids, guidance, times=asked, together=together, starts=starts)
    weight = context.network.decoder.embed.weight
    lengths = [len(part) for part in noise]
    x = _at_least_float32(torch.cat(list(noise)).to(weight.device))  # (Z, C)
    if weight.dtype == torch.float64:
        x = x.double()
    held = [(i, part.to(x)) for i, part in enumerate(known or ()) if part is not None]
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        x = stepper(velocity, x, t, t_next)
        for i, part in held:
            first = sum(lengths[:i])
            chance = noise[i].to(x)
            x[first : first + lengths[i]] = flow.add_noise(part, chance, x.new_tensor(t_next))
        yield t_next, list(x.split(lengths))


def choose(
    logits: Tensor, options: Sampling, said: Tensor, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """The next word of each sample: logits (B, V), words said so far (B, n) -> ids (B,), float32 at least."""
    scores = logits if options.processors is None else options.processors(said, logits)
    if options.greedy:
        return scores.argmax(-1)
    if generators is None:
        raise ValueError(
            "Sampling with temperature above 0 needs a generator for each sample: pass generators."
        )
    chance = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])  # (B,)
    reach = scores.softmax(-1).double().cumsum(-1)  # (B, V)
    target = chance.to(reach.device).unsqueeze(1) * reach[:, -1:]
    return torch.searchsorted(reach, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _below_zero(ids: Tensor, scores: Tensor) -> Tensor:
    """Scores (B, V) moved so that the best is 0: no temperature, however low, overflows."""
    return scores - scores.amax(-1, keepdim=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
