"""A real GGUF file gives the model that transformers reads from it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.targets import smollm2_gguf

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@torch.no_grad()
def test_its_logits_and_chat_template_are_those_of_the_file(smollm2: Path) -> None:
    file = smollm2_gguf()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    own = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    torch.testing.assert_close(own(ids).logits, read(ids).logits, rtol=0, atol=0)
    from_file = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert torch.equal(
        ids, from_file.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    )
    assert tokenizer.decode(ids[0]).startswith("<|im_start|>system")
