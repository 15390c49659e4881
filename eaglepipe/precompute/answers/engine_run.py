"""The target in an engine answers prompts, and the engine's connector encodes the states of the same pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from eaglepipe.files.leftovers import leftovers, remove_abandoned
from eaglepipe.generation.answering import Sampling
from eaglepipe.precompute.answers.answering import Prompts, draw_number
from eaglepipe.precompute.answers.engine_answerer import EngineAnswerer
from eaglepipe.precompute.answers.engine_feed import AnswerFeed, num_turns
from eaglepipe.precompute.answers.outcome import Answered
from eaglepipe.precompute.answers.prompts import answer_positions
from eaglepipe.precompute.answers.vocabulary import with_vocabulary
from eaglepipe.precompute.engine.feed import Claim
from eaglepipe.precompute.engine.run import EngineRun
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import Group
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.progress import ProgressLine
from eaglepipe.signals import StopFlag
from eaglepipe.target.steps.stops import stop_ids_of_folder
from eaglepipe.vllm_engine.session import Engine, open_engine


class AnsweringEngineRun(EngineRun):
    """One process's work on the shards of a cache of the target's own answers, in an engine."""

    def __init__(
        self, inputs: Stage1Inputs, plan: PrecomputePlan, stop: StopFlag, report: Callable[[str], None]
    ) -> None:
        """Start an engine without capture first if the answers are still to choose the draft vocabulary."""
        super().__init__(inputs, plan, stop, report)
        with ExitStack() as stack:
            prompts: list[Prompts] = []

            def answers(shard: int, numbers: Group) -> list[Answered]:
                if not prompts:
                    prompts.append(self._prompts(stack.enter_context(self._plain_engine()), capture=False))
                first = prompts[0]
                asked = first.read(numbers)
                assert isinstance(first.answerer, EngineAnswerer)
                for prompt in asked:
                    number, turns = draw_number(prompt), num_turns(prompt)
                    first.answerer.expect(number, source=prompt.source, num_turns=turns)
                return first.answer(shard, asked)

            self._plan = with_vocabulary(inputs, plan, answers, batch_tokens=None, stop=stop)

    def _write(self, shards: list[int], title: str, claims: Iterator[Claim]) -> int:
        if not shards:
            return 0
        total = sum(map(self._plan.layout.shard_tokens, shards))
        try:
            with (
                self._engine() as engine,
                ProgressLine(title, total=total, unit="tok", plain_interval_seconds=5.0) as progress,
            ):
                prompts = self._prompts(engine, capture=True)
                assert isinstance(prompts.answerer, EngineAnswerer)
                with AnswerFeed(prompts, prompts.answerer, engine, progress) as feed:
                    return feed.run(claims)
        finally:
            remove_abandoned(leftovers(self._plan.folder))  # of the shards in the making, whose writer has ended

    def _prompts(self, engine: Engine, *, capture: bool) -> Prompts:
        inputs, settings = self._inputs, self._inputs.recipe.data.generate
        assert settings is not None
        sampling = Sampling(**settings.model_dump(include={"max_new_tokens", "temperature", "top_p"}))
        ends = stop_ids_of_folder(self._head.target.folder, inputs.model_config, inputs.chat)
        answerer = EngineAnswerer(engine, sampling, ends, inputs.recipe.data, capture=capture)
        return Prompts(inputs=inputs, plan=self._plan, answerer=answerer)

    def _plain_engine(self) -> Any:
        inputs = self._inputs
        return open_engine(
            inputs.recipe.target,
            self._head.target.folder,
            max_length=self._longest(),
            defaults=self._defaults(),
            overrides={"max_model_len": self._longest()},
            device=inputs.recipe.precompute.device,
            saved=f"the answers so far stay in {self._plan.folder}",
            stop=self._stop,
            report=self._report,
        )

    def _longest(self) -> int:
        return answer_positions(self._inputs) + 2  # the token after the end, which no step reads

    def _defaults(self) -> dict[str, Any]:
        settings = self._inputs.recipe.data.generate
        assert settings is not None
        defaults = {**super()._defaults(), "async_scheduling": False}  # a step is planned after the one before it
        if torch.cuda.is_available() or settings.temperature == 0:
            return defaults
        # On CPU, vLLM cannot draw by a request's own seed if its prompt is read in parts.
        tokens = max(defaults["max_num_batched_tokens"], self._longest())
        return {**defaults, "enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
