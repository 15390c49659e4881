"""Facts about whole numbers, from `format`, `divmod`, `math`, `fractions` and `int.to_bytes`."""

import math
from fractions import Fraction
from random import Random

from eaglepipe.demo.corpus_types import Exchange, Source, plural

LARGEST = 65_535
_FORMATS = (",.2f", ".1f", ".3f", "08.1f", ".3e", ".2%", "+.2f", ">12.2f")


def _keys() -> list[str]:
    return [str(number) for number in range(16, LARGEST + 1)]


def _exchanges(key: str, rng: Random) -> tuple[Exchange, ...]:
    number = int(key)
    return (
        _bases(number, rng),
        _bytes(number, rng),
        _division(number, rng),
        _roots(number, rng),
        _formats(number, rng),
    )


def _bases(number: int, rng: Random) -> Exchange:
    question = rng.choice(
        (
            f"Write {number} in octal and hexadecimal.",
            f"What is {number} in other bases?",
            f"Convert {number} to hexadecimal.",
            f"What are the bits of {number}?",
        )
    )
    return Exchange(
        question=question,
        sentences=(
            f"In hexadecimal, {number} is {number:#x}, and in octal it is {number:#o}.",
            f"The low byte is {number & 255:#011_b} in binary.",
            f"It needs {plural(number.bit_length(), 'bit')}, of which {number.bit_count()} are ones.",
        ),
    )


def _bytes(number: int, rng: Random) -> Exchange:
    big = number.to_bytes(2, "big").hex(" ").upper()
    little = number.to_bytes(2, "little").hex(" ").upper()
    question = rng.choice(
        (
            f"How is {number} stored in two bytes?",
            f"What are the bytes of the 16-bit integer {number}?",
            f"What does {number} look like in memory as uint16?",
        )
    )
    high, low = divmod(number, 256)
    return Exchange(
        question=question,
        sentences=(
            f"As two bytes, {number} is {big} in big-endian order and {little} in little-endian order.",
            f"The high byte is {high} and the low byte is {low}, since {high} * 256 + {low} = {number}.",
        ),
    )


def _division(number: int, rng: Random) -> Exchange:
    divisor = rng.choice((3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 20, 24, 25, 36, 50, 60, 64, 100))
    quotient, remainder = divmod(number, divisor)
    common, reduced = math.gcd(number, divisor), Fraction(number, divisor)
    question = rng.choice(
        (
            f"Divide {number} by {divisor}.",
            f"What is {number} divided by {divisor}?",
            f"What remains when {number} is divided by {divisor}?",
            f"How often does {divisor} go into {number}?",
        )
    )
    return Exchange(
        question=question,
        sentences=(
            f"{number} divided by {divisor} is {quotient} with remainder {remainder}.",
            f"The greatest common divisor of {number} and {divisor} is {common}, "
            f"so the fraction is {reduced.numerator}/{reduced.denominator} in lowest terms.",
            f"As a decimal number it is {number / divisor:.4f}.",
        ),
    )


def _roots(number: int, rng: Random) -> Exchange:
    root = math.isqrt(number)
    question = rng.choice(
        (
            f"What is the square root of {number}?",
            f"Is {number} a square number?",
            f"Between which squares does {number} lie?",
        )
    )
    exact = root * root == number
    return Exchange(
        question=question,
        sentences=(
            f"{number} is {'the square of ' + str(root) if exact else 'not a square number'}.",
            f"Its square root is {math.sqrt(number):.3f}, because {root} * {root} = {root * root} "
            f"and {root + 1} * {root + 1} = {(root + 1) ** 2}.",
            f"It is {'odd' if number % 2 else 'even'}, and it has {len(str(number))} decimal digits.",
        ),
    )


def _formats(number: int, rng: Random) -> Exchange:
    divisor = rng.choice((8, 100, 1000))
    value = number / divisor
    first, second, third = rng.sample(_FORMATS, 3)
    question = rng.choice(
        (
            f"How does Python format {number} / {divisor} with {first!r}?",
            f"Show me {number} / {divisor} in the formats {first!r}, {second!r} and {third!r}.",
            f"What does format({number} / {divisor}, {first!r}) give?",
        )
    )
    return Exchange(
        question=question,
        sentences=(
            f"{number} / {divisor} is {value}, and format({value}, {first!r}) gives {format(value, first)!r}.",
            f"With {second!r} it gives {format(value, second)!r}, "
            f"and with {third!r} it gives {format(value, third)!r}.",
            f"Rounded to a whole number it is {round(value)}.",
        ),
    )


SOURCE = Source(
    name="numbers",
    system_prompt="You answer questions about numbers and how Python writes them.",
    keys=_keys,
    exchanges=_exchanges,
)
