"""Trackers draw what metrics.jsonl records, and none of them can stop a run or hold it up."""

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eaglepipe.errors import ConfigError, StoppedError
from eaglepipe.train import train_from
from eaglepipe.training.run import step_log
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.training.run.trackers import guarded, opening
from tests.training.tiny_source import tiny_recipe, tiny_source

STEPS = 4


def run(folder: Path, *names: str, **settings: object) -> None:
    train_from(tiny_recipe(folder, trackers=names, max_steps=STEPS, **settings), tiny_source())


def recorded(folder: Path) -> list[tuple[int, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "step"]


def drawn_by_tensorboard(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


class Broken:
    """A tracker that fails at one of its three moments, or never answers."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.rows: list[tuple[dict[str, float], int]] = []
        self._fail("start")

    def _fail(self, moment: str) -> None:
        if moment == self.moment:
            raise ConnectionError(f"no server at its {moment}")
        if self.moment == f"silent {moment}":
            time.sleep(60)

    def add(self, values: dict[str, float], step: int) -> None:
        self.rows.append((values, step))
        if len(self.rows) > 2:
            self._fail("middle")

    def close(self) -> None:
        self._fail("close")


@pytest.mark.parametrize("moment", ["start", "middle", "close", "silent start", "silent middle", "silent close"])
def test_a_tracker_that_fails_or_hangs_is_warned_of_once_and_the_run_is_as_without_it(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "TensorBoardFile", lambda *_, **__: Broken(moment))
    monkeypatch.setattr(guarded, "CLOSE_SECONDS", 0.5)
    run(tmp_path / "broken", "tensorboard")
    run(tmp_path / "plain")
    assert recorded(tmp_path / "broken") == recorded(tmp_path / "plain")
    assert (tmp_path / "broken" / "train.json").exists()
    assert capsys.readouterr().err.count("warning: the tracker tensorboard") == 1


def test_tensorboard_draws_what_is_recorded_also_over_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise StoppedError("stopped")

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(step_log, "_check_finite", lambda record: record.step == 3 and stop())
        run(tmp_path, "tensorboard", checkpoint_every_steps=2)
    run(tmp_path, "tensorboard", checkpoint_every_steps=2)
    assert dict(drawn_by_tensorboard(tmp_path)) == pytest.approx(dict(recorded(tmp_path)))


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "trackers"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_an_absent_package_is_named_with_its_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"{name} .*eaglepipe\[{extra}\]"):
        run(tmp_path, name)
    assert not (tmp_path / "metrics.jsonl").exists()
