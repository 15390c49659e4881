"""Complete caches of very many samples, built by writing Arrow directly: `python -m tests.cache.many_shards FOLDER`.

All samples are the same few tokens under another id; shards and documents are as real ones are.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from eaglepipe.bench.made_cache import TargetShape, _fixed_files, _plan
from eaglepipe.cache.fixed_files import publish_files
from eaglepipe.cache.manifest import PLAN_NAME, document_bytes, file_entry
from eaglepipe.cache.samples.record_batch import sample_digest, sample_to_batch
from eaglepipe.cache.schema import ShardSpec, arrow_schema
from eaglepipe.cache.seal import seal_cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import make_sidecar
from eaglepipe.files.hashing import hash_json

SHAPE = TargetShape(
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=64,
    draft_vocab_size=32,
)
TOKENS = 4
SPEC = ShardSpec(
    supervision="hidden",
    aux_codec="int4",
    supervision_codec="int8",
    aux_layer_ids=(2, 3, 4),
    hidden_size=SHAPE.hidden_size,
    vocab_size=SHAPE.vocab_size,
    draft_vocab_size=SHAPE.draft_vocab_size,
)


def write_many_shards(folder: Path, *, shards: int, samples_per_shard: int) -> None:
    fields = {"made": [shards, samples_per_shard]}
    identity = hash_json(fields)
    fixed = publish_files(folder, _fixed_files(SHAPE, TOKENS))
    (folder / "shards").mkdir(exist_ok=True)
    base = arrow_schema(SPEC, identity=identity, shard=0)
    batch, _ = sample_to_batch(_sample(), base)
    for shard in range(shards):
        schema = base.with_metadata({**base.metadata, b"eaglepipe.shard": str(shard).encode()})
        numbers = range(shard * samples_per_shard, (shard + 1) * samples_per_shard)
        ids = [f"conversation-{number:012d}" for number in numbers]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            for sample_id in ids:
                digest = sample_digest(batch, sample_id, "made")
                metadata = {"sample_id": sample_id, "source": "made", "xxh3_128": digest}
                writer.write_batch(batch, custom_metadata=metadata)
        data = sink.getvalue().to_pybytes()
        path = f"shards/{shard:05d}.arrow"
        sidecar = make_sidecar(file_entry(path, data), identity, [(name, TOKENS, 2, "made") for name in ids], [])
        (folder / path).write_bytes(data)
        (folder / path).with_suffix(".json").write_bytes(document_bytes(sidecar))
    num_samples = shards * samples_per_shard
    counts = {"samples": num_samples, "tokens": num_samples * TOKENS, "supervised_tokens": num_samples * 2}
    plan = _plan(identity, fields, [TOKENS], 1.0, shards).model_copy(update=counts)
    (folder / PLAN_NAME).write_bytes(document_bytes(plan))
    seal_cache(folder, plan, SPEC, max_length=TOKENS, fixed=fixed)


def _sample() -> CachedSample:
    generator = torch.Generator().manual_seed(0)
    aux = SPEC.aux.encode(torch.randn(TOKENS, 3, SHAPE.hidden_size, generator=generator))
    hidden = SPEC.rows.encode(torch.randn(2, SHAPE.hidden_size, generator=generator))
    assert aux.scales is not None
    supervised = np.array([False, True, True, False])
    return CachedSample(
        sample_id="",
        source="made",
        input_ids=np.arange(TOKENS, dtype=np.int32),
        loss_mask=np.array([False, True, True, True]),
        supervised=supervised,
        position_mask=supervised,
        target_top1=np.where(supervised, 3, -1).astype(np.int32),
        draft_mass=supervised.astype(np.float32),
        aux_payload=aux.payload.numpy(),
        aux_scales=aux.scales.numpy(),
        supervision={SPEC.kind.column: hidden.payload.numpy()},
    )


if __name__ == "__main__":
    write_many_shards(Path(sys.argv[1]), shards=20_000, samples_per_shard=100)
