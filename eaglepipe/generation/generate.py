"""A target's own continuation of prompts, many at a time; rows that have ended leave the batch.

Shapes: B rows still running, P padded prompt length, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.generation.answering import Answer, Sampling
from eaglepipe.target.load import LoadedTarget
from eaglepipe.target.steps.kv_cache import cache_argument, make_cache
from eaglepipe.target.steps.sampling import distribution, draw, pick

_COMPACT_BELOW = 0.75  # share of rows still running at which the ended ones are taken out


@torch.inference_mode()
def generate(
    target: LoadedTarget,
    prompts: Sequence[NDArray[np.int32]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    generator: torch.Generator | NDArray[np.float64],
) -> list[Answer]:
    """Continue each prompt until a stop token or `max_new_tokens`; one answer a prompt, in their order.

    Args:
        prompts: token ids [T] each, not empty.
        generator: on the target's device; or the numbers in [0, 1) that choose each row's tokens, one a token:
            [prompts, max_new_tokens]. Used only when sampling.
    """
    forward = _decoder_step(target)
    input_ids, mask, positions = _left_padded(prompts, sampling.max_new_tokens, target.device)
    num_seen = input_ids.shape[1]
    cache = make_cache(target.text_config)
    running = np.arange(len(prompts))
    ended, finite = np.zeros(len(prompts), dtype=np.bool_), np.ones(len(prompts), dtype=np.bool_)
    chosen = np.full((len(prompts), sampling.max_new_tokens), -1, dtype=np.int32)
    alive = np.ones(len(prompts), dtype=np.bool_)  # of the rows in the batch
    for step in range(sampling.max_new_tokens):
        logits = forward(input_ids, mask[:, :num_seen], positions, cache)
        draws = generator if isinstance(generator, torch.Generator) else generator[running, step]
        token = _choose(logits, sampling, draws)
        numbers, sound = token.cpu().numpy(), logits.amax(dim=-1).isfinite().cpu().numpy()
        stopping = np.isin(numbers, list(stop_ids))
        finite[running[alive & ~sound]] = False
        ended[running[alive & sound & stopping]] = True
        chosen[running[alive & sound], step] = numbers[alive & sound]
        alive = alive & sound & ~stopping
        if not alive.any():
            break
        if alive.mean() < _COMPACT_BELOW:
            rows = torch.from_numpy(np.flatnonzero(alive)).to(target.device)
            cache.batch_select_indices(rows)
            token, mask, positions = token[rows], mask[rows], positions[rows]
            running, alive = running[alive], alive[alive]
        input_ids, positions, num_seen = token[:, None], positions[:, -1:] + 1, num_seen + 1
    return [
        Answer(token_ids=row[row >= 0], ended=bool(end), finite=bool(sound))
        for row, end, sound in zip(chosen, ended, finite, strict=True)
    ]


def _decoder_step(target: LoadedTarget) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, object], torch.Tensor]:
    """Return ids [B, new], mask [B, seen], positions [B, new], cache -> logits float32 [B, V] after the last token."""
    accepted = inspect.signature(target.model.forward).parameters
    cache_name = cache_argument(target.model)
    last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def step(input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: object) -> torch.Tensor:
        options = last_only | ({"position_ids": positions} if "position_ids" in accepted else {}) | {cache_name: cache}
        output = target.model(input_ids=input_ids, attention_mask=mask, use_cache=True, **options)
        return output.logits[:, -1].float()

    return step


def _left_padded(
    prompts: Sequence[NDArray[np.int32]], max_new_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids [B, P], a mask [B, P + max_new_tokens] with room for the answers, and positions [B, P]."""
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.ones((len(prompts), longest + max_new_tokens), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, : longest - len(prompt)] = 0
    positions = np.maximum(mask[:, :longest].cumsum(axis=1) - 1, 0)
    on_device = [torch.from_numpy(array).to(device) for array in (ids, mask, positions)]
    return on_device[0], on_device[1], on_device[2]


def _choose(logits: torch.Tensor, sampling: Sampling, draws: torch.Generator | NDArray[np.float64]) -> torch.Tensor:
    """[B, V] -> [B] token ids; rows with NaN get an id without meaning."""
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    weights = distribution(logits, sampling.temperature, sampling.top_p)
    if isinstance(draws, torch.Generator):
        return draw(weights, draws)
    return pick(weights, torch.from_numpy(draws).to(weights.device))
