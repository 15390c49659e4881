"""The start of a user's turn in templates of many kinds, by hand."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.errors import TemplateError
from eaglepipe.generation.synthesis.user_turn import find_user_turn
from eaglepipe.recipe.config import DataConfig

SYSTEM = {"role": "system", "content": "Be brief."}
USER = "{% for m in messages %}{% if m.role == 'user' %}"
END = "{% endif %}{% endfor %}"
FOUND = {  # template -> text before the user's words, the special token that ends them, and the text that does
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}": (
        "<|begin|><|user|>", "<|end|>", "",
    ),
    "{% if messages[0].role != 'system' %}{{ '<|system|>You help.' + eos_token }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content | trim + '\n' + eos_token + '\n' }}{% endfor %}": (
        "<|system|>You help.<|end|><|user|>\n", "<|end|>", "",
    ),
    USER + "{{ '<|user|>' + m.content }}" + END + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}": (
        "<|user|>", "<|assistant|>", "",
    ),
    USER + "{{ '[INST] ' + m.content + ' [/INST]' }}" + END: ("[INST]", None, "[/INST]"),
    USER + "{{ 'USER: ' + m.content + ' ' }}" + END + "{{ 'ASSISTANT:' }}": ("USER:", None, "ASSISTANT:"),
    USER + "{{ '### Ask:\n' + m.content + '\n\n### Answer:\nyes' }}" + END: ("### Ask:\n", None, "### Answer:"),
    USER + "{{ '<|user|>' + m.content + ' over' + eos_token }}" + END: ("<|user|>", "<|end|>", "over"),
}  # fmt: skip
REFUSED = {
    "{% for m in messages %}{{ m.content }}{% endfor %}": "nothing before a user's message",
    USER + "{{ 'ask: ' + m.content + m.content }}" + END: "2 times",
    USER + "{{ 'ask: ' + m.content | upper }}" + END: "not as it is",
    USER + "{{ 'ask: ' + m.content | tojson }}" + END: "not as it is",
    USER + "{{ 'ask ' ~ m.content | length ~ ': ' ~ m.content }}" + END: "other text around other words",
    "{{ raise_exception('never') }}": "never",
}


@pytest.fixture(scope="module")
def chat(project):
    data = DataConfig(sources=[{"path": "x.jsonl"}])
    return load_chat_tokenizer(AutoTokenizer.from_pretrained(project.target), data)


def with_template(chat, source):
    return replace(chat, template=replace(chat.template, source=source))


@pytest.mark.parametrize("source", FOUND)
def test_the_start_of_a_turn_is_all_that_stands_before_the_users_words(chat, source):
    start, end, text = FOUND[source]
    turn = find_user_turn(with_template(chat, source))
    assert chat.tokenizer.decode(turn.token_ids) == start
    assert chat.tokenizer.convert_ids_to_tokens(sorted(turn.end_ids)) == ([end] if end else [])
    assert turn.end_text == text


def test_a_system_message_stands_before_it_if_one_is_given(chat):
    turn = find_user_turn(with_template(chat, next(iter(FOUND))), (SYSTEM,))
    assert chat.tokenizer.decode(turn.token_ids) == "<|begin|><|system|>Be brief.<|end|><|user|>"


@pytest.mark.parametrize("source", REFUSED)
def test_a_template_in_which_it_cannot_be_found_is_refused_in_one_line(chat, source):
    with pytest.raises(TemplateError, match=REFUSED[source]) as refused:
        find_user_turn(with_template(chat, source))
    assert "\n" not in str(refused.value)


def test_words_end_where_the_text_that_ends_a_turn_begins(chat):
    turn = find_user_turn(with_template(chat, USER + "{{ '[INST] ' + m.content + ' [/INST]' }}" + END))
    assert turn.words(" Name a tree. [/INST] An elm.") == ("Name a tree.", True)
    assert turn.words(" Name a") == ("Name a", False)
