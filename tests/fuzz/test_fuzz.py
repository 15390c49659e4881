"""A few seeded cases of every subject; `make fuzz` runs thousands."""

from tests.fuzz.runner import SUBJECTS
from tests.fuzz.session import run_session
from tests.processes import start


def test_mutated_inputs_end_with_an_exit_code_and_a_message() -> None:
    done = start(_few).wait(timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def _few() -> None:
    if not run_session(cases=3 * len(SUBJECTS), commands=1):
        raise SystemExit(1)
