"""What is written is what is read, by this package and by plain pyarrow."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples.record_batch import batch_to_sample, sample_digest, sample_to_batch
from eaglepipe.cache.schema import ShardSpec, arrow_schema
from eaglepipe.cache.supervision.sparse import id_dtype
from eaglepipe.cache.types import CachedSample


def random_sample(seed: int, num_tokens: int, spec: ShardSpec, share: float = 0.5) -> CachedSample:
    rng = np.random.default_rng(seed)
    supervised = rng.random(num_tokens) < share
    scales = torch.empty(0, dtype=spec.aux.scale_dtype).numpy().dtype
    return CachedSample(
        sample_id=f"sample-{seed}",
        source="rng",
        input_ids=rng.integers(0, spec.vocab_size, num_tokens).astype(np.int32),
        loss_mask=supervised | (rng.random(num_tokens) < 0.1),
        supervised=supervised,
        position_mask=supervised & (rng.random(num_tokens) < 0.9),
        target_top1=np.where(supervised, rng.integers(0, spec.vocab_size, num_tokens), -1).astype(np.int32),
        draft_mass=np.where(supervised, rng.random(num_tokens), 0).astype(np.float32),
        aux_payload=rng.integers(0, 256, (num_tokens, spec.aux.row_bytes)).astype(np.uint8),
        aux_scales=rng.random((num_tokens, spec.aux.num_scales)).astype(scales) if spec.aux.num_scales else None,
        supervision=_supervision(rng, int(supervised.sum()), spec),
    )


def _supervision(rng: np.random.Generator, num_rows: int, spec: ShardSpec) -> dict[str, Any]:
    if spec.supervision != "sparse":
        return {spec.kind.column: rng.integers(0, 256, (num_rows, spec.rows.row_bytes)).astype(np.uint8)}
    counts = rng.integers(1, 9, num_rows).astype(np.int32)
    return {
        "target_probs": rng.integers(0, 256, (int(counts.sum()), 2)).astype(np.uint8),
        "target_ids": rng.integers(0, spec.draft_vocab_size, int(counts.sum())).astype(id_dtype(spec.draft_vocab_size)),
        "num_entries": counts,
        "tail_mass": rng.random(num_rows).astype(np.float32),
    }


def spec_of(supervision: str, codec: str, aux_codec: str = "bf16", draft_vocab_size: int = 20) -> ShardSpec:
    return ShardSpec(
        supervision=supervision,
        aux_codec=aux_codec,
        supervision_codec=codec,
        aux_layer_ids=(2, 4, 5),
        hidden_size=8,
        vocab_size=10**6,
        draft_vocab_size=draft_vocab_size,
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_tokens=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    encoding=st.sampled_from(
        [
            ("hidden", "bf16"),
            ("hidden", "fp32", "fp8"),
            ("hidden", "fp8", "int8"),
            ("hidden", "int4", "int4"),
            ("hidden", "rot6", "rot3"),
            ("dense", "fp16"),
            ("dense", "fp32"),
            ("sparse", "fp16", "bf16", 2**16),
            ("sparse", "fp16", "int8", 2**16 + 1),
        ]
    ),
)
def test_every_field_survives_the_arrow_file(
    seed: int, num_tokens: int, share: float, encoding: tuple[Any, ...]
) -> None:
    spec = spec_of(*encoding)
    sample = random_sample(seed, num_tokens, spec, share)
    schema = arrow_schema(spec, identity="0" * 32, shard=0)
    batch, metadata = sample_to_batch(sample, schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch, custom_metadata=metadata)
    read = pa.ipc.open_file(sink.getvalue()).get_batch_with_custom_metadata(0)
    read.batch.validate(full=True)
    again = batch_to_sample(read.batch, metadata)
    for name, value in vars(sample).items():
        found = getattr(again, name)
        if name == "supervision":
            assert found.keys() == value.keys()
            assert all(np.array_equal(found[column], values) for column, values in value.items())
        else:
            assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value, name
        assert getattr(found, "dtype", None) == getattr(value, "dtype", None), name
    assert sample_digest(read.batch, sample.sample_id, sample.source) == metadata["xxh3_128"]


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    from eaglepipe.cache.writer import ShardWriter

    spec, digests = spec_of("hidden", "bf16"), []
    for folder in (tmp_path / "a", tmp_path / "b"):
        writer = ShardWriter(folder, 3, spec=spec, identity="1" * 32)
        for seed in range(4):
            writer.write(random_sample(seed, 10 + seed, spec))
        entry = writer.finish().shard
        digests.append(hashlib.sha256((folder / entry.path).read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_aux_states_are_rebuilt_bit_for_bit_with_pyarrow_and_numpy_alone(sealed_cache: Path) -> None:
    cache = Cache.open(sealed_cache)
    shard = sealed_cache / cache.manifest.shards[0].path
    batch = pa.ipc.open_file(pa.memory_map(str(shard))).get_batch(0)
    field = batch.schema.field("aux_hidden_states")
    shape = json.loads(field.metadata[b"shape"])
    assert field.metadata[b"logical_dtype"] == b"bfloat16" or field.metadata[b"logical_dtype"] == b"float32"
    raw = np.frombuffer(
        batch.column("aux_hidden_states").buffers()[1], np.uint8, batch.num_rows * field.type.byte_width
    )
    ours = cache.spec.aux.decode(EncodedRows(payload=torch.from_numpy(cache.read(0).aux_payload.copy())))
    if field.metadata[b"logical_dtype"] == b"bfloat16":
        theirs = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        theirs = raw.view(np.float32)
    assert np.array_equal(theirs.reshape(-1, *shape), ours.float().numpy())


def test_open_cache_travels_to_another_process(sealed_cache: Path) -> None:
    cache = Cache.open(sealed_cache)
    first = cache.read(0)
    copied = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(copied.read(0).input_ids, first.input_ids)


def test_many_shards_are_read_with_few_open_files(sealed_cache: Path, monkeypatch: object) -> None:
    from eaglepipe.cache import open_shards

    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 1)  # type: ignore[attr-defined]
    cache = Cache.open(sealed_cache)
    assert len(cache.manifest.shards) > 2
    order = np.random.default_rng(0).permutation(cache.num_samples)
    for sample in order:
        assert cache.read(int(sample)).sample_id == cache.index.sample_ids[sample]
    assert len(cache._shards) == 1
