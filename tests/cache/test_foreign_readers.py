"""A cache read without this package: pyarrow or `datasets`, numpy, and what the cache itself says of its bytes."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import parse_recipe
from tests.cache.derived import aux_of
from tests.cache.rotated_reader import rotated_rows

WIDTH, BOUNDARIES = 140, (2, 5)  # of two outlier channels a layer, and no multiple of a group
CODECS = ("bf16", "fp16", "fp32", "fp8", "int8", "int4", "rot3", "rot4")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with two loud channels, as real ones have, and rows of tokens for it to read."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 6}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [7, 101]] *= 100.0
    model.save_pretrained(folder / "target")
    rows = [{"input_ids": list(range(start, start + 11)), "loss_mask": [0] * 5 + [1] * 6} for start in (3, 20, 31)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module", params=CODECS)
def cache(request: pytest.FixtureRequest, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {
        "name": "wide",
        "target": {"path": str(target / "target")},
        "data": {"sources": [{"path": str(target / "rows.jsonl"), "format": "tokenized"}]},
        "cache": {
            "root": str(tmp_path_factory.mktemp("caches")),
            "aux_codec": request.param,
            "aux_layer_ids": BOUNDARIES,
        },
    }
    return Path(run_precompute(parse_recipe(recipe), report=lambda _: None).folder)


def described(cache: Path) -> tuple[dict[str, Any], list[int]]:
    """The aux codec's entry in the schema's copy, with its name, and the shape that the schema's letters stand for."""
    schema = json.loads((cache / "schema" / "shard.json").read_text())
    spec = json.loads((cache / "manifest.json").read_text())["spec"]
    column = next(column for column in schema["columns"] if column["name"] == "aux_hidden_states")
    assert column["logical_dtype"] == "aux_codec"
    sizes = {"A": len(spec["aux_layer_ids"]), "Ht": spec["hidden_size"]}
    codec = {"name": spec["aux_codec"], **schema["codecs"][spec["aux_codec"]]}
    return codec, [sizes[letter] for letter in column["shape"]]


def bfloat16(data: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(data).view("<u2").astype(np.uint32) << 16).view(np.float32)


def e4m3(data: np.ndarray) -> np.ndarray:
    exponent, mantissa = (data >> 3 & 15).astype(np.int32), (data & 7).astype(np.float32)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    return np.where(data >> 7, -magnitude, magnitude).astype(np.float32)


def integers(data: np.ndarray, scales: np.ndarray, shape: list[int], codec: dict[str, Any]) -> np.ndarray:
    layers, width = shape
    group = min(codec["group"], width + width % 2)
    groups, apart = -(-width // group), layers * min(codec["max_outliers"], width // 64)
    packed, channels, values = np.split(data, [data.shape[1] - 4 * apart, data.shape[1] - 2 * apart], axis=1)
    if codec["name"] == "int4":
        packed = np.stack([packed << 4, packed & 0xF0], axis=-1).reshape(len(data), -1)
    steps = packed.view(np.int8) // (16 if codec["name"] == "int4" else 1)
    scaled = steps.reshape(-1, layers, groups, group) * scales.astype(np.float32).reshape(-1, layers, groups, 1)
    rows = scaled.reshape(-1, layers, groups * group)[..., :width]
    channels = np.ascontiguousarray(channels).view("<u2").reshape(len(data), layers, -1).astype(np.int64)
    np.put_along_axis(rows, channels, bfloat16(values).reshape(channels.shape), axis=-1)
    return rows


def aux_states(table: pa.Table, codec: dict[str, Any], shape: list[int]) -> np.ndarray:
    """The table's aux states, float32 [N, A, Ht]."""
    column = table.column("aux_hidden_states").combine_chunks()
    data = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, column.type.byte_width)[: len(column)]
    plain = {"bf16": bfloat16, "fp16": lambda d: d.view("<f2").astype(np.float32), "fp32": lambda d: d.view("<f4")}
    if codec["name"] in plain:
        return plain[codec["name"]](data).reshape(-1, *shape)
    kept = table.column("aux_scales").combine_chunks()
    scales = kept.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    if codec["name"] == "fp8":
        return e4m3(data).reshape(-1, *shape) * scales[..., None]
    if codec["name"].startswith("rot"):
        return rotated_rows(data, scales, shape, codec)
    return integers(data, scales, shape, codec)


def with_pyarrow(shard: Path) -> pa.Table:
    return pa.ipc.open_file(shard).read_all()


def with_datasets(shard: Path, scratch: Path) -> pa.Table:
    loaded = datasets.load_dataset("arrow", data_files=str(shard), split="train", cache_dir=str(scratch))
    return loaded.with_format("arrow")[:]


def test_pyarrow_and_datasets_rebuild_every_aux_state(cache: Path, tmp_path: Path) -> None:
    codec, shape = described(cache)
    expected = torch.cat(list(aux_of(cache).values())).float().numpy()
    shards = sorted((cache / "shards").glob("*.arrow"))
    for tables in ([with_pyarrow(shard) for shard in shards], [with_datasets(shard, tmp_path) for shard in shards]):
        found = np.concatenate([aux_states(table, codec, shape) for table in tables])
        assert shape == [len(BOUNDARIES), WIDTH] and found.dtype == np.float32
        if codec["name"].startswith("rot"):  # sums, in any order
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        else:
            assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_the_file_alone_tells_what_its_bytes_are(cache: Path) -> None:
    codec, shape = described(cache)
    field = with_pyarrow(next((cache / "shards").glob("*.arrow"))).schema.field("aux_hidden_states")
    told = {key.decode(): value.decode() for key, value in field.metadata.items()}
    assert told == {"codec": codec["name"], "logical_dtype": codec["logical_dtype"], "shape": json.dumps(shape)}
