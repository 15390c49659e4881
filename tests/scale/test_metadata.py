"""The driver of metadata at scale, on a small cache: every command is measured."""

from pathlib import Path

from tests.scale.metadata import _measured, write_metadata


def test_every_command_is_measured(tmp_path: Path) -> None:
    write_metadata(tmp_path, samples=300, shards=3)
    parts = {name: _measured(name, tmp_path, 2).keys() for name in ("open", "plan", "resume", "scan")}
    assert parts["resume"] == {"open", "plan", "contract", "peak MB"} and parts["scan"] == {"scan", "peak MB"}
