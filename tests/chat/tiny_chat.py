"""Small tokenizers and templates, made on the spot."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from eaglepipe.chat.messages import Message
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TemplateError
from eaglepipe.recipe.config import DataConfig, SourceConfig

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {}}}}]
CONTENT_AND_END = "{{ message['content'] + '<|im_end|>' }}"
_TEXTS = [
    "Which tree stands by the river? An old willow stands there.",
    "user assistant system tool hello world, how are you today? I am fine.",
    "U+00E9 LATIN SMALL LETTER E WITH ACUTE 0123456789\n",
] * 4


@cache
def _trained(trim_offsets: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer.to_str()


def make_tokenizer(
    template: str | dict[str, str] | None = CHATML, *, trim_offsets: bool = True
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(trim_offsets)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def data_config(path: Path | str = "unused.jsonl", **fields: Any) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=str(path)),), **fields)


def make_chat(template: str = CHATML, *, trim_offsets: bool = True, **fields: Any) -> ChatTokenizer:
    return load_chat_tokenizer(make_tokenizer(template, trim_offsets=trim_offsets), data_config(**fields))


def dialogue(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def conversation(messages: list[Message]) -> Conversation:
    return Conversation(sample_id="a", source="s", where="rows.jsonl:7", digest=b"", messages=tuple(messages))


def masked_text(chat: ChatTokenizer, messages: list[Message]) -> list[str]:
    ids, turns = chat.encode(conversation(messages))
    return [chat.tokenizer.decode(ids[turns == turn]) for turn in range(1, turns.max() + 1)]


def refused(template: str, **fields: object) -> str:
    with pytest.raises(TemplateError) as error:
        make_chat(template, **fields).encode(conversation(dialogue("a", "b")))
    return str(error.value)
