"""JSON objects of files that anyone may have written."""

from pathlib import Path

import pytest

from eaglepipe.errors import CorruptError
from eaglepipe.files.json_object import read_json_object, text_config


@pytest.mark.parametrize("text", ["", "[1]", "{", '"a"', "[" * 100_000])
def test_anything_but_an_object_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": {"b": -Infinity}}'])
def test_strict_reading_refuses_repeated_keys_and_numbers_that_are_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    read_json_object(tmp_path / "a.json")
    with pytest.raises(CorruptError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json", strict=True)


def test_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json")


def test_text_config_covers_the_outer_fields() -> None:
    assert text_config({"a": 1, "b": 2, "text_config": {"b": 3}})["b"] == 3
