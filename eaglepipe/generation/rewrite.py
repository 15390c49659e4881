"""Conversations with every assistant turn written anew by the target, each after the turns it has just written.

Each conversation goes through its turns by itself, many at a time; whoever answers is given the next prompt as soon as
the turn before it is answered.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.messages import Message
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer, decode_after
from eaglepipe.errors import TemplateError
from eaglepipe.generation.answer_message import AnswerMessage, AnswerText, read_answer
from eaglepipe.generation.answering import Answer, Answerer, Prompt
from eaglepipe.generation.token_rows import AnswerRow, add_turn
from eaglepipe.generation.tool_turns import call_ids, results_fault, with_call_ids

_PROMPT_CHARACTERS = 2**21  # a token needs hundreds of bytes while a text is tokenised
Status = Literal["written", "skipped", "error"]
UNFINISHED = "unfinished after max_new_tokens"
"""Reason that an answer, or what comes after it, is left out."""


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """Outcome of one conversation: its rows, and the reason that there are none, or none of its later turns."""

    status: Status
    rows: tuple[AnswerRow, ...] = ()
    num_tokens: int = 0  # generated, with the ends of turns
    reason: str = ""  # one of few, for counting
    detail: str = ""
    passing: bool = False  # of an error: a later attempt may succeed
    figures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rewriter:
    """Whoever answers, the target's chat template and limits, and the seed of all draws."""

    answerer: Answerer
    chat: ChatTokenizer
    max_new_tokens: int
    vocab_size: int
    max_positions: int | None  # that the target may read at once; None: no limit
    seed: int
    keep_unfinished: bool = False  # answers without an end, which no later turn can follow

    def rewrite(
        self,
        conversations: Iterable[tuple[int, Conversation]],
        *,
        at_once: int | None = None,
        window: int | None = None,
    ) -> Iterator[tuple[int, Rewritten]]:
        """Yield the number and outcome of each numbered conversation, as they are decided.

        Args:
            at_once: conversations on their way; None: all.
            window: number of the draws that they share; None: each conversation has its own.
        """
        waiting, drafts = iter(conversations), dict[int, _Draft]()

        def send(number: int) -> Iterator[tuple[int, Rewritten]]:
            draft = drafts[number]
            if self._prompt(draft):
                purpose = (self.seed, number if window is None else window, draft.turn)
                before, tools = draft.messages[: draft.positions[draft.turn]], draft.conversation.tools
                prompt = Prompt(
                    token_ids=draft.prompt, purpose=purpose, text=draft.prompt_text, messages=before, tools=tools
                )
                self.answerer.add(number, prompt)
            else:
                del drafts[number]
                assert draft.outcome is not None
                yield number, draft.outcome

        def fill() -> Iterator[tuple[int, Rewritten]]:
            while at_once is None or len(drafts) < at_once:
                if (entry := next(waiting, None)) is None:
                    return
                number, conversation = entry
                drafts[number] = _Draft(conversation)
                yield from send(number)

        yield from fill()
        for number, answer in self.answerer.answered():
            draft = drafts[number]
            self._take(draft, answer)
            yield from send(number)
            yield from fill()

    def _prompt(self, draft: "_Draft") -> bool:
        """Give the draft the prompt of its next turn, unless it has its outcome, now or before."""
        if draft.outcome is not None:
            return False
        if not draft.positions:
            draft.close("skipped", "nothing to answer")
            return False
        try:
            text = self.chat.template.render(
                draft.messages[: draft.positions[draft.turn]], draft.conversation.tools, prompt=True
            )
        except TemplateError as error:
            draft.close("error", "the chat template refuses it", str(error))
            return False
        if len(text) > _PROMPT_CHARACTERS:
            draft.close("error", "prompt too long", f"{len(text):,} characters; {_PROMPT_CHARACTERS:,} are tokenised")
            return False
        draft.prompt_text, draft.prompt = text, self.chat.token_ids(text)
        room = self.max_positions
        if room is not None and len(draft.prompt) + self.max_new_tokens > room:
            detail = f"{len(draft.prompt)} tokens and max_new_tokens are more than the target's {room} positions"
            draft.close("error", "prompt too long", detail)
        elif len(draft.prompt) and (largest := int(draft.prompt.max())) >= self.vocab_size:
            detail = f"token id {largest} is outside the target's vocabulary of {self.vocab_size}"
            draft.close("error", "a token without embedding in the prompt", detail)
        elif len(draft.prompt) == 0:
            draft.close("error", "the chat template renders an empty prompt")
        return draft.outcome is None

    def _take(self, draft: "_Draft", answer: Answer) -> None:
        """Take an answer, or the reason that it is of no use."""
        draft.num_tokens += len(answer.token_ids)
        draft.figures.update(answer.figures)
        if answer.unanswered is not None and answer.unanswered.passing:
            unanswered = answer.unanswered
            draft.outcome = Rewritten(status="error", reason=unanswered.reason, detail=unanswered.detail, passing=True)
        elif answer.unanswered is not None:
            draft.close(answer.unanswered.status, answer.unanswered.reason, answer.unanswered.detail)
        elif not answer.finite:
            draft.close("error", "the target gave NaN or Inf")
        elif not answer.ended and not self.keep_unfinished:
            draft.close("skipped", UNFINISHED)
        elif not self.chat.tokenizer.decode(answer.body, skip_special_tokens=True).strip():
            draft.close("skipped", "empty answer")
        else:
            draft.answer(answer.token_ids, self._message(draft, answer), ended=answer.ended)

    def _message(self, draft: "_Draft", answer: Answer) -> AnswerMessage:
        """Return the message by which later turns see an answer."""
        prompt, ids, end = draft.prompt.tolist(), answer.body.tolist(), answer.end.tolist()
        body = decode_after(self.chat.tokenizer, prompt, ids)
        text = AnswerText(prompt=draft.prompt_text, body=body, end=decode_after(self.chat.tokenizer, prompt + ids, end))
        position = draft.positions[draft.turn]
        source = draft.messages[position] if position < len(draft.messages) else None
        before, tools = draft.messages[:position], draft.conversation.tools
        read = read_answer(self.chat, before, tools, text, call_ids(source))
        valid = "\N{REPLACEMENT CHARACTER}" not in body or np.array_equal(self.chat.token_ids(body), ids)
        return AnswerMessage(message=read.message, shown=read.shown and valid)


