"""The demo's conversations: true facts, the same bytes each time, and nothing held back that training saw."""

import json
import re
import unicodedata
from pathlib import Path
from random import Random

import pytest

from eaglepipe.demo import corpus_calendar, corpus_unicode
from eaglepipe.demo.corpus import SOURCE_SHARES, CorpusFiles, questions, read_rows, write_corpus
from eaglepipe.demo.corpus_types import Source

SOURCES = [source for source, _ in SOURCE_SHARES]


def said_about(source: Source, key: str) -> str:
    return "\n".join(" ".join(exchange.sentences) for exchange in source.exchanges(key, Random(0)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    return write_corpus(tmp_path_factory.mktemp("corpus"), seed=0, train_rows=600, prompt_rows=400)


@pytest.mark.parametrize("key", ["U+00E9", "U+20AC", "U+0041", "U+1F600", "U+0F3F"])
def test_utf8_bytes_follow_the_bit_layout_of_utf8(key: str) -> None:
    code_point = int(key[2:], 16)
    text = said_about(corpus_unicode.SOURCE, key)
    match = re.search(rf"In UTF-8, {re.escape(key)} takes (\d) bytes?: ((?:[0-9A-F]{{2}} ?)+)\.", text)
    assert match is not None
    stated = [int(byte, 16) for byte in match[2].split()]
    assert len(stated) == int(match[1])
    if len(stated) == 1:
        assert stated == [code_point]
    else:
        value = stated[0] & (0xFF >> (len(stated) + 1))
        for byte in stated[1:]:
            assert byte >> 6 == 0b10
            value = value << 6 | byte & 0x3F
        assert value == code_point


def test_a_decomposition_puts_the_character_together_again() -> None:
    text = said_about(corpus_unicode.SOURCE, "U+1EA5")
    parts = re.search(r"LATIN SMALL LETTER A WITH CIRCUMFLEX AND ACUTE becomes (.*)\.\s*In NFD", text)
    assert parts is not None
    characters = [chr(int(part, 16)) for part in re.findall(r"U\+([0-9A-F]{4,6})", parts[1])]
    assert unicodedata.normalize("NFC", "".join(characters)) == "\u1ea5"
    assert len(characters) == 3


def test_a_letter_whose_other_case_is_two_letters_is_not_called_caseless() -> None:
    identity = corpus_unicode.SOURCE.exchanges("U+00DF", Random(0))[0]
    assert "Its uppercase form is U+0053, LATIN CAPITAL LETTER S, then U+0053" in " ".join(identity.sentences)


@pytest.mark.parametrize("key", ["1583-01-01", "1900-02-28", "2000-02-29", "2024-12-30", "2399-12-31"])
def test_weekdays_follow_zellers_congruence(key: str) -> None:
    year, month, day = map(int, key.split("-"))
    y, m = (year - 1, month + 12) if month < 3 else (year, month)
    zeller = (day + 13 * (m + 1) // 5 + y % 100 + y % 100 // 4 + y // 100 // 4 - 2 * (y // 100)) % 7
    name = ("Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday")[zeller]
    spelled = f"{day} {corpus_calendar.MONTHS[month - 1]} {year}"
    assert re.search(rf"{spelled} (is|falls on) a {name}\.", said_about(corpus_calendar.SOURCE, key))


def test_century_years_are_leap_only_every_fourth_time() -> None:
    assert "1900 is a common year of 365 days" in said_about(corpus_calendar.SOURCE, "1900")
    assert "2000 is a leap year of 366 days" in said_about(corpus_calendar.SOURCE, "2000")


def test_there_are_tens_of_thousands_of_distinct_entities() -> None:
    for source in SOURCES:
        keys = source.keys()
        assert len(keys) == len(set(keys))
    assert sum(len(source.keys()) for source in SOURCES) > 50_000


def test_every_question_names_its_entity_so_that_entities_do_not_share_questions() -> None:
    for source in SOURCES:
        seen: dict[str, str] = {}
        for key in Random(1).sample(source.keys(), 200):
            for exchange in source.exchanges(key, Random(key)):
                assert seen.setdefault(exchange.question, key) == key


def test_same_seed_same_bytes_and_another_seed_another_deal(corpus: CorpusFiles, tmp_path: Path) -> None:
    again = write_corpus(tmp_path / "again", seed=0, train_rows=600, prompt_rows=400)
    other = write_corpus(tmp_path / "other", seed=1, train_rows=600, prompt_rows=400)
    for paths in ("train", "prompts"):
        first = [path.read_bytes() for path in getattr(corpus, paths)]
        assert first == [path.read_bytes() for path in getattr(again, paths)]
        assert first != [path.read_bytes() for path in getattr(other, paths)]


def test_no_held_back_question_appears_in_the_training_files(corpus: CorpusFiles) -> None:
    trained = "".join(path.read_text(encoding="utf-8") for path in corpus.train)
    held_back = questions(read_rows(corpus.prompts))
    assert len(held_back) >= 400
    assert not [question for question in held_back if json.dumps(question, ensure_ascii=False)[1:-1] in trained]


def test_rows_are_chats_of_several_shapes_from_every_source(corpus: CorpusFiles) -> None:
    rows = read_rows(corpus.train) + read_rows(corpus.prompts)
    assert {row["source"] for row in rows} == {source.name for source in SOURCES}
    assert len({row["id"] for row in rows}) == len(rows) == corpus.num_train_rows + corpus.num_prompt_rows
    shapes = {tuple(message["role"][0] for message in row["messages"]) for row in rows}
    assert {("u", "a"), ("s", "u", "a"), ("u", "a", "u", "a"), ("s", "u", "a", "u", "a")} <= shapes
    assert all(message["content"].strip() for row in rows for message in row["messages"])
