"""Checks the maps between draft and target vocabulary: offsets, not ids; ascending; the same in d2t and t2d."""

from collections.abc import Mapping

import torch

from eaglepipe.drafts.shape import DraftShape, tensor_shapes
from eaglepipe.export.check.findings import Findings, error


def check_vocab(shape: DraftShape, tensors: Mapping[str, torch.Tensor]) -> Findings:
    """Yield findings on the values of d2t and t2d, if they have the right shape and dtype."""
    offsets, mask = tensors.get("d2t"), tensors.get("t2d")
    expected = tensor_shapes(shape)
    if offsets is None or tuple(offsets.shape) != expected.get("d2t") or offsets.is_floating_point():
        return
    if mask is not None and (tuple(mask.shape) != expected["t2d"] or mask.dtype != torch.bool):
        mask = None
    offsets = offsets.long()
    if fault := _offset_fault(offsets, mask, shape):
        yield error("d2t", fault, "values")
    elif mask is not None and not torch.equal(_target_ids(offsets), mask.nonzero()[:, 0]):
        yield error("t2d", "it does not mark the target ids that d2t leads to", "values")


def _offset_fault(offsets: torch.Tensor, mask: torch.Tensor | None, shape: DraftShape) -> str | None:
    if _holds_ids(offsets, mask, shape):
        return "it holds target ids in place of offsets; the target id of draft id i is i + d2t[i]"
    ids = _target_ids(offsets)
    if bool((ids < 0).any()) or bool((ids >= shape.vocab_size).any()):
        return f"i + d2t[i] leaves the target vocabulary of {shape.vocab_size}"
    if not _ascends(ids):
        first = int((ids[1:] <= ids[:-1]).nonzero()[0, 0]) + 1
        return f"the target ids i + d2t[i] do not ascend (at draft id {first}), as lm_head rows and t2d must"
    return None


def _holds_ids(offsets: torch.Tensor, mask: torch.Tensor | None, shape: DraftShape) -> bool:
    """Return whether the values look like ascending target ids: those that t2d marks, if it is whole."""
    if not _ascends(offsets) or bool((offsets < 0).any()) or bool((offsets >= shape.vocab_size).any()):
        return False
    if mask is not None and int(mask.sum()) == len(offsets):
        marked = mask.nonzero()[:, 0]
        return torch.equal(offsets, marked) and not torch.equal(_target_ids(offsets), marked)
    return len(offsets) > 1


def _target_ids(offsets: torch.Tensor) -> torch.Tensor:
    return offsets + torch.arange(len(offsets))


def _ascends(values: torch.Tensor) -> bool:
    return bool((values[1:] > values[:-1]).all())
