"""Target and draft served in vLLM: the same prompts with the draft and without, in the same conditions as elsewhere."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eaglepipe.decoding.drafters import DraftMethod
from eaglepipe.decoding.text_drafters import MAX_NGRAM, no_drafter
from eaglepipe.evaluation.figures.measured_sets import Measured, count_prompts, measure_sets
from eaglepipe.evaluation.figures.measurement import EvalConditions
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.evaluation.options import EngineOptions, EvalOptions, Report
from eaglepipe.evaluation.prompts import PromptSet
from eaglepipe.evaluation.real_decoding import OpenTarget
from eaglepipe.evaluation.served.engine_process import EngineJob, EngineRun, run_engine
from eaglepipe.export.write import DTYPES, export_draft

_USUAL_LENGTH = 1024  # of an engine; those for short requests are as long
_WARM_UP = 2  # prompts
_FREE_SHARE = 0.85  # of the memory that is free on the device


@contextmanager
def served_folder(run: FinishedRun, engine: EngineOptions, target: OpenTarget) -> Iterator[tuple[Path, Path]]:
    """Yield the folder to serve, and the run's own export, which is the same unless another folder is judged.

    Raises:
        DraftError: vLLM does not serve drafts of this family, or not this one.
    """
    with tempfile.TemporaryDirectory(prefix="eaglepipe-export-") as scratch:
        dtype = str(target.stepping.model.target.dtype).removeprefix("torch.")
        own = Path(scratch) / "draft"
        export_draft(run.folder, "vllm", out=own, dtype=dtype if dtype in DTYPES else "bfloat16")
        yield engine.draft or own, own


def measure_served(
    run: FinishedRun,
    target: OpenTarget,
    folder: Path,
    sets: Sequence[PromptSet],
    *,
    options: EvalOptions,
    report: Report,
) -> list[Measured]:
    """Answer the prompts in vLLM by the target alone, then with the draft in `folder` at each depth.

    With `options.engine.lookup`, then by the engine's own prompt lookup.

    Raises:
        EaglepipeError, ConfigError, ResourceError: as `run_engine`.
    """
    assert options.engine is not None
    family = run.recipe.train.family
    conditions = EvalConditions(kind="served", data="", rule=options.rule, batch_size=options.batch_size)
    starts: list[tuple[DraftMethod, dict[str, Any] | None]] = [(no_drafter(target.stepping.device).method, None)]
    starts += [(_chain(family.label, depth), speculative_config(run, folder, depth)) for depth in options.depths]
    if options.engine.lookup:
        starts += [(_chain("vLLM's prompt lookup", depth), _lookup_config(depth)) for depth in options.depths]
    alone: EngineRun | None = None
    measured: list[Measured] = []
    for method, drafting in starts:
        report(f"serving {count_prompts(sets)} prompts in vLLM: {'the target alone' if not drafting else method.label}")
        served = run_engine(engine_job(run, target, sets, drafting, options=options), options.engine.python)
        alone = alone or served
        measured += measure_sets(
            sets,
            served.sets,
            method,
            replace(conditions, engine=f"vLLM {served.version}"),
            alone=alone.sets,
            model=target.stepping.model,
            seed=options.seed,
        )
    return measured


def _chain(drafter: str, depth: int) -> DraftMethod:
    return DraftMethod(drafter=drafter, shape="chain", depth=depth, size=depth)


def _lookup_config(depth: int) -> dict[str, Any]:
    """Return vLLM's `speculative_config` of prompt lookup, by the n-grams of this package's own."""
    return {
        "method": "ngram",
        "num_speculative_tokens": depth,
        "prompt_lookup_max": MAX_NGRAM,
        "prompt_lookup_min": 1,
    }


def engine_job(
    run: FinishedRun,
    target: OpenTarget,
    sets: Sequence[PromptSet],
    drafting: Mapping[str, Any] | None,
    *,
    options: EvalOptions,
) -> EngineJob:
    """Return the job of serving prompts with a `speculative_config`, or without drafts."""
    return EngineJob(
        arguments=_arguments(run, target, sets, drafting, options=options),
        sampling=_sampling(target, options),
        warm_up=[prompt.token_ids.tolist() for prompt in sets[0].prompts[:_WARM_UP]],
        prompt_sets=[[prompt.token_ids.tolist() for prompt in part.prompts] for part in sets],
    )


def speculative_config(run: FinishedRun, folder: Path, depth: int) -> dict[str, Any]:
    """Return vLLM's `speculative_config` of a draft of the run's family."""
    family = run.recipe.train.family
    parallel = {"parallel_drafting": True} if family.is_parallel and not family.drafts_blocks else {}
    return {"method": family.engine_method, "model": str(folder), "num_speculative_tokens": depth, **parallel}


def _arguments(
    run: FinishedRun,
    target: OpenTarget,
    sets: Sequence[PromptSet],
    drafting: Mapping[str, Any] | None,
    *,
    options: EvalOptions,
) -> dict[str, Any]:
    assert options.engine is not None
    loaded = target.stepping.model.target
    longest = max(len(prompt.token_ids) for part in sets for prompt in part.prompts)
    room = _room(longest + options.max_new_tokens, max(options.depths), loaded.text_config)
    arguments = {
        "max_model_len": room,
        "max_num_seqs": options.batch_size,
        **_memory(),
        # On CPU, vLLM 0.32 fails if the prompt of a request with a seed of its own is read in pieces.
        **({} if options.rule.greedy else {"enable_chunked_prefill": False, "max_num_batched_tokens": 2 * room}),
        **run.recipe.target.engine_args,
        **options.engine.arguments,
        "model": str(loaded.folder),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "enable_prefix_caching": False,
        "disable_log_stats": False,
    }
    arguments.setdefault("dtype", str(loaded.dtype).removeprefix("torch."))
    arguments.setdefault("trust_remote_code", run.recipe.target.trust_remote_code)
    arguments.setdefault("seed", options.seed)
    if drafting is not None:
        arguments["speculative_config"] = dict(drafting)
    return arguments


def _room(tokens: int, depth: int, config: Any) -> int:
    """Return the length of an engine that drafts up to the end of a request of so many tokens.

    vLLM 0.32 guesses zeros for all requests of a batch once the longest one, with the guesses of the rounds that are
    scheduled, comes within `depth` tokens of the engine's length (`_input_fits_in_drafter` of its model runner). A
    round may be scheduled before the one before it has ended; then two rounds are counted in full.
    """
    positions = getattr(config, "max_position_embeddings", None)
    room = max(tokens + 3 * (depth + 1), _USUAL_LENGTH)
    return room if positions is None else max(tokens + 1, min(room, positions))


def _memory() -> dict[str, float]:
    """Return the share of a GPU that the engine may take beside the target that is loaded here."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": round(_FREE_SHARE * free / total, 3)}


def _sampling(target: OpenTarget, options: EvalOptions) -> dict[str, Any]:
    rule = options.rule
    seed = {} if rule.greedy else {"seed": options.seed}
    return {
        "temperature": rule.temperature,
        "top_p": rule.top_p,
        "max_tokens": options.max_new_tokens,
        "ignore_eos": True,
        "stop_token_ids": [] if options.ignore_end else sorted(target.stop_ids),
        "detokenize": False,
        **seed,
    }
