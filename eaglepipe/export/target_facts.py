"""Facts about the target that an export or a check can use."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.config_types import config_faults
from eaglepipe.drafts.reading import read_rope
from eaglepipe.errors import DraftError
from eaglepipe.files.json_object import read_json_object, text_config
from eaglepipe.files.tensors import CONFIG_FILE, load_tensor, tensor_shapes, weight_files

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_READ = (
    "architectures", "model_type", "num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """Fields of the target's config, None if they are not known."""

    name: str | None = None
    architectures: tuple[str, ...] = ()
    model_type: str | None = None
    depth: int | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    max_positions: int | None = None
    rope: Mapping[str, Any] | None = None

    def joined(self, known: "TargetFacts") -> "TargetFacts":
        """Return these facts, and in place of each one that is known better, that one."""
        better = {name: value for name, value in vars(known).items() if value not in (None, ())}
        return replace(self, **better)


def read_target_facts(path: Path) -> TargetFacts:
    """Read a target's config.json; the path is that of the file or of its folder.

    Raises:
        DraftError: there is no such file, or its fields are of other types.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        raise DraftError(f"{path}: --target takes the target's folder or its {CONFIG_FILE}")
    text = text_config(read_json_object(file))
    if faults := list(config_faults({name: text.get(name) for name in _READ})):
        raise DraftError(f"{file}: {'; '.join(faults)}; give the target's own folder")
    return TargetFacts(
        architectures=tuple(text.get("architectures") or ()),
        model_type=text.get("model_type"),
        depth=text.get("num_hidden_layers"),
        vocab_size=text.get("vocab_size"),
        hidden_size=text.get("hidden_size"),
        max_positions=text.get("max_position_embeddings"),
        rope=read_rope(text),
    )


def target_embeddings(folder: Path, vocab_size: int, hidden_size: int) -> torch.Tensor:
    """Read the token embeddings [V, H] from a target's weight files.

    Raises:
        DraftError: there are none, or of another size.
        CorruptError: a file is damaged.
    """
    size = (vocab_size, hidden_size)
    if not folder.is_dir():
        raise DraftError(f"{folder}: the target's whole folder is needed, for its token embeddings")
    sizes = {
        (path, name): shape
        for path in weight_files(folder)
        for name, shape in tensor_shapes(path).items()
        if name.endswith(_EMBEDDINGS)
    }
    if place := next((place for place, shape in sizes.items() if shape == size), None):
        return load_tensor(*place)
    listed = ", ".join(f"{name} of {list(shape)}" for (_, name), shape in sizes.items())
    raise DraftError(f"{folder}: no token embeddings of {list(size)}, as the draft needs; it has {listed or 'none'}")


def public_name(path: str | None) -> str | None:
    """Return the name of a target that may be published: a Hub id as it is, of a local path the last part alone."""
    if not path:
        return None
    is_local = Path(path).expanduser().exists() or path.startswith(("/", ".", "~")) or path.count("/") > 1
    return Path(path).name if is_local else path
