"""vLLM starts in a process of its own and continues token ids as the target does by transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaglepipe.errors import ConfigError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import open_engine
from tests.tiny_project import TinyProject

NEW_TOKENS = 24


def by_vllm(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    target = TargetConfig(path=str(folder), engine="vllm", dtype="float32")
    longest = max(map(len, prompts)) + NEW_TOKENS
    with open_engine(target, folder, max_length=longest, report=lambda _: None) as engine:
        for number, prompt in enumerate(prompts):
            engine.add(str(number), prompt, EngineSampling(max_tokens=NEW_TOKENS))
        answers = {int(answer.request_id): list(answer.token_ids) for answer in engine.finished()}
    return [answers[number] for number in range(len(prompts))]


@torch.no_grad()
def by_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    continued = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(NEW_TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        continued.append(ids[len(prompt) :])
    return continued


def test_a_real_target_continues_chat_prompts_as_in_transformers(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    questions = ("What is the capital of France?", "Name three animals that live in the sea.", "Count from 1 to 5.")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]
    answers = by_vllm(smollm2, prompts)
    assert answers == by_transformers(smollm2, prompts)
    assert "Paris" in tokenizer.decode(answers[0])


def test_a_tiny_target_is_served(served_project: TinyProject) -> None:
    folder = served_project.folder / "target"
    prompts = [[5, 9, 31], [40, 41, 42, 43, 44, 45, 46, 47]]
    assert by_vllm(folder, prompts) == by_transformers(folder, prompts)


def test_an_argument_that_vllm_does_not_have_is_named(served_project: TinyProject) -> None:
    folder = served_project.folder / "target"
    target = TargetConfig(path=str(folder), engine="vllm", engine_args={"max_modle_len": 8})
    with (
        pytest.raises(ConfigError, match="max_modle_len"),
        open_engine(target, folder, max_length=16, report=lambda _: None),
    ):
        pass
