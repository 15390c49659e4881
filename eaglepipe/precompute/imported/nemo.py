"""Shards of NeMo Automodel's `precompute_eagle3`: probabilities over a draft vocabulary instead of last hidden states.

Layout as its sources document it (format version 2); its package holds no writer that runs without its trainer.
`manifest.json` has the vocabulary and the layers, whose ids count outputs: boundary b is its layer b - 1.
`shard-NNNNNN.safetensors` has n samples padded to S tokens: `aux_hidden_states` [n, S, A·Ht] and `attention_mask` as
the target read them, and moved left by one, with a tail of 0: `input_ids`, `loss_mask`, `position_mask` [n, S, 1] and
`target_probs` [n, S, D], or their k largest, renormalised, as `target_probs_values` and `target_probs_indices`.

Not stored, and so not in the cache: the id of a sample's first token, which no draft reads (0 stands for it); the
target's choice outside the draft vocabulary (the first other id stands for it); and the mass of the draft vocabulary,
for which the largest stands that the stored figures allow.

Shapes: T tokens, A aux layers, Ht the target's hidden size, D draft vocabulary, V vocabulary.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.chat.faults import RowError
from eaglepipe.errors import DataError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.precompute.imported.reading import UnreadableFileError, check_folder, numbers, require, walk_files
from eaglepipe.precompute.imported.sample import ForeignSample, LastHidden
from eaglepipe.vocab import DraftVocab

_VERSION = 2
_FIELDS = ("input_ids", "attention_mask", "loss_mask", "aux_hidden_states", "position_mask")
_TOP = ("target_probs_values", "target_probs_indices")
_LEAST = -80.0  # log-probability that stands for none


class NemoFolder:
    """A cache folder of Automodel."""

    last_hidden: LastHidden | None = None
    mask_advice = "every release stores one"

    def __init__(self, path: Path) -> None:
        """Raises DataError if it is no such folder, or one of another version."""
        check_folder(path)
        self.root = path
        self._shards = [file for file in walk_files(path, (".safetensors",)) if file.name.startswith("shard-")]
        if not self._shards:
            raise DataError(f"{path}: no shard-000000.safetensors in it")
        manifest_file = path / "manifest.json"
        if not manifest_file.is_file():
            raise DataError(f"{path}: lacks manifest.json, which has the draft vocabulary and the layers")
        manifest = read_json_object(manifest_file)
        if manifest.get("format_version") != _VERSION:
            raise DataError(
                f"{manifest_file}: version {manifest.get('format_version')!r:.40} of its format, and {_VERSION} is read"
            )
        self._selected = _ids(manifest_file, manifest, "selected_token_ids")
        self.selected_token_ids: tuple[int, ...] | None = self._selected
        self._boundaries = tuple(layer + 1 for layer in _ids(manifest_file, manifest, "aux_layer_ids"))
        self._vocab_size = manifest.get("target_vocab_size")

    def check(self, spec: ShardSpec) -> None:
        """Raise DataError if the cache that is asked for cannot be made of these shards."""
        where, selected = self.root / "manifest.json", self._selected
        if self._vocab_size != spec.vocab_size:
            raise DataError(
                f"{where}: made of a target with {self._vocab_size} tokens, and target.path has {spec.vocab_size}"
            )
        if self._boundaries != spec.aux_layer_ids:
            raise DataError(
                f"{where}: its aux_layer_ids are the boundaries {list(self._boundaries)}, and the cache's are "
                f"{list(spec.aux_layer_ids)}; set cache.aux_layer_ids={list(self._boundaries)}"
            )
        ascending = all(a < b for a, b in pairwise(selected))
        if not selected or not ascending or not 0 <= selected[0] <= selected[-1] < spec.vocab_size:
            raise DataError(f"{where}: its selected_token_ids are not ascending ids of the target's vocabulary")
        if len(selected) != spec.draft_vocab_size:
            raise DataError(
                f"{where}: its draft vocabulary has {len(selected)} tokens, and vocab.draft_size gives "
                f"{spec.draft_vocab_size}; set vocab.draft_size={len(selected)}"
            )
        if not spec.kind.stores_probabilities:
            raise DataError(
                f"{self.root}: lacks last hidden states, and cache.supervision is {spec.supervision}; set "
                "cache.supervision=dense, sparse or sampled, for the probabilities that it has"
            )

    def sample_ids(self) -> Iterator[str]:
        for number, shard in enumerate(self._shards):
            try:
                with _opened(shard) as file:
                    count = file.get_slice("input_ids").get_shape()[0]
            except RowError:
                yield f"{number}"  # named as a whole
                continue
            yield from (f"{number}#{row}" for row in range(count))

    def where(self, sample_id: str) -> str:
        number, _, row = sample_id.partition("#")
        return self._shards[int(number)].name + (f", sample {row}" if row else "")

    def read(self, sample_id: str) -> ForeignSample:
        number, _, row = sample_id.partition("#")
        where = self.where(sample_id)
        with _opened(self._shards[int(number)]) as file:
            stored = {name: file.get_slice(name)[int(row or 0)] for name in (*_FIELDS, *_probs_names(file))}
        return self._sample(where, stored)

    def _sample(self, where: str, stored: dict[str, torch.Tensor]) -> ForeignSample:
        ids = numbers(where, "input_ids", stored["input_ids"], kind="int")
        aux = numbers(where, "aux_hidden_states", stored["aux_hidden_states"], kind="float")
        probs, size = self._probs(where, stored), len(self._selected)
        num_tokens = int((stored["attention_mask"] != 0).sum())
        if not (stored["attention_mask"][:num_tokens] != 0).all():
            raise RowError("wrong_shape", f"{where}: its attention_mask has gaps; padding on the right is expected")
        lengths = {len(stored[name]) for name in _FIELDS} | {len(probs)}
        layers = len(self._boundaries)
        if len(lengths) > 1 or ids.dim() != 1 or probs.dim() != 2 or aux.dim() != 2 or aux.shape[1] % layers:
            raise RowError("wrong_shape", f"{where}: its tensors do not fit each other and {layers} aux layers")
        if probs.shape[1] != size:
            raise RowError("wrong_shape", f"{where}: {probs.shape[1]} probabilities, and {size} selected_token_ids")
        covered = stored["position_mask"].reshape(len(ids), -1)[:, :1] != 0
        return ForeignSample(
            input_ids=_moved_right(ids, num_tokens),
            loss_mask=_moved_right(stored["loss_mask"] != 0, num_tokens),
            aux=aux[:num_tokens].unflatten(1, (layers, -1)),
            last_hidden=None,
            probs=_moved_right(torch.cat([probs, covered.to(probs.dtype)], dim=1), num_tokens),
        )

    def _probs(self, where: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
        if "target_probs" in stored:
            return numbers(where, "target_probs", stored["target_probs"], kind="float")
        values, indices = (numbers(where, n, stored[n], kind=k) for n, k in zip(_TOP, ("float", "int"), strict=True))
        size = len(self._selected)
        if values.shape != indices.shape or values.dim() != 2:
            raise RowError("wrong_shape", f"{where}: {_TOP[0]} {list(values.shape)}, {_TOP[1]} {list(indices.shape)}")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise RowError("wrong_shape", f"{where}: {_TOP[1]} beyond {size} selected_token_ids")
        return torch.zeros(len(values), size, dtype=values.dtype).scatter_(1, indices.long(), values)


def probability_logits(vocab: DraftVocab) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what takes the place of a head: rows [n, D + 1] -> logits float32 [n, V] of the stored distributions.

    The last column of a row tells whether the target's choice is in the draft vocabulary. If not, the first id outside
    it is a little more probable than any inside.
    """
    outside = (~vocab.selected_token_mask).nonzero().flatten()[:1]

    def logits(rows: torch.Tensor) -> torch.Tensor:
        probs, covered = rows[:, :-1].float(), rows[:, -1] > 0
        full = torch.full((len(rows), vocab.target_size), _LEAST, device=rows.device)
        full[:, vocab.selected_token_ids.to(rows.device)] = probs.log().clamp(min=_LEAST)
        if len(outside):
            choice = full.amax(dim=1) + 1e-3
            column = int(outside[0])
            full[:, column] = torch.where(covered, full[:, column], choice)
        return full

    return logits


def _moved_right(rows: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Undo a shift to the left by one: rows [S, ...] -> [T, ...], the first of which is 0."""
    return torch.cat([torch.zeros_like(rows[:1]), rows[: max(0, num_tokens - 1)]])[:num_tokens]


def _opened(path: Path) -> Any:
    with explained_library_errors(UnreadableFileError, f"{path.name}: truncated, or no safetensors file"):
        file = safe_open(path, framework="pt")
    require(path.name, set(file.keys()), _FIELDS)
    if not {"target_probs"} & set(file.keys()) and not set(_TOP) <= set(file.keys()):
        raise RowError("missing_field", f"{path.name}: lacks target_probs")
    return file


def _probs_names(file: Any) -> tuple[str, ...]:
    return ("target_probs",) if "target_probs" in set(file.keys()) else _TOP


def _ids(path: Path, manifest: dict[str, Any], name: str) -> tuple[int, ...]:
    ids = manifest.get(name)
    if not isinstance(ids, list) or not all(isinstance(value, int) and not isinstance(value, bool) for value in ids):
        raise DataError(f"{path}: lacks {name}, a list of numbers")
    return tuple(ids)
