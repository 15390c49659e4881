"""A target small enough to write down: tables instead of a network, and samples drawn from it, held in memory."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.sampled import draw_entries
from eaglepipe.cache.types import CachedSample, SampleIndex
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target_head import HeadSpec
from eaglepipe.vocab import DraftVocab

VOCAB, DRAFT_VOCAB, HIDDEN, NUM_AUX = 40, 24, 16, 3
TARGET_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}

NO_CAP = HeadSpec()


@dataclass(frozen=True, kw_only=True)
class TinySource:
    """A `TrainingSource` in memory."""

    identity: str
    samples: tuple[CachedSample, ...]
    spec: ShardSpec
    max_length: int
    vocab: DraftVocab
    tensors: dict[str, torch.Tensor]
    head: HeadSpec = NO_CAP

    @property
    def target_config(self) -> dict[str, Any]:
        return TARGET_CONFIG

    @property
    def index(self) -> SampleIndex:
        return SampleIndex(
            sample_ids=tuple(sample.sample_id for sample in self.samples),
            num_tokens=np.array([len(sample.input_ids) for sample in self.samples], np.int32),
            num_supervised=np.array([sample.supervised.sum() for sample in self.samples], np.int32),
            sources=("tiny",),
            source_of=np.zeros(len(self.samples), np.int16),
        )

    def start_tensors(self) -> dict[str, torch.Tensor]:
        return self.tensors

    def read(self, i: int, /) -> CachedSample:
        return self.samples[i]


def tiny_source(
    num_samples: int = 24,
    *,
    supervision: str = "hidden",
    identity: str = "tiny",
    supervised: bool = True,
    for_eagle1: bool = False,
) -> TinySource:
    """Samples of 4 to 16 tokens whose second half is one assistant turn, spoken by a target made of tables.

    `for_eagle1` keeps the last hidden state of every token and all rows of the head.
    """
    tables = torch.Generator().manual_seed(7)
    ids = torch.randperm(VOCAB, generator=tables)[:DRAFT_VOCAB].sort().values
    head = torch.randn(VOCAB, HIDDEN, generator=tables)
    states = 3.0 * torch.nn.functional.normalize(head[torch.randperm(VOCAB, generator=tables)], dim=1)
    aux = torch.randn(VOCAB, NUM_AUX, HIDDEN, generator=tables)
    samples = [_sample(i, states, head, aux, ids, supervision, supervised) for i in range(num_samples)]
    tensors = {
        "embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=tables),
        "lm_head.weight": head[ids],
        "norm.weight": torch.ones(HIDDEN),
    }
    if for_eagle1:
        tensors["lm_head_full.weight"] = head
        hidden = [as_bytes(states[torch.from_numpy(sample.input_ids).long()]) for sample in samples]
        samples = [replace(sample, last_hidden_payload=rows) for sample, rows in zip(samples, hidden, strict=True)]
    return TinySource(
        identity=identity,
        samples=tuple(samples),
        spec=tiny_spec(supervision, for_eagle1=for_eagle1),
        max_length=16,
        vocab=tiny_vocab(ids, VOCAB),
        tensors=tensors,
    )


def tiny_spec(supervision: str, *, for_eagle1: bool = False) -> ShardSpec:
    return ShardSpec(
        supervision=supervision,
        aux_codec="fp32",
        supervision_codec="fp16" if supervision in ("sparse", "sampled") else "fp32",
        aux_layer_ids=(2, 4, 5),
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
        last_hidden="all" if for_eagle1 else "supervised",
    )


def tiny_vocab(ids: torch.Tensor, vocab_size: int) -> DraftVocab:
    return DraftVocab(
        selected_token_ids=ids,
        selected_token_mask=torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, ids, True),
        counts=torch.zeros(vocab_size, dtype=torch.int64),
    )


def _sample(
    number: int,
    states: torch.Tensor,
    head: torch.Tensor,
    aux: torch.Tensor,
    ids: torch.Tensor,
    supervision: str,
    any_supervised: bool,
) -> CachedSample:
    generator = np.random.default_rng(number)
    length = int(generator.integers(4, 17))
    next_token = (states @ head.T).argmax(1).numpy()
    tokens = [int(generator.integers(VOCAB))]
    for position in range(1, length):
        surprised = position < length // 2 or generator.random() < 0.2
        tokens.append(int(generator.integers(VOCAB)) if surprised else int(next_token[tokens[-1]]))
    input_ids = np.array(tokens, np.int32)
    loss_mask = np.arange(length) >= length // 2
    mask = loss_mask & (np.arange(length) < length - 1) & any_supervised
    hidden = states[tokens]
    logits = hidden @ head.T
    top1 = logits.argmax(1).numpy().astype(np.int32)
    probs = (hidden @ head[ids].T).softmax(1)
    mass = logits.softmax(1)[:, ids].sum(1).numpy()
    rows = (hidden if supervision == "hidden" else probs)[torch.from_numpy(mask)]
    column = "last_hidden_states" if supervision == "hidden" else "target_probs"
    entries = {"sparse": sparse_columns, "sampled": drawn_columns}
    columns = entries[supervision](rows) if supervision in entries else {column: as_bytes(rows)}
    return CachedSample(
        sample_id=f"tiny:{number}",
        source="tiny",
        input_ids=input_ids,
        loss_mask=loss_mask,
        supervised=mask,
        position_mask=mask & np.isin(top1, ids.numpy()),
        target_top1=np.where(mask, top1, -1).astype(np.int32),
        draft_mass=np.where(mask, mass, 0.0).astype(np.float32),
        aux_payload=as_bytes(aux[tokens].reshape(length, -1)),
        aux_scales=None,
        supervision=columns,
    )


def made_index(num_tokens: np.ndarray, num_supervised: np.ndarray) -> SampleIndex:
    """What a cache would say of samples of these sizes."""
    return SampleIndex(
        sample_ids=tuple(map(str, range(len(num_tokens)))),
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        sources=("made",),
        source_of=np.zeros(len(num_tokens), np.int16),
    )


def as_bytes(rows: torch.Tensor) -> np.ndarray:
    return rows.contiguous().view(torch.uint8).numpy()


def sparse_columns(probs: torch.Tensor, mass: float = 0.9) -> dict[str, np.ndarray]:
    """Of each row [S, D] the likeliest tokens up to `mass`, largest first, and what they leave as the tail."""
    ordered, ids = probs.sort(dim=1, descending=True)
    kept = ordered.cumsum(1) - ordered < mass
    stored = torch.where(kept, ordered, 0.0).half()
    return {
        "target_probs": as_bytes(stored[kept][:, None]),
        "target_ids": ids[kept].numpy().astype(np.uint16),
        "num_entries": kept.sum(1).numpy().astype(np.int32),
        "tail_mass": (1 - stored.float().sum(1)).clamp(min=0).numpy(),
    }


def drawn_columns(probs: torch.Tensor, num_entries: int = 4) -> dict[str, np.ndarray]:
    """Entries drawn from each row [S, D]."""
    drawn = draw_entries(
        probs, torch.randint(2**53, (len(probs),), generator=torch.Generator().manual_seed(0)), num_entries
    )
    return {
        "target_probs": as_bytes(drawn.probs[:, None]),
        "target_ids": drawn.ids.numpy().astype(np.uint16),
        "num_entries": drawn.counts.numpy(),
    }


def tiny_recipe(folder: Path, **train: Any) -> Recipe:
    """A recipe for a run of some ten steps in `folder`, logged at every step."""
    settings = {
        "output_dir": str(folder),
        "caches": ["in memory"],
        "device": "cpu",
        "dtype": "float32",
        "ttt_steps": 3,
        "epochs": 2,
        "batch_tokens": 48,
        "micro_batch_tokens": 32,
        "learning_rate": 1e-2,
        "heldout_fraction": 0.2,
        "eval_every_steps": 4,
        "checkpoint_every_steps": 3,
        "log_every_steps": 1,
    }
    return parse_recipe(
        {
            "name": "tiny",
            "target": {"path": "nowhere"},
            "data": {"sources": [{"path": "nowhere.jsonl"}]},
            "train": {**settings, **train},
        }
    )
