"""URLs in place of the local folders that stand for them, in all that is printed."""

import re
from pathlib import Path

from eaglepipe.stores.urls import SCHEMES, redacted

_ROOTS: set[Path] = set()  # of this process's local copies; nothing but wording depends on them


def name_by_url(root: Path) -> None:
    """Let the folders below a root of local copies be named by their URLs from now on."""
    _ROOTS.add(root)


def with_urls(text: str) -> str:
    """Return a text that names URLs for the local folders that stand for them, and shows no credentials."""
    for root in _ROOTS:
        text = re.sub(rf"{re.escape(str(root))}/({'|'.join(SCHEMES)})(@[^/\s]*)?/", r"\1://", text)
    return redacted(text) if "://" in text else text
