import os

import pytest

from eaglepipe.bench.peak import in_fresh_process


def test_work_runs_in_a_process_of_its_own_whose_result_or_error_comes_back() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        in_fresh_process(int, "three")
