"""The fields by which a target is told apart: all content that decides which states it computes, no path."""

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from eaglepipe.files.hashing import hash_json
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.code import code_fingerprint
from eaglepipe.target.fingerprint import open_weights, target_weight_files
from eaglepipe.target.load import text_config_of

# Config fields about who wrote the file or how it is run, not about the function that the model computes.
_VOLATILE_CONFIG_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "auto_map")
_FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def target_fields(
    folder: Path, model_config: PretrainedConfig, target: TargetConfig, *, weights: str
) -> dict[str, Any]:
    """Return hashes and settings of a target, whose weights have the fingerprint `weights`.

    `code` and `quantization` are only there for targets with custom code that is trusted, and for targets of several
    parts that are quantised as a whole; `engine` and `engine_args` for targets that transformers does not run.

    Raises:
        TargetError: weights or code that cannot be read.
    """
    config = text_config_of(model_config, target.path)
    stable = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE_CONFIG_FIELDS}
    fields = {
        "config": _hash(stable),
        "weights": weights,
        "revision": target.revision,
        "dtype": computing_dtype(folder, model_config) if target.dtype == "auto" else target.dtype,
    }
    if target.trust_remote_code and (code := code_fingerprint(folder)) is not None:
        fields["code"] = code
    if config is not model_config and (whole := model_config.to_dict().get("quantization_config")) is not None:
        fields["quantization"] = _hash(whole)
    return fields | target.engine_fields


def _hash(value: Any) -> str:
    """Hash a part of a config; what JSON has no value for counts by its name."""
    return hash_json(json.loads(json.dumps(value, default=str), parse_constant=str))


def computing_dtype(folder: Path, model_config: PretrainedConfig) -> str:
    """Return the dtype that a target of `dtype: auto` gets: its config's, or that of its first floating weight."""
    declared = getattr(model_config, "dtype", None)
    if declared is not None:
        return str(declared).removeprefix("torch.")
    for path in target_weight_files(folder):
        with open_weights(path) as file:
            dtypes = (file.get_slice(name).get_dtype() for name in sorted(file.keys()))
            if (found := next((_FLOATING[dtype] for dtype in dtypes if dtype in _FLOATING), None)) is not None:
                return found
    return "float32"
