"""DFlash drafts, their batches, and their loss block by block: each anchor alone, with its document's context."""

from typing import Any

import torch

from eaglepipe.eagle.dflash.config import dflash_config_from_target
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.dflash.dspark import DSparkDraftModel
from eaglepipe.eagle.dflash.dspark_trainer import DSparkTrainerModule
from eaglepipe.eagle.dflash.inputs import BlockInputs
from eaglepipe.eagle.dflash.losses import BlockLoss, BlockTargets, block_loss
from eaglepipe.eagle.dflash.trainer import DFlashTrainerModule
from eaglepipe.eagle.dflash.visibility import DenseVisibility
from tests.eagle.toy_drafts import (
    DRAFT_SIZE,
    NUM_AUX,
    VOCAB_SIZE,
    Document,
    make_document,
    packed,
    packed_batch,
    selected_ids,
    target_config,
)

MASK_TOKEN, BLOCK = 3, 4
SELECTED = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill(0, selected_ids(), True)
DRAFT_IDS = torch.where(SELECTED, SELECTED.long().cumsum(0) - 1, -1)


def make_block_draft(seed: int = 0, heads: dict[str, Any] | None = None, **overrides: Any) -> DFlashDraftModel:
    """A draft with weights of order one, so that attention and losses are far from uniform; with heads, DSpark's."""
    settings = {"block_size": BLOCK, "mask_token_id": MASK_TOKEN, "num_hidden_layers": 2, **overrides}
    config = dflash_config_from_target(
        target_config(), draft_vocab_size=DRAFT_SIZE, num_aux_hidden_states=NUM_AUX, **settings
    )
    config.update(heads or {})
    draft = DFlashDraftModel(config) if heads is None else DSparkDraftModel(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in draft.named_parameters():
        is_norm = "norm" in name
        spread = 0.3 if is_norm else parameter.shape[-1] ** -0.5
        parameter.data = float(is_norm) + spread * torch.randn(parameter.shape, generator=generator)
    draft.set_vocab_mapping(selected_ids())
    return draft


def make_block_trainer(draft: DFlashDraftModel, loss: BlockLoss | None = None, **settings: Any) -> DFlashTrainerModule:
    loss = BlockLoss(gamma=3.0) if loss is None else loss
    module = DSparkTrainerModule if isinstance(draft, DSparkDraftModel) else DFlashTrainerModule
    return module(draft, selected_ids(), SELECTED, loss=loss, **settings)


def top1_of(document: Document) -> torch.Tensor:
    """The target's likeliest token of each slot; of uncovered slots one outside the draft vocabulary."""
    outside = int((~SELECTED).nonzero()[0])
    tokens = torch.where(document.position_mask, selected_ids()[document.probs.argmax(-1)], outside)
    return torch.where(document.loss_mask, tokens, -1)


def mass_of(document: Document) -> torch.Tensor:
    return torch.linspace(0.6, 1.0, len(document))


def documents() -> list[Document]:
    return [make_document(length, seed, supervised=0.9) for seed, length in enumerate((17, 3, 22, 9))]


def block_inputs(rows: list[list[Document]], num_slots: int, *, with_probs: bool = True) -> BlockInputs:
    batch = packed(rows, num_slots)
    top1 = torch.full(batch["input_ids"].shape, -1)
    for row, row_documents in enumerate(rows):
        values = torch.cat([top1_of(document) for document in row_documents])
        top1[row, : len(values)] = values
    masses = [mass_of(document)[document.loss_mask] for row in rows for document in row]
    return BlockInputs(
        batch=packed_batch(batch),
        aux_hidden_states=batch["aux_hidden_states"],
        target_top1=top1,
        target_probs=batch["target_probs"][batch["loss_mask"]] if with_probs else None,
        draft_mass=torch.cat(masses) if with_probs else None,
    )


def chain_length(document: Document, anchor: int, depths: int) -> int:
    """Guesses that count behind an anchor."""
    length = 0
    while length < depths and anchor + length < len(document) - 1 and document.loss_mask[anchor + length]:
        length += 1
    return length


def loss_of_block(
    draft: DFlashDraftModel, document: Document, anchor: int, settings: BlockLoss, *, teacher_labels: bool = False
) -> torch.Tensor:
    """The summed loss of one block, by the dense reference of the forward and of the losses."""
    config = draft.config
    width, first = config.block_size, 0 if config.sample_from_anchor else 1
    length = chain_length(document, anchor, width - first)
    ids = torch.tensor([[int(document.input_ids[anchor])] + [MASK_TOKEN] * (width - 1)])
    visibility = DenseVisibility(
        starts=torch.tensor([0]),
        stops=torch.tensor([anchor + 1]),
        num_context=len(document),
        width=width,
        device=torch.device("cpu"),
    )
    positions = torch.arange(len(document))
    context = draft.project_hidden_states(document.aux)
    states = draft(ids, anchor + 1 + torch.arange(width)[None], context, positions, visibility)
    logits, forecasts = draft.compute_logits(states), None
    if isinstance(draft, DSparkDraftModel):
        assert first == 0
        previous = document.input_ids[(anchor + torch.arange(width)).clamp(max=len(document) - 1)]
        logits = logits + draft.markov_bias(states, previous)
        forecasts = draft.forecast(states, previous)
    mask, labels = torch.zeros(1, width, dtype=torch.bool), torch.full((1, width), -1)
    probs, mass = torch.full((1, width, DRAFT_SIZE), 1 / DRAFT_SIZE), torch.ones(1, width)
    for depth in range(length):
        slot = anchor + depth
        mask[0, first + depth] = True
        data = DRAFT_IDS[document.input_ids[slot + 1]]
        labels[0, first + depth] = document.probs[slot].argmax() if teacher_labels else data
        probs[0, first + depth], mass[0, first + depth] = document.probs[slot], mass_of(document)[slot]
    targets = BlockTargets(mask=mask, labels=labels, probs=probs, draft_mass=mass)
    return block_loss(settings, logits[None], targets, None if forecasts is None else forecasts[None]).loss
