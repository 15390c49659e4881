"""An engine in this process that answers, too: tokens and states come from transformers."""

from collections.abc import Iterator

import numpy as np
import torch

from eaglepipe.generation.answering import Sampling
from eaglepipe.generation.generate import generate
from eaglepipe.precompute.engine.capture_thread import FinishedRequest
from eaglepipe.precompute.engine.request import SampleRequest
from eaglepipe.vllm_engine.messages import EngineAnswer, EngineSampling
from tests.precompute.engine.hook_engine import HeldRows, HookEngine


class WritingEngine(HookEngine):
    """Requests of more than one token are answered, last in, first out; some are captured as vLLM's connector does."""

    prefills = 0

    def finished(self) -> Iterator[EngineAnswer]:
        while self._waiting:
            request_id, token_ids, sampling = self._waiting.pop()
            if sampling.max_tokens == 1:
                self.prefills += 1
                self._compute(request_id, token_ids, sampling)
                yield EngineAnswer(request_id=request_id, token_ids=(0,), stop_reason="length")
            else:
                yield self._written(request_id, token_ids, sampling)

    def _written(self, request_id: str, token_ids: list[int], asked: EngineSampling) -> EngineAnswer:
        settings = Sampling(max_new_tokens=asked.max_tokens, temperature=asked.temperature, top_p=asked.top_p)
        draws = torch.Generator().manual_seed(asked.seed or 0)
        prompt = np.array(token_ids, np.int32)
        (answer,) = generate(self._model.target, [prompt], settings, frozenset(asked.stop_token_ids), draws)
        capture = SampleRequest.from_params(asked.kv_transfer_params)
        assert (capture is not None) == asked.read_stop
        if capture is not None:
            read = capture.read_tokens(token_ids, [*answer.token_ids.tolist(), 0])
            rows = self.held[request_id] = HeldRows(self._model.capture_tokens([np.array(read, np.int32)]).aux.clone())
            self.thread.submit(FinishedRequest(request=capture, sample=capture.sample(read), rows=rows))
        return EngineAnswer(
            request_id=request_id,
            token_ids=tuple(answer.token_ids.tolist()),
            stop_reason="stop" if answer.ended else "length",
        )
