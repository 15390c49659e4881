"""A config.json that anyone may have written: each wrong value is one line, before weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.errors import TargetError
from eaglepipe.precompute.layout import _active_share
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.layers import rope_kinds
from eaglepipe.target.load import num_parameters, read_model_config, text_config_of
from eaglepipe.target.positions import max_positions
from tests.target.tiny_targets import CONFIGS

NONSENSE: dict[str, Any] = {
    "text": "12",
    "list": [1],
    "object": {"a": 1},
    "negative": -1,
    "huge": 2**70,
    "fraction": 1.5,
    "true": True,
    "infinity": float("inf"),
}
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    CONFIGS["qwen3"].save_pretrained(tmp_path)
    return tmp_path


def read(folder: Path) -> int:
    """Take every fact of a config that stage 1 needs before it reads weights."""
    config = read_model_config(folder, TargetConfig(path=str(folder)))
    text = text_config_of(config, str(folder))
    max_positions(text)
    rope_kinds(text)
    _active_share(text)
    return num_parameters(config)


def refusal(folder: Path, **fields: Any) -> str:
    if fields:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(TargetError) as error:
        read(folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_sound_config_is_read(folder: Path) -> None:
    assert read(folder) > 0


@pytest.mark.parametrize("value", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_of_a_wrong_type_or_size_is_refused(folder: Path, field: str, value: Any) -> None:
    assert refusal(folder, **{field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "nosuch"},
        {"model_type": ["qwen3"]},
        {"model_type": None},
        {"architectures": 3},
        {"quantization_config": "fp8"},
        {"quantization_config": [1]},
        {"dtype": "12"},
        {"dtype": {"a": 1}},
        {"dtype": "load"},
        {"num_hidden_layers": 2**40},
        {"vocab_size": 2**40},
        {"hidden_act": "nosuch"},
        {"rms_norm_eps": "x"},
        {"layer_types": "full_attention"},
        {"text_config": 3},
        {"auto_map": 3},
        {"rope_parameters": "x"},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "nosuch", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "linear", "factor": "2", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": [1]}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "x"}},
        {"rope_scaling": 3},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_other_values_that_no_model_has_are_refused(folder: Path, fields: dict[str, Any]) -> None:
    assert refusal(folder, **fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model_type": "qwen3", "rope_theta": NaN}', "rope_theta is nan"),
        ('{"model_type": "qwen3", "rope_parameters": {"factor": Infinity}}', "factor is inf"),
        ('{"model_type": "qwen3", "limits": [0, 1e999]}', "limits is inf"),
        ('{"model_type": "qwen3", "x": {"y": ["\\ud800"]}}', "y holds half a surrogate"),
        ('{"model_type": "qwen3", "x": {"\\udfff": 1}}', "a key holds half a surrogate"),
    ],
)
def test_what_json_cannot_hold_is_named(folder: Path, text: str, expected: str) -> None:
    (folder / "config.json").write_text(text)
    assert expected in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe{\0}\0",
        b'{"a":' * 100_000,
        b'{"vocab_size": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "list", "null", "utf16", "deep", "digits", "deep-list"],
)
def test_a_file_that_is_no_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)
