import pytest

from eaglepipe.bench.memory import CorpusRun, MemoryReport


def test_growth_is_reported_for_both_stages_and_for_the_time_of_a_token() -> None:
    small = CorpusRun(tokens=1000, cache_bytes=10**6, precompute_bytes=100, train_bytes=200, tokens_per_s=500.0)
    large = CorpusRun(tokens=16_000, cache_bytes=10**7, precompute_bytes=103, train_bytes=200, tokens_per_s=400.0)
    report = MemoryReport(times=16, small=small, large=large)
    fields = report.to_json()
    assert fields["precompute_growth"] == pytest.approx(0.03)
    assert fields["train_growth"] == 0
    assert fields["train_cost_growth"] == pytest.approx(0.25)
    assert "2,000 µs/tok" in report.table() and "25.0%" in report.table()
