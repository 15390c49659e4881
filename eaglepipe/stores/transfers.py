"""Several small transfers at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_TRANSFERS = 8
T = TypeVar("T")


def each(call: Callable[[T], None], items: list[T]) -> None:
    """Call for every item, eight at a time; the first error is raised when all have ended."""
    with ThreadPoolExecutor(_TRANSFERS, "store") as transfers:
        list(transfers.map(call, items))
