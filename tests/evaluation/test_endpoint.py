"""`eaglepipe eval --endpoint`: a server on loopback that decodes by the run's own target and draft."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eaglepipe.decoding.decode import StoppingCriteria, speculate
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import EaglepipeError, UnreachableError
from eaglepipe.evaluation.drafting import chain_drafter
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.finished_run import open_run
from eaglepipe.evaluation.options import EndpointOptions, EvalOptions
from eaglepipe.evaluation.served.server import parse_metrics
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.steps.stepping import SteppingTarget
from eaglepipe.train import run_training
from tests.tiny_project import TinyProject

DEPTH = 3


@dataclass
class ServedDraft:
    """Decodes as vLLM does, counts as it counts, and answers in its words."""

    run: Path
    target: Path
    model: str = "target"
    foreign_tokens: int = 0  # of other users, an answer
    counters: dict[str, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            run = open_run(self.run)
            loaded = load_target(TargetConfig(path=str(self.target)), "cpu")
            target = SteppingTarget(HFEagle3TargetModel(loaded, run.source.spec.aux_layer_ids))
            (answer,) = speculate(
                target,
                chain_drafter(run, DEPTH, SamplingRule()),
                [np.array(body["prompt"], np.int32)],
                rule=SamplingRule(),
                criteria=StoppingCriteria(
                    max_new_tokens=body["max_tokens"], stop_ids=frozenset(body["stop_token_ids"])
                ),
                batch_size=1,
                generator=torch.Generator(),
            ).answers
            self._add("generation_tokens", len(answer.token_ids) + self.foreign_tokens)
            self._add("spec_decode_num_drafts", len(answer.accepted))
            for position in range(DEPTH):
                self._add(
                    f'spec_decode_num_accepted_tokens_per_pos|position="{position}"',
                    sum(accepted > position for accepted in answer.accepted),
                )
        return {"choices": [{"token_ids": list(answer.token_ids)}]}

    def metrics(self) -> str:
        lines = []
        for name, value in self.counters.items():
            base, _, label = name.partition("|")
            lines.append(f'vllm:{base}_total{{engine="0",model_name="x"{label and "," + label}}} {value:.1f}')
        return "# HELP vllm:generation_tokens_total tokens\n" + "\n".join(lines) + "\n"

    def _add(self, name: str, value: int) -> None:
        self.counters[name] = self.counters.get(name, 0) + value


@contextmanager
def serving(draft: ServedDraft) -> Iterator[str]:
    draft.counters = {"generation_tokens": 1000, "spec_decode_num_drafts": 70}
    for position in range(DEPTH):
        draft.counters[f'spec_decode_num_accepted_tokens_per_pos|position="{position}"'] = 7

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = json.dumps({"data": [{"id": draft.model, "root": f"/models/{draft.model}"}]})
            self.reply(models if self.path == "/v1/models" else draft.metrics())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(json.dumps(draft.complete(body)))

        def reply(self, text: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def served(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> ServedDraft:
    folder = tmp_path_factory.mktemp("endpoint")
    recipe = project.recipe(
        **{"cache.root": str(folder / "caches"), "train.output_dir": str(folder / "run"), "train.max_steps": 8}
    )
    cache = Path(run_precompute(recipe, report=lambda _: None).folder)
    run_training(recipe, [cache])
    return ServedDraft(run=folder / "run", target=project.target)


def options(served: ServedDraft, url: str) -> EvalOptions:
    return EvalOptions(
        target=served.target,
        depths=(2,),
        num_prompts=4,
        max_new_tokens=12,
        num_samples=4,
        baselines=False,
        batch_size=2,
        endpoint=EndpointOptions(url=url),
    )


def test_a_servers_counters_give_the_figures_of_real_decoding(served: ServedDraft) -> None:
    with serving(served) as url:
        report = evaluate_run(served.run, options(served, url))
    figures = [m for m in report.measurements if m.method.depth == DEPTH]
    real, from_server = (next(m for m in figures if m.conditions.kind == kind) for kind in ("real", "served"))
    assert from_server.count == real.count
    assert from_server.acceptance_length.value == pytest.approx(real.acceptance_length.value)
    assert [gap.is_beyond_noise for gap in report.gaps] == [False]
    assert not report.notes and "served, vLLM" in report.table()


def test_other_traffic_is_told_from_ones_own(served: ServedDraft) -> None:
    served.foreign_tokens = 5
    with serving(served) as url:
        report = evaluate_run(served.run, options(served, url))
    served.foreign_tokens = 0
    assert "generated +20 tokens beside the" in report.table()


def test_a_server_of_another_model_is_refused_by_name(served: ServedDraft) -> None:
    served.model = "other-8b"
    with serving(served) as url, pytest.raises(EaglepipeError, match=r"serves other-8b .* run's target is"):
        evaluate_run(served.run, options(served, url))
    served.model = "target"


def test_a_server_that_is_not_there_is_named(served: ServedDraft) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        evaluate_run(served.run, options(served, "http://127.0.0.1:9"))


def test_samples_are_summed_over_engines_and_kept_by_position() -> None:
    text = (
        'vllm:a_total{engine="0"} 2\nvllm:a_total{engine="1"} 3\n'
        'vllm:b_total{position="1",engine="0"} 4\n# vllm:c 9\nsglang:spec_accept_length{x="y"} 2.5\n'
    )
    assert parse_metrics(text) == {"vllm:a": 5.0, "vllm:b[1]": 4.0, "sglang:spec_accept_length": 2.5}
