"""Content of a sample that its digest agrees with, and that no target can have given.

A cache may come from anywhere, and a GPU checks neither indices nor NaN. T tokens, N of them supervised.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.soundness import RowFault, find_fault
from eaglepipe.cache.schema import ShardSpec, has_every_row, items_per_row
from eaglepipe.cache.supervision.columns import NUM_ENTRIES
from eaglepipe.cache.supervision.hidden import HiddenSupervision
from eaglepipe.cache.types import CachedSample

Array = NDArray[Any]
_ROUNDING = 1e-3
"""How far a probability, or a sum of some, may lie above 1 by the arithmetic that made it."""
_LOST_MASS = 1e-2
_ROWS_AT_ONCE = 256
_HALF_STEP = 2.0**-25  # of the smallest float16: what a probability near 0 gains or loses at most


class ImpossibleContentError(ValueError):
    """What is wrong in a sample: column, token and value."""


def check_structure(batch: pa.RecordBatch) -> None:
    """Check what the bytes of a record batch lie in: no nulls, and lists as long as supervision declares.

    Raises:
        ImpossibleContentError: naming the column.
    """
    batch.validate(full=True)
    if batch.num_rows == 0:
        raise ImpossibleContentError("has no token")
    for field, column in zip(batch.schema, batch.columns, strict=True):
        inner = [column.values] if pa.types.is_nested(column.type) else []
        if any(array.null_count or array.offset for array in (column, *inner)):
            raise ImpossibleContentError(f"{field.name} has nulls, which no column of a cache has")
    supervised = np.asarray(batch.column("target_top1")) >= 0
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_list(column.type):
            _check_lists(field, column, supervised)


def check_content(sample: CachedSample, spec: ShardSpec, *, is_selected: NDArray[np.bool_] | None = None) -> None:
    """Check every value of a sample.

    Args:
        is_selected: [V] whether the draft vocabulary has a token; None: not known.

    Raises:
        ImpossibleContentError: naming the column, the token and the value.
    """
    _check_ids(sample, spec)
    _check_masks(sample, is_selected)
    every_token = np.arange(len(sample.input_ids))
    _refuse_rows(sample.draft_mass, (0.0, 1.0 + _ROUNDING), "draft_mass", every_token)
    rows = {"aux_hidden_states": (spec.aux, sample.aux_payload, sample.aux_scales)}
    if sample.last_hidden_payload is not None:
        rows[spec.kind.column] = (spec.rows, sample.last_hidden_payload, None)
    for name, (codec, payload, scales) in rows.items():
        _raise(name, find_fault(codec, payload, scales), None)
    tokens = np.flatnonzero(sample.supervised)
    columns = sample.supervision
    if isinstance(spec.kind, HiddenSupervision):
        if sample.last_hidden_payload is None:
            _raise(spec.kind.column, find_fault(spec.rows, columns[spec.kind.column]), tokens)
    else:
        _check_probabilities(sample, spec, tokens)


def _check_ids(sample: CachedSample, spec: ShardSpec) -> None:
    ids: dict[str, tuple[Array, int, int]] = {
        "input_ids": (sample.input_ids, 0, spec.vocab_size),
        "target_top1": (sample.target_top1, -1, spec.vocab_size),
    }
    if "target_ids" in sample.supervision:
        ids["target_ids"] = (sample.supervision["target_ids"], 0, spec.draft_vocab_size)
    for name, (values, low, high) in ids.items():
        if values.size and (int(np.min(values)) < low or int(np.max(values)) >= high):
            span = f"{np.min(values)}..{np.max(values)}"
            raise ImpossibleContentError(f"{name} lie in {span}, outside {low}..{high - 1}")


def _check_masks(sample: CachedSample, is_selected: NDArray[np.bool_] | None) -> None:
    if sample.supervised[-1]:
        raise ImpossibleContentError(
            f"target_top1 is {sample.target_top1[-1]} at the last token, which has no next one"
        )
    _refuse_tokens(sample.supervised & ~sample.loss_mask, "loss_mask is false where target_top1 is set")
    _refuse_tokens(sample.position_mask & ~sample.supervised, "position_mask is true where target_top1 is -1")
    if is_selected is not None:
        covered = sample.supervised & is_selected[np.maximum(sample.target_top1, 0)]
        text = "position_mask does not tell whether the draft vocabulary has target_top1"
        _refuse_tokens(covered != sample.position_mask, text)


def _check_probabilities(sample: CachedSample, spec: ShardSpec, tokens: NDArray[np.int64]) -> None:
    """Each probability lies in 0..1, and each row sums to 1; in sparse rows, together with the tail."""
    if not len(tokens):
        return
    columns, name = sample.supervision, spec.kind.column
    is_half = spec.rows.name == "fp16"
    probs = columns[name].view(np.float16 if is_half else np.float32)
    counts = columns.get(NUM_ENTRIES)
    bits = probs.view(np.uint16 if is_half else np.uint32)
    largest = np.array(1 + _ROUNDING, probs.dtype).view(bits.dtype)
    if bits.size and bits.max() > largest:  # negative numbers and NaN have larger bits than any number in 0..1
        place = int(np.argmax(bits.reshape(-1) > largest))
        row = (
            place // probs.shape[1] if counts is None else int(np.searchsorted(np.cumsum(counts), place, side="right"))
        )
        raise ImpossibleContentError(f"{name} has the probability {probs.reshape(-1)[place]} at token {tokens[row]}")
    if counts is None:
        sums, smallest = _row_sums(probs), 1.0 - _LOST_MASS
        rounding = _ROUNDING + probs.shape[1] * _HALF_STEP
        _refuse_rows(sums, (smallest - rounding, 1.0 + rounding), f"the sum of {name}", tokens)
        return
    tails = columns.get("tail_mass")
    _check_entries(columns["target_ids"], counts, tokens, top_first=tails is None)
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(probs.reshape(-1).astype(np.float32), starts)
    rounding = _ROUNDING + int(counts.max()) * _HALF_STEP
    if tails is None:
        _refuse_rows(sums, (1.0 - rounding, 1.0 + rounding), f"the sum of {name}", tokens)
        return
    _refuse_rows(sums, (0.0, 1.0 + rounding), f"the sum of {name}", tokens)
    _refuse_rows(tails, (0.0, 1.0 + _ROUNDING), "tail_mass", tokens)
    _refuse_rows(sums + tails, (1.0 - rounding, 1.0 + rounding), f"the sum of {name} and tail_mass", tokens)


def _row_sums(probs: Array) -> NDArray[np.float32]:
    """[N, D] -> [N]; numpy alone adds up float16 ten times as slowly."""
    parts = np.split(probs, range(_ROWS_AT_ONCE, len(probs), _ROWS_AT_ONCE))
    sums = [torch.from_numpy(part.copy()).sum(dim=1, dtype=torch.float32).numpy() for part in parts]
    return np.concatenate(sums)


def _check_entries(ids: Array, counts: Array, tokens: NDArray[np.int64], *, top_first: bool) -> None:
    """Each row has entries, in ascending order; where its likeliest token comes first, the others do."""
    if not counts.all():
        raise ImpossibleContentError(f"target_probs has no entry at token {tokens[int((counts == 0).argmax())]}")
    wide, ends = ids.astype(np.int64), np.cumsum(counts)
    falls = np.diff(wide) <= 0
    falls[ends[:-1] - 1] = False
    wrong = np.append(falls, False)
    if top_first:
        starts = ends - counts
        wrong[starts] = False
        wrong |= (wide == np.repeat(wide[starts], counts)) & (np.arange(len(wide)) > np.repeat(starts, counts))
    if wrong.any():
        row = int(np.searchsorted(ends, int(wrong.argmax()), side="right"))
        behind = " behind the first" if top_first else ""
        raise ImpossibleContentError(f"target_ids are not ascending{behind}, each once, at token {tokens[row]}")


def _check_lists(field: pa.Field, column: pa.Array, supervised: NDArray[np.bool_]) -> None:
    offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1)
    lengths, width = np.diff(offsets), items_per_row(field)
    count = len(column.values)
    if offsets[0] != 0 or offsets[-1] != count:
        raise ImpossibleContentError(f"{field.name} has {count} items, listed are {offsets[0]}..{offsets[-1]}")
    if width is not None:
        expected = np.where(supervised | has_every_row(field), width, 0)
        if (wrong := lengths != expected).any():
            token = int(wrong.argmax())
            raise ImpossibleContentError(
                f"{field.name} has {lengths[token]} items at token {token}, not {expected[token]}"
            )


def _refuse_rows(values: Array, bounds: tuple[float, float], name: str, tokens: NDArray[np.int64]) -> None:
    low, high = bounds
    is_sound = (values >= low) & (values <= high)  # NaN is neither
    if not is_sound.all():
        row = int((~is_sound).argmax())
        raise ImpossibleContentError(f"{name} is {values[row]:g} at token {tokens[row]}, outside {low:g}..{high:g}")


def _refuse_tokens(wrong: NDArray[np.bool_], text: str) -> None:
    if wrong.any():
        raise ImpossibleContentError(f"{text} (token {int(wrong.argmax())})")


def _raise(name: str, fault: RowFault | None, tokens: NDArray[np.int64] | None) -> None:
    if fault is not None:
        token = fault.row if tokens is None else int(tokens[fault.row])
        raise ImpossibleContentError(f"{name} {fault.text} at token {token}")
