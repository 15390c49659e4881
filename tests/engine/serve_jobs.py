"""Serves jobs of `serve_prompts` one after the other in one process, each with an engine of its own.

    python -m tests.engine.serve_jobs JOBS.json

reads a list of jobs and writes beside it, for job i, `i.json` with its answers, or `i.txt` with its error.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eaglepipe.decoding.decode import DecodedAnswers
from eaglepipe.evaluation.served.engine_process import EngineJob, _decoded
from eaglepipe.evaluation.served.serve_prompts import _answer, _answer_fields, _engine_arguments
from eaglepipe.vllm_engine.arguments import engine_environment


def served(jobs: Sequence[EngineJob], scratch: Path, *, python: str = sys.executable) -> list[list[DecodedAnswers]]:
    """Return the answers to each set of prompts of every job; `scratch` is an empty folder."""
    file = scratch / "jobs.json"
    file.write_text(json.dumps([job.to_json() for job in jobs]))
    environment = engine_environment({}, "auto") | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [python, "-m", "tests.engine.serve_jobs", str(file)]
    with (scratch / "log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    assert done.returncode == 0, (scratch / "log").read_text()[-2000:]
    answers = []
    for number, job in enumerate(jobs):
        assert not (error := scratch / f"{number}.txt").exists(), error.read_text()
        sets = json.loads((scratch / f"{number}.json").read_text())
        answers.append([_decoded(answered, has_draft="speculative_config" in job.arguments) for answered in sets])
    return answers


def answer_sets(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Start an engine and return what it answers to each set of prompts."""
    from vllm import LLM, SamplingParams

    engine, sampling = LLM(**_engine_arguments(job)), SamplingParams(**job["sampling"])
    sets = [_answer(engine, prompts, sampling) for prompts in job["prompt_sets"]]
    return [{"answers": list(map(_answer_fields, outputs)), "seconds": 0.0} for outputs in sets]


def main(file: Path) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    for number, job in enumerate(json.loads(file.read_text())):
        try:
            file.with_name(f"{number}.json").write_text(json.dumps(answer_sets(job)))
        except Exception as error:  # noqa: BLE001 - whatever an engine stops with is its answer
            file.with_name(f"{number}.txt").write_text(f"{type(error).__name__}: {error}")
        gc.collect()
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
