"""Small drafts and batches for the tests of `eagle/`."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig

from eaglepipe.eagle.core import Eagle3TrainerModule
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.packed_batch import PackedBatch

VOCAB_SIZE, DRAFT_SIZE, NUM_AUX = 41, 29, 3


def target_config(**overrides: Any) -> LlamaConfig:
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 8,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**{**values, **overrides})


def selected_ids(draft_size: int = DRAFT_SIZE, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randperm(vocab_size, generator=generator)[:draft_size].sort().values


def make_draft(seed: int = 0, draft_size: int = DRAFT_SIZE, **overrides: Any) -> LlamaEagle3DraftModel:
    """A draft with weights of order one, so that attention and losses are far from uniform."""
    torch.manual_seed(seed)
    draft = LlamaEagle3DraftModel(draft_config_from_target(target_config(), draft_vocab_size=draft_size, **overrides))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in draft.named_parameters():
        spread = 0.3 if "norm" in name else parameter.shape[-1] ** -0.5
        offset = 1.0 if "norm" in name else 0.0
        parameter.data = offset + spread * torch.randn(parameter.shape, generator=generator)
    draft.set_vocab_mapping(selected_ids(draft_size))
    return draft


def make_trainer(draft: LlamaEagle3DraftModel, ttt_steps: int = 4, **keywords: Any) -> Eagle3TrainerModule:
    ids = selected_ids(draft.config.draft_vocab_size)
    mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    mask[ids] = True
    return Eagle3TrainerModule(draft, ids, mask, ttt_steps, **keywords)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One sample as the trainer takes it, shifted once; T tokens."""

    input_ids: torch.Tensor  # [T]
    loss_mask: torch.Tensor  # bool [T]
    position_mask: torch.Tensor  # bool [T]
    aux: torch.Tensor  # [T, A·Ht]
    probs: torch.Tensor  # [T, D]

    def __len__(self) -> int:
        return len(self.input_ids)


def make_document(
    length: int, seed: int, supervised: float = 0.8, covered: float = 0.85, draft_size: int = DRAFT_SIZE
) -> Document:
    """Random runs of supervised slots with random out-of-vocabulary gaps."""
    generator = torch.Generator().manual_seed(1000 + seed)
    runs = torch.rand((length + 2) // 3, generator=generator).repeat_interleave(3)[:length] < supervised
    runs[-1] = False
    gaps = torch.rand(length, generator=generator) < covered
    return Document(
        input_ids=torch.randint(VOCAB_SIZE, (length,), generator=generator),
        loss_mask=runs,
        position_mask=runs & gaps,
        aux=torch.randn(length, NUM_AUX * 24, generator=generator),
        probs=(2 * torch.randn(length, draft_size, generator=generator)).softmax(-1),
    )


def padded(documents: list[Document]) -> dict[str, torch.Tensor]:
    """One row a document, right padded with zeros."""
    longest = max(len(document) for document in documents)

    def rows(name: str) -> torch.Tensor:
        tensors = [getattr(document, name) for document in documents]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)

    lengths = torch.tensor([len(document) for document in documents])
    return {
        "input_ids": rows("input_ids"),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "loss_mask": rows("loss_mask"),
        "aux_hidden_states": rows("aux"),
        "target_probs": rows("probs"),
        "position_mask": rows("position_mask")[..., None],
    }


def packed(rows: list[list[Document]], num_slots: int) -> dict[str, torch.Tensor]:
    """Several documents a row, right padded to `num_slots`, trailing padding folded into the last document."""
    joined = []
    for documents in rows:
        fields = {
            name: torch.cat([getattr(document, name) for document in documents])
            for name in ("input_ids", "loss_mask", "position_mask", "aux", "probs")
        }
        joined.append(Document(**fields))
    batch = padded(joined)
    short = num_slots - batch["input_ids"].shape[1]
    for name, tensor in batch.items():
        tail = tensor.new_zeros(tensor.shape[0], short, *tensor.shape[2:])
        batch[name] = torch.cat((tensor, tail), dim=1)
    seq_lens = torch.zeros(len(rows), max(len(documents) for documents in rows), dtype=torch.int64)
    positions, remaining = torch.zeros(2, len(rows), num_slots, dtype=torch.int64)
    for row, documents in enumerate(rows):
        start = 0
        for index, document in enumerate(documents):
            end = start + len(document)
            seq_lens[row, index] = len(document)
            positions[row, start:end] = torch.arange(len(document))
            remaining[row, start:end] = torch.arange(len(document)).flip(0)
            start = end
        seq_lens[row, len(documents) - 1] += num_slots - start
    return {**batch, "position_ids": positions, "seq_lens": seq_lens, "doc_remaining": remaining}


def packed_batch(batch: dict[str, Any]) -> PackedBatch:
    """What the forward of a trainer makes of the ids, masks and positions of a batch."""
    names = ("input_ids", "attention_mask", "loss_mask", "position_mask", "position_ids", "seq_lens", "doc_remaining")
    return PackedBatch.of(**{name: batch.get(name) for name in names})


def gradients(draft: LlamaEagle3DraftModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    draft.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in draft.named_parameters() if parameter.grad is not None}


def random_states(*shape: int, seed: int) -> torch.Tensor:
    """Normal, float64, with a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
