"""Complete caches of random numbers in any shape, written by the cache's own writer, for benchmarks to read.

Ids, turns and encodings are real; states are noise, on which no time or memory here depends. Distributions have few
likely tokens in most rows and thousands in some, as those of targets do, on which sparse supervision depends.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from eaglepipe.cache.consistency import START_FILE, TARGET_CONFIG_FILE, VOCAB_FILE
from eaglepipe.cache.fixed_files import publish_files
from eaglepipe.cache.manifest import PLAN_NAME, FileEntry, Plan, document_bytes
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec
from eaglepipe.cache.seal import HEAD_FILE, seal_cache
from eaglepipe.cache.supervision.columns import to_host
from eaglepipe.cache.supervision.kind import EntryRule, entry_rule, stored_codec
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.chat.tokens import supervised_tokens
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.publish import json_bytes, publish_bytes
from eaglepipe.recipe.config import CacheConfig
from eaglepipe.target_head import HeadSpec

TOKENS_PER_TURN_PAIR = 320
_HEAD_SCALE = 4.0  # standard deviation of the target's logits
_LEAST_SCALE, _MOST_SCALE = 2.0, 10.0  # the same, row by row, of stored distributions
_NO_DIGEST = "0" * 32


@dataclass(frozen=True, kw_only=True)
class TargetShape:
    """The sizes of a target that a cache and a draft depend on."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    num_aux: int = 3
    num_hidden_layers: int = 8

    def config(self, max_length: int) -> dict[str, Any]:
        """Return a Llama `config.json` of this shape."""
        shape = asdict(self)
        del shape["num_aux"], shape["draft_vocab_size"]
        kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-6}
        return {**kind, **shape, "max_position_embeddings": max_length}


CPU_SHAPE = TargetShape(
    hidden_size=512,
    intermediate_size=1408,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=32_000,
    draft_vocab_size=8192,
)
SHAPE_8B = TargetShape(
    hidden_size=4096,
    intermediate_size=14_336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
    draft_vocab_size=32_000,
)


def chat_lengths(count: int, *, median: int, spread: float, longest: int, seed: int = 0) -> tuple[int, ...]:
    """Return log-normal lengths at evenly spaced quantiles, in random order, so that few samples are representative."""
    quantiles = (np.arange(count) + 0.5) / count
    lengths = [median * np.exp(spread * NormalDist().inv_cdf(float(q))) for q in quantiles]
    clipped = np.clip(np.round(lengths), 16, longest).astype(int)
    return tuple(int(length) for length in np.random.default_rng(seed).permutation(clipped))


def make_turns(length: int, assistant_share: float) -> NDArray[np.int32]:
    """Return the assistant turn of each token, 0 for others: pairs of a user's and an assistant's turn, int32 [T]."""
    if assistant_share == 1.0:
        return np.ones(length, np.int32)
    num_pairs = max(1, round(length / TOKENS_PER_TURN_PAIR))
    place = np.arange(length) * num_pairs / length
    return np.where(place % 1.0 >= 1.0 - assistant_share, place.astype(np.int32) + 1, 0).astype(np.int32)


def write_made_cache(
    folder: Path,
    shape: TargetShape,
    lengths: Sequence[int],
    *,
    assistant_share: float,
    shard_bytes: int = 256 * 2**20,
    settings: CacheConfig | None = None,
) -> Cache:
    """Write and open a cache; one sample a length, in the order given.

    Args:
        settings: of its columns and codecs; None: those of the exact profile.
    """
    settings = settings or CacheConfig(profile="exact")
    spec = ShardSpec(
        supervision=settings.supervision,
        aux_codec=settings.aux_codec,
        supervision_codec=stored_codec(settings),
        aux_layer_ids=tuple(range(2, 2 + shape.num_aux)),
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        draft_vocab_size=shape.draft_vocab_size,
    )
    fields = {"made": [asdict(shape), list(lengths), assistant_share, settings.model_dump(mode="json")]}
    identity = hash_json(fields)
    fixed = publish_files(folder, _fixed_files(shape, max(lengths)))
    rule = entry_rule(settings)
    samples = (_sample(number, length, assistant_share, spec, rule) for number, length in enumerate(lengths))
    num_shards, shard = 0, ShardWriter(folder, 0, spec=spec, identity=identity)
    for sample in samples:
        if shard.num_bytes >= shard_bytes:
            shard.finish()
            num_shards += 1
            shard = ShardWriter(folder, num_shards, spec=spec, identity=identity)
        shard.write(sample)
    shard.finish()
    plan = _plan(identity, fields, lengths, assistant_share, num_shards + 1)
    publish_bytes(folder / PLAN_NAME, document_bytes(plan))
    seal_cache(folder, plan, spec, max_length=max(lengths), fixed=fixed)
    return Cache.open(folder)


