"""A random target whose greedy answers are letters and end soon."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM


def save_talkative_target(tokenizer_folder: Path, folder: Path) -> None:
    """Save a model whose head's bias keeps it to letters; every fourth ends an answer, by its generation config."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(1)
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        initializer_range=0.5,
    )
    model = PhiForCausalLM(config)
    letters = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isalpha()]
    with torch.no_grad():
        model.lm_head.bias.fill_(-1e4)[letters] = 0.0
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *letters[::4]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
