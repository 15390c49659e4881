"""Facts about characters, from `unicodedata` and the codecs: names, categories, bytes, decompositions."""

import re
import unicodedata
from itertools import chain
from random import Random

from eaglepipe.demo.corpus_types import Exchange, Source, plural

CATEGORY_NAMES = {
    "Lu": "uppercase letter",
    "Ll": "lowercase letter",
    "Lt": "titlecase letter",
    "Lm": "modifier letter",
    "Lo": "other letter",
    "Mn": "nonspacing mark",
    "Mc": "spacing mark",
    "Me": "enclosing mark",
    "Nd": "decimal digit",
    "Nl": "letter number",
    "No": "other number",
    "Pc": "connector punctuation",
    "Pd": "dash punctuation",
    "Ps": "opening punctuation",
    "Pe": "closing punctuation",
    "Pi": "initial quotation mark",
    "Pf": "final quotation mark",
    "Po": "other punctuation",
    "Sm": "mathematical symbol",
    "Sc": "currency symbol",
    "Sk": "modifier symbol",
    "So": "other symbol",
    "Zs": "space separator",
    "Zl": "line separator",
    "Zp": "paragraph separator",
    "Cf": "format character",
}
_QUESTIONS = {
    "identity": (
        "Which character is {}?",
        "What is {} called?",
        "Tell me about the code point {}.",
        "What does Unicode say about {}?",
    ),
    "encoding": (
        "How is {} encoded in UTF-8?",
        "Which bytes does {} take in UTF-8?",
        "How do I write {} as bytes?",
        "What are the encodings of {}?",
    ),
    "decomposition": (
        "Does {} decompose?",
        "What is the decomposition of {}?",
        "What happens to {} when text is normalised?",
    ),
    "name": ("What is the code point of {}?", "Where is {} in Unicode?", "How do I type {} in Python?"),
}
_NAMED = (range(0x20000), range(0xE0000, 0xE0200))
"""The planes of Unicode in between and behind hold ideographs, private use, and nothing."""

_NUMBERED_NAME = re.compile(r"-[0-9A-F]{3,6}$")
_PRINTED_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lo", "Nd", "No", "Sm", "Sc", "So", "Po"))


def notation(character: str) -> str:
    """Return `U+00E9`."""
    return f"U+{ord(character):04X}"


def _keys() -> list[str]:
    """All named characters but ideographs, whose names are their numbers, and nine in ten Hangul syllables."""
    named = ((character, unicodedata.name(character, "")) for character in map(chr, chain(*_NAMED)))
    return [notation(character) for character, name in named if name and not _is_one_of_many(character, name)]


def _is_one_of_many(character: str, name: str) -> bool:
    return bool(_NUMBERED_NAME.search(name)) or (name.startswith("HANGUL SYLLABLE") and ord(character) % 10 != 0)


def _exchanges(key: str, rng: Random) -> tuple[Exchange, ...]:
    character = chr(int(key.removeprefix("U+"), 16))
    is_printed = unicodedata.category(character) in _PRINTED_CATEGORIES and rng.random() < 0.3
    label = f"{key} ({character})" if is_printed else key
    return (
        _identity(character, label, rng),
        _encoding(character, label, rng),
        _decomposition(character, label, rng),
        _from_name(character, rng),
    )


def _question(kind: str, label: str, rng: Random) -> str:
    return rng.choice(_QUESTIONS[kind]).format(label)


def _identity(character: str, label: str, rng: Random) -> Exchange:
    name, category = unicodedata.name(character), unicodedata.category(character)
    return Exchange(
        question=_question("identity", label, rng),
        sentences=(
            rng.choice((f"{notation(character)} is {name}.", f"{notation(character)} is called {name}.")),
            f"Its general category is {category}, {CATEGORY_NAMES[category]}, and its bidirectional class is "
            f"{unicodedata.bidirectional(character)}.",
            *_number_and_case(character),
        ),
    )


def _number_and_case(character: str) -> tuple[str, ...]:
    facts = []
    value = unicodedata.numeric(character, None)
    if value is not None:
        facts.append(f"Its numeric value is {value:g}.")
    for label, other in (("uppercase", character.upper()), ("lowercase", character.lower())):
        if other != character:
            named = [f"{notation(part)}, {unicodedata.name(part)}" for part in other]
            facts.append(f"Its {label} form is {', then '.join(named)}.")
    combining = unicodedata.combining(character)
    if combining:
        facts.append(f"It combines with the character before it, in combining class {combining}.")
    return tuple(facts) or ("It has no other case and no numeric value.",)


def _encoding(character: str, label: str, rng: Random) -> Exchange:
    number, utf8 = ord(character), character.encode("utf-8")
    utf16 = character.encode("utf-16-be").hex(" ", 2).upper()
    escape = ascii(character)[1:-1] if number > 127 else f"\\x{number:02x}"
    return Exchange(
        question=_question("encoding", label, rng),
        sentences=(
            f"In UTF-8, {notation(character)} takes {plural(len(utf8), 'byte')}: {utf8.hex(' ').upper()}.",
            f"In UTF-16 it takes {plural(len(utf16.split()), 'code unit')}: {utf16}.",
            rng.choice(
                (
                    f"Python writes it as {escape} or chr({number}), and HTML as &#{number};.",
                    f"Its number is {number} in decimal: HTML writes &#{number}; and Python {escape}.",
                )
            ),
        ),
    )


def _decomposition(character: str, label: str, rng: Random) -> Exchange:
    question, name = _question("decomposition", label, rng), unicodedata.name(character)
    canonical, compatible = (unicodedata.normalize(form, character) for form in ("NFD", "NFKD"))
    if compatible == character:
        return Exchange(
            question=question,
            sentences=(
                f"No, {notation(character)} does not decompose.",
                f"{name} stays one code point, and it is the same in the normal forms NFC, NFD, NFKC and NFKD.",
            ),
        )
    kind, parts = ("canonical", canonical) if canonical != character else ("compatibility", compatible)
    named = [f"{notation(part)} {unicodedata.name(part, 'without a name')}" for part in parts]
    return Exchange(
        question=question,
        sentences=(
            f"Yes, {notation(character)} has a {kind} decomposition into {plural(len(parts), 'code point')}.",
            f"{name} becomes {', then '.join(named[:4])}{', and so on' * (len(named) > 4)}.",
            f"In NFD it has length {len(canonical)}, and in NFKD it has length {len(compatible)}.",
        ),
    )


def _from_name(character: str, rng: Random) -> Exchange:
    name, category = unicodedata.name(character), unicodedata.category(character)
    utf8 = character.encode("utf-8").hex(" ").upper()
    return Exchange(
        question=_question("name", name, rng),
        sentences=(
            f"{name} is {notation(character)}.",
            f'In Python it is "\\N{{{name}}}", and ord() of it gives {ord(character)}.',
            f"Its category is {category}, {CATEGORY_NAMES[category]}, and its UTF-8 bytes are {utf8}.",
        ),
    )


SOURCE = Source(
    name="unicode",
    system_prompt="You answer questions about Unicode characters.",
    keys=_keys,
    exchanges=_exchanges,
)
