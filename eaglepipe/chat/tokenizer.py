"""Rendered conversations as token ids, each token marked with the assistant turn that wrote it.

Ids are always those of the whole conversation tokenised at once, which is what the target reads.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from eaglepipe.chat.limited_rendering import TemplateLimitError
from eaglepipe.chat.messages import Message
from eaglepipe.chat.render import ChatTemplate, Rendered, assistant_positions
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.turn_marks import cut_turns, mark_turns
from eaglepipe.errors import TargetError, TemplateError
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.library_errors import explained_library_errors

TokenIds = NDArray[np.int32]

_FILES_OF_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_START_CHARACTERS = 2**18
_CHARACTERS_OF_A_TOKEN = 32  # more than the mean of any text
_CONTEXT_TOKENS = 16  # more than one character, or one space, may depend on


@dataclass(frozen=True, kw_only=True)
class ChatTokenizer:
    """A tokenizer with the chat template that feeds it."""

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    end_of_turn: int | None = None  # the token that closes the last assistant turn
    ends_of_turn: frozenset[int] = frozenset()  # all that close one; templates may treat the last turn apart
    problem: TemplateError | None = None  # the reason that no rendering can be masked; tokenised rows need none
    tool_problem: TemplateError | None = None  # the same of the template that renders conversations with tools

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows, added tokens included."""
        return len(self.tokenizer)

    @property
    def plain_vocab_size(self) -> int:
        """One more than the largest id that is no added token's: a target may lack embeddings for added tokens."""
        added = self.tokenizer.added_tokens_decoder
        return 1 + max((i for i in self.tokenizer.get_vocab().values() if i not in added), default=-1)

    def special_ids(self) -> set[int]:
        """Return the ids of bos, eos, pad, unk and the ends of turns, as far as they exist."""
        tokenizer = self.tokenizer
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        return {*self.ends_of_turn, *(token for token in named if token is not None)}

    def files(self) -> dict[str, bytes]:
        """Return the tokenizer's files by name, with the template in use."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.tokenizer.save_pretrained(folder)
            if self.template.source:
                (folder / "chat_template.jinja").write_text(self.template.source, encoding="utf-8")
            if (with_tools := self.template.with_tools) is not None:
                (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
                    with_tools.source, encoding="utf-8"
                )
            files = (path for path in sorted(folder.rglob("*")) if path.is_file())
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def fingerprint(self) -> str:
        """Hash everything that decides which ids a text becomes; settings of single calls are no part of it."""
        tokenizer = self.tokenizer
        named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        if not tokenizer.is_fast:
            files = {
                name: xxhash.xxh3_128_hexdigest(content)
                for name, content in self.files().items()
                if name not in _FILES_OF_SETTINGS
            }
            added = {token_id: repr(token) for token_id, token in sorted(tokenizer.added_tokens_decoder.items())}
            return hash_json(
                [type(tokenizer).__name__, tokenizer.get_vocab(), named, files, added, _init_settings(tokenizer)]
            )
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        split = ["split_special_tokens"] if tokenizer.split_special_tokens else []
        return hash_json([{key: rules[key] for key in rules if key not in ("padding", "truncation")}, named, *split])

    def encode(self, conversation: Conversation) -> tuple[TokenIds, TokenIds]:
        """Return `input_ids` [T] and `turns` [T], int32, untruncated.

        Raises:
            TemplateError: the template refuses the conversation or gives no sound mask for it; names its row.
        """
        encoded = self.encode_batch([conversation])[0]
        if isinstance(encoded, TemplateError):
            raise encoded
        return encoded

    def encode_batch(
        self, conversations: Sequence[Conversation], limit: int | None = None
    ) -> list[tuple[TokenIds, TokenIds] | TemplateError]:
        """Encode several conversations, tokenised together; for one that cannot be, its error.

        Args:
            limit: tokens that are needed of each; of a text of many times as many characters, more follow or none do.

        Raises:
            TemplateError: the template has failed a probe, so no rendering can be masked.
        """
        for conversation in conversations:
            apart = bool(conversation.tools) and self.template.with_tools is not None
            if (problem := self.tool_problem if apart else self.problem) is not None:
                raise problem
        rendered = [self._rendered(conversation) for conversation in conversations]
        texts = [_start(item, limit).text for item in rendered if isinstance(item, Rendered)]
        tokens = iter(self._tokenize(texts) if texts else [])
        result: list[tuple[TokenIds, TokenIds] | TemplateError] = []
        for conversation, item in zip(conversations, rendered, strict=True):
            if isinstance(item, TemplateError):
                result.append(item)
                continue
            (ids, offsets), start = next(tokens), _start(item, limit)
            if limit is not None and start is not item and len(ids) <= 2 * limit:
                (ids, offsets), start = self._tokenize([item.text])[0], item
            try:
                turns = mark_turns(start, ids, offsets, self.token_ids)
            except TemplateError as error:
                result.append(TemplateError(f"{conversation.where}: {error}"))
            else:
                unfinished = {span.turn for span in item.spans if span.end > len(start.text)}
                cut_turns(ids, turns, ends=self.ends_of_turn, unfinished=unfinished)
                result.append((ids, turns))
        return result

    def token_ids(self, text: str) -> TokenIds:
        """Return the ids of a text as it is, int32 [T], no special token added."""
        return self._tokenize([text])[0][0]

    def _rendered(self, conversation: Conversation) -> Rendered | TemplateError:
        assert conversation.messages is not None, "tokenised rows need no tokenizer"
        try:
            return self.template.spans(_answered(conversation.messages), conversation.tools, conversation.context)
        except TemplateError as error:
            return TemplateError(f"{conversation.where}: {error}")
        except TemplateLimitError as error:
            raise TemplateLimitError(f"{conversation.where}: {error}") from None

    def _tokenize(self, texts: list[str]) -> list[tuple[TokenIds, NDArray[np.int64] | None]]:
        fast = bool(self.tokenizer.is_fast)
        with explained_library_errors(TargetError, "the target's tokenizer cannot tokenise the conversations"):
            encoded = self.tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=fast,
                verbose=False,
            )
            ids = [np.array(row, dtype=np.int32) for row in encoded["input_ids"]]
        if not fast:
            return [(row, None) for row in ids]
        offsets = [np.array(row, dtype=np.int64).reshape(-1, 2) for row in encoded["offset_mapping"]]
        return list(zip(ids, offsets, strict=True))


def _start(rendered: Rendered, limit: int | None) -> Rendered:
    """Return the start of a rendering in which `limit` tokens end long before its end, or all of it.

    A token needs hundreds of bytes while a text is tokenised, and a sample keeps few of a long one.
    """
    cut = len(rendered.text) if limit is None else max(_START_CHARACTERS, _CHARACTERS_OF_A_TOKEN * limit)
    if len(rendered.text) <= cut:
        return rendered
    spans = (replace(span, end=min(span.end, cut)) for span in rendered.spans if span.start < cut)
    return Rendered(text=rendered.text[:cut], spans=tuple(spans))


def _init_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the settings of a tokenizer that is Python code: any flag or number may decide ids."""
    skipped = ("model_max_length", "clean_up_tokenization_spaces", "is_local", "local_files_only")
    return {
        name: repr(value)
        for name, value in sorted(tokenizer.init_kwargs.items())
        if isinstance(value, bool | int | float) and name not in skipped
    }


def _answered(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages up to the last assistant turn: no answer to those after it is known, and none reads them."""
    positions = assistant_positions(messages)
    return messages[: positions[-1] + 1] if positions else messages


def decode_after(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """Decode ids, special tokens included, as they stand after others: alone, some tokenizers drop a leading space."""
    head = list(before[-_CONTEXT_TOKENS:])
    whole, prefix, alone = (
        str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for part in ([*head, *ids], head, list(ids))
    )
    return whole[len(prefix) :] if whole.startswith(prefix) else alone
