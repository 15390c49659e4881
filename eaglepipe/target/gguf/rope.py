"""Rope settings that a GGUF file holds and transformers leaves out of the config it makes of the file.

Without them the model computes other states, which nothing else would notice.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from eaglepipe.errors import TargetError
from eaglepipe.target.gguf.header import GgufHeader

FACTORS = "rope_freqs.weight"
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS = 1.0, 4.0, 8192  # the same in every Llama 3.x
_TOLERANCE = 1e-4
_PLAIN = ("none", "default")


def restore_rope(file: Path, header: GgufHeader, config: PretrainedConfig, factors: NDArray[np.float32] | None) -> None:
    """Give a config the rope scaling of its file, unless transformers did.

    Args:
        factors: the tensor `rope_freqs.weight`, by which Llama 3 divides the frequencies; None if there is none.

    Raises:
        TargetError: a scaling that cannot be told from the file.
    """
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type", "default") != "default":
        return
    if lost := [tensor.name for tensor in header.tensors if tensor.name.startswith("rope_factors_")]:
        raise _unknown(file, f"tensor {lost[0]}")
    scaling = _scaling_of(file, header) if factors is None else _llama3_scaling(file, rope, factors)
    if scaling:
        config.rope_parameters = rope | scaling


def _scaling_of(file: Path, header: GgufHeader) -> dict[str, Any]:
    """Return the scaling that the metadata declare."""
    kind = header.of_architecture("rope.scaling.type") or "none"
    factor = header.of_architecture("rope.scaling.factor")
    original = header.of_architecture("rope.scaling.original_context_length")
    if kind in _PLAIN or factor in (None, 0.0, 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and original:
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": int(original)}
    raise _unknown(file, f"rope.scaling.type {kind!r}")


def _llama3_scaling(file: Path, rope: dict[str, Any], factors: NDArray[np.float32]) -> dict[str, Any]:
    """Return the Llama 3 scaling that has these factors."""
    factor = float(factors.max())
    if np.allclose(factors, 1.0):
        return {}
    expected = _llama3_factors(factor, float(rope["rope_theta"]), len(factors))
    if not np.allclose(factors, expected, rtol=_TOLERANCE):
        raise _unknown(file, f"tensor {FACTORS}")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_POSITIONS,
    }


def _llama3_factors(factor: float, theta: float, count: int) -> NDArray[np.float64]:
    """Return the divisors of the frequencies, as llama.cpp's converter writes them."""
    frequencies = theta ** -(np.arange(count) / count)
    turns = _LLAMA3_POSITIONS * frequencies / (2 * math.pi)
    smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _unknown(file: Path, what: str) -> TargetError:
    return TargetError(
        f"{file}: its rope scaling ({what}) cannot be carried over, and without it the model computes other states; "
        "use the model's own safetensors"
    )
