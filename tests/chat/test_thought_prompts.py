"""Generation prompts that open a thought: where masks begin, and what a last answer is written as."""

import pytest

from tests.chat.tiny_chat import (
    CHATML,
    conversation,
    dialogue,
    make_chat,
    masked_text,
    refused,
)

OPEN_THOUGHT = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
STRIPPING = OPEN_THOUGHT.replace(
    "message['content'] +",
    "(message['content'].split('</think>')[-1] if '</think>' in message['content'] else message['content']) +",
)


@pytest.mark.parametrize("template", [OPEN_THOUGHT, STRIPPING], ids=["bare", "stripping"])
def test_prompt_that_opens_a_thought_is_cut_from_turns_that_are_shown_without_one(template: str) -> None:
    chat = make_chat(template)
    assert masked_text(chat, dialogue("a", "b", "c", "d")) == ["b<|im_end|>", "d<|im_end|>"]


@pytest.mark.parametrize("thoughts", ["<think>\nx\n</think>\n\nd", "x\n</think>\n\nd"], ids=["tagged", "open"])
def test_last_answer_with_a_thought_is_what_the_target_writes_after_its_prompt(thoughts: str) -> None:
    chat = make_chat(STRIPPING, supervise="last")
    messages = dialogue("a", "b", "c", thoughts)
    ids, _ = chat.encode(conversation(messages))
    prompt = chat.template.render(messages[:3], prompt=True)
    assert prompt.endswith("<think>\n")
    assert chat.tokenizer.decode(ids) == prompt + "x\n</think>\n\nd<|im_end|>\n"
    assert chat.tokenizer.decode(ids[chat.encode(conversation(messages))[1] > 0]) == "x\n</think>\n\nd<|im_end|>"


def test_thought_in_a_field_of_its_own_follows_the_prompt_as_the_target_writes_it() -> None:
    chat = make_chat(STRIPPING)
    messages = dialogue("a", "d")
    messages[1]["reasoning_content"] = "x"
    assert masked_text(chat, messages) == ["x\n</think>\n\nd<|im_end|>"]


def test_last_turn_alone_may_show_its_thought() -> None:
    template = OPEN_THOUGHT.replace(
        "message['content'] +",
        "('<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' "
        "if message.role == 'assistant' and loop.last else '') + message['content'] +",
    )
    chat = make_chat(template, supervise="last")
    messages = dialogue("a", "b", "c", "d")
    messages[3]["reasoning_content"] = "x"
    assert masked_text(chat, messages)[-1] == "x\n</think>\n\nd<|im_end|>"
    assert "regenerate" in refused(template)
