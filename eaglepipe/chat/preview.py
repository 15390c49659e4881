"""Samples as text for a person: assistant turns set apart, control characters escaped."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from eaglepipe.chat.tokenizer import decode_after
from eaglepipe.chat.tokens import TokenSample, supervised_tokens
from eaglepipe.errors import printable

_TURN_COLOURS = ("\x1b[32m", "\x1b[36m")
_RESET = "\x1b[0m"
_BRACKETS = ("⟦", "⟧")


def preview_samples(
    samples: Iterable[TokenSample], tokenizer: PreTrainedTokenizerBase, *, colour: bool = True, max_tokens: int = 512
) -> str:
    """Return each sample's heading and text; assistant turns in alternating colours, or in ⟦brackets⟧ without colour.

    At most `max_tokens` tokens of a sample are shown.
    """
    return "\n\n".join(_preview(sample, tokenizer, colour, max_tokens) for sample in samples)


def escape_control(text: str) -> str:
    """Write control characters as escapes; line feeds are escaped and kept."""
    return printable(text).replace("\n", "\\n\n")


def _preview(sample: TokenSample, tokenizer: PreTrainedTokenizerBase, colour: bool, max_tokens: int) -> str:
    tokens, supervised = len(sample.input_ids), int(supervised_tokens(sample.turns).sum())
    heading = f"{escape_control(sample.sample_id)}: {tokens} tokens, {supervised} supervised"
    cut = f"\n… {tokens - max_tokens} more tokens" if tokens > max_tokens else ""
    return heading + "\n" + "".join(_runs(sample, tokenizer, colour, max_tokens)) + cut


def _runs(sample: TokenSample, tokenizer: PreTrainedTokenizerBase, colour: bool, max_tokens: int) -> Iterator[str]:
    """Decode the text a run at a time, since one character may be several tokens."""
    ids, turns = sample.input_ids[:max_tokens].tolist(), sample.turns[:max_tokens].tolist()
    start = 0
    for turn, run in groupby(turns):
        stop = start + len(list(run))
        text = escape_control(decode_after(tokenizer, ids[:start], ids[start:stop]))
        start = stop
        if not turn:
            yield text
        elif colour:
            yield _TURN_COLOURS[turn % 2] + text + _RESET
        else:
            yield text.join(_BRACKETS)
