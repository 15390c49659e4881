"""One rendering of a chat template within bounds: a template is a program, which anyone may have written.

Jinja's sandbox keeps a template away from the machine; time, memory and the length of the text are bounded here. What
exceeds them ends the command and not the row alone, since time must never decide which rows a cache holds.
"""

import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers.utils.chat_template_utils import render_jinja_template

from eaglepipe.chat.messages import Message
from eaglepipe.errors import DataError

CPU_SECONDS = 1.0  # a conversation of 2,000 messages and 1 MB takes 0.05
MEMORY_BYTES = 2**30  # beside what the process has
_UNWINDING_SECONDS = 1.0  # before the signal raises again, should something have swallowed the first
_PLAIN_CHARACTERS = 2**18  # of a text, whatever is rendered
_EXPANSION = 32  # characters for each one that is rendered
T = TypeVar("T")
_STATM = Path("/proc/self/statm")


class TemplateLimitError(DataError):
    """A chat template that takes more time or memory, or writes more text, than any conversation needs."""


class _OutOfTime(BaseException):
    """Raised inside a rendering; jinja handles every Exception."""


def render_limited(
    source: str,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None,
    *,
    prompt: bool = False,
    marked: bool = False,
    variables: Mapping[str, Any],
) -> tuple[str, list[tuple[int, int]]]:
    """Return a conversation's text, and if it is `marked` the characters of its generation blocks.

    Raises:
        TemplateLimitError: the bounds are exceeded.
        Exception: the template cannot render the messages.
    """
    texts, marks = _bounded(
        lambda: render_jinja_template(
            conversations=[list(messages)],
            tools=list(tools) if tools else None,
            chat_template=source,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=prompt,
            **variables,
        )
    )
    text = str(texts[0])
    if len(text) > _PLAIN_CHARACTERS:
        rendered = json_characters([messages, tools, variables])
        if len(text) > _PLAIN_CHARACTERS + _EXPANSION * rendered:
            raise TemplateLimitError(
                f"the chat template writes {len(text):,} characters for messages of {rendered:,}; correct its loops"
            )
    return text, marks[0] if marked else []


def _bounded(call: Callable[[], T]) -> T:
    """Return what a call returns, within bounds of CPU time and of memory.

    A signal bounds the time, and Python delivers those to the main thread alone. The address space is bounded as a
    whole, since one operation of a template may ask for all memory of the machine. All is undone in this one frame: the
    signal may come anywhere.
    """
    deadline, active = time.thread_time() + CPU_SECONDS, True
    timed = threading.current_thread() is threading.main_thread()

    def check(*_: object) -> None:
        nonlocal deadline
        if active and (now := time.thread_time()) > deadline:
            deadline = now + _UNWINDING_SECONDS
            raise _OutOfTime

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    earlier = signal.signal(signal.SIGVTALRM, check) if timed else None
    try:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_address_limit(soft), hard))
            if timed:
                signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS / 4, CPU_SECONDS / 16)
            return call()
        finally:
            active = False
    except _OutOfTime:
        raise TemplateLimitError(
            f"the chat template takes more than {CPU_SECONDS:g} s for one rendering; correct its loops"
        ) from None
    except MemoryError:
        raise TemplateLimitError(
            f"the chat template needs more than {MEMORY_BYTES >> 20:,} MiB of memory for one rendering; correct the "
            "texts that it repeats or joins"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, earlier or signal.SIG_DFL)


def _address_limit(present: int) -> int:
    """Return the limit of the address space for a rendering; the present one on systems that do not tell its size."""
    try:
        in_use = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return present
    limit = in_use + MEMORY_BYTES
    return limit if present == resource.RLIM_INFINITY else min(limit, present)


def json_characters(value: Any) -> int:
    """Return about the characters of a value's JSON, however deeply it is nested."""
    characters, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, Mapping):
            rest += item.keys()
            rest += item.values()
        elif isinstance(item, list | tuple):
            rest += item
        characters += len(item) if isinstance(item, str) else 4
    return characters
