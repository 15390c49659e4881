import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from eaglepipe.bench.peers.comparison import OURS, PassFn, compare
from eaglepipe.bench.timing import Spent
from eaglepipe.cli import app


def made_pass(calls: list[str], name: str, seconds: list[float], losses: list[float]) -> PassFn:
    """A pass whose rounds take the given seconds, twice as long by the processor."""
    left = iter(seconds)

    def run() -> tuple[Spent, torch.Tensor]:
        calls.append(name)
        wall = next(left)
        return Spent(wall=wall, cpu=2 * wall), torch.tensor(losses, dtype=torch.float64)

    return run


def test_rounds_alternate_and_medians_and_losses_are_compared_with_ours() -> None:
    calls: list[str] = []
    passes = {
        OURS: made_pass(calls, OURS, [1.0, 9.0, 2.0], [3.0, 1.0]),
        "peer": made_pass(calls, "peer", [5.0, 6.0, 60.0], [2.0, 2.004]),
    }
    report = compare(passes, 3, supervised_tokens=100, note="how the peer runs")
    assert calls == [OURS, "peer", "peer", OURS, OURS, "peer"]
    fields = json.loads(json.dumps(report.to_json()))
    ours, peer = fields["rows"]
    assert (ours["seconds"], peer["seconds"]) == (2.0, 6.0)
    assert peer["ratio"] == peer["cpu_ratio"] == pytest.approx(3.0)
    assert ours["supervised_tokens_per_s"] == pytest.approx(50.0)
    assert peer["loss_difference"] == pytest.approx(0.001)
    lines = report.table().splitlines()
    assert "peer" in lines[2] and "1.0e-03" in lines[2] and lines[-1].strip() == "how the peer runs"
    assert max(map(len, lines)) <= 100


def test_missing_package_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "speculators", None)
    result = CliRunner().invoke(app, ["bench", "step", "--peers"])
    assert result.exit_code != 0
    assert "speculators" in str(result.exception or result.output)
