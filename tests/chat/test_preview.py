"""The preview shows where the mask lies and lets nothing through that a terminal would obey."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eaglepipe.chat.preview import preview_samples
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokens import TokenSample
from tests.chat.tiny_chat import dialogue, make_chat, make_tokenizer


def sample(*texts: str, sample_id: str = "s:1") -> TokenSample:
    chat = make_chat()
    messages = tuple(dialogue(*texts))
    conversation = Conversation(sample_id=sample_id, source="s", where="a:1", digest=b"", messages=messages)
    ids, turns = chat.encode(conversation)
    return TokenSample(sample_id=sample_id, source="s", input_ids=ids, turns=turns)


def test_brackets_hold_exactly_the_turns() -> None:
    text = preview_samples([sample("hello", "fine 🌳")], make_tokenizer(), colour=False)
    assert text.splitlines()[0].startswith("s:1: ")
    assert "⟦fine 🌳<|im_end|>⟧" in text
    assert text.count("⟦") == 1


def test_spaces_at_the_border_of_a_turn_are_shown_for_tokenizers_that_join_words_by_spaces() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁hi": 0, "▁An": 1, "▁oak": 2, "<s>": 3}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    ids = TokenSample(
        sample_id="m", source="s", input_ids=np.array([0, 1, 2], np.int32), turns=np.array([0, 1, 1], np.int32)
    )
    text = preview_samples([ids], PreTrainedTokenizerFast(tokenizer_object=tokenizer), colour=False)
    assert text.splitlines()[1] == "hi⟦ An oak⟧"


def test_colours_alternate_with_the_turns() -> None:
    text = preview_samples([sample("hello", "a", "b", "c")], make_tokenizer())
    assert "\x1b[36ma<|im_end|>\x1b[0m" in text
    assert "\x1b[32mc<|im_end|>\x1b[0m" in text


def test_control_characters_of_rows_and_ids_are_escaped() -> None:
    text = preview_samples([sample("\x1b[2Jhi\x07", "a", sample_id="\x1b]0;x")], make_tokenizer(), colour=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2Jhi\\x07" in text


def test_long_samples_are_cut_and_say_so() -> None:
    long = TokenSample(
        sample_id="l", source="s", input_ids=np.arange(3, 203, dtype=np.int32), turns=np.ones(200, np.int32)
    )
    assert "… 190 more tokens" in preview_samples([long], make_tokenizer(), max_tokens=10)
