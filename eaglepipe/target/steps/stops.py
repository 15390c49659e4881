"""The tokens that end an answer."""

from typing import Any

from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TargetError
from eaglepipe.target.load import LoadedTarget


def stop_ids(target: LoadedTarget, chat: ChatTokenizer | None) -> frozenset[int]:
    """Return the ends of an answer by the template, the tokenizer and the model's own generation config.

    A template may close earlier turns by a token that stands inside a last one, as gpt-oss's `<|end|>` between two
    channels: only the end of a last turn counts.

    Raises:
        TargetError: the generation config names something else than ids.
    """
    own: Any = getattr(getattr(target.model, "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    if wrong := [end for end in named if end is not None and (type(end) is not int or end < 0)]:
        raise TargetError(f"{target.folder}: eos_token_id of its generation config is {wrong[0]!r:.80}, not a token id")
    ends = set(named)
    if chat is not None:
        ends |= {chat.tokenizer.eos_token_id, chat.end_of_turn}
    return frozenset(end for end in ends if end is not None)
