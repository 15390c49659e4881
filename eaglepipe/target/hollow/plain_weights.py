"""Embeddings, norms and heads that are stored as other than plain numbers, refused by the name of a tensor."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from eaglepipe.errors import TargetError
from eaglepipe.target.fingerprint import open_weights, target_weight_files

_PLAIN = ("F64", "F32", "F16", "BF16")


def check_not_quantised(model: PreTrainedModel, info: dict[str, Any], folder: Path, path: str) -> None:
    """Check that every weight of a model was stored as plain numbers.

    Args:
        info: what the library says about the loading.
        path: of the target, as the recipe has it.

    Raises:
        TargetError: a scale or packed numbers beside one of them, or one of an integer or 8-bit type.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = {f"{name.rpartition('.')[0]}." for name in names}
    beside = sorted(
        key for key in info.get("unexpected_keys") or () if any(str(key).startswith(module) for module in modules)
    )
    if beside:
        raise _quantised(path, str(beside[0]), "which plain weights do not have")
    ends = tuple(".".join(name.split(".")[-2:]) for name in names)
    for file in target_weight_files(folder):
        with open_weights(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if name.endswith(ends) and (dtype := tensors.get_slice(name).get_dtype()) not in _PLAIN:
                    raise _quantised(path, name, f"of type {dtype}")


def _quantised(path: str, tensor: str, how: str) -> TargetError:
    return TargetError(
        f"target {path!r}: its embeddings, final norm or lm_head are quantised (tensor {tensor}, {how}), and these are "
        "read as plain numbers; use a copy of the target in which only its layers are quantised, or set "
        "target.engine: transformers"
    )
