"""Refusals of what cannot be trained on: settings, shapes, and masks, each named with what it should be."""

from typing import Any, Literal

import torch

from eaglepipe.eagle.losses import LOSS_KINDS, StepLoss
from eaglepipe.eagle.unroll.attention import check_right_padded
from eaglepipe.eagle.unroll.interface import HostMasks
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.errors import DraftError

IMPLEMENTATIONS = ("compact", "reference")


def check_settings(
    config: Any,
    selected_token_ids: torch.Tensor,
    selected_token_mask: torch.Tensor,
    *,
    ttt_steps: int,
    step_decay: float,
    implementation: str,
    loss: StepLoss,
) -> None:
    """What an EAGLE-3 trainer is built from.

    Raises:
        DraftError: naming the setting.
    """
    if isinstance(ttt_steps, bool) or not isinstance(ttt_steps, int) or ttt_steps < 1:
        raise DraftError(f"ttt_steps must be an int of at least 1, not {ttt_steps!r}")
    if not 0.0 < step_decay <= 1.0:
        raise DraftError(f"step_decay must be above 0 and at most 1, not {step_decay!r}")
    if implementation not in IMPLEMENTATIONS:
        raise DraftError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    if loss.kind not in LOSS_KINDS:
        raise DraftError(f"loss must be one of {', '.join(LOSS_KINDS)}, not {loss.kind!r}")
    if not loss.scale >= 0.0 or not loss.decay >= 0.0:
        raise DraftError(f"the scale and decay of an LK loss must be at least 0, not {loss.scale!r} and {loss.decay!r}")
    check_vocabulary(config, selected_token_ids, selected_token_mask)


def check_vocabulary(config: Any, selected_token_ids: torch.Tensor, selected_token_mask: torch.Tensor) -> None:
    """The draft vocabulary against the draft.

    Raises:
        DraftError: when sizes differ.
    """
    if selected_token_ids.shape != (config.draft_vocab_size,):
        raise DraftError(
            f"selected_token_ids has shape {tuple(selected_token_ids.shape)}; the draft's lm_head has "
            f"{config.draft_vocab_size} rows"
        )
    if selected_token_mask.shape != (config.vocab_size,):
        raise DraftError(
            f"selected_token_mask has shape {tuple(selected_token_mask.shape)}; the target's vocabulary has "
            f"{config.vocab_size} ids"
        )


def check_batch(
    config: Any,
    *,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    loss_mask: torch.Tensor,
    aux_hidden_states: torch.Tensor,
    target_logits: torch.Tensor | None,
    target_probs: torch.Tensor | SparseTargets | None,
    position_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    seq_lens: torch.Tensor | None,
    doc_remaining: torch.Tensor | None,
    normalizers: torch.Tensor | None,
    ttt_steps: int,
) -> None:
    """One batch of `Eagle3TrainerModule.forward`: sources and shapes.

    Raises:
        DraftError: naming the argument.
    """
    _check_source(target_logits, target_probs, position_mask)
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise DraftError(f"input_ids must be [batch, tokens], not {tuple(input_ids.shape)}")
    rows = tuple(input_ids.shape)
    aux_size = config.num_aux_hidden_states * config.target_hidden_size
    _check_shape("attention_mask", attention_mask, rows)
    _check_shape("loss_mask", loss_mask, rows, (*rows, 1))
    _check_shape("position_mask", position_mask, rows, (*rows, 1))
    _check_shape("position_ids", position_ids, rows)
    _check_shape("doc_remaining", doc_remaining, rows)
    _check_shape("target_logits", target_logits, (*rows, config.vocab_size))
    _check_shape("normalizers", normalizers, (ttt_steps,))
    _check_shape(
        "aux_hidden_states",
        aux_hidden_states,
        (*rows, aux_size),
        (*rows, config.num_aux_hidden_states, config.target_hidden_size),
    )
    if isinstance(target_probs, SparseTargets):
        _check_sparse_shapes(target_probs)
    elif target_probs is not None and target_probs.dim() == 2:
        _check_shape("target_probs", target_probs, (target_probs.shape[0], config.draft_vocab_size))
    else:
        _check_shape("target_probs", target_probs, (*rows, config.draft_vocab_size))
    if seq_lens is not None and (seq_lens.dim() != 2 or seq_lens.shape[0] != rows[0]):
        raise DraftError(f"seq_lens has shape {tuple(seq_lens.shape)}; expected [{rows[0]}, documents]")


