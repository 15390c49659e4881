"""A tokenizer with its template: its special tokens, its fingerprint, and masks whatever kind of tokenizer it is."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizer, PreTrainedTokenizerFast

from eaglepipe.chat.render import ChatTemplate
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.errors import TargetError, TemplateError
from eaglepipe.recipe.config import DataConfig, SourceConfig
from tests.chat.tiny_chat import CHATML, CHATML_MARKED, conversation, data_config, dialogue, make_chat, make_tokenizer


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_special_ids_hold_the_detected_end_of_turn(template: str) -> None:
    chat = make_chat(template)
    end, pad = chat.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert chat.end_of_turn == chat.tokenizer.eos_token_id == end
    assert (chat.tokenizer.bos_token_id, chat.tokenizer.unk_token_id, chat.tokenizer.pad_token_id) == (None, None, pad)
    assert chat.special_ids() == {end, pad}
    assert chat.vocab_size == len(chat.tokenizer)


def test_end_of_turn_may_differ_from_eos() -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.eos_token = "<|endoftext|>"
    chat = load_chat_tokenizer(tokenizer, data_config())
    assert chat.special_ids() == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


def test_a_tokenizer_that_drops_white_space_keeps_the_first_word() -> None:
    words = ["Which", "tree", "An", "old", "hello", "fine", "<s>", "</s>", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
    wrapped.chat_template = (
        "{% for message in messages %}{{ '<s> \\n' + message['content'] + ' </s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s> \\n' }}{% endif %}"
    )
    chat = load_chat_tokenizer(wrapped, data_config())
    ids, turns = chat.encode(conversation(dialogue("hello", "fine old")))
    assert wrapped.convert_ids_to_tokens(ids) == ["<s>", "hello", "</s>", "<s>", "fine", "old", "</s>"]
    assert turns.tolist() == [0, 0, 0, 0, 1, 1, 1]


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: a token for each character, and one for the end of a turn."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(eos_token="¶", **kwargs)

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


class Pairs(Characters):
    """The same, but some pairs of characters are one token."""

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return re.findall(r":x|.", text, re.DOTALL)

    def _convert_token_to_id(self, token: str) -> int:
        return 1 if token == ":x" else ord(token)


@pytest.mark.parametrize("kind", [Characters, Pairs])
def test_tokenizer_without_offsets_masks_whole_tokens_or_refuses(kind: type[Characters]) -> None:
    tokenizer = kind(
        chat_template="{% for message in messages %}{{ message['role'] + ':' + message['content'] + '¶' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert not tokenizer.is_fast
    chat = load_chat_tokenizer(tokenizer, data_config())
    ids, turns = chat.encode(conversation(dialogue("a", "b c")))
    assert "".join(map(chr, ids[turns == 1][:-1])) == "b c"
    assert ids[turns == 1][-1] == tokenizer.eos_token_id
    assert turns.tolist() == [0] * 17 + [1] * 4
    if kind is Pairs:
        with pytest.raises(TemplateError, match=r"rows\.jsonl:7: .*border of assistant turn 1"):
            chat.encode(conversation(dialogue("a", "x")))


def test_tokenised_sources_need_no_template() -> None:
    data = DataConfig(sources=(SourceConfig(path="x.jsonl", format="tokenized"),))
    chat = load_chat_tokenizer(make_tokenizer(None), data)
    assert chat.special_ids() == set(chat.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


def test_fingerprint_of_a_tokenizer_follows_its_content(tmp_path: Path) -> None:
    chat, other = make_chat(), make_chat()
    chat.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert chat.fingerprint() == other.fingerprint()
    chat.tokenizer.save_pretrained(tmp_path)
    assert load_chat_tokenizer(load_tokenizer(tmp_path), data_config()).fingerprint() == other.fingerprint()
    other.tokenizer.add_tokens(["willow"])
    assert chat.fingerprint() != other.fingerprint()


def test_saved_tokenizer_is_loaded_and_a_missing_one_named(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "target")
    assert load_chat_tokenizer(load_tokenizer(tmp_path / "target"), data_config()).end_of_turn is not None
    for path in (tmp_path / "gone", Path("models/gone/target")):
        with pytest.raises(TargetError, match="gone"):
            load_tokenizer(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetError, match="empty"):
        load_tokenizer(tmp_path / "empty")


class WithRules(Characters):
    """A tokenizer in Python whose ids follow a flag and a file of rules."""

    vocab_files_names: ClassVar[dict[str, str]] = {"rules_file": "rules.txt"}

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / "rules.txt"
        path.write_text(self.init_kwargs["rules"])
        return (str(path),)


def test_fingerprint_of_a_tokenizer_in_python_follows_its_rules() -> None:
    def fingerprint(**settings: Any) -> str:
        tokenizer = WithRules(**{"rules": "a b", **settings})
        return ChatTokenizer(
            tokenizer=tokenizer, template=ChatTemplate(source="", variables={}, mask="prefix")
        ).fingerprint()

    assert fingerprint() == fingerprint(padding_side="left", model_max_length=77)
    variants = [{}, {"rules": "b a"}, {"do_lower_case": True}, {"do_lower_case": False}]
    added = AddedToken("<x>", special=True), AddedToken("<x>", lstrip=True, special=True)
    variants += [{"added_tokens_decoder": {129: token}} for token in added]
    assert len({fingerprint(**settings) for settings in variants}) == len(variants)


def test_fingerprint_counts_special_tokens_read_as_text() -> None:
    chat, split = make_chat(), make_chat()
    split.tokenizer.split_special_tokens = True
    assert chat.fingerprint() != split.fingerprint()
