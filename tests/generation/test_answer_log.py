import json

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.generation.answer_log import AnswerLog

SETTINGS = {"seed": 0, "data": {"hash": "ab"}}


def outcome(number):
    if number % 3 == 2:
        return {"status": "skipped", "reason": "empty answer", "id": str(number)}
    return {"status": "written", "tokens": number, "rows": [{"id": f"ü{number}"}]}


def windows(count, rows=4):
    return [[outcome(window * rows + row) for row in range(rows)] for window in range(count)]


def test_a_log_cut_anywhere_continues_after_its_last_whole_window(tmp_path):
    whole = tmp_path / "whole.part"
    borders = []
    with AnswerLog(whole, SETTINGS, 4) as log:
        for window in windows(2):
            log.append(window)
            borders.append(whole.stat().st_size)
    data = whole.read_bytes()
    cut = tmp_path / "cut.part"
    for size in range(0, len(data) + 1, 3):
        cut.write_bytes(data[:size])
        with AnswerLog(cut, SETTINGS, 4) as log:
            done = sum(size >= border for border in borders)
            assert log.tally.rows == 4 * done
            for window in windows(2)[done:]:
                log.append(window)
        assert cut.read_bytes() == data


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\x00{",
        b"7",
        b"{}",
        b'{"status": "written", "rows": [], "tokens": "7"}',
        b'{"status": "written", "rows": [7], "tokens": 7}',
        b'{"status": "written", "rows": [{"id": NaN}], "tokens": 7}',
        b'{"status": "written", "rows": [{"id": "\\ud800"}], "tokens": 7}',
        b'{"status": "skipped", "reason": ["empty answer"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_takes_what_follows_with_it(tmp_path, line):
    path = tmp_path / "log.part"
    with AnswerLog(path, SETTINGS, 4) as log:
        for window in windows(3):
            log.append(window)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[6] = line + b"\n"
    path.write_bytes(b"".join(lines))
    with AnswerLog(path, SETTINGS, 4) as log:
        assert log.tally.rows == 4
        assert list(log.rows()) == windows(1)[0]


def test_the_tally_of_a_continued_log_counts_every_outcome(tmp_path):
    path = tmp_path / "log.part"
    with AnswerLog(path, SETTINGS, 4) as log:
        log.append(windows(1)[0])
    with AnswerLog(path, SETTINGS, 4) as log:
        assert (log.tally.written, log.tally.tokens, dict(log.tally.skipped)) == (3, 4, {"empty answer": 1})


def test_other_settings_are_refused_field_by_field(tmp_path):
    path = tmp_path / "log.part"
    with AnswerLog(path, SETTINGS, 4) as log:
        log.append(windows(1)[0])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r'data\.hash: "ab" -> "cd"'):
        AnswerLog(path, {"seed": 0, "data": {"hash": "cd"}}, 4)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes of mine\n", json.dumps({"a": 1}).encode() + b"\n", b"\x00" * 40])
def test_a_file_that_is_no_log_is_left_alone(tmp_path, content):
    path = tmp_path / "log.part"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a log"):
        AnswerLog(path, SETTINGS, 4)
    assert path.read_bytes() == content


def test_a_second_writer_is_refused_while_the_first_one_writes(tmp_path):
    path = tmp_path / "log.part"
    with AnswerLog(path, SETTINGS, 4), pytest.raises(ConfigError, match=r"another process is writing it \(process \d+"):
        AnswerLog(path, SETTINGS, 4)
    with AnswerLog(path, SETTINGS, 4) as log:
        assert log.tally.rows == 0
