"""From a tokenizer and the recipe's `data` section to a `ChatTokenizer` whose template has passed the probes."""

from dataclasses import replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from eaglepipe.chat.probe import probe_template
from eaglepipe.chat.render import ChatTemplate, has_generation_markers, pinned_dates
from eaglepipe.chat.tokenizer import ChatTokenizer, load_tokenizer, read_template
from eaglepipe.errors import TemplateError
from eaglepipe.recipe.config import DataConfig

__all__ = ["ChatTokenizer", "load_chat_tokenizer", "load_tokenizer", "probe_template"]


def load_chat_tokenizer(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> ChatTokenizer:
    """The tokenizer with the template that `data` asks for, probed; sources that are all tokenised need none.

    Raises:
        TemplateError: there is no template, or it fails a probe.
        DataError: the file of data.chat_template cannot be read.
    """
    if all(source.format == "tokenized" for source in data.sources):
        return ChatTokenizer(tokenizer=tokenizer, template=ChatTemplate(source="", variables={}, mask="prefix"))
    source = pinned_dates(read_template(tokenizer, data.chat_template))
    template = ChatTemplate(
        source=source,
        variables={**tokenizer.special_tokens_map, **data.chat_template_kwargs},
        mask=_mask_of(source, data),
        last_only=data.supervise == "last",
    )
    chat = ChatTokenizer(tokenizer=tokenizer, template=template)
    ends = probe_template(chat)
    return replace(chat, end_of_turn=ends[0], ends_of_turn=frozenset(ends))


def _mask_of(source: str, data: DataConfig) -> Literal["generation", "prefix"]:
    marked = has_generation_markers(source)
    if data.mask == "generation" and not marked:
        raise TemplateError("data.mask is `generation`, and the chat template has no {% generation %} block")
    if data.mask == "auto":
        return "generation" if marked else "prefix"
    return data.mask
