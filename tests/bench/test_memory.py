import pytest

from eaglepipe.bench.memory import MemoryReport, StageMemory


def test_growth_is_told_for_both_stages_and_for_the_time_of_a_token() -> None:
    report = MemoryReport(
        times=16,
        small_tokens=1000,
        large_tokens=16_000,
        large_cache_bytes=10**7,
        precompute=StageMemory(small_bytes=100, large_bytes=103),
        train=StageMemory(small_bytes=200, large_bytes=200),
        small_tokens_per_s=500.0,
        large_tokens_per_s=400.0,
    )
    fields = report.to_json()
    assert fields["precompute_growth"] == pytest.approx(0.03)
    assert fields["train_growth"] == 0
    assert fields["train_cost_growth"] == pytest.approx(0.25)
    assert "2,000 µs/tok" in report.table() and "25.0%" in report.table()
