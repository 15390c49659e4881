"""Datasets from a Hub that fails: one that cannot be reached is never called absent."""

import json

import pytest

from eaglepipe.chat.sources import iter_conversations
from eaglepipe.errors import DataError, UnreachableError
from eaglepipe.recipe.config import SourceConfig
from tests.hub.conftest import Served
from tests.hub.local_hub import Answer, LocalHub, cut, reset, silent, status

ROW = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}
SOURCE = SourceConfig(path="org/chats")


@pytest.fixture
def hub(served: Served) -> LocalHub:
    lines = "".join(json.dumps({"id": str(number), **ROW}) + "\n" for number in range(3))
    return served("org/chats", {"data.jsonl": lines.encode(), "README.md": b"# Chats"})


def read(source: SourceConfig = SOURCE) -> int:
    return len(list(iter_conversations([source])))


@pytest.mark.usefixtures("patient")
def test_rows_survive_failures_that_pass(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fail("HEAD", status(503), times=1)
    hub.fail("resolve/" + "a" * 40 + "/data.jsonl", status(500), times=1)
    hub.fail("GET /api/datasets", cut(0.5), times=1)
    assert read() == 3
    assert capsys.readouterr().err.count("trying again") == 3


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        ("", status(503)),
        ("", silent(2)),
        ("README.md", reset),
        ("/api/datasets", status(504)),
        ("/api/datasets", cut(0.3)),
        ("HEAD /datasets/org/chats/resolve/" + "a" * 40 + "/data.jsonl", status(500)),
    ],
)
def test_an_unreachable_dataset_is_not_called_absent(hub: LocalHub, part: str, answer: Answer) -> None:
    hub.fail(part, answer)
    with pytest.raises(UnreachableError, match="dataset 'org/chats'") as error:
        read()
    assert "none of this name" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(401), "`hf auth login`"),
        (status(403, X_Error_Code="GatedRepo"), "gated"),
        (status(404, X_Error_Code="RepoNotFound"), "none of this name"),
    ],
)
def test_a_refused_dataset_is_explained(hub: LocalHub, answer: Answer, reason: str) -> None:
    hub.fail("", answer)
    with pytest.raises(DataError, match=reason):
        read()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"revision": "v9"}, "v9"), ({"split": "nowhere"}, "nowhere"), ({"config": "other"}, "other")],
)
def test_what_a_dataset_lacks_is_named(hub: LocalHub, fields: dict[str, str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(SourceConfig(path="org/chats", **fields))


def test_an_earlier_download_is_used(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert read() == 3
    hub.fail("", status(503))
    assert read() == 3
    assert "going on with the copy on this machine" in capsys.readouterr().err
