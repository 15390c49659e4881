"""A cache whose checksums all agree, and whose files still are not what its manifest says: refused when it opens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples.record_batch import sample_digest
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, CorruptError
from tests.cache.damage import declare_current_state, rewrite

Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"hidden_size": 2**40}, "bytes is more than Arrow holds"),
        ({"hidden_size": 2**40, "aux_codec": "int4"}, "15 bits"),
        ({"hidden_size": 31}, r"target\.safetensors: embed_tokens\.weight is \(320, 32\), and \(320, 31\)"),
        ({"vocab_size": 2**50}, r"vocab\.safetensors: selected_token_mask"),
        ({"draft_vocab_size": 2**50}, r"vocab\.safetensors: selected_token_ids"),
        ({"draft_vocab_size": 159}, r"vocab\.safetensors: selected_token_ids is \(torch\.int64, \(160,\)\)"),
        ({"aux_layer_ids": [5, 4, 2]}, "aux_layer_ids are not ascending"),
        ({"aux_layer_ids": []}, "aux_layer_ids are not ascending"),
        ({"soft_cap": 0.0}, "soft_cap are not positive"),
        ({"logit_scale": 0.0}, "soft_cap are not positive"),
    ],
)
def test_sizes_that_the_files_do_not_have_are_refused(cache_copy: Path, spec: dict[str, Any], message: str) -> None:
    rewrite(cache_copy / "manifest.json", lambda manifest: manifest["spec"].update(spec))
    with pytest.raises((CorruptError, CacheError), match=message):
        Cache.open(cache_copy)
    with pytest.raises((CorruptError, CacheError), match=message):
        verify_cache(cache_copy)


@pytest.mark.parametrize(
    "spec", [{"aux_layer_ids": [2, 4]}, {"aux_codec": "fp32"}, {"supervision": "dense", "supervision_codec": "fp16"}]
)
def test_shards_of_another_encoding_are_found_without_reading_them(cache_copy: Path, spec: dict[str, Any]) -> None:
    rewrite(cache_copy / "manifest.json", lambda manifest: manifest["spec"].update(spec))
    report = verify_cache(cache_copy)
    assert not report.ok and "00000.arrow: column" in report.problems[0]


@pytest.mark.parametrize("name", ["vocab.safetensors", "target.safetensors", "target_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 99, (2**62).to_bytes(8, "little") + b"{}", b"[]"])
def test_files_that_are_something_else_are_named(cache_copy: Path, name: str, content: bytes) -> None:
    (cache_copy / name).write_bytes(content)
    declare_current_state(cache_copy)
    with pytest.raises(CorruptError, match=name):
        Cache.open(cache_copy)


@pytest.mark.parametrize("name", ["vocab.safetensors", "target.safetensors", "target_config.json"])
def test_a_manifest_that_leaves_out_what_every_cache_has_is_refused(cache_copy: Path, name: str) -> None:
    def leave_out(manifest: dict[str, Any]) -> None:
        manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != name]

    rewrite(cache_copy / "manifest.json", leave_out)
    with pytest.raises(CorruptError, match=f"does not list {name}"):
        Cache.open(cache_copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vocab", lambda t: {"selected_token_ids": t["selected_token_ids"] + 1}, "not those of selected_token_mask"),
        ("vocab", lambda t: {"selected_token_ids": t["selected_token_ids"].flip(0)}, "not ascending"),
        ("vocab", lambda t: {"selected_token_ids": t["selected_token_ids"].float()}, "torch.float32"),
        ("vocab", lambda t: {"selected_token_ids": t["selected_token_ids"][:-1]}, r"\(159,\)"),
        ("vocab", lambda t: {"selected_token_mask": t["selected_token_mask"][:-1]}, r"\(319,\)"),
        ("vocab", lambda _: {"counts": None}, "counts is absent"),
        ("target", lambda _: {"embed_tokens.weight": None}, "embed_tokens.weight is absent"),
        ("target", lambda t: {"lm_head.weight": t["lm_head.weight"][1:]}, r"\(159, 32\)"),
        ("target", lambda t: {"norm.weight": t["norm.weight"][1:]}, r"\(31,\)"),
        ("target", lambda _: {"lm_head_full.weight": torch.zeros(3, 32)}, "lm_head_full.weight"),
    ],
)
def test_tensors_of_another_vocabulary_or_width_are_named(
    cache_copy: Path, name: str, change: Callable[[Tensors], dict[str, torch.Tensor | None]], message: str
) -> None:
    path = cache_copy / f"{name}.safetensors"
    tensors = load_file(path)
    changed = {**tensors, **change(tensors)}
    save_file({key: tensor.contiguous() for key, tensor in changed.items() if tensor is not None}, path)
    declare_current_state(cache_copy)
    with pytest.raises(CorruptError, match=message):
        Cache.open(cache_copy)


@pytest.mark.parametrize("change", [{"vocab_size": 99}, {"hidden_size": "x"}, {"text_config": {"vocab_size": 99}}])
def test_config_of_another_target_is_refused(cache_copy: Path, change: dict[str, Any]) -> None:
    path = cache_copy / "target_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    declare_current_state(cache_copy)
    with pytest.raises(CorruptError, match=r"target_config\.json: .* by the manifest"):
        Cache.open(cache_copy)


@pytest.mark.parametrize(("column", "value"), [("input_ids", 320), ("input_ids", -1), ("target_top1", 320)])
def test_ids_outside_their_vocabulary_are_refused_at_first_touch(cache_copy: Path, column: str, value: int) -> None:
    shard = cache_copy / load_manifest(cache_copy).shards[0].path
    file = pa.ipc.open_file(pa.BufferReader(shard.read_bytes()))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, file.schema) as writer:
        for number in range(file.num_record_batches):
            read = file.get_batch_with_custom_metadata(number)
            metadata = {key.decode(): text.decode() for key, text in read.custom_metadata.items()}
            batch = _with_value(read.batch, column, value) if number == 1 else read.batch
            metadata["xxh3_128"] = sample_digest(batch, metadata["sample_id"], metadata["source"])
            writer.write_batch(batch, custom_metadata=metadata)
    shard.write_bytes(sink.getvalue().to_pybytes())
    declare_current_state(cache_copy)
    cache = Cache.open(cache_copy)
    cache.read(0)
    with pytest.raises(CorruptError, match=rf"{shard.name}, sample 1 .*{column} lie in .*{value}"):
        cache.read(1)


def _with_value(batch: pa.RecordBatch, column: str, value: int) -> pa.RecordBatch:
    index = batch.schema.get_field_index(column)
    values = batch.column(index).to_pylist()
    supervised = [row for row, top1 in enumerate(batch.column("target_top1").to_pylist()) if top1 >= 0]
    values[supervised[0]] = value
    columns = [*batch.columns]
    columns[index] = pa.array(values, pa.int32())
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
