"""Chat templates: fragments of Jinja that loop, grow, fail and pry, put together by a small grammar."""

import random
import re
from pathlib import Path

from eaglepipe.demo.tokenizer import CHAT_TEMPLATE
from tests.fuzz.base import Base

_EXPRESSIONS = r"""
'x' * 10**9
[0] * 10**9
9**9**9
10**10**8
2**100000
1/0
0.0/0
messages[99]
nothing.x.y
'x'|center(10**9)
'x'|indent(10**8)
messages|tojson(indent=10**8)
'%1000000000d' % 1
lipsum(n=20000)
'{:>999999999}'.format(1)
messages|batch(10**9, 0)|list
range(10**9)|list
range(10**12)|join
'x'|e
raise_exception('stop')
raise_exception(messages)
''.__class__.__mro__
messages.append(1)
self
loop
cycler('a').next()
namespace(x=1).x
joiner(',')
strftime_now('%Y')
strftime_now('%' * 9999)
caller()
messages|tojson
messages|map('upper')|list
messages|sort|list
messages|sum
messages|groupby('role')
messages|selectattr('role', 'nosuch')|list
messages|nosuch
messages is nosuch
'\x1b[31m'
'\ud800'
'x'|wordwrap(0)
'x'|truncate(-5)
'1'|int(base=99)
messages|random
messages|pprint
messages|xmlattr
('a' * 5000)|urlize
'x'.replace('', 'y' * 10**6)
messages|length
'a'.join(messages)
dict(x=1)|dictsort
messages|string|length
bos_token ~ eos_token
tools
documents
add_generation_prompt
undefined_name
'x'.encode('utf-16')
'x'|format
'{0.__class__}'.format(1)
'x'|attr('__class__')
(1).__int__()
-'x'
""".strip().splitlines()
_STATEMENTS = (
    "{% for i in range(10) %}x{% endfor %}",
    "{% for i in range(10**7) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(x) %}{{ f(x + x) }}{{ f(x) }}{% endmacro %}{{ f('y') }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x }}",
    "{% set x = [] %}{% for i in range(30) %}{% set x = x + x + [i] %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'a' %}",
    "{% from 'x' import y %}",
    "{% block a %}{% endblock %}",
    "{% break %}",
    "{% continue %}",
    "{% do messages.pop() %}",
    "{% set messages = [] %}",
    "{% set messages = messages[1:] %}",
    "{% raw %}{{{% endraw %}",
    "{% filter upper %}x{% endfilter %}",
    "{% call f() %}{% endcall %}",
    "{% with a = 1 %}{{ a }}{% endwith %}",
    "{% autoescape true %}<{% endautoescape %}",
    "{% trans %}x{% endtrans %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}",
    "{% generation %}{{ messages[-1]['content'] }}{% endgeneration %}",
    "{% if messages|length > 1 %}{{ raise_exception('only one') }}{% endif %}",
    "{% if 1 %}" * 150 + "{% endif %}" * 150,
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{{ " + "[" * 2000 + "]" * 2000 + " }}",
    "{{ x" + ".x" * 3000 + " }}",
    "{{ " + "not " * 3000 + "x }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{#",
    "{{",
    "{%",
    "\x00",
    "\x1b[31m",
    "<|end|>",
    "<|assistant|>",
    "\n",
    " ",
)
_PARTS = re.compile(r"({%.*?%}|{{.*?}})")


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    text = _template(rng)
    if rng.random() < 0.6:
        target = base.copy(base.target, folder / "target")
        (target / "chat_template.jinja").write_text(text, errors="surrogatepass")
        settings = {"target": {"path": str(target)}}
    else:
        (folder / "own.jinja").write_text(text, errors="surrogatepass")
        settings = {"data": {"chat_template": str(folder / "own.jinja"), "mask": rng.choice(("auto", "prefix"))}}
    recipe = base.write_recipe(folder / "recipe.yaml", cache={"root": str(folder / "caches")}, **settings)
    commands = (["precompute", "--dry-run"], ["precompute"], ["estimate"], ["data", "regenerate"])
    output = f"regenerate.output={folder / 'out.jsonl'}"
    return [["data", "preview", str(recipe)], [*rng.choice(commands), str(recipe), output]]


def _template(rng: random.Random) -> str:
    parts = [part for part in _PARTS.split(CHAT_TEMPLATE) if part]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(parts) + 1)
        change = rng.randrange(8)
        if change <= 3:
            parts.insert(at, rng.choice((f"{{{{ {rng.choice(_EXPRESSIONS)} }}}}", rng.choice(_STATEMENTS))))
        elif change == 4:
            parts.insert(at, f"{{% if {rng.choice(_EXPRESSIONS)} %}}x{{% endif %}}")
        elif change == 5:
            parts.insert(at, f"{{% set x = {rng.choice(_EXPRESSIONS)} %}}")
        elif change == 6:
            del parts[at % len(parts)]
        else:
            parts[at % len(parts)] = rng.choice(parts)
    return "".join(parts)
