"""The target in an engine of vLLM as the one who answers: prompts join its batch at any time."""

from collections.abc import Iterator

import numpy as np

from eaglepipe.generation.answering import Answer, Prompt, Sampling
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import Engine


class VllmAnswerer:
    """A running engine; each prompt's draws follow from its purpose alone."""

    def __init__(self, engine: Engine, sampling: Sampling, stop_ids: frozenset[int]) -> None:
        self._engine, self._sampling, self._stop_ids = engine, sampling, tuple(sorted(stop_ids))

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Give the engine a prompt.

        Raises:
            EaglepipeError: the engine has died.
        """
        sampling = EngineSampling(
            max_tokens=self._sampling.max_new_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=prompt.seed if self._sampling.temperature else None,
            stop_token_ids=self._stop_ids,
        )
        self._engine.add(str(request_id), prompt.token_ids.tolist(), sampling)

    def answered(self) -> Iterator[tuple[int, Answer]]:
        """Yield answers as the engine finishes them.

        Raises:
            as `Engine.finished`.
        """
        for answer in self._engine.finished():
            token_ids = np.array(answer.token_ids, dtype=np.int32)
            yield int(answer.request_id), Answer(token_ids=token_ids, ended=answer.stop_reason == "stop")