def check_loss_inputs(
    loss: StepLoss,
    *,
    target_probs: torch.Tensor | SparseTargets | None,
    draft_mass: torch.Tensor | None,
    mean_alphas: torch.Tensor | None,
    normalizers: torch.Tensor | None,
    ttt_steps: int,
) -> None:
    """What an LK loss needs beside a batch's supervision.

    Raises:
        DraftError: naming the argument.
    """
    _check_shape("mean_alphas", mean_alphas, (ttt_steps,))
    if not loss.needs_mass:
        return
    if target_probs is None:
        if draft_mass is not None:
            raise DraftError("draft_mass goes with target_probs; with target_logits it follows from them")
    elif draft_mass is None:
        raise DraftError(f"loss {loss.kind} is taken on un-renormalised probabilities: give draft_mass too")
    elif isinstance(target_probs, SparseTargets):
        _check_shape("draft_mass", draft_mass, (target_probs.tail.numel(),))
    else:
        _check_shape("draft_mass", draft_mass, tuple(target_probs.shape[:-1]))
    if loss.kind == "lambda" and normalizers is not None and mean_alphas is None:
        raise DraftError("normalizers make a batch a share of a larger one; loss lambda then needs its mean_alphas too")


def _check_source(
    target_logits: torch.Tensor | None,
    target_probs: torch.Tensor | SparseTargets | None,
    position_mask: torch.Tensor | None,
) -> None:
    if (target_logits is None) == (target_probs is None):
        given = "neither" if target_logits is None else "both"
        raise DraftError(f"give exactly one of target_logits and target_probs with position_mask; {given} given")
    if (target_probs is None) != (position_mask is None):
        raise DraftError("target_probs and position_mask go together: both, or target_logits alone")


def _check_sparse_shapes(targets: SparseTargets) -> None:
    num_rows, num_entries = targets.tail.numel(), targets.probs.numel()
    _check_shape("target_probs.tail", targets.tail, (num_rows,))
    _check_shape("target_probs.row_offsets", targets.row_offsets, (num_rows + 1,))
    _check_shape("target_probs.probs", targets.probs, (num_entries,))
    _check_shape("target_probs.ids", targets.ids, (num_entries,))


def _check_shape(name: str, tensor: torch.Tensor | None, *expected: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) not in expected:
        wanted = " or ".join(str(list(shape)) for shape in expected)
        raise DraftError(f"{name} has shape {list(tensor.shape)}; expected {wanted}")


def check_values(
    masks: HostMasks,
    target_probs: torch.Tensor | SparseTargets,
    draft_size: int,
    *,
    compact_rows: Literal["position_mask", "loss_mask"] = "position_mask",
) -> None:
    """What only the values of a batch tell; `compact_rows` names the mask whose slots compact targets belong to.

    Raises:
        DraftError: for left padding, supervision on padding or outside the loss mask, documents that do not fill their
            row, a number of rows of probabilities that is not the number of slots they belong to, or sparse rows that
            are empty or name tokens outside the draft vocabulary.
    """
    check_right_padded(masks.attention_mask)
    padded = (masks.position_mask & ~masks.attention_mask).any(dim=1)
    if bool(padded.any()):
        raise DraftError(f"row {int(padded.nonzero()[0])} has supervision on padding; position_mask must end before it")
    stray = (masks.position_mask & ~masks.loss_mask).any(dim=1)
    if bool(stray.any()):
        raise DraftError(
            f"row {int(stray.nonzero()[0])} has position_mask set where loss_mask is not; shift both left by one"
        )
    if masks.seq_lens is not None:
        _check_documents(masks.seq_lens, masks.attention_mask.shape[1])
    supervised = int((masks.position_mask if compact_rows == "position_mask" else masks.loss_mask).sum())
    if isinstance(target_probs, SparseTargets):
        _check_sparse_values(masks, len(target_probs.ids), draft_size)
        num_rows = len(target_probs.tail)
    else:
        num_rows = target_probs.shape[0] if target_probs.dim() == 2 else supervised
    if num_rows != supervised:
        raise DraftError(f"target_probs has {num_rows} rows; {compact_rows} has {supervised} slots set")


def _check_sparse_values(masks: HostMasks, num_entries: int, draft_size: int) -> None:
    assert masks.row_offsets is not None and masks.id_bounds is not None
    counts = masks.row_offsets.diff()
    if int(masks.row_offsets[0]) != 0 or int(masks.row_offsets[-1]) != num_entries:
        raise DraftError(f"target_probs.row_offsets must run from 0 to the {num_entries} entries there are")
    bad = (counts < 1) | (counts > draft_size)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DraftError(f"target_probs row {row} has {int(counts[row])} entries; expected 1 to {draft_size}")
    if num_entries and not 0 <= int(masks.id_bounds[0]) <= int(masks.id_bounds[1]) < draft_size:
        raise DraftError(
            f"target_probs.ids lie in {int(masks.id_bounds[0])}..{int(masks.id_bounds[1])}; the draft vocabulary has "
            f"ids 0..{draft_size - 1}"
        )


def _check_documents(seq_lens: torch.Tensor, num_slots: int) -> None:
    negative = (seq_lens < 0).any(dim=1)
    if bool(negative.any()):
        raise DraftError(f"seq_lens row {int(negative.nonzero()[0])} has a negative length; pad it with zeros")
    totals = seq_lens.sum(dim=1)
    bad = totals != num_slots
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DraftError(
            f"seq_lens row {row} sums to {int(totals[row])}, not to the row's {num_slots} slots; fold trailing padding "
            "into the last document"
        )
