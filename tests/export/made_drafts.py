"""Drafts with random weights for targets that are only sizes, published as a training run publishes them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.files.digests import DIGESTS_FILE
from eaglepipe.training.objectives.builders import build_draft, publish_draft
from eaglepipe.vocab import DraftVocab
from tests.family_sections import draft_config, train_config
from tests.training.tiny_source import tiny_vocab

DEPTH, VOCAB, HIDDEN = 10, 64, 16
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": DEPTH,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# The proportions of gpt-oss: heads of 64 at H = 2,880, eight query heads to a key head, YaRN that is not truncated.
GPT_OSS: dict[str, Any] = {
    **LLAMA,
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 48,
    "head_dim": 4,
    "num_attention_heads": 16,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "attention_bias": False,
    "max_position_embeddings": 131072,
}


@dataclass(frozen=True, kw_only=True)
class MadeTarget:
    """As much of a `TrainingSource` as a draft is built from."""

    target_config: dict[str, Any] = field(default_factory=lambda: dict(LLAMA))
    aux_layer_ids: tuple[int, ...] = (2, DEPTH // 2, DEPTH - 3)
    draft_size: int = 40

    @property
    def vocab_size(self) -> int:
        return int(self.target_config["vocab_size"])

    @property
    def selected_token_ids(self) -> torch.Tensor:
        chosen = torch.randperm(self.vocab_size, generator=torch.Generator().manual_seed(3))[: self.draft_size]
        return chosen.sort().values

    @property
    def vocab(self) -> DraftVocab:
        return tiny_vocab(self.selected_token_ids, self.vocab_size)

    @property
    def spec(self) -> ShardSpec:
        """That of a cache as EAGLE-1/2 asks for."""
        return ShardSpec(
            supervision="hidden",
            aux_codec="bf16",
            supervision_codec="bf16",
            aux_layer_ids=self.aux_layer_ids,
            hidden_size=self.target_config["hidden_size"],
            vocab_size=self.vocab_size,
            draft_vocab_size=self.draft_size,
            last_hidden="all",
        )

    @property
    def embeddings(self) -> torch.Tensor:
        return torch.randn(
            self.vocab_size, self.target_config["hidden_size"], generator=torch.Generator().manual_seed(4)
        )

    @property
    def head(self) -> torch.Tensor:
        return torch.randn(
            self.vocab_size, self.target_config["hidden_size"], generator=torch.Generator().manual_seed(5)
        )

    def start_tensors(self) -> dict[str, torch.Tensor]:
        rows = {"lm_head.weight": self.head[self.selected_token_ids], "lm_head_full.weight": self.head}
        return {"embed_tokens.weight": self.embeddings, **rows}


def make_draft(
    target: MadeTarget, objective: str = "eagle3", *, scale: float = 0.3, **settings: Any
) -> PreTrainedModel:
    """A draft whose every trained weight is random, norms and biases too."""
    train, config = train_config(objective), draft_config(objective, **settings)
    draft = build_draft(target, train, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * noise if "norm" in name else scale * noise)
    return draft.eval()


def save_draft(draft: PreTrainedModel, folder: Path) -> Path:
    publish_draft(draft, folder)
    return folder


def without_digests(folder: Path) -> Path:
    """A draft folder as others publish it, whose files may differ from those that were written."""
    (folder / DIGESTS_FILE).unlink()
    return folder
