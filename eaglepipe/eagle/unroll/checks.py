"""Checks of a trainer's settings, and of the shapes and masks of its batches."""

from typing import Any, Literal

import torch

from eaglepipe.eagle.losses import LOSS_KINDS, StepLoss
from eaglepipe.eagle.packed_batch import PackedBatch, check_shape
from eaglepipe.eagle.peagle_data import CodSettings
from eaglepipe.eagle.unroll.attention.plain import check_right_padded
from eaglepipe.eagle.unroll.interface import EncodedTargets, TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.errors import DraftError

IMPLEMENTATIONS = ("compact", "reference")


def check_settings(*, ttt_steps: int, step_decay: float, implementation: str, loss: StepLoss) -> None:
    """Check the settings that an EAGLE-3 trainer is built from, but for its vocabulary.

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


def check_peagle_settings(config: Any, settings: CodSettings, sequence_partitions: int) -> None:
    """Check the settings that a P-EAGLE trainer is built from, but for its vocabulary.

    Raises:
        DraftError: naming the setting.
    """
    for name, value in (("depths", settings.depths), ("sequence_partitions", sequence_partitions)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DraftError(f"{name} must be an int of at least 1, not {value!r}")
    if not 0.0 < settings.ratio <= 1.0:
        raise DraftError(f"cod_ratio must be above 0 and at most 1, not {settings.ratio!r}")
    if not 0.0 <= settings.min_ratio <= 1.0:
        raise DraftError(f"cod_min_ratio must be from 0 to 1, not {settings.min_ratio!r}")
    if not getattr(config, "parallel_drafting", False):
        raise DraftError("P-EAGLE needs a draft with mask_hidden; build its config with parallel_drafting")
    if getattr(config, "mask_token_id", None) is None:
        raise DraftError("P-EAGLE without mask token: the draft's config has no mask_token_id")


def check_vocabulary(config: Any, selected_token_ids: torch.Tensor, selected_token_mask: torch.Tensor) -> None:
    """Check the draft vocabulary against the draft's config, as far as that gives sizes.

    Raises:
        DraftError: when sizes differ.
    """
    ids_size = getattr(config, "draft_vocab_size", None) or selected_token_ids.numel()
    mask_size = getattr(config, "vocab_size", None) or selected_token_mask.numel()
    for name, tensor, size, reason in (
        ("selected_token_ids", selected_token_ids, ids_size, f"the draft's lm_head has {ids_size} rows"),
        ("selected_token_mask", selected_token_mask, mask_size, f"the target's vocabulary has {mask_size} ids"),
    ):
        if tensor.shape != (size,):
            raise DraftError(f"{name} has shape {tuple(tensor.shape)}; {reason}")


def check_supervision_source(
    target_logits: torch.Tensor | None,
    target_probs: torch.Tensor | SparseTargets | None,
    position_mask: torch.Tensor | None,
) -> None:
    """Check that a forward gets its supervision in exactly one form.

    Raises:
        DraftError: naming the arguments.
    """
    if (target_logits is None) == (target_probs is None):
        given = "neither" if target_logits is None else "both"
        raise DraftError(f"give exactly one of target_logits and target_probs with position_mask; {given} given")
    if (target_probs is None) != (position_mask is None):
        raise DraftError("target_probs and position_mask go together: both, or target_logits alone")


def check_inputs(
    config: Any,
    inputs: TrainerInputs,
    *,
    draft_size: int,
    normalizers: torch.Tensor | None,
    num_steps: int,
    row_mask: Literal["position_mask", "loss_mask"] = "position_mask",
) -> None:
    """Check the inputs of a draft; `row_mask` names the mask whose slots compact targets belong to.

    Aux states are checked against the sizes in `config`; of a draft without them, only against the batch.

    Raises:
        DraftError: for shapes that do not fit, left padding, supervision on padding or outside the loss mask, documents
            that do not fill their row, a number of target rows that is not the number of their slots, or sparse rows
            that are empty or name tokens outside the draft vocabulary.
    """
    batch, targets = inputs.batch, inputs.target_probs
    check_shape("normalizers", normalizers, (num_steps,))
    _check_aux(config, batch, inputs.aux_hidden_states)
    if isinstance(targets, SparseTargets):
        _check_sparse_shapes(targets)
    elif isinstance(targets, EncodedTargets):
        if targets.draft_size != draft_size:
            raise DraftError(f"target_probs has {targets.draft_size} tokens; the draft's lm_head has {draft_size} rows")
    else:
        rows = (targets.shape[0],) if inputs.has_compact_rows else batch.shape
        check_shape("target_probs", targets, (*rows, draft_size))
    host = batch.on_host()
    check_batch(host)
    if isinstance(targets, SparseTargets):
        _check_sparse_values(targets, draft_size)
    if inputs.has_compact_rows:
        slots = getattr(host, row_mask)
        num_slots = int((slots if batch.share is None else slots & batch.share.read(batch.shape)).sum())
        if inputs.num_target_rows != num_slots:
            raise DraftError(f"target_probs has {inputs.num_target_rows} rows; {row_mask} has {num_slots} slots set")


def _check_aux(config: Any, batch: PackedBatch, aux: torch.Tensor) -> None:
    num_aux, width = (getattr(config, name, None) for name in ("num_aux_hidden_states", "target_hidden_size"))
    if num_aux is None or width is None:
        num_aux, width = (aux.shape[2], aux.shape[3]) if aux.dim() == 4 else (1, aux.shape[-1])
    if batch.share is not None:
        check_shape("aux_hidden_states", aux, (int(batch.share.owned(batch.shape).sum()), num_aux * width))
        return
    check_shape("aux_hidden_states", aux, (*batch.shape, num_aux * width), (*batch.shape, num_aux, width))


def check_loss_inputs(
    loss: StepLoss,
    inputs: TrainerInputs,
    *,
    mean_alphas: torch.Tensor | None,
    normalizers: torch.Tensor | None,
    num_steps: int,
) -> None:
    """Check what an LK loss needs beside a batch's supervision.

    Raises:
        DraftError: naming the argument.
    """
    check_shape("mean_alphas", mean_alphas, (num_steps,))
    if not loss.needs_mass:
        return
    if inputs.draft_mass is None:
        raise DraftError(f"loss {loss.kind} is taken on un-renormalised probabilities: give draft_mass too")
    targets = inputs.target_probs
    rows = targets.shape[:-1] if isinstance(targets, torch.Tensor) else (inputs.num_target_rows,)
    check_shape("draft_mass", inputs.draft_mass, tuple(rows))
    if loss.kind == "lambda" and normalizers is not None and mean_alphas is None:
        raise DraftError("normalizers make a batch a share of a larger one; loss lambda then needs its mean_alphas too")


def _check_sparse_shapes(targets: SparseTargets) -> None:
    num_rows, num_entries = targets.tail.numel(), targets.probs.numel()
    check_shape("target_probs.tail", targets.tail, (num_rows,))
    check_shape("target_probs.row_offsets", targets.row_offsets, (num_rows + 1,))
    check_shape("target_probs.probs", targets.probs, (num_entries,))
    check_shape("target_probs.ids", targets.ids, (num_entries,))


def _check_sparse_values(targets: SparseTargets, draft_size: int) -> None:
    layout, num_entries = targets.layout, len(targets.ids)
    assert layout is not None
    counts = layout.row_offsets.diff()
    if int(layout.row_offsets[0]) != 0 or int(layout.row_offsets[-1]) != num_entries:
        raise DraftError(f"target_probs.row_offsets must run from 0 to the {num_entries} entries there are")
    bad = (counts < 1) | (counts > draft_size)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DraftError(f"target_probs row {row} has {int(counts[row])} entries; expected 1 to {draft_size}")
    if num_entries and not 0 <= int(layout.id_bounds[0]) <= int(layout.id_bounds[1]) < draft_size:
        raise DraftError(
            f"target_probs.ids lie in {int(layout.id_bounds[0])}..{int(layout.id_bounds[1])}; the draft vocabulary has "
            f"ids 0..{draft_size - 1}"
        )


def check_batch(host: PackedBatch) -> None:
    """Check the values of a batch on the host.

    Raises:
        DraftError: for left padding, supervision on padding or outside the loss mask, or documents that do not fill
            their row.
    """
    check_right_padded(host.attention_mask)
    padded = (host.position_mask & ~host.attention_mask).any(dim=1)
    if bool(padded.any()):
        raise DraftError(f"row {int(padded.nonzero()[0])} has supervision on padding; position_mask must end before it")
    stray = (host.position_mask & ~host.loss_mask).any(dim=1)
    if bool(stray.any()):
        raise DraftError(
            f"row {int(stray.nonzero()[0])} has position_mask set where loss_mask is not; shift both left by one"
        )
    if host.seq_lens is not None:
        _check_documents(host.seq_lens, host.shape[1])


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
