"""Targets from a Hub that fails: repeated, explained, never half a file."""

import pytest
from huggingface_hub import constants

from eaglepipe.errors import EXIT_TRY_AGAIN, EXIT_USER, EaglepipeError, TargetError, UnreachableError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.load import resolve_folder
from tests.hub.conftest import use_endpoint
from tests.hub.local_hub import (
    SHA,
    Answer,
    LocalHub,
    cut,
    elsewhere,
    reset,
    shorter,
    silent,
    slow_headers,
    status,
    trickle,
)

TARGET = TargetConfig(path="org/tiny")
EVERYTHING, DESCRIPTION, WEIGHTS = "", "GET /api/models/org/tiny/revision", "GET /org/tiny/resolve"


def downloaded(target: TargetConfig = TARGET) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in resolve_folder(target).iterdir()}


@pytest.mark.parametrize(
    ("part", "answer", "reason"),
    [
        (DESCRIPTION, status(503), "description of the repository: 503 Service Unavailable"),
        (DESCRIPTION, cut(0.5), "description of the repository: peer closed connection"),
        (DESCRIPTION, reset, "description of the repository: [Errno 104] Connection reset"),
        (DESCRIPTION, shorter(0.5), "not the JSON"),
        ("HEAD /org/tiny/resolve", status(504), "504 Gateway"),
        ("model.safetensors", status(429, Retry_After="0"), "model.safetensors: 429 Too Many Requests"),
    ],
)
@pytest.mark.usefixtures("patient")
def test_a_failure_that_passes_costs_a_line(
    model: LocalHub, capsys: pytest.CaptureFixture[str], part: str, answer: Answer, reason: str
) -> None:
    model.fail(part, answer, times=1)
    assert downloaded() == model.files
    line = next(line for line in capsys.readouterr().err.splitlines() if "trying again" in line)
    assert "target 'org/tiny'" in line and reason in line


@pytest.mark.usefixtures("patient")
def test_a_download_that_was_cut_is_resumed(model: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    model.fail(f"{WEIGHTS}/{SHA}/model.safetensors", cut(0.7), times=1)
    assert downloaded() == model.files
    assert "model.safetensors: peer closed connection" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "answer", "reason"),
    [
        (EVERYTHING, status(503), "503 Service Unavailable"),
        (EVERYTHING, status(529), "529"),
        (EVERYTHING, reset, "Connection reset"),
        (EVERYTHING, silent(3), "no answer in time"),
        (EVERYTHING, cut(0.5), ""),
        (EVERYTHING, slow_headers(0.05), "no complete answer in"),
        (DESCRIPTION, trickle(0.05), "no complete answer in"),
        (EVERYTHING, status(503, Retry_After="3600"), "asks to wait for 3,600 s"),
        (EVERYTHING, status(429, RateLimit='"api";r=0;t=200'), "asks to wait for 200 s"),
        ("GET /api/models/org/tiny/tree", status(500), "list of files: 500"),
        (WEIGHTS, cut(0.5), ": peer closed connection"),
        (WEIGHTS, trickle(0.01), "model.safetensors: only"),
        (WEIGHTS, shorter(0.5), "a file of the wrong size"),
    ],
)
def test_a_failure_that_stays_ends_in_time(model: LocalHub, part: str, answer: Answer, reason: str) -> None:
    model.fail(part, answer)
    with pytest.raises(UnreachableError, match="run the same command again") as error:
        resolve_folder(TARGET)
    assert error.value.exit_code == EXIT_TRY_AGAIN and reason in str(error.value)
    assert "hf_secret" not in str(error.value) and "no such folder here" in str(error.value)


def test_nothing_listens(model: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="refused"):
        resolve_folder(TARGET)


@pytest.mark.parametrize(
    ("part", "answer", "reason"),
    [
        (EVERYTHING, status(401), "`hf auth login`"),
        (EVERYTHING, status(401, X_Error_Message="Invalid credentials in Authorization header"), "Invalid credentials"),
        (EVERYTHING, status(403, X_Error_Code="GatedRepo"), "gated; ask for access"),
        (WEIGHTS, status(403), "not for your account"),
        (EVERYTHING, status(404), "none of this name"),
        (EVERYTHING, status(404, X_Error_Code="RepoNotFound"), "none of this name"),
        (EVERYTHING, status(410), "answers 410"),
        (WEIGHTS, status(404, X_Error_Code="EntryNotFound"), "the Hub has no "),
    ],
)
def test_a_refusal_is_explained_at_once(model: LocalHub, part: str, answer: Answer, reason: str) -> None:
    model.fail(part, answer)
    with pytest.raises(TargetError) as error:
        resolve_folder(TARGET)
    assert error.value.exit_code == EXIT_USER and reason in str(error.value)
    assert len(model.requests) == len(set(model.requests)), "nothing is asked twice"


def test_a_file_that_lies_elsewhere_is_named_without_its_address(
    model: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    model.fail("HEAD /org/tiny/resolve", elsewhere)
    model.fail("GET /elsewhere/", status(503))
    with pytest.raises(UnreachableError) as error:
        resolve_folder(TARGET)
    printed = capsys.readouterr().err + str(error.value)
    assert "hf_secret" not in printed and "localhost" not in printed
    assert printed.count(": 503 Service Unavailable; trying again") > 1


def test_an_absent_revision_is_named(model: LocalHub) -> None:
    with pytest.raises(TargetError, match="no revision 'v9'"):
        resolve_folder(TargetConfig(path="org/tiny", revision="v9"))


def test_an_earlier_download_is_used(model: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    before = downloaded()
    model.fail(EVERYTHING, status(502))
    assert downloaded() == before
    assert "going on with the copy on this machine" in capsys.readouterr().err


def test_a_download_that_was_cut_is_not_used(model: LocalHub) -> None:
    resolve_folder(TARGET, weights=False)
    model.fail(WEIGHTS, cut(0.5))
    with pytest.raises(UnreachableError):
        resolve_folder(TARGET)
    model.fail(EVERYTHING, status(503))
    with pytest.raises(UnreachableError):
        resolve_folder(TARGET)


def test_offline_says_so(model: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EaglepipeError, match="HF_HUB_OFFLINE is set") as error:
        resolve_folder(TARGET)
    assert error.value.exit_code == EXIT_USER and not model.requests
