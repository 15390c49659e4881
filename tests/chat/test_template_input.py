"""A template gets arguments and thoughts in the form that it reads, whatever form the row has."""

from typing import Any

import pytest

from eaglepipe.chat.render import ChatTemplate
from eaglepipe.chat.template_input import takes_text, thought_names
from eaglepipe.errors import TemplateError

FUNCTION = {"name": "rain", "arguments": {"city": "Øslo", "day": None}}
CALLING = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]},
]
WRITTEN = '{"city": "Øslo", "day": null}'


def with_calls(arguments: str) -> str:
    return (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
        f"{{% set args = c.function.arguments %}}{arguments}{{% endfor %}}{{% endfor %}}"
    )


def rendered(source: str, messages: list[dict[str, Any]]) -> str:
    return ChatTemplate(source=source, variables={}, mask="prefix").render(messages)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("{{ args | tojson }}", False),
        ("{{ args if args is string else args | tojson }}", False),
        ("{% for k, v in args.items() %}{{ k }}={{ v }};{% endfor %}", False),
        (
            "{% if args is string %}raw={{ args }}{% endif %}"
            "{% if args is mapping %}{% for k, v in args.items() %}{{ k }}={{ v }};{% endfor %}{% endif %}",
            False,
        ),
        ("{{ args }}", True),
        ("{{ '[' + args + ']' }}", True),
        ("{{ '[' ~ args ~ ']' }}", True),
    ],
)
def test_arguments_are_written_as_json_or_by_entry(arguments: str, text: bool) -> None:
    source = with_calls(arguments)
    assert takes_text(source) == text
    assert WRITTEN in rendered(source, CALLING) or "city=Øslo" in rendered(source, CALLING)


CALL = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
BODIES = {
    "deepseek": "{% if m.content is none %}" + CALL + "{% else %}{{ m.content }}{% endif %}",
    "defined": "{% if m.content is not defined %}" + CALL + "{% else %}{{ m.content }}{% endif %}",
    "r1": CALL + "{% if m.content is not none %}|{{ m.content + '.' }}{% endif %}",
    "printed": CALL + "{{ m.content }}",
    "concatenated": "{{ '[' + m.content + ']' }}" + CALL,
    "with_tools": "{% if tools %}" + CALL + "{% endif %}{{ m.content or '' }}",
}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_call_without_content_is_written_whatever_the_template_takes_for_none(body: str, content: Any) -> None:
    calling = {key: value for key, value in CALLING[1].items() if key != "content"} | content
    source = "{% for m in messages %}" + body + "{% endfor %}"
    template = ChatTemplate(source=source, variables={}, mask="prefix")
    text = template.render([CALLING[0], calling], [{"type": "function"}])
    assert text.endswith(("rain" + WRITTEN, "[]rain" + WRITTEN))


@pytest.mark.parametrize(
    ("body", "content"),
    [("{{ m.content }}", ""), ("{{ m.content }}", "fine"), (BODIES["deepseek"], "fine"), (BODIES["defined"], "fine")],
)
def test_template_that_leaves_out_a_call_is_refused(body: str, content: str) -> None:
    source = "{% for m in messages %}" + body + "{% endfor %}"
    with pytest.raises(TemplateError, match="leaves out the tool calls"):
        rendered(source, [CALLING[0], {**CALLING[1], "content": content}])


def test_the_row_keeps_its_arguments() -> None:
    rendered(with_calls("{{ args }}"), CALLING)
    assert isinstance(FUNCTION["arguments"], dict)


NAMED = {
    "reasoning_content": "{% if m.reasoning_content is string %}<think>{{ m.reasoning_content }}</think>{% endif %}",
    "thinking": "{% if 'thinking' in m %}<think>{{ m['thinking'] }}</think>{% endif %}",
    "reasoning": "{% if m.get('reasoning') %}<think>{{ m.get('reasoning') }}</think>{% endif %}",
}


@pytest.mark.parametrize("read", NAMED)
@pytest.mark.parametrize("written", NAMED)
def test_thought_reaches_a_template_under_its_own_name(read: str, written: str) -> None:
    source = "{% for m in messages %}" + NAMED[read] + "{{ m.content }}{% endfor %}"
    assert thought_names(source) == (read,)
    messages = [{"role": "assistant", "content": "fine", written: "hm"}]
    assert rendered(source, messages) == "<think>hm</think>fine"


def test_template_with_generation_marks_and_variables_of_such_names_reads_no_thought() -> None:
    source = "{% generation %}{{ thinking }}{% endgeneration %}{% set x = 'thinking' %}{{ x == 'reasoning' }}"
    assert thought_names(source) == ()
    assert thought_names("{% if %}") == ()
