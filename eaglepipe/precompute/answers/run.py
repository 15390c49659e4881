"""The target of transformers answers a batch of prompts, and captures the states of what it has read and written."""

from collections.abc import Iterable, Iterator, Sequence

from eaglepipe.cache.writer import RefusedItem
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.generation.answering import Sampling
from eaglepipe.generation.target_answerer import TargetAnswerer
from eaglepipe.precompute.answers.answering import Prompts
from eaglepipe.precompute.answers.outcome import Answered
from eaglepipe.precompute.answers.vocabulary import with_vocabulary
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import Group
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.precompute.shard_run import ShardRun
from eaglepipe.signals import StopFlag
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.steps.stops import stop_ids

_MOST_ROWS = 4096  # of a forward; the token budget is met long before


class AnsweringRun(ShardRun):
    """One process's work on the shards of a cache of the target's own answers."""

    def __init__(self, inputs: Stage1Inputs, plan: PrecomputePlan, model: HFEagle3TargetModel, stop: StopFlag) -> None:
        settings = inputs.recipe.data.generate
        assert settings is not None
        sampling = Sampling(**settings.model_dump(include={"max_new_tokens", "temperature", "top_p"}))
        ends = stop_ids(model.target, inputs.chat)
        answerer = TargetAnswerer(model.target, sampling, ends, batch_size=_MOST_ROWS, own_draws=True)
        prompts = Prompts(inputs=inputs, plan=plan, answerer=answerer)

        def answers(shard: int, numbers: Group) -> list[Answered]:
            return prompts.answer(shard, prompts.read(numbers))

        self._answers, self._waiting = answers, list[RefusedItem]()
        batch_tokens = inputs.recipe.precompute.batch_tokens
        chosen = with_vocabulary(inputs, plan, answers, batch_tokens=batch_tokens, stop=stop)
        super().__init__(inputs, chosen, model, stop)

    def _batches(self, shard: int) -> Iterator[tuple[list[TokenSample], int]]:
        layout, budget = self._plan.layout, self._inputs.recipe.precompute.batch_tokens
        for batch in layout.forwards(shard, budget):
            self._stop.raise_if_set(f"the shards and answers so far stay in {self._plan.folder}")
            items = [item for outcome in self._answers(shard, batch) for item in outcome.samples(self._inputs)]
            self._waiting += [item for item in items if not isinstance(item, TokenSample)]
            num_tokens = int(layout.statistics.num_tokens[batch].sum())
            for part in by_budget([item for item in items if isinstance(item, TokenSample)], budget):
                yield part, num_tokens
                num_tokens = 0

    def _left_out(self, shard: int) -> Iterable[RefusedItem]:
        left_out, self._waiting = self._waiting, []
        self._drops += len(left_out)
        return left_out


def by_budget(samples: Sequence[TokenSample], batch_tokens: int) -> Iterator[list[TokenSample]]:
    """Yield samples in order, in batches of that many tokens with padding, or of a longer sample."""
    batch: list[TokenSample] = []
    for sample in samples:
        longest = max(len(one.input_ids) for one in [*batch, sample])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch
