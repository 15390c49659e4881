"""Targets that come as a GGUF file, whose weights are dequantised once into a model folder like any other.

The folder lies under $EAGLEPIPE_GGUF_ROOT, by default in the user's cache, is named by the file's hash, and serves
every recipe that names the file; the target's fingerprint stays that of the file.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import save_torch_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from eaglepipe.errors import TargetError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.publish import explained_os_errors, publish_json, published_folder
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.progress import note, without_library_output
from eaglepipe.target.fingerprint import GGUF_ORIGIN, tensors_fingerprint

ROOT_VARIABLE = "EAGLEPIPE_GGUF_ROOT"
SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_PACKAGES = ("gguf", "accelerate")
_HALF_FILES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True, kw_only=True)
class GgufOrigin:
    """The file that a dequantised folder was made from."""

    file: str  # its name
    xxh3_128: str
    tensors: str  # fingerprint of the dequantised tensors


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF file that a target's local path names, or that its folder holds; None for any other target.

    Raises:
        TargetError: several files of which none is named, or one part of several.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return None
        files = sorted(file for file in path.glob(f"*{SUFFIX}") if file.is_file())
        if not files:
            return None
        if len(files) > 1 and not all(_PART.search(file.name) for file in files):
            names = ", ".join(file.name for file in files[:8])
            raise TargetError(f"{path}: holds {len(files)} GGUF files; set target.path to one of them: {names}")
        path = files[0]
    elif not path.is_file() or (path.suffix.lower() != SUFFIX and not _is_gguf(path)):
        return None
    if _PART.search(path.name):
        raise TargetError(
            f"{path}: one of the parts of a GGUF model, which transformers reads as one file only; join them first "
            "with llama.cpp's `llama-gguf-split --merge`"
        )
    if not _is_gguf(path):
        raise TargetError(f"{path}: not a GGUF file, or a damaged one: it does not begin with {_MAGIC.decode()}")
    return path


def dequantised_folder(file: Path) -> Path:
    """Return the model folder of a GGUF file, with its tokenizer and chat template; made if it is not there yet.

    Weights are kept in float32, exactly as the file has them; `target.dtype: auto` runs quantised ones in bfloat16.

    Raises:
        TargetError: a package is missing, or the file is damaged or of an architecture that transformers cannot read.
        ResourceError: full disk.
    """
    digest = hash_file(file)
    folder = _root() / f"{file.stem[:60]}-{digest[:16]}"
    if (folder / GGUF_ORIGIN).is_file():
        return folder
    _check_packages(file)
    with explained_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with lock:
        if not (folder / GGUF_ORIGIN).is_file():
            note(f"target    dequantising {file} once, into {folder}")
            with published_folder(folder) as temporary:
                _dequantise(file, digest, temporary)
    return folder


def _dequantise(file: Path, digest: str, folder: Path) -> None:
    with _explained(file), without_library_output():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config.dtype = _computing_dtype(file)
    with explained_os_errors(folder):
        save_torch_state_dict(model.state_dict(), folder)
        config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    origin = GgufOrigin(file=file.name, xxh3_128=digest, tensors=tensors_fingerprint(folder))
    publish_json(folder / GGUF_ORIGIN, asdict(origin))


def _computing_dtype(file: Path) -> str:
    """Return the dtype of `target.dtype: auto`: that of the file's matrices, or bfloat16 if they are quantised."""
    from gguf import GGUFReader

    kinds = [tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1]
    return _HALF_FILES.get(kinds[0], "bfloat16") if len(set(kinds)) == 1 else "bfloat16"


def _check_packages(file: Path) -> None:
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise TargetError(
            f"{file}: reading GGUF needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed: pip install 'eaglepipe[gguf]'"
        )


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    with explained_library_errors(TargetError, f"{file}: cannot be read as a GGUF model by transformers"):
        yield


def _is_gguf(path: Path) -> bool:
    with explained_read_errors(path), path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def _root() -> Path:
    given = os.environ.get(ROOT_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(given).expanduser() if given else cache.expanduser() / "eaglepipe" / "gguf"
