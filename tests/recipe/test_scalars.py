"""A value without quotes is what was written, or one line asks for quotes; it is never another value."""

from pathlib import Path
from typing import Any

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.files.hashing import hash_json
from eaglepipe.recipe.load import dump_recipe, load_recipe

MINIMAL = "name: x\ntarget: {path: t}\ndata: {sources: [{path: d.jsonl}]}\n"


def variable(folder: Path, text: str) -> Any:
    """Return variable `v` of the template as a file and as an override give it, both the same."""
    (folder / "in-file.yaml").write_text(MINIMAL.replace("data: {", f"data: {{chat_template_kwargs: {{v: {text}}}, "))
    (folder / "bare.yaml").write_text(MINIMAL)
    recipes = [
        load_recipe(folder / "in-file.yaml"),
        load_recipe(folder / "bare.yaml", [f"data.chat_template_kwargs.v={text}"]),
    ]
    (folder / "dumped.yaml").write_text(dump_recipe(recipes[0]))
    assert recipes[0] == recipes[1] == load_recipe(folder / "dumped.yaml")
    hash_json(recipes[0].data.chat_template_kwargs)
    return recipes[0].data.chat_template_kwargs["v"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-07-26", "2026-07-26"),
        ("!!timestamp 2026-07-26", "2026-07-26"),
        ("2026-07-26 10:00:00", "2026-07-26 10:00:00"),
        ("2026-07-26T10:00:00Z", "2026-07-26T10:00:00Z"),
        ("12:30", "12:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("[2026-07-26, {on: 2026-07-27}]", ["2026-07-26", {"on": "2026-07-27"}]),
        ("'no'", "no"),
        ("'1e5'", "1e5"),
        ("'0189'", "0189"),
        ("26 Jul 2026", "26 Jul 2026"),
        ("1.5", 1.5),
        ("7", 7),
        ("-7", -7),
        ("0x1F", 31),
        ("true", True),
        ("null", None),
    ],
)
def test_variable_of_a_template_is_a_json_value_as_written(tmp_path: Path, text: str, value: Any) -> None:
    assert variable(tmp_path, text) == value
    assert type(variable(tmp_path, text)) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no", "v: no without quotes"),
        ("On", "v: On without quotes"),
        ("[1, 0123]", "v.1: 0123 without quotes"),
        ("1e5", "v: 1e5 without quotes"),
        (".nan", "nan is no finite number"),
        ("-.inf", "inf is no finite number"),
        ("!!set {a, b}", "a set is no value"),
        ("!!binary aGVsbG8=", "a bytes is no value"),
        ("{1: a}", "v.1: a key is text; write it in quotes: '1'"),
        ("{a: {null: b}}", "v.a.None: a key is text"),
        ('"\\ud83d"', "half a surrogate pair"),
    ],
)
def test_variable_that_could_be_another_value_is_refused_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        variable(tmp_path, text)
    head, line = str(caught.value).splitlines()
    assert "1 mistake(s)" in head
    assert line.startswith("  data.chat_template_kwargs: ")
    assert problem in line


def test_variable_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match="nested too deeply, or in itself"):
        load_recipe(tmp_path / "recipe.yaml", ["data.chat_template_kwargs.v=&a [*a]"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=2026-07-26", "2026-07-26"),
        ("name=no", "no"),
        ("target.revision=1e5", "1e5"),
        ("target.revision=0123456", "0123456"),
        ("target.trust_remote_code=yes", True),
        ("target.trust_remote_code=off", False),
        ("train.learning_rate=1e-3", 0.001),
        ("train.batch_tokens=16_384", 16384),
    ],
)
def test_field_has_the_value_of_its_own_type(tmp_path: Path, override: str, value: Any) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    read: Any = load_recipe(tmp_path / "recipe.yaml", [override])
    for key in override.partition("=")[0].split("."):
        read = getattr(read, key)
    assert read == value


@pytest.mark.parametrize("override", ["target.path=2026", "target.revision=1.10", "data.sources.0.config=true"])
def test_number_for_text_asks_for_quotes(tmp_path: Path, override: str) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"text is needed, and YAML reads this as .*; write it in quotes"):
        load_recipe(tmp_path / "recipe.yaml", [override])
