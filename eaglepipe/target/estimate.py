"""`eaglepipe estimate`: what a recipe's corpus would cost in each encoding, before any forward."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from eaglepipe.cache.codecs import FLOAT_DTYPES
from eaglepipe.cache.estimate import token_cost
from eaglepipe.cache.publish import free_bytes
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.storage import cache_root
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.tokens import iter_token_samples
from eaglepipe.chat.types import DropCounts, supervised_tokens
from eaglepipe.config import Recipe
from eaglepipe.errors import DataError
from eaglepipe.progress import format_seconds
from eaglepipe.target.inputs import Inputs, read_inputs
from eaglepipe.target.speed import forward_seconds


@dataclass(frozen=True, kw_only=True)
class EncodingCost:
    """One way to encode the corpus."""

    supervision: str
    supervision_codec: str
    aux_codec: str
    chosen: bool  # the recipe's own
    bytes_per_token: float
    by_column: dict[str, float]
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """The corpus and what each encoding of it would take."""

    samples: int
    tokens: int
    supervised_tokens: int
    drops: dict[str, int]
    forward_seconds: float
    free_bytes: int
    encodings: tuple[EncodingCost, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        lines = [
            f"{self.samples:,} samples, {self.tokens:,} tokens, {self.supervised_tokens:,} of them supervised",
            f"{format_seconds(self.forward_seconds)} of forward on one device, {self.free_bytes / 1e9:,.1f} GB free",
            "",
            f"  {'supervision':12} {'stored as':10} {'aux':6}"
            + "".join(f" {title:>10}" for title in ("B/token", "aux B", "superv. B", "total GB")),
        ]
        for cost in self.encodings:
            aux = cost.by_column["aux_hidden_states"]
            rows = next(size for name, size in cost.by_column.items() if name in ("target_probs", "last_hidden_states"))
            lines.append(
                f"{'>' if cost.chosen else ' '} {cost.supervision:12} {cost.supervision_codec:10} {cost.aux_codec:6} "
                f"{cost.bytes_per_token:>10,.1f} {aux:>10,.1f} {rows:>10,.1f} {cost.total_bytes / 1e9:>10,.3f}"
            )
        return "\n".join(lines)


def estimate_recipe(recipe: Recipe) -> CostReport:
    """Tokenise the corpus, count, and price every encoding.

    Raises:
        EaglepipeError: whatever `precompute` would refuse before its first forward.
    """
    inputs = read_inputs(recipe)
    drops = DropCounts()
    samples = tokens = supervised = 0
    for sample in iter_token_samples(iter_conversations(recipe.data.sources), inputs.chat, recipe.data, drops):
        samples += 1
        tokens += len(sample.input_ids)
        supervised += int(supervised_tokens(sample.turns).sum())
    if samples == 0:
        raise DataError(f"no sample is left; dropped: {dict(drops)}")
    return CostReport(
        samples=samples,
        tokens=tokens,
        supervised_tokens=supervised,
        drops={reason: count for reason, count in drops.items() if count},
        forward_seconds=forward_seconds(recipe, tokens),
        free_bytes=free_bytes(cache_root(recipe)),
        encodings=tuple(_encodings(inputs, samples, tokens, supervised)),
    )


def _encodings(inputs: Inputs, samples: int, tokens: int, supervised: int) -> list[EncodingCost]:
    variants = [
        replace(inputs.spec, supervision=supervision, supervision_codec=rows, aux_codec=aux)
        for supervision, rows_codecs in (("hidden", ("bf16", "fp32")), ("dense", ("fp16", "fp32")))
        for rows in rows_codecs
        for aux in FLOAT_DTYPES
        if (rows == "fp32") == (aux == "fp32")
    ]
    if inputs.spec not in variants:
        variants.insert(0, inputs.spec)
    return [_price(variant, inputs.spec, samples, tokens, supervised) for variant in variants]


def _price(variant: ShardSpec, chosen: ShardSpec, samples: int, tokens: int, supervised: int) -> EncodingCost:
    cost = token_cost(variant, supervised_share=supervised / tokens, tokens_per_sample=tokens / samples)
    return EncodingCost(
        supervision=variant.supervision,
        supervision_codec=variant.supervision_codec,
        aux_codec=variant.aux_codec,
        chosen=variant == chosen,
        bytes_per_token=cost.total,
        by_column=cost.by_column,
        total_bytes=int(cost.total * tokens),
    )
