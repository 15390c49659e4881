"""Whether greedy speculative decoding gives the target's own output, token for token, and how close it was if not.

A target that reads several tokens in one forward adds in another order than one that reads them singly, so that two
tokens whose logits agree in all but the last bits may change places. The logit gap tells such a tie from a fault.
"""

from collections.abc import Sequence

import torch

from eaglepipe.decoding.decode import DecodedAnswers
from eaglepipe.evaluation.prompts import Prompt
from eaglepipe.target.capture import HFEagle3TargetModel


def describe_difference(
    model: HFEagle3TargetModel | None, prompts: Sequence[Prompt], alone: DecodedAnswers, decoded: DecodedAnswers
) -> str | None:
    """Return how many answers differ from the target's own, and the first difference; None if there is none.

    Without a model, the logits are left out.
    """
    answers = [(a.token_ids, b.token_ids) for a, b in zip(alone.answers, decoded.answers, strict=True)]
    if not (differing := [number for number, (own, other) in enumerate(answers) if own != other]):
        return None
    number = differing[0]
    first = f"prompt {number} ({prompts[number].label}){_describe_first(model, prompts[number], *answers[number])}"
    return f"{len(differing)} of {len(prompts)} prompts; first: {first}"


def _describe_first(
    model: HFEagle3TargetModel | None, prompt: Prompt, own: tuple[int, ...], other: tuple[int, ...]
) -> str:
    shared = min(len(own), len(other))
    if (position := next((i for i in range(shared) if own[i] != other[i]), None)) is None:
        return f": one answer ends after {shared} tokens, the other goes on"
    a, b = own[position], other[position]
    tokens = f", new token {position}: {a} alone, {b} with the draft"
    if model is None:
        return tokens
    ids = torch.tensor([[*prompt.token_ids.tolist(), *own[:position]]], device=model.target.device)
    logits = model.head_logits(model.capture(ids, torch.ones_like(ids)).last_hidden[0, -1:])[0]
    gap, top = float(logits[a] - logits[b]), float(logits[a])
    return f"{tokens}; their logits differ by {gap:.3g} at {top:.3g}"
