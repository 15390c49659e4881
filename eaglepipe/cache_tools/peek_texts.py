"""`cache peek`: one cached sample with its texts, by the tokenizer that lies in the cache; no target is needed."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.sampled import SampledSupervision
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.peek import PeekedRow, find_sample, peek_rows
from eaglepipe.chat.preview import escape_control, preview_samples
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import ConfigError

DEFAULT_ROWS = 24
_RANGE = re.compile(r"(\d*):(\d*)")
_GREEN, _DIM, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"
TokenText = Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Peek:
    """A sample with its texts, as a page or as JSON."""

    number: int
    sample: CachedSample
    rows: tuple[PeekedRow, ...]
    tokenizer: PreTrainedTokenizerBase | None
    token_text: TokenText
    is_drawn: bool = False  # whether most probabilities are those that drawn tokens stand for

    def to_json(self) -> dict[str, Any]:
        sample = self.sample
        return {
            "sample": self.number,
            "sample_id": sample.sample_id,
            "source": sample.source,
            "num_tokens": len(sample.input_ids),
            "num_supervised": int(sample.supervised.sum()),
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: PeekedRow) -> dict[str, Any]:
        top = [{"id": token, "text": self.token_text(token), "probability": p} for token, p in row.top]
        return {**asdict(row), "text": self.token_text(row.token_id), "top": top}

    def text(self, *, colour: bool) -> str:
        """Return the whole sample with its assistant turns marked, then a line for each row."""
        lines = [f"sample {self.number}, source {escape_control(self.sample.source)}", self._body(colour), ""]
        drawn = ", the likeliest and some that are drawn" if self.is_drawn else ""
        lines.append(f"{'row':>6} {'token':24} {'mass':>6} {'top 1':5}  the target's next token, by probability{drawn}")
        lines += [self._line(row, colour) for row in self.rows]
        rows, total = self.rows, len(self.sample.input_ids)
        if len(rows) < total:
            shown = f"{rows[0].position}:{rows[-1].position + 1}" if rows else "none"
            lines.append(f"rows {shown} of {total}; --rows a:b shows others")
        return "\n".join(lines)

    def _body(self, colour: bool) -> str:
        sample = self.sample
        if self.tokenizer is None:
            return f"{escape_control(sample.sample_id)}: {len(sample.input_ids)} tokens; the cache has no tokenizer"
        shown = TokenSample(
            sample_id=sample.sample_id, source=sample.source, input_ids=sample.input_ids, turns=turns_of(sample)
        )
        return preview_samples([shown], self.tokenizer, colour=colour)

    def _line(self, row: PeekedRow, colour: bool) -> str:
        token = f"{self._quoted(row.token_id):24}"
        if colour:
            token = f"{_GREEN if row.assistant else _DIM}{token}{_RESET}"
        start = f"{row.position:>6} {token}"
        if row.draft_mass is None:
            return f"{start} {'-':>6} {'assistant, unsupervised' if row.assistant else ''}".rstrip()
        inside = "in" if row.top1_in_draft_vocab else "OUT"
        top = "  ".join(f"{self._quoted(token_id)} {p:.3f}" for token_id, p in row.top)
        top += "" if row.tail_mass is None else f"  (tail {row.tail_mass:.3f})"
        missed = "" if row.top1_in_draft_vocab else f"  (the target's top 1: {self._quoted(row.target_top1 or 0)})"
        return f"{start} {row.draft_mass:6.3f} {inside:5}  {top}{missed}"

    def _quoted(self, token_id: int) -> str:
        return f"'{self.token_text(token_id)}'" if self.tokenizer is not None else f"#{token_id}"


def peek_cache(folder: Path, name: str, *, top: int, rows: str | None) -> Peek:
    """Decode one sample of a complete cache.

    Args:
        name: the sample's number or id.
        rows: `a:b`, either side open; default: some rows from the first supervised one on.

    Raises:
        CacheError: no such cache or sample.
        CorruptError: a file or sample that is read is damaged.
    """
    cache = Cache.open(folder)
    number = find_sample(cache, name)
    sample = cache.read(number)
    tokenizer = load_tokenizer(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    return Peek(
        number=number,
        sample=sample,
        rows=peek_rows(cache, sample, _rows(rows, sample), top=top),
        tokenizer=tokenizer,
        token_text=_texts(tokenizer),
        is_drawn=cache.spec.supervision == SampledSupervision.name,
    )


def turns_of(sample: CachedSample) -> NDArray[np.int32]:
    """Return the number of each token's assistant turn, [T], 0 if none; a turn continues after a supervised token."""
    continues = np.concatenate([[False], sample.supervised[:-1]])
    return np.where(sample.loss_mask, np.cumsum(sample.loss_mask & ~continues), 0).astype(np.int32)


def _rows(text: str | None, sample: CachedSample) -> slice:
    if text is None:
        first = int(sample.supervised.argmax())
        return slice(first, first + DEFAULT_ROWS)
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--rows {text!r}: expected a:b, such as 10:30, 10: or :30")
    start, stop = (int(part) if part else None for part in match.groups())
    return slice(start, stop)


def _texts(tokenizer: PreTrainedTokenizerBase | None) -> TokenText:
    if tokenizer is None:
        return lambda token_id: f"#{token_id}"
    known = len(tokenizer)

    def text(token_id: int) -> str:
        """Return a token's own text; if it is none, such as half a character, the tokenizer's spelling."""
        if token_id >= known:
            return f"#{token_id}"
        decoded = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "\ufffd" in decoded:
            decoded = str(tokenizer.convert_ids_to_tokens(token_id))
        return decoded if decoded.isprintable() else escape_control(decoded).replace("\n", "")

    return text
