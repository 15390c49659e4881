"""Rows of text under templates that behave like published ones: what of them is supervised, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.errors import TemplateError
from tests.chat.tiny_chat import conversation, data_config, dialogue
from tests.generation.scripted_target import make_tokenizer
from tests.generation.template_behaviours import BEHAVIOURS

NO_THOUGHT = "<think>\n\n</think>\n\n"
# The supervised text of "An elm." as the last answer, and after the thought "Hm."; None: the row is refused.
LAST: dict[str, tuple[str, str | None]] = {
    "llama-3.1": ("An elm.<|eot_id|>", "An elm.<|eot_id|>"),
    "qwen3": (f"{NO_THOUGHT}An elm.<|im_end|>", "<think>\nHm.\n</think>\n\nAn elm.<|im_end|>"),
    "qwen3-without-thoughts": ("An elm.<|im_end|>", None),
    "gemma-3": ("An elm.<end_of_turn>", "An elm.<end_of_turn>"),
    "mistral": (" An elm.</s>", " An elm.</s>"),
    "gpt-oss": (
        "<|channel|>final<|message|>An elm.<|return|>",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>An elm.<|return|>",
    ),
    "deepseek-r1": ("An elm.<eos>", "Hm.\n</think>\n\nAn elm.<eos>"),
}
REWRITES_HISTORY = {"qwen3", "qwen3-without-thoughts", "gpt-oss"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def supervised(
    tokenizer: PreTrainedTokenizerFast, name: str, messages: list[dict[str, Any]], supervise: str
) -> list[str]:
    behaviour = BEHAVIOURS[name]
    tokenizer.eos_token, tokenizer.chat_template = behaviour.eos, behaviour.template
    settings = data_config(supervise=supervise, chat_template_kwargs=behaviour.variables)
    row = replace(conversation(messages), tools=behaviour.tools or None)
    ids, turns = load_chat_tokenizer(tokenizer, settings).encode(row)
    return [tokenizer.decode(ids[turns == turn]) for turn in sorted({*turns[turns > 0].tolist()})]


@pytest.mark.parametrize("name", LAST)
def test_last_answer_is_supervised_from_the_prompt_to_its_end(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    plain, thoughtful = LAST[name]
    assert supervised(tokenizer, name, dialogue("Q?", "A.", "R?", "An elm."), "last") == [plain]
    messages = dialogue("Q?", "An elm.")
    messages[1]["reasoning_content"] = "Hm."
    if thoughtful is None:
        with pytest.raises(TemplateError, match="rendered differently"):
            supervised(tokenizer, name, messages, "last")
    else:
        assert supervised(tokenizer, name, messages, "last") == [thoughtful]


@pytest.mark.parametrize("name", LAST)
def test_every_answer_is_supervised_unless_the_template_rewrites_history(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    messages = dialogue("Q?", "An elm.", "R?", "An elm.")
    if name in REWRITES_HISTORY:
        with pytest.raises(TemplateError, match="supervise: last"):
            supervised(tokenizer, name, messages, "all")
    else:
        assert supervised(tokenizer, name, messages, "all") == [LAST[name][0]] * 2
