"""The CPU twin of `make gpu`: every part that does not need a device, at a tiny preset, and the refusal without one."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from eaglepipe.errors import ConfigError, DataError
from tests.gpu.__main__ import app
from tests.gpu.report import CUDA_TESTS, Row, attempted, check_device, chosen_presets, table


def test_every_part_runs_on_the_cpu_and_leaves_one_table(warm_processes: None, tmp_path: Path) -> None:
    out = tmp_path / "gpu.txt"
    arguments = ["--device", "cpu", "--preset", "tiny", "--rounds", "1", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = out.read_text()
    for part in ("step tiny", "stage 1", "loader"):
        assert part in text
    assert "FAILED" not in text and "torch" in text.splitlines()[0]


def test_a_machine_without_a_device_is_told_so_in_one_message() -> None:
    if torch.cuda.is_available():
        check_device("cuda")
        return
    with pytest.raises(ConfigError, match="--device cpu --preset tiny"):
        check_device("cuda")
    with pytest.raises(ConfigError, match="no preset 'lama'"):
        chosen_presets(["lama"], "cpu")


def test_a_part_that_fails_leaves_its_message_and_stops_no_other() -> None:
    def fail() -> list[Row]:
        raise DataError("no rows\nsecond line")

    (row,) = attempted("stage 1", fail)
    assert row.failed and "no rows" in table([row], "a device") and "second line" not in table([row], "a device")


def test_the_tests_of_cuda_that_it_names_are_there() -> None:
    assert all(Path(__file__).parents[2].joinpath(name).is_file() for name in CUDA_TESTS)
