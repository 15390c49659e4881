"""Values of a JSON document of any size: an array's, or those written one after another; one is held at a time."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from eaglepipe.chat.reading.lines import ROW_BYTES

_CHUNK_CHARACTERS = 2**20
_MOST_CHARACTERS = 2 * ROW_BYTES  # of a value whose end is looked for
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_CUT_CHARACTERS = 16  # before the end of what was read, in which a mistake may only be the cut


class DocumentError(ValueError):
    """A document that cannot be read on; the message begins with the number of the line."""


def document_values(stream: IO[str]) -> Iterator[tuple[Any, int]]:
    """Yield each value of a document with its characters.

    Raises:
        DocumentError: not JSON, or a value so large that its end is not looked for.
        ValueError, RecursionError: JSON that Python cannot hold.
    """
    document = _Document(stream)
    if document.peek() != "[":
        while document.peek():
            yield document.value()
        return
    document.skip("[")
    if document.peek() == "]":
        document.skip("]")
    else:
        yield document.value()
        while document.peek() == ",":
            document.skip(",")
            yield document.value()
        document.skip("]")
    if document.peek():
        raise document.error("Extra data", 0)


class _Document:
    """A window on the text of a document, which moves to its end."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._decoder = stream, json.JSONDecoder()
        self._text, self._start, self._ended = "", 0, False
        self._lines = 0  # before the window

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        while True:
            match = _WHITESPACE.match(self._text, self._start)
            self._start = match.end() if match else self._start
            if self._start < len(self._text) or self._ended:
                return self._text[self._start : self._start + 1]
            self._read(_CHUNK_CHARACTERS)

    def skip(self, character: str) -> None:
        if self.peek() != character:
            raise self.error("Expecting ',' delimiter", 0)
        self._start += 1

    def value(self) -> tuple[Any, int]:
        self.peek()
        while True:
            rest = len(self._text) - self._start
            try:
                value, end = self._decoder.raw_decode(self._text, self._start)
            except json.JSONDecodeError as error:
                near_end = error.pos > len(self._text) - _CUT_CHARACTERS or error.msg.startswith("Unterminated string")
                if self._ended or not near_end:
                    raise self.error(error.msg, error.pos - self._start) from None
            else:
                if end < len(self._text) or self._ended:
                    size, self._start = end - self._start, end
                    return value, size
            if rest > _MOST_CHARACTERS:
                raise self.error(f"a value of more than {_MOST_CHARACTERS >> 20} Mi characters", 0)
            self._read(max(_CHUNK_CHARACTERS, rest))

    def error(self, message: str, offset: int) -> DocumentError:
        line = self._lines + self._text.count("\n", 0, self._start + offset) + 1
        return DocumentError(f"{line}: not JSON: {message}")

    def _read(self, characters: int) -> None:
        self._lines += self._text.count("\n", 0, self._start)
        more = self._stream.read(characters)
        self._text, self._start, self._ended = self._text[self._start :] + more, 0, not more
