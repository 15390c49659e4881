"""A GGUF file as a model folder: config, tokenizer, and weights that transformers dequantises.

transformers leaves out what it does not know, and fills in what it does not find; both are refused here.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from eaglepipe.errors import ResourceError, TargetError, first_line
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.publish import explained_os_errors, free_bytes
from eaglepipe.progress import without_library_output
from eaglepipe.target.checkpoint_keys import check_all_loaded
from eaglepipe.target.gguf.header import GgufHeader, damaged
from eaglepipe.target.gguf.rope import FACTORS, restore_rope

_FLOAT32, _FLOAT16, _BFLOAT16 = 0, 1, 30  # ggml's types of tensors that are not quantised
_DTYPES = {_FLOAT32: "float32", _FLOAT16: "float16", _BFLOAT16: "bfloat16"}
_KEPT_BYTES = 4  # of a weight


def write_model(file: Path, header: GgufHeader, folder: Path) -> None:
    """Write the model of a GGUF file to a folder, its weights in float32.

    Raises:
        TargetError: a damaged file, or one that transformers cannot read, or not completely.
        ResourceError: not enough disk or memory.
    """
    _check_length(file, header)
    needed, free = sum(tensor.numel for tensor in header.tensors) * _KEPT_BYTES, free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"{file}: dequantised it takes {needed / 1e9:,.1f} GB, and {folder.parent} has {free / 1e9:,.1f} GB free"
        )
    with _explained(file, header), without_library_output():
        config = _config(file, header)
        model = _model(file, header, config)
        with explained_os_errors(folder):
            model.save_pretrained(folder)
            config.save_pretrained(folder)
            for path in folder.iterdir():  # safetensors leaves its files readable by their owner alone
                path.chmod((folder / "config.json").stat().st_mode)
        if "tokenizer.ggml.model" in header.metadata:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            tokenizer.save_pretrained(folder)


def _config(file: Path, header: GgufHeader) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path
    width = header.of_architecture("expert_feed_forward_length")
    if width is not None and hasattr(config, "moe_intermediate_size"):  # left at its default by some releases
        config.moe_intermediate_size = int(width)
    restore_rope(file, header, config, _rope_factors(file, header))
    config.architectures = [type(_without_weights(config)).__name__]
    config.dtype = _computing_dtype(header)
    return config


def _model(file: Path, header: GgufHeader, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model like any other, with the file's weights."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):  # a progress bar
        read, info = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=deepcopy(config),
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, in one line
            output_loading_info=True,
            **_dequantise_always(),
        )
    check_all_loaded(info, str(file))
    weights = read.state_dict()
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise damaged(file, f"tensor {name} holds numbers that are not finite")
    model = _without_weights(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    _check_all_used(file, header, model)
    return model


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32)  # which it changes


def _computing_dtype(header: GgufHeader) -> str:
    """Return the dtype of `target.dtype: auto`: that of the file's matrices, or bfloat16 if they are quantised."""
    kinds = {tensor.kind for tensor in header.tensors if len(tensor.shape) > 1}
    return _DTYPES.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _dequantise_always() -> dict[str, Any]:
    """Return the argument by which newer releases of transformers do not keep weights in their blocks."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _check_all_used(file: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Check that transformers has left out no tensor of the file."""
    layers = int(model.config.num_hidden_layers)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    left_out = {FACTORS, "output.weight"} if tied else {FACTORS}
    tensors = [tensor for tensor in header.tensors if tensor.name not in left_out and _layer(tensor.name) < layers]
    stored = sum(tensor.numel for tensor in tensors)
    kept = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if stored > (loaded := sum(kept.values())):
        raise TargetError(
            f"{file}: {stored - loaded:,} of its {stored:,} weights have no place in the {type(model).__name__} that "
            "transformers makes of it, so it would compute other states; use the model's own safetensors"
        )


def _layer(name: str) -> int:
    """Return the layer of a tensor; layers beyond the model's own predict further tokens and are no part of it."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1


def _check_length(file: Path, header: GgufHeader) -> None:
    """Check that the file holds all bytes of its tensors."""
    sizes = _sizes_of_types()
    length = file.stat().st_size
    for tensor in header.tensors:
        if tensor.kind not in sizes:
            raise TargetError(f"{file}: tensor {tensor.name} is of type {tensor.kind}, which this `gguf` does not know")
        block, block_bytes = sizes[tensor.kind]
        end = header.data_start + tensor.offset + tensor.numel // block * block_bytes
        if end > length:
            raise damaged(file, f"it has {length:,} bytes, and tensor {tensor.name} ends at byte {end:,}")


def _sizes_of_types() -> dict[int, tuple[int, int]]:
    """Return the weights and the bytes of a block, by type."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def _rope_factors(file: Path, header: GgufHeader) -> np.ndarray | None:
    for tensor in header.tensors:
        if tensor.name == FACTORS and tensor.kind == _FLOAT32:
            return np.fromfile(file, "<f4", tensor.numel, offset=header.data_start + tensor.offset)
    return None


@contextmanager
def _explained(file: Path, header: GgufHeader) -> Iterator[None]:
    """Turn the errors of transformers and gguf into one line about the file."""
    subject = f"{file}: cannot be read as a GGUF model by transformers (architecture {header.architecture!r})"
    try:
        with explained_library_errors(TargetError, subject):
            yield
    except MemoryError as error:
        raise ResourceError(f"{file}: does not fit the memory when dequantised: {first_line(error)}") from error
    except TargetError as error:
        if "can't allocate memory" in str(error):
            raise ResourceError(f"{file}: does not fit the memory when dequantised") from error
        raise
