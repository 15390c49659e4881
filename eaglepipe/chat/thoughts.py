"""Thoughts at the beginning of an answer, between the tags that targets and templates write around them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
TAG = re.compile("|".join(re.escape(tag) for pair in TAGS for tag in pair))
ONLY_TAGS = re.compile(rf"(\s*({TAG.pattern})\s*)+")


@dataclass(frozen=True, kw_only=True)
class Thoughts:
    """An answer's text cut at the end of its thoughts; both parts with their spaces."""

    tags: tuple[str, str]
    thought: str
    visible: str

    def variants(self) -> Iterator[tuple[str, str]]:
        """Yield (thought, visible) with and without the line feeds that a template may write around them."""
        pairs = (
            (thought, visible)
            for visible in (self.visible.lstrip("\n"), self.visible, self.visible.strip())
            for thought in (self.thought.strip("\n"), self.thought, self.thought.strip())
        )
        yield from dict.fromkeys(pairs)


def opened_by(prompt: str) -> tuple[str, str] | None:
    """Return the tags of the thought that a prompt opens at its end, or None."""
    return next((tags for tags in TAGS if prompt.rstrip().endswith(tags[0])), None)


def split_thoughts(text: str, prompt: str) -> Thoughts | None:
    """Cut an answer at the end of its thoughts, which the answer or its prompt opens; None if it has none."""
    for opening, closing in TAGS:
        before, found, visible = text.partition(closing)
        if not found:
            continue
        if before.lstrip().startswith(opening):
            return Thoughts(tags=(opening, closing), thought=before.lstrip()[len(opening) :], visible=visible)
        if prompt.rstrip().endswith(opening):
            return Thoughts(tags=(opening, closing), thought=before, visible=visible)
    return None


def without_thought_prompt(prompt: str) -> str:
    """Return a prompt without the thought that it opens, or leaves empty, at its end."""
    for opening, closing in TAGS:
        prompt = re.sub(rf"{re.escape(opening)}\s*({re.escape(closing)}\s*)?\Z", "", prompt)
    return prompt


def is_shown(rendered: str, prompt: str, text: str, *, spaces: bool) -> bool:
    """Return whether a rendering shows an answer's visible text as written, its thoughts as written or not at all.

    Args:
        spaces: whether those at the edges of the visible text count; some templates trim them.
    """
    header = without_thought_prompt(prompt)
    if not rendered.startswith(header):
        return False
    shown, written = rendered[len(header) :], split_thoughts(text, prompt)
    visible = text if written is None else written.visible
    for opening, closing in TAGS:
        if match := re.match(rf"\s*{re.escape(opening)}(.*?){re.escape(closing)}", shown, re.DOTALL):
            if match[1].strip() not in ("", "" if written is None else written.thought.strip()):
                return False
            shown = shown[match.end() :]
    if spaces:
        return bool(visible.strip()) and shown.startswith(visible)
    return bool(visible.strip()) and shown.lstrip().startswith(visible.strip())
