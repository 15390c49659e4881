import json
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from eaglepipe.bench.peers.comparison import OURS, PassFn, compare
from eaglepipe.bench.peers.eagle3_peers import EAGLE3_PEERS
from eaglepipe.bench.peers.packages import (
    NEMO_AUTOMODEL,
    SPECULATORS,
    PeerPackage,
    installed_packages,
    missing_note,
)
from eaglepipe.bench.peers.set_ups import FastestSetUp
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
    report = compare(passes, 3, supervised_tokens=100, notes=["how the peer runs", "a second note"])
    assert calls == [OURS, "peer", "peer", OURS, OURS, "peer"]
    fields = json.loads(json.dumps(report.to_json()))
    ours, peer = fields["rows"]
    assert (ours["seconds"], peer["seconds"]) == (2.0, 6.0)
    assert peer["ratio"] == peer["cpu_ratio"] == pytest.approx(3.0)
    assert ours["supervised_tokens_per_s"] == pytest.approx(50.0)
    assert peer["loss_difference"] == pytest.approx(0.001)
    lines = report.table().splitlines()
    assert (
        "peer" in lines[2]
        and "1.0e-03" in lines[2]
        and [line.strip() for line in lines[-2:]] == ["how the peer runs", "a second note"]
    )
    assert max(map(len, lines)) <= 100


def hide(monkeypatch: pytest.MonkeyPatch, *packages: PeerPackage) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package.module, None)


@pytest.mark.parametrize(("objective", "packages"), [("eagle3", tuple(EAGLE3_PEERS)), ("dflash", (SPECULATORS,))])
def test_missing_packages_are_named_before_anything_is_measured(
    objective: str, packages: tuple[PeerPackage, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, *packages)
    result = CliRunner().invoke(app, ["bench", "step", "--peers", "--objective", objective])
    assert result.exit_code != 0
    assert all(package.pip_name in str(result.exception or result.output) for package in packages)


def test_missing_package_beside_an_installed_one_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = (PeerPackage(module="torch", pip_name="torch"), NEMO_AUTOMODEL)
    hide(monkeypatch, NEMO_AUTOMODEL)
    assert [package.pip_name for package in installed_packages(packages)] == ["torch"]
    (line,) = missing_note(packages)
    assert "nemo-automodel" in line and "torch" not in line
    assert missing_note(packages[:1]) == ()


def test_set_up_that_takes_least_time_counts_and_is_named() -> None:
    work = {"slow": 0.05, "quick": 0.0}

    def step(model: torch.nn.Module, seconds: float) -> torch.Tensor:
        calls.append(seconds)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return torch.tensor(1.0, dtype=torch.float64)

    for warm_up in (False, True):
        calls: list[float] = []
        model = torch.nn.Linear(1, 1)
        passes = FastestSetUp(
            {"plain": model}, {k: [v, v] for k, v in work.items()}, step, torch.device("cpu"), warm_up=warm_up
        )
        assert calls == [0.05, 0.05, 0.0, 0.0] * (2 if warm_up else 1)
        assert "plain attention, quick" in passes.description
        spent, sums = passes.run_all()
        assert calls[-2:] == [0.0, 0.0] and sums == 2.0 and spent.cpu < 0.05
