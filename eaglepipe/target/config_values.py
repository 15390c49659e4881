"""Values of a target's config.json that no model has, refused before a library allocates or loops by them."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from eaglepipe.errors import TargetError

_MOST = (  # by the names of fields, in every part of a config
    (re.compile(r"(^|_)(layers?|blocks?)$"), 2_000),
    (re.compile(r"(^|_)experts?$"), 100_000),
    (re.compile(r"^vocab_size$"), 2**24),
    (re.compile(r"^(hidden_size|n_embd|d_model|intermediate_size|ffn_hidden_size|head_dim)$"), 2**24),
)
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_values(fields: dict[str, Any], file: Path) -> None:
    """Check the numbers and the texts in a config and in its parts.

    Raises:
        TargetError: a size larger than that of any model, or a value that JSON cannot hold.
    """
    rest: list[tuple[str, Any]] = [("", fields)]
    while rest:
        name, value = rest.pop()
        if isinstance(value, dict):
            rest += value.items()
            rest += (("a key", key) for key in value)
        elif isinstance(value, list):
            rest += ((name, item) for item in value)
        most = next((most for pattern, most in _MOST if pattern.search(name)), None)
        if most is not None and type(value) in (int, float) and value > most:
            raise TargetError(f"{file}: {name} is {value:.3g}, and no model has more than {most:,}")
        if isinstance(value, float) and not math.isfinite(value):
            raise TargetError(f"{file}: {name} is {value}, which is not JSON; write a number")
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise TargetError(f"{file}: {name} holds half a surrogate pair, which has no UTF-8")


def check_types(config: PretrainedConfig, file: Path) -> None:
    """Check the fields whose types transformers leaves open: dtype and architectures.

    Raises:
        TargetError: a dtype that is none of floating-point weights, or architectures that are no list of names.
    """
    dtype, names = getattr(config, "dtype", None), getattr(config, "architectures", None)
    if dtype is not None and dtype not in _FLOATING:
        raise TargetError(f"{file}: dtype is {str(dtype)!r:.80}, not one of float32, bfloat16, float16 and float64")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise TargetError(f"{file}: architectures is {names!r:.80}, not a list of names")