class _Draft:
    """One conversation on its way: turns before `turn` are the target's, and `rows` hold their tokens."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.turn = self.num_tokens = 0
        self.prompt, self.prompt_text = np.empty(0, dtype=np.int32), ""
        self.rows: list[AnswerRow] = []
        self.figures: Counter[str] = Counter()
        self.outcome: Rewritten | None = None
        self.messages: list[Message] = list(conversation.messages or ())
        self.positions = [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant" and index not in conversation.context
        ]
        if not self.positions and self.messages and self.messages[-1]["role"] == "user":
            self.positions = [len(self.messages)]
        if conversation.messages is None:
            self.close("skipped", "already tokenised: there is no text to answer")

    def close(self, status: Status, reason: str, detail: str = "") -> None:
        """Decide the outcome; turns that were answered before stay, without the later ones."""
        status = "written" if self.rows else status
        self.outcome = Rewritten(
            status=status,
            rows=tuple(self.rows),
            reason=reason,
            detail=detail,
            num_tokens=self.num_tokens,
            figures=dict(self.figures),
        )

    def answer(self, token_ids: NDArray[np.int32], read: AnswerMessage, *, ended: bool) -> None:
        """Put an answer in the place of its turn; the last one, or one that no later turn can follow, ends it."""
        position = self.positions[self.turn]
        source = self.messages[position : position + 1]
        self.messages[position : position + 1] = [read.message]
        self.rows = add_turn(self.rows, self.prompt, token_ids, tuple(self.messages[: position + 1]))
        self.turn += 1
        if self.turn == len(self.positions):
            self.close("written", "")
            return
        following = self.messages[position + 1 : self.positions[self.turn]]
        if not ended:
            self.close("written", UNFINISHED)
        elif not read.shown:
            self.close("written", "the template does not show the answer as the target wrote it")
        elif (fault := results_fault(source[0], read.message, following)) is not None:
            self.close("written", fault)
        else:
            self.messages[position + 1 : self.positions[self.turn]] = with_call_ids(source[0], read.message, following)
