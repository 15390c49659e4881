import json
from dataclasses import replace

import pytest

from eaglepipe.bench.dflash.measure import measure_dflash_step
from eaglepipe.bench.dflash.report import DflashStepReport
from tests.bench.tiny_bench import PRESET


@pytest.fixture(scope="module")
def report() -> DflashStepReport:
    return measure_dflash_step(replace(PRESET, rounds=1))


def test_compact_and_plain_steps_have_the_same_loss(report: DflashStepReport) -> None:
    (work,) = report.workloads
    assert [row.name for row in work.comparison.rows] == ["this path", "reference"]
    assert work.comparison.rows[1].loss_difference < 1e-5
    assert 0 < work.supervised_tokens < work.guesses


def test_report_survives_json_and_its_table_fits_a_screen(report: DflashStepReport) -> None:
    fields = json.loads(json.dumps(report.to_json()))
    (work,) = fields["workloads"]
    assert fields["objective"] == "dflash"
    assert work["comparison"]["rows"][1]["ratio"] > 0
    assert max(map(len, report.table().splitlines())) <= 100
