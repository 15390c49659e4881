"""The pieces of the demo's conversations: an entity has facts, each asked and answered in one exchange.

Everything is a pure function of a key and a generator, so a corpus is the same bytes for one Python and one seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One question and its answer, sentence by sentence; the first sentence alone answers it briefly."""

    question: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of facts.

    `keys()` lists every entity, sorted and distinct; `exchanges(key, rng)` words all that is known about one of them.
    Every question names its entity, so that entities kept apart keep their questions apart.
    """

    name: str
    system_prompt: str
    keys: Callable[[], list[str]]
    exchanges: Callable[[str, Random], tuple[Exchange, ...]]


def listing(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def plural(count: int, noun: str) -> str:
    """`1 day`, `2 days`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
