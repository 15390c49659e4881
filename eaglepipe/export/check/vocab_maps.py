"""Checks the maps between draft and target vocabulary: offsets, not ids; ascending; the same in d2t and t2d."""

from collections.abc import Mapping

import torch

from eaglepipe.drafts.shape import MAP_DTYPES, DraftShape, tensor_shapes
from eaglepipe.export.check.findings import Findings, error


def check_vocab(shape: DraftShape, tensors: Mapping[str, torch.Tensor]) -> Findings:
    """Yield findings on the values of d2t and t2d, if they have the right shape and dtype."""
    offsets, mask = tensors.get("d2t"), tensors.get("t2d")
    expected = tensor_shapes(shape)
    if offsets is None or tuple(offsets.shape) != expected.get("d2t") or offsets.dtype not in MAP_DTYPES["d2t"]:
        return
    offsets = offsets.long()
    ids, marked = offsets + torch.arange(len(offsets)), None
    if mask is not None and tuple(mask.shape) == expected["t2d"] and mask.dtype == torch.bool:
        marked = mask.nonzero()[:, 0]
    if _holds_ids(offsets, ids, marked, shape.vocab_size):
        reason = "it holds target ids in place of offsets; the target id of draft id i is i + d2t[i]"
        yield error("d2t", reason, "values")
    elif not _in_vocab(ids, shape.vocab_size):
        yield error("d2t", f"i + d2t[i] leaves the target vocabulary of {shape.vocab_size}", "values")
    elif not _ascends(ids):
        first = int((ids[1:] <= ids[:-1]).nonzero()[0, 0]) + 1
        reason = f"the target ids i + d2t[i] do not ascend (at draft id {first}), as lm_head rows and t2d must"
        yield error("d2t", reason, "values")
    elif marked is not None and not torch.equal(ids, marked):
        yield error("t2d", "it does not mark the target ids that d2t leads to", "values")


def _holds_ids(offsets: torch.Tensor, ids: torch.Tensor, marked: torch.Tensor | None, vocab_size: int) -> bool:
    """Return whether the values look like ascending target ids: those that t2d marks, if it is whole."""
    if not _ascends(offsets) or not _in_vocab(offsets, vocab_size):
        return False
    if marked is not None and len(marked) == len(offsets):
        return torch.equal(offsets, marked) and not torch.equal(ids, marked)
    return len(offsets) > 1


def _in_vocab(ids: torch.Tensor, vocab_size: int) -> bool:
    return bool(((ids >= 0) & (ids < vocab_size)).all())


def _ascends(values: torch.Tensor) -> bool:
    return bool((values[1:] > values[:-1]).all())