def _sample(number: int, length: int, assistant_share: float, spec: ShardSpec, rule: EntryRule) -> CachedSample:
    generator = torch.Generator().manual_seed(number)
    turns = make_turns(length, assistant_share)
    supervised = supervised_tokens(turns)
    ids = torch.randint(spec.vocab_size, (2, length), generator=generator, dtype=torch.int32)
    aux = torch.randn(length, len(spec.aux_layer_ids), spec.hidden_size, generator=generator)
    encoded = spec.aux.encode(aux)
    width = spec.draft_vocab_size if spec.kind.stores_probabilities else spec.hidden_size
    rows = torch.randn(int(supervised.sum()), width, generator=generator)
    if spec.kind.stores_probabilities:
        scales = torch.rand(len(rows), 1, generator=generator) * (_MOST_SCALE - _LEAST_SCALE) + _LEAST_SCALE
        rows = (scales * rows).softmax(-1)
    sample_id = f"made:{number}"
    hints = torch.from_numpy(rule.hints(sample_id, ids[0].numpy(), supervised))
    columns = spec.kind.encode(rows, rule.located(hints, torch.arange(spec.draft_vocab_size)), rule)
    return CachedSample(
        sample_id=sample_id,
        source="made",
        input_ids=ids[0].numpy(),
        loss_mask=turns > 0,
        supervised=supervised,
        position_mask=supervised,
        target_top1=np.where(supervised, ids[1].numpy() % spec.draft_vocab_size, -1).astype(np.int32),
        draft_mass=supervised.astype(np.float32),
        aux_payload=encoded.payload.numpy(),
        aux_scales=None if encoded.scales is None else encoded.scales.numpy(),
        supervision=to_host(columns),
    )


def _fixed_files(shape: TargetShape, max_length: int) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    width, draft_size = shape.hidden_size, shape.draft_vocab_size
    ids = torch.arange(draft_size)
    mask = torch.zeros(shape.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    counts = torch.ones(shape.vocab_size, dtype=torch.int64)
    start = {
        "embed_tokens.weight": torch.randn(shape.vocab_size, width, generator=generator) * 0.02,
        "lm_head.weight": torch.randn(draft_size, width, generator=generator) * (_HEAD_SCALE * width**-0.5),
        "norm.weight": torch.ones(width),
    }
    vocab = {"selected_token_ids": ids, "selected_token_mask": mask, "counts": counts}
    return {
        VOCAB_FILE: save(vocab),
        START_FILE: save({name: tensor.bfloat16() for name, tensor in start.items()}),
        TARGET_CONFIG_FILE: json_bytes(shape.config(max_length)),
        HEAD_FILE: json_bytes(asdict(HeadSpec())),
    }


def _plan(
    identity: str, fields: dict[str, Any], lengths: Sequence[int], assistant_share: float, num_shards: int
) -> Plan:
    """There was no recipe and no corpus, so nothing is declared and nothing was staged."""
    return Plan(
        schema_version=SCHEMA_VERSION,
        name="made",
        identity=identity,
        identity_fields=fields,
        declared={},
        batch_tokens=0,
        samples=len(lengths),
        tokens=sum(lengths),
        supervised_tokens=sum(int(supervised_tokens(make_turns(n, assistant_share)).sum()) for n in lengths),
        shards=num_shards,
        drops={},
        staging=FileEntry(path="none", bytes=0, xxh3_128=_NO_DIGEST),
    )
