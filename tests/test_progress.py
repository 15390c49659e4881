import pytest

from eaglepipe.progress import ProgressLine, format_seconds


def test_plain_lines_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("train", total=40, unit="step", initial=10, plain_interval_seconds=0.0) as progress:
        progress.update(15, "loss 1.5")
        progress.write("held out: fine")
        progress.update(15)
    first, message, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("train: 25/40 step · ETA ") and first.endswith("loss 1.5")
    assert message == "held out: fine"
    assert last == "train: 40/40 step · loss 1.5"


def test_lines_come_no_faster_than_their_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("read", total=None, unit="tok", plain_interval_seconds=3600.0) as progress:
        for _ in range(100):
            progress.update(10)
    assert capsys.readouterr().err == "read: 1,000 tok\n"


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("train", total=2, unit="step", enabled=False, plain_interval_seconds=0.0) as progress:
        progress.update(2)
        progress.write("nothing")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_seconds_read_as_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
