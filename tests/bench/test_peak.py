import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from eaglepipe.bench.peak import in_fresh_process

ENDS_WITHIN_S = 20.0


def tell_and_sleep(file: str) -> None:
    Path(file).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


def test_work_runs_in_a_process_of_its_own_whose_result_or_error_comes_back() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        in_fresh_process(int, "three")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_work_ends_with_the_process_that_waits_for_it(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may have it ignored
        f"from eaglepipe.bench.peak import in_fresh_process; from {__name__} import tell_and_sleep; "
        f"in_fresh_process(tell_and_sleep, {str(file)!r})"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stderr=subprocess.DEVNULL) as waiting:
        while not file.exists() or not file.read_text(encoding="utf-8"):
            assert waiting.poll() is None
            time.sleep(0.05)
        waiting.send_signal(number)
        try:
            assert waiting.wait(ENDS_WITHIN_S) != 0
        finally:
            waiting.kill()
    until = time.monotonic() + ENDS_WITHIN_S
    while is_running(int(file.read_text(encoding="utf-8"))):
        assert time.monotonic() < until, "the work goes on"
        time.sleep(0.05)
