"""Consistency of a cache's manifest with its files, checked before anything is allocated or computed from them.

A digest shows that a file is the published one, not that its publisher was honest: a cache may come from anywhere.
Sizes that the manifest declares are bounded by the files on disk.
"""

from pathlib import Path
from typing import Any

import torch

from eaglepipe.cache.manifest import MANIFEST_NAME, Manifest
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.errors import CorruptError
from eaglepipe.files.json_object import read_json_object, text_config
from eaglepipe.files.tensors import load_tensors, tensor_shapes
from eaglepipe.vocab import DraftVocab

VOCAB_FILE = "vocab.safetensors"
START_FILE = "target.safetensors"
TARGET_CONFIG_FILE = "target_config.json"


def check_claims(folder: Path, manifest: Manifest) -> None:
    """Compare the manifest's spec with the fixed files of a cache whose sizes have been checked.

    Raises:
        CorruptError: naming the file that is incomplete or contradicts the manifest.
    """
    listed = {entry.path for entry in manifest.files}
    for name in (VOCAB_FILE, START_FILE, TARGET_CONFIG_FILE):
        if name not in listed:
            raise CorruptError(f"{folder / MANIFEST_NAME}: does not list {name}, which is part of every cache")
    spec, head = manifest.shard_spec(), manifest.spec.head()
    if manifest.samples == 0:
        raise CorruptError(f"{folder / MANIFEST_NAME}: the cache is empty: no shard holds a sample")
    layers = spec.aux_layer_ids
    if not layers or list(layers) != sorted(set(layers)):
        raise CorruptError(f"{folder / MANIFEST_NAME}: aux_layer_ids are not ascending, each once")
    if head.logit_scale <= 0 or (head.soft_cap is not None and head.soft_cap <= 0):
        raise CorruptError(f"{folder / MANIFEST_NAME}: logit_scale and soft_cap are not positive")
    load_vocab(folder / VOCAB_FILE, spec)
    _check_start(folder / START_FILE, spec)
    load_target_config(folder / TARGET_CONFIG_FILE, spec)


def load_vocab(path: Path, spec: ShardSpec) -> DraftVocab:
    """Read `vocab.safetensors`.

    Raises:
        CorruptError: a tensor without the dtype and shape of the spec, or ids that are not those of the mask.
    """
    tensors = load_tensors(path)
    expected = {
        "selected_token_ids": (torch.int64, (spec.draft_vocab_size,)),
        "selected_token_mask": (torch.bool, (spec.vocab_size,)),
        "counts": (torch.int64, (spec.vocab_size,)),
    }
    for name, layout in expected.items():
        _check_equal(path, name, (tensors[name].dtype, tuple(tensors[name].shape)) if name in tensors else None, layout)
    if not torch.equal(tensors["selected_token_mask"].nonzero().flatten(), tensors["selected_token_ids"]):
        raise CorruptError(f"{path}: selected_token_ids are not ascending, or not those of selected_token_mask")
    return DraftVocab(**{name: tensors[name] for name in expected})


def load_target_config(path: Path, spec: ShardSpec) -> dict[str, Any]:
    """Read the target's config.json.

    Raises:
        CorruptError: not a config, or its sizes are not those of the spec.
    """
    config = read_json_object(path)
    if not isinstance(config.get("text_config", {}), dict):
        raise CorruptError(f"{path}: not the config of a model")
    text = text_config(config)
    for name in ("vocab_size", "hidden_size"):
        if text.get(name, getattr(spec, name)) != getattr(spec, name):
            raise CorruptError(f"{path}: {name} is {text[name]!r}, and {getattr(spec, name)} by the manifest")
    return config


def _check_start(path: Path, spec: ShardSpec) -> None:
    """Check the shapes by the header alone: the file may be large."""
    vocab, draft, width = spec.vocab_size, spec.draft_vocab_size, spec.hidden_size
    required = {"embed_tokens.weight": (vocab, width), "lm_head.weight": (draft, width), "norm.weight": (width,)}
    optional = {"lm_head.bias": (draft,), "lm_head_full.weight": (vocab, width), "lm_head_full.bias": (vocab,)}
    shapes = tensor_shapes(path)
    present = {name: shape for name, shape in optional.items() if name in shapes}
    for name, shape in {**required, **present}.items():
        _check_equal(path, name, shapes.get(name), shape)


def _check_equal(path: Path, name: str, actual: object, declared: object) -> None:
    if actual != declared:
        state = "absent" if actual is None else actual
        raise CorruptError(f"{path}: {name} is {state}, and {declared} by the manifest")
