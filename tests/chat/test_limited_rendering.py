"""Chat templates that loop, recurse or grow without end: one line, within seconds and bounded memory."""

import resource
import signal

import pytest

from eaglepipe.chat import limited_rendering
from eaglepipe.chat.limited_rendering import TemplateLimitError
from eaglepipe.chat.render import ChatTemplate
from eaglepipe.errors import EaglepipeError, TemplateError
from tests.chat.tiny_chat import CHATML, conversation, dialogue, make_chat

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "loops": LOOP,
    "macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "power": "{{ (messages|length + 2) ** (10 ** 9) }}",
    "loop in a block": "{% generation %}" + LOOP + "{% endgeneration %}",
}
HUGE = {
    "repeated": '{{ "x" * 10**10 }}',
    "repeated content": "{{ messages[0].content * 10**10 }}",
    "list": "{{ (range(99999)|list * 99999)|length }}",
    "doubled": "{% set s = namespace(x='x' * 2**20) %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    "padded": "{{ 'x'.ljust(10**10) }}",
    "formatted": "{{ '%9999999999d' % 1 }}",
    "replaced": "{{ ('a' * 99999).replace('a', 'b' * 999999)|length }}",
    "joined": "{{ range(99999)|join('x' * 999999) }}",
}
DEEP = {
    "macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "sum": "{{ " + " + ".join(["1"] * 1500) + " }}",
}


def refusal(template: str, kind: type[EaglepipeError]) -> str:
    """Return the one line by which a template is refused before any row is read, or in the first row."""
    with pytest.raises(kind) as error:
        make_chat(template + CHATML).encode(conversation(dialogue("hello", "fine")))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_rendering, "CPU_SECONDS", 0.2)
    assert "takes more than 0.2 s" in refusal(template, TemplateLimitError)


@pytest.mark.parametrize("template", HUGE.values(), ids=HUGE)
def test_a_template_that_needs_gigabytes_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_rendering, "MEMORY_BYTES", 2**27)
    assert "128 MiB of memory" in refusal(template, TemplateLimitError)


@pytest.mark.parametrize("template", ["{{ 'x ' * 10**6 }}", "{% for i in range(99999) %}some text {% endfor %}"])
def test_a_template_that_writes_much_more_than_it_reads_is_refused(template: str) -> None:
    assert "characters for messages of" in refusal(template, TemplateLimitError)


@pytest.mark.parametrize("template", DEEP.values(), ids=DEEP)
def test_a_template_of_too_deep_nesting_is_refused_before_the_rows(template: str) -> None:
    with pytest.raises(TemplateError, match=r"recursion|nested|indentation"):
        make_chat(template + CHATML).encode(conversation(dialogue("hello", "fine")))


def test_the_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_rendering, "CPU_SECONDS", 0.2)
    chat = make_chat(CHATML + "{% if 'never' in messages[0].content %}" + LOOP + "{% endif %}")
    row = conversation(dialogue("never", "fine"))
    with pytest.raises(TemplateLimitError, match=f"^{row.where}: the chat template takes more than"):
        chat.encode_batch([conversation(dialogue("hello", "fine")), row])


def test_the_bounds_leave_nothing_behind() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    refusal(HUGE["repeated"], TemplateLimitError)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_long_conversation_is_rendered() -> None:
    template = ChatTemplate(source=CHATML, variables={}, mask="prefix")
    messages = dialogue(*(f"{i} " * 100 for i in range(4000)))
    text = template.render(messages)
    assert len(text) > 2**20
    assert template.spans(messages[:100]).spans[-1].turn == 50


@pytest.mark.parametrize("name", ["source", "prompt", "marked", "variables", "limit"])
def test_variables_of_any_name_reach_the_template(name: str) -> None:
    template = ChatTemplate(source="{{ " + name + " }}", variables={name: "given"}, mask="prefix")
    assert template.render(dialogue("hello")) == "given"
