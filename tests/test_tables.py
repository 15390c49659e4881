"""Text tables: aligned, whole in any terminal, and free of control sequences."""

import pytest

from eaglepipe.tables import field_table, text_table


def test_cells_are_aligned_below_their_titles() -> None:
    rows = [("a", "1,000", ""), ("longer", "2", "x [95%]")]
    assert text_table({"name": "left", "count": "right", "note": "left"}, rows, indent=2).splitlines() == [
        "  name    count  note",
        "  a       1,000",
        "  longer      2  x [95%]",
    ]


def test_names_and_values_are_two_columns_without_titles() -> None:
    assert field_table({"a": "1", "long name": "two words"}) == "a          1\nlong name  two words"


def test_long_cells_stay_whole_and_plain_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "word " * 400 + "[bold]end[/bold] :smile:"
    lines = text_table({"name": "left", "value": "right"}, [(long, "1")]).splitlines()
    assert lines == ["name" + " " * (len(long) - 4) + "  value", long + "      1"]
