"""Answers sets of prompts in vLLM, with a draft or without: a program of its own that needs vllm and nothing else.

    python serve_prompts.py JOB.json

reads a job (see `engine_process`), and writes JSON objects, one a line, to standard output: the engine's version, each
set of prompts with its answers and counters, or an error. All that vLLM prints goes to standard error.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

_COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "draft_tokens",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "accepted_per_pos",
}
_MEMORY_WORDS = ("out of memory", "memory utilization", "available memory", "kv cache memory", "no memory")


def main() -> None:
    """Run the job whose file is the only argument."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text())

    def write(event: str, **fields: Any) -> None:
        results.write(json.dumps({"event": event, **fields}) + "\n")
        results.flush()

    try:
        import vllm
    except ImportError as error:
        write("missing", module=error.name or "vllm", message=str(error))
        return
    write("version", version=vllm.__version__)
    started = False
    try:
        engine = vllm.LLM(**_engine_arguments(job))
        started = True
        sampling = vllm.SamplingParams(**job["sampling"])
        _answer(engine, job["warm_up"], sampling)
        for prompt_set in job["prompt_sets"]:
            before, begin = _counters(engine), time.monotonic()
            outputs = _answer(engine, prompt_set, sampling)
            seconds = time.monotonic() - begin
            counters = {name: _minus(value, before.get(name)) for name, value in _counters(engine).items()}
            answers = [_answer_fields(output) for output in outputs]
            write("answers", answers=answers, seconds=seconds, counters=counters)
        write("end")
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader of the results is told
        traceback.print_exc()
        write("failed", **_failure(error, started=started))


def _failure(error: Exception, *, started: bool) -> dict[str, str]:
    """Tell arguments and memory, which a user can change, from what the engine is to blame for."""
    details = getattr(error, "errors", None)  # of pydantic, whose message goes on for a page
    reason = details()[0].get("msg", "") if callable(details) else str(error)
    reason = " ".join(reason.split())[:600] or type(error).__name__
    if isinstance(error, MemoryError) or any(word in reason.lower() for word in _MEMORY_WORDS):
        return {"kind": "memory", "reason": reason}
    is_argument = not started and isinstance(error, ValueError | TypeError | NotImplementedError)
    return {"kind": "argument" if is_argument else "engine", "reason": reason}


def _end_with_parent() -> None:
    """End all processes of this group once whoever started it is gone: standard input ends then."""
    while os.read(0, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _engine_arguments(job: dict[str, Any]) -> dict[str, Any]:
    from vllm.platforms import current_platform

    arguments = dict(job["engine"])
    if current_platform.is_cpu():  # where compilation takes minutes, and the cache all of a share of the memory
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        arguments.setdefault("enforce_eager", True)
        arguments.setdefault("kv_cache_memory_bytes", min(4 * 2**30, total // 8))
    if "speculative_config" in arguments:
        arguments.setdefault("per_request_spec_decode_metrics", "detailed")
    return arguments


def _answer(engine: Any, prompts: list[list[int]], sampling: Any) -> list[Any]:
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return list(engine.generate(inputs, sampling, use_tqdm=False))


def _answer_fields(output: Any) -> dict[str, Any]:
    """Return an answer's tokens, and how many guesses each of its rounds accepted if the engine tells it."""
    completion = output.outputs[0]
    rounds = getattr(completion, "spec_decode_metrics", None)
    accepted = None if rounds is None else list(rounds.per_step_accepted)
    return {"token_ids": list(completion.token_ids), "accepted": accepted}


def _counters(engine: Any) -> dict[str, Any]:
    counters: dict[str, Any] = {}
    for metric in engine.get_metrics():
        if (name := _COUNTERS.get(metric.name)) is not None:
            value = list(metric.values) if hasattr(metric, "values") else metric.value
            counters[name] = _plus(value, counters[name]) if name in counters else value
    return counters


def _plus(value: Any, other: Any) -> Any:
    return [a + b for a, b in zip(value, other)] if isinstance(value, list) else value + other  # noqa: B905


def _minus(value: Any, before: Any) -> Any:
    if before is None:
        return value
    return [a - b for a, b in zip(value, before)] if isinstance(value, list) else value - before  # noqa: B905


if __name__ == "__main__":
    main()
