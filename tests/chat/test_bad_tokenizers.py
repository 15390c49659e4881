"""Tokenizer files that anyone may have written: any fault in them is one line, at the latest in the first use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.errors import EaglepipeError, TargetError
from tests.chat.tiny_chat import CHATML, conversation, data_config, dialogue, make_tokenizer

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(CHATML).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def use(folder: Path) -> int:
    chat = load_chat_tokenizer(load_tokenizer(folder), data_config())
    return len(chat.encode(conversation(dialogue("hello", "fine")))[0])


def refusal(folder: Path, kind: type[EaglepipeError] = TargetError) -> str:
    with pytest.raises(kind) as error:
        use(folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads(file.read_text()) if file.exists() else {}
    change(fields)
    file.write_text(json.dumps(fields))


def test_a_sound_tokenizer_is_used(folder: Path) -> None:
    assert use(folder) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda rules: rules.pop("model"),
        lambda rules: rules.update(model=None),
        lambda rules: rules["model"].update(type="Nope"),
        lambda rules: rules["model"].update(vocab={}),
        lambda rules: rules["model"].update(vocab={}, merges=[]),
        lambda rules: rules["model"].update(vocab=[["a", 0]]),
        lambda rules: rules["model"]["vocab"].update(zzz=-1),
        lambda rules: rules["model"]["vocab"].update(zzz="7"),
        lambda rules: rules["model"]["vocab"].update(zzz=2**40),
        lambda rules: rules["model"].update(merges=[["a", "b", "c"]]),
        lambda rules: rules["model"].update(merges="x"),
        lambda rules: rules["model"].update(merges=[["absent", "words"]]),
        lambda rules: rules["added_tokens"].append({"id": -1, "content": "<z>", "special": True}),
        lambda rules: rules["added_tokens"].append({"id": 2**40, "content": "<z>", "special": True}),
        lambda rules: rules["added_tokens"].append({"id": 5}),
        lambda rules: rules["added_tokens"].append({"id": 900, "content": 5}),
        lambda rules: rules.update(added_tokens="x"),
        lambda rules: rules.update(pre_tokenizer={"type": "Nope"}),
        lambda rules: rules.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        lambda rules: rules.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}
        ),
        lambda rules: rules.update(model={"type": "Unigram", "unk_id": 5, "vocab": [["a", -1.0]]}),
        lambda rules: rules.update(model={"type": "Unigram", "unk_id": None, "vocab": [["zzzz", -1.0]]}),
        lambda rules: rules.update(model={"type": "WordLevel", "unk_token": "absent", "vocab": {"a": 0}}),
    ],
)
def test_wrong_rules_are_refused(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder / "tokenizer.json", change)
    assert refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [
        *({"model_max_length": value} for value in ("0x10", "512", [1], {}, True)),
        *({"eos_token": value} for value in (5, ["x"], {"a": 1}, True)),
        *({"tokenizer_class": value} for value in (5, ["x"], {"a": 1})),
        *({"added_tokens_decoder": value} for value in ("x", 5, {"a": 1}, None)),
        *({"extra_special_tokens": value} for value in (5, [3], {"a": 1})),
        {"auto_map": 3},
        {"unk_token": ""},
    ],
    ids=json.dumps,
)
def test_wrong_settings_are_refused(folder: Path, settings: dict[str, Any]) -> None:
    edit(folder / "tokenizer_config.json", lambda fields: fields.update(settings))
    assert refusal(folder)


@pytest.mark.parametrize("value", [None, -1, 0, 1e30, 2**70, float("inf")])
def test_a_length_limit_of_any_number_is_left_alone(folder: Path, value: float | None) -> None:
    edit(folder / "tokenizer_config.json", lambda fields: fields.update(model_max_length=value))
    assert use(folder) > 0


@pytest.mark.parametrize("content", ["", "[]", "null", DEEP, f'{{"model": {DEEP}}}', '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_that_is_no_object_is_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert str(folder) in refusal(folder)


def test_the_report_of_a_panic_is_withheld(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    edit(folder / "tokenizer.json", lambda rules: rules.update(normalizer=charsmap))
    assert "precompiled_charsmap" in refusal(folder)
    assert capfd.readouterr().err == ""
