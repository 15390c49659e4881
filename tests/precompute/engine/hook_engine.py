"""An engine in this process: states of transformers go through the connector's thread as those of vLLM do."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.precompute.engine.capture_thread import CaptureThread, FinishedRequest
from eaglepipe.precompute.engine.job import CaptureJob
from eaglepipe.precompute.engine.request import SampleRequest
from eaglepipe.precompute.engine.shards import ShardsInMaking
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.vllm_engine.messages import EngineAnswer, EngineSampling

BLOCK = 16


class HeldRows:
    """States of one request; `released` once they may be overwritten, as they are then."""

    def __init__(self, states: torch.Tensor) -> None:
        self._states = states
        self.most_rows = 0
        self.released = False

    def read(self, start: int, end: int) -> torch.Tensor:
        assert not self.released
        self.most_rows = max(self.most_rows, end - start)
        return self._states[start:end].clone()

    def release(self) -> None:
        assert not self.released
        self.released = True
        self._states.fill_(torch.nan)


class HookEngine:
    """The part of `Engine` that stage 1 uses; answers come last in, first out, a few at a time."""

    def __init__(self, job: CaptureJob, *, window_rows: int | None = None, at_once: int = 8) -> None:
        self._model = HFEagle3TargetModel(load_target(job.target, "cpu"), job.boundaries)
        head = job.head("cpu")
        shards = ShardsInMaking(Path(job.folder), job.spec, job.identity)
        self.thread = CaptureThread(job.encoder(head), head.final_norm, shards, window_rows=window_rows)
        self._waiting: list[tuple[str, list[int], EngineSampling]] = []
        self._at_once = at_once
        self.held: dict[str, HeldRows] = {}
        self.most_open = 0
        self.poisoned: set[str] = set()  # ids of samples whose states are not finite

    def add(self, request_id: str, token_ids: Sequence[int], sampling: EngineSampling) -> None:
        self._waiting.append((request_id, list(token_ids), sampling))

    def finished(self) -> Iterator[EngineAnswer]:
        while self._waiting:
            turn, self._waiting = self._waiting[: self._at_once], self._waiting[self._at_once :]
            for request_id, token_ids, sampling in reversed(turn):
                self._compute(request_id, token_ids, sampling)
                yield EngineAnswer(request_id=request_id, token_ids=(0,), stop_reason="length")

    def call(self, method: str, *args: Any) -> list[Any]:
        name = method.removeprefix("eaglepipe_")
        return [None, getattr(self.thread, name)(*args)]

    def _compute(self, request_id: str, token_ids: list[int], sampling: EngineSampling) -> None:
        asked = SampleRequest.from_params(sampling.kv_transfer_params)
        assert asked is not None
        states = self._model.capture_tokens([np.array(token_ids, np.int32)])
        aux = states.aux.clone()
        if asked.sample_id in self.poisoned:
            aux[3, 0, 0] = torch.nan
        self.held[request_id] = HeldRows(aux)
        sample = asked.sample(token_ids)
        self.thread.submit(FinishedRequest(request=asked, sample=sample, rows=self.held[request_id]))
