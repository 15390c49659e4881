"""The target opened to answer prompts, by the library that the recipe names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.generation.answering import Answerer, Sampling
from eaglepipe.generation.target_answerer import TargetAnswerer
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import StopFlag
from eaglepipe.target.load import check_tokenizer_fits, load_target, read_model_config, text_config_of
from eaglepipe.target.positions import max_positions
from eaglepipe.target.steps.stops import stop_ids, stop_ids_of_folder

_CHUNK_TOKENS = 8192  # of prompts in one step of the engine, where no prompt may be split
_IN_FLIGHT_ON_GPU = 512


@dataclass(frozen=True, kw_only=True)
class OpenAnswerer:
    """Whoever answers, and the target's limits."""

    answerer: Answerer
    vocab_size: int
    max_positions: int | None  # that the target may read at once; None: no limit
    at_once: int | None  # prompts on their way; None: they are answered in rounds, all of one before the next


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How answers are made: by which sampling, ended by which tokens besides the target's own."""

    chat: ChatTokenizer
    sampling: Sampling
    batch_size: int
    ends: frozenset[int] = frozenset()


@contextmanager
def open_answerer(
    recipe: Recipe, folder: Path, how: Answering, *, stop: StopFlag, saved: str, report: Callable[[str], None]
) -> Iterator[OpenAnswerer]:
    """Load the target, or start an engine with it, for as long as the block runs.

    Args:
        folder: the target's local folder.
        saved: what a stop leaves, as its message has it.

    Raises:
        TargetError: the target cannot be loaded, or does not fit its tokenizer.
        EaglepipeError: as `open_engine`.
    """
    if recipe.target.engine == "vllm":
        with _open_vllm(recipe, folder, how, stop=stop, saved=saved, report=report) as opened:
            yield opened
        return
    with stop.abandonable(saved):
        target = load_target(recipe.target, recipe.precompute.device)
    check_tokenizer_fits(how.chat.plain_vocab_size, target.vocab_size)
    ends = stop_ids(target, how.chat) | how.ends
    yield OpenAnswerer(
        answerer=TargetAnswerer(target, how.sampling, ends, batch_size=how.batch_size),
        vocab_size=target.vocab_size,
        max_positions=max_positions(target.text_config),
        at_once=None,
    )


@contextmanager
def _open_vllm(
    recipe: Recipe, folder: Path, how: Answering, *, stop: StopFlag, saved: str, report: Callable[[str], None]
) -> Iterator[OpenAnswerer]:
    from eaglepipe.generation.vllm_answerer import VllmAnswerer
    from eaglepipe.vllm_engine.session import open_engine

    model_config = read_model_config(folder, recipe.target)
    text_config = text_config_of(model_config, recipe.target.path)
    ends = stop_ids_of_folder(folder, model_config, how.chat) | how.ends
    positions = recipe.target.engine_args.get("max_model_len") or max_positions(text_config)
    length = positions or recipe.data.max_length + how.sampling.max_new_tokens
    on_gpu = torch.cuda.is_available()
    with open_engine(
        recipe.target,
        folder,
        max_length=length,
        defaults={} if on_gpu else _whole_prompts(length),
        device=recipe.precompute.device,
        saved=saved,
        stop=stop,
        report=report,
    ) as engine:
        yield OpenAnswerer(
            answerer=VllmAnswerer(engine, how.sampling, ends),
            vocab_size=int(text_config.vocab_size),
            max_positions=length,
            at_once=max(2 * how.batch_size, _IN_FLIGHT_ON_GPU if on_gpu else 1),
        )


def _whole_prompts(length: int) -> dict[str, Any]:
    """Return the arguments by which no prompt is split: vLLM's CPU worker cannot go on with a split prompt's seed."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(length, _CHUNK_TOKENS)}
