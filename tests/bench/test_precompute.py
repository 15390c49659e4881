import json

import pytest

from eaglepipe.bench.precompute import PrecomputeReport, measure_precompute
from tests.bench.tiny_bench import SHAPE


@pytest.fixture(scope="module")
def report() -> PrecomputeReport:
    return measure_precompute(shape=SHAPE, num_samples=12, batch_tokens=512, rounds=2)


def test_report_has_its_keys_and_ratios_of_its_times(report: PrecomputeReport) -> None:
    fields = json.loads(json.dumps(report.to_json()))
    assert fields["ratio"] == pytest.approx(fields["seconds"] / fields["full_forward_seconds"])
    assert fields["ratio_to_needed"] == pytest.approx(fields["seconds"] / fields["needed_forward_seconds"])
    assert fields["tokens_per_s"] == pytest.approx(fields["tokens"] / fields["seconds"])
    assert 0 <= fields["padding"] < 1
    assert 0 < fields["supervised_tokens"] < fields["tokens"]
    assert fields["cache_bytes"] > fields["tokens"] * 3 * SHAPE.hidden_size * 2


def test_table_fits_a_screen(report: PrecomputeReport) -> None:
    lines = report.table().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
