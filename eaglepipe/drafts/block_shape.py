"""The shape of a draft that guesses a block of tokens at once (DFlash, DSpark), and the tensors that follow from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

MarkovHead = Literal["vanilla", "gated", "rnn"]
"""How the token before a slot changes its logits; `rnn` is speculators' and SGLang's alone."""
MARKOV_HEADS: tuple[MarkovHead, ...] = get_args(MarkovHead)
MARKOV_TENSOR = "markov_head.markov_w1.weight"
CONFIDENCE_TENSOR = "confidence_head.proj.weight"
HEADS = ("markov_head.", "confidence_head.")
_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What a block draft has beside a transformer's sizes."""

    block_size: int | None = None  # slots, the anchor's included; None: no config names it
    sample_from_anchor: bool = False  # whether the anchor's slot guesses too
    causal_windows: bool = False  # whether layers with a window read their block up to the slot alone
    markov_rank: int = 0  # 0: no Markov head
    markov_head: MarkovHead = "vanilla"
    confidence_head: bool = False
    confidence_reads_markov: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What a recipe's `draft` section sets, as it names it."""
        return {
            "sample_from_anchor": self.sample_from_anchor,
            "sliding_window_non_causal": not self.causal_windows,
            "markov_rank": self.markov_rank,
            "markov_head_type": self.markov_head,
            "enable_confidence_head": self.confidence_head,
            "confidence_head_with_markov": self.confidence_reads_markov,
        }

    @property
    def num_guesses(self) -> int | None:
        """Tokens that a round guesses."""
        return None if self.block_size is None else self.block_size - (not self.sample_from_anchor)


def head_shapes(
    block: BlockShape, *, hidden: int, vocab_size: int, draft_vocab_size: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of the Markov and confidence heads, by canonical name."""
    rank = block.markov_rank
    if rank:
        yield MARKOV_TENSOR, (vocab_size, rank)
        yield "markov_head.markov_w2.weight", (draft_vocab_size, rank)
    if rank and block.markov_head == "gated":
        yield "markov_head.gate_proj.weight", (rank, hidden + rank)
        yield "markov_head.gate_proj.bias", (rank,)
    if rank and block.markov_head == "rnn":
        yield "markov_head.joint_proj.weight", (3 * rank, 2 * rank + hidden)
        yield "markov_head.joint_proj.bias", (3 * rank,)
    if block.confidence_head:
        yield CONFIDENCE_TENSOR, (1, hidden + (rank if block.confidence_reads_markov else 0))
        yield "confidence_head.proj.bias", (1,)


def norm_shapes(hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the norms of a layer."""
    yield from ((f"{norm}.weight", (hidden,)) for norm in _NORMS)
