"""A long sequence read in pieces, with a cache of the target's keys and values between them: activations of one piece.

Shapes: T tokens of a sequence.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from eaglepipe.errors import TargetError
from eaglepipe.target.load import LoadedTarget
from eaglepipe.target.model import CapturedStates
from eaglepipe.target.steps.kv_cache import cache_argument, make_cache

_PROBE_TOKENS = 24
_MOST_PROBED = 4096
_NUM_PROBE_PIECES = 3


class PieceReader(Protocol):
    """A target whose decoder runs with its states captured."""

    @property
    def target(self) -> LoadedTarget: ...

    def capture(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> CapturedStates: ...

    def run(self, input_ids: torch.Tensor, **inputs: Any) -> CapturedStates: ...


def read_pieces(model: PieceReader, token_ids: torch.Tensor, piece_tokens: int) -> Iterator[CapturedStates]:
    """Yield the states of token ids [T], piece after piece; equal to those of one forward but for rounding."""
    target = model.target
    cache = make_cache(target.text_config)
    for piece in token_ids.split(piece_tokens):
        states = model.run(piece[None], use_cache=True, **{cache_argument(target.model): cache})
        yield CapturedStates(aux=states.aux[0], last_hidden=states.last_hidden[0])


def check_pieces(model: PieceReader) -> None:
    """Check on a probe, longer than a sliding window unless that is wide, that pieces give the states of one forward.

    Raises:
        TargetError: they do not, or the target has no cache of keys and values.
    """
    target = model.target
    remedy = "set precompute.chunk_tokens to data.max_length, so that long samples are read in one forward"
    window = getattr(target.text_config, "sliding_window", None)
    length = _PROBE_TOKENS + (window if isinstance(window, int) and window <= _MOST_PROBED else 0)
    ids = torch.arange(1, length + 1, device=target.device) % target.vocab_size
    try:
        parts = list(read_pieces(model, ids, -(-length // _NUM_PROBE_PIECES)))
    except (TargetError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise TargetError(f"{type(target.model).__name__} cannot read a sample in pieces ({error}); {remedy}") from None
    whole = model.capture(ids[None], torch.ones_like(ids)[None])
    tolerance = 1e-3 if target.dtype == torch.float32 else 32 * torch.finfo(target.dtype).eps
    for name in ("aux", "last_hidden"):
        expected = getattr(whole, name)[0].float()
        off = (torch.cat([getattr(part, name) for part in parts]).float() - expected).abs().max()
        if not float(off) <= tolerance * max(1.0, float(expected.abs().max())):
            raise TargetError(
                f"{type(target.model).__name__} gives other states if it reads a sample in pieces than in one forward "
                f"(off by {float(off):.2g}); {remedy}"
            )
