"""Uploads to a Hub that fails."""

from pathlib import Path

import pytest

from eaglepipe.errors import EXIT_TRY_AGAIN, EXIT_USER, EaglepipeError
from eaglepipe.export.push import push_folder
from tests.hub.conftest import Served
from tests.hub.local_hub import Answer, reset, status


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (status(503), EXIT_TRY_AGAIN, "503 Service Unavailable"),
        (reset, EXIT_TRY_AGAIN, ""),
        (status(401), EXIT_USER, "`hf auth login`"),
        (status(403), EXIT_USER, "not for your account or token"),
    ],
)
def test_a_failed_upload_says_that_the_folder_is_written(
    served: Served, tmp_path: Path, answer: Answer, code: int, reason: str
) -> None:
    served("org/draft", {}).fail("", answer)
    with pytest.raises(EaglepipeError, match="is written, but not pushed to 'org/draft'") as error:
        push_folder(tmp_path, "org/draft")
    assert error.value.exit_code == code and reason in str(error.value)
