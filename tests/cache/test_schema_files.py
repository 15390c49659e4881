"""The language-neutral contract: its schemas, its examples, and the caches of every released version."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from eaglepipe.cache.codecs.catalog import LOGICAL_DTYPES, make_codec
from eaglepipe.cache.codecs.integer import IntegerRows
from eaglepipe.cache.codecs.rotated import RotatedRows
from eaglepipe.cache.manifest import Document, Manifest, Plan, json_schema, load_document
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec, arrow_schema, shard_columns
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.supervision.kind import KINDS as SUPERVISION_KINDS
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CorruptError
from eaglepipe.resources import resource_folder, schema_folder
from tests.cache.rotated_reader import rotated_rows

KINDS: dict[str, type[Document]] = {"manifest": Manifest, "plan": Plan, "sidecar": Sidecar}
EXAMPLES = schema_folder(SCHEMA_VERSION) / "examples"
GOLDEN = sorted(path for path in resource_folder("cache_schemas").glob("v*/examples/golden*"))
GOLDEN_FACTS = {
    "v1/golden": (6, 576, 78731),
    "v1/golden-rotated": (2, 189, 25778),
    "v1/golden-sampled": (6, 576, 78731),
}


def schema_of(kind: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((schema_folder(SCHEMA_VERSION) / f"{kind}.schema.json").read_text())
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_schema_file_is_what_the_code_enforces(kind: str) -> None:
    assert schema_of(kind) == json.loads(json.dumps(json_schema(KINDS[kind])))


@pytest.mark.parametrize("path", sorted((EXAMPLES / "valid").glob("*.json")), ids=lambda path: path.stem)
def test_valid_examples_pass_schema_and_loader(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), schema_of(path.stem))
    load_document(path, KINDS[path.stem])


@pytest.mark.parametrize("path", sorted((EXAMPLES / "invalid").glob("*.json")), ids=lambda path: path.stem)
def test_invalid_examples_fail_schema_and_loader(path: Path) -> None:
    kind = path.stem.split("-")[0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(path.read_text()), schema_of(kind))
    with pytest.raises(CorruptError, match=path.name):
        load_document(path, KINDS[kind])


@pytest.mark.parametrize("aux_codec", ["bf16", "fp8", "int8", "int4", "rot3"])
def test_columns_of_a_shard_are_those_of_the_schema_file(aux_codec: str) -> None:
    for supervision, column in ((kind.name, kind.column) for kind in SUPERVISION_KINDS.values()):
        spec = ShardSpec(
            supervision=supervision,
            aux_codec=aux_codec,
            supervision_codec="fp16",
            aux_layer_ids=(1, 2),
            hidden_size=4,
            vocab_size=9,
            draft_vocab_size=5,
        )
        schema = arrow_schema(spec, identity="0" * 32, shard=0)
        chosen = {"supervision": supervision, "aux_codec": aux_codec}
        declared = [
            c["name"]
            for c in shard_columns()
            if all(chosen[name] in values for name, values in c.get("when", {}).items())
        ]
        assert schema.names == declared
        assert json.loads(schema.field("aux_hidden_states").metadata[b"shape"]) == [2, 4]
        assert column in schema.names
        assert not any(field.nullable for field in schema)


def golden_name(folder: Path) -> str:
    return f"{folder.parent.parent.name}/{folder.name}"


@pytest.mark.parametrize("folder", GOLDEN, ids=golden_name)
def test_golden_cache_of_every_version_loads_for_ever(folder: Path) -> None:
    assert verify_cache(folder, full=True).ok
    cache = Cache.open(folder)
    tokens = sum(len(cache.read(sample).input_ids) for sample in range(cache.num_samples))
    checksum = sum(int(cache.read(sample).input_ids.sum()) for sample in range(cache.num_samples))
    assert (cache.num_samples, tokens, checksum) == GOLDEN_FACTS[golden_name(folder)]
    assert cache.read(0).aux_payload.shape[1] == cache.spec.aux.row_bytes
    if cache.spec.aux_codec == "bf16":
        aux = cache.read(0).aux_payload.view(np.uint16)
        assert aux.shape[1] == len(cache.spec.aux_layer_ids) * cache.spec.hidden_size


def test_golden_rotated_states_mean_what_they_meant_when_they_were_written() -> None:
    """Read by the schema that lies in the cache, with the numbers that its writer printed."""
    folder = EXAMPLES / "golden-rotated"
    codecs = json.loads((folder / "schema" / "shard.json").read_text())["codecs"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["features"] == ["rotated_states"]
    table = pa.ipc.open_file(folder / manifest["shards"][0]["path"]).read_all()
    aux = table.column("aux_hidden_states").combine_chunks()
    scales = table.column("aux_scales").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    rows = rotated_rows(blocks(aux), scales.reshape(len(aux), -1), [3, 144], codecs["rot3"])
    assert np.square(rows).mean((0, 2)) ** 0.5 == pytest.approx([0.24444, 0.24497, 0.24565], rel=1e-4)
    assert rows[5, :, 143] == pytest.approx([0.011966, 0.021026, 0.043327], rel=1e-4)
    last = blocks(table.column("last_hidden_states").combine_chunks().values)
    inline = np.ascontiguousarray(last[:, -4:]).view(np.float16)
    states = rotated_rows(last[:, :-4], inline, [1, 144], codecs["rot6"])
    assert states.shape == (144, 1, 144) and float(np.square(states).mean()) ** 0.5 == pytest.approx(0.99987, rel=1e-4)
    assert states[3, 0, [7, 143]] == pytest.approx([-10.4375, -0.094126], rel=1e-4)


def test_golden_drawn_entries_mean_what_they_meant_when_they_were_written() -> None:
    folder = EXAMPLES / "golden-sampled"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["features"] == ["sampled_supervision"]
    selected = load_file(folder / "vocab.safetensors")["selected_token_ids"]
    table = pa.ipc.open_file(folder / manifest["shards"][0]["path"]).read_all()
    assert "tail_mass" not in table.schema.names
    names = ("target_ids", "target_probs", "target_top1", "position_mask")
    rows = [row for row in zip(*(table.column(name).to_pylist() for name in names), strict=True) if row[2] >= 0]
    assert len(rows) == 69 and sum(len(ids) for ids, *_ in rows) == 552
    assert rows[0][0] == [115, 40, 83, 127, 170, 212, 255, 297]
    assert rows[0][1] == [0.00458526611328125, *[0.1422119140625] * 7]
    for ids, probs, top1, is_covered in rows:
        assert not is_covered or selected[ids[0]] == top1
        assert ids[1:] == sorted({*ids[1:]} - {ids[0]}) and sum(probs) == pytest.approx(1.0, abs=1e-3)


def blocks(column: pa.Array) -> np.ndarray:
    """A column of blocks of bytes, uint8 [N, bytes]."""
    return np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, column.type.byte_width)[: len(column)]


def test_schema_file_describes_every_codec_as_the_code_has_it() -> None:
    described = json.loads((schema_folder(SCHEMA_VERSION) / "shard.json").read_text())["codecs"]
    assert {name: entry["logical_dtype"] for name, entry in described.items()} == LOGICAL_DTYPES
    for name in LOGICAL_DTYPES:
        codec = make_codec(name, (2, 4096))
        assert codec.name == name
        if isinstance(codec, IntegerRows):
            assert (described[name]["group"], described[name]["max_outliers"]) == (codec.group, codec.max_outliers)
        if isinstance(codec, RotatedRows):
            entry = described[name]
            assert len(entry["levels"]) == 2 ** (codec.bits - 1) and entry["bytes"] == codec.bits / 8
            assert min(entry["max_outliers"], 4096 // entry["width_per_outlier"]) == codec.num_outliers


def test_every_cache_carries_its_own_schema(sealed_cache: Path) -> None:
    source = schema_folder(SCHEMA_VERSION)
    assert (sealed_cache / "schema" / "shard.json").read_bytes() == (source / "shard.json").read_bytes()
    assert (sealed_cache / "schema" / "README.md").read_bytes() == (source.parent / "README.md").read_bytes()


def test_datasets_reads_a_shard_like_any_arrow_table(sealed_cache: Path) -> None:
    """What the columns are can be told from the file alone: byte columns carry dtype and shape."""
    shard = next((sealed_cache / "shards").glob("*.arrow"))
    table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    table.validate(full=True)
    assert table.num_rows == json.loads(shard.with_suffix(".json").read_text())["shard"]["tokens"]
    assert table.schema.metadata[b"eaglepipe.schema_version"] == b"1"
