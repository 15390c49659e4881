"""The answers to staged prompts, from the log of their shard or from whoever answers, who then is never asked again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import xxhash

from eaglepipe.generation.answering import Answerer
from eaglepipe.generation.rewrite import Rewriter
from eaglepipe.precompute.answers.log import ShardAnswers
from eaglepipe.precompute.answers.outcome import Answered, answered
from eaglepipe.precompute.answers.prompts import answer_positions, staged_conversation
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import Group
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.precompute.staging import StagedPrompt


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The staged prompts of a plan with the one who answers them."""

    inputs: Stage1Inputs
    plan: PrecomputePlan
    answerer: Answerer

    def read(self, numbers: Group) -> list[StagedPrompt]:
        """Return staged prompts by their numbers."""
        prompts = [self.plan.layout.tokens.read(int(number)) for number in numbers]
        return [prompt for prompt in prompts if isinstance(prompt, StagedPrompt)]

    def answer(self, shard: int, prompts: Sequence[StagedPrompt]) -> list[Answered]:
        """Return the outcomes of some prompts of a shard, in their order; new ones are logged."""
        log = ShardAnswers(self.plan.folder, shard)
        known = log.read()
        waiting = [prompt for prompt in prompts if prompt.sample_id not in known]
        if waiting:
            new = self._answer(waiting)
            log.append(new)
            known |= {outcome.sample_id: outcome for outcome in new}
        return [known[prompt.sample_id] for prompt in prompts]

    def _answer(self, prompts: Sequence[StagedPrompt]) -> list[Answered]:
        outcomes = dict(self.answer_new(prompts))
        return [outcomes[prompt.sample_id] for prompt in prompts]

    def answer_new(self, prompts: Sequence[StagedPrompt]) -> Iterator[tuple[str, Answered]]:
        """Yield the outcomes of prompts by their ids as they come; they are not logged."""
        inputs = self.inputs
        settings, chat = inputs.recipe.data.generate, inputs.chat
        assert settings is not None and chat is not None
        rewriter = Rewriter(
            answerer=self.answerer,
            chat=chat,
            max_new_tokens=settings.max_new_tokens,
            vocab_size=inputs.spec.vocab_size,
            max_positions=answer_positions(inputs),
            seed=settings.seed,
            keep_unfinished=settings.keep_unfinished,
        )
        by_number = {draw_number(prompt): prompt for prompt in prompts}
        conversations = [(number, staged_conversation(prompt)) for number, prompt in by_number.items()]
        tokenizer = chat.fingerprint()
        for number, rewritten in rewriter.rewrite(conversations):
            prompt = by_number[number]
            yield prompt.sample_id, answered(prompt, rewritten, inputs, tokenizer=tokenizer)


def draw_number(prompt: StagedPrompt) -> int:
    """Return a number of a prompt's own by which its answers are drawn, whatever is answered beside it."""
    return xxhash.xxh3_64_intdigest(prompt.sample_id.encode())
