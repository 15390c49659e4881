"""A project small enough for a test: real conversations, a real tokenizer, a target with random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from eaglepipe.demo.corpus import write_corpus
from eaglepipe.demo.tokenizer import train_tokenizer
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe

VOCAB_SIZE = 320


@dataclass(frozen=True, kw_only=True)
class TinyProject:
    folder: Path
    recipe_file: Path

    @property
    def target(self) -> Path:
        return self.folder / "target"

    @property
    def sources(self) -> list[Path]:
        return sorted((self.folder / "data" / "train").glob("*.jsonl"))

    def recipe(self, **overrides: Any) -> Recipe:
        return load_recipe(self.recipe_file, [f"{key}={value}" for key, value in overrides.items()])


def make_project(folder: Path, *, rows: int = 48, **sizes: int) -> TinyProject:
    """Write a corpus, a tokenizer, a random target and a recipe; `sizes` replace those of the target's config."""
    corpus = write_corpus(folder / "data", seed=0, train_rows=rows, prompt_rows=8)
    sources = [half for path in corpus.train for half in _halves(path)]
    tokenizer = train_tokenizer(sources, VOCAB_SIZE)
    defaults = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    save_random_llama(folder / "target", tokenizer, **defaults | sizes)
    recipe_file = folder / "tiny.yaml"
    listed = "".join(f"\n    - path: {path}" for path in sources)
    recipe_file.write_text(
        f"""\
name: tiny
target: {{path: {folder / "target"}}}
data:
  max_length: 256
  sources:{listed}
vocab: {{draft_size: 160}}
cache: {{root: {folder / "caches"}, profile: exact, shard_bytes: 600KiB}}
precompute: {{batch_tokens: 1024}}
draft: {{intermediate_size: 64}}
train:
  output_dir: {folder / "run"}
  dtype: float32
  ttt_steps: 3
  batch_tokens: 1024
  micro_batch_tokens: 512
  pack_length: 256
  learning_rate: 0.001
  heldout_fraction: 0.15
  eval_every_steps: 4
  checkpoint_every_steps: 4
  log_every_steps: 1
""",
        encoding="utf-8",
    )
    return TinyProject(folder=folder, recipe_file=recipe_file)


def save_random_llama(folder: Path, tokenizer: PreTrainedTokenizerBase, **sizes: int) -> None:
    """Save a Llama of random weights with a tokenizer; `sizes` are those of its config."""
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _halves(path: Path) -> list[Path]:
    """Replace a file of rows by two, so that the project has four sources."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    middle = len(lines) // 2
    halves = {path.with_stem(f"{path.stem}-1"): lines[:middle], path.with_stem(f"{path.stem}-2"): lines[middle:]}
    for half, part in halves.items():
        half.write_text("".join(part), encoding="utf-8")
    path.unlink()
    return list(halves)
