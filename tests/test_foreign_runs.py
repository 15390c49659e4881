"""Run folders whose files hold anything: each is one message with an exit code, never a traceback."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.evaluation.report.page import read_evaluation, write_report
from eaglepipe.export.card import model_card
from eaglepipe.export.layouts import LAYOUTS
from eaglepipe.export.run_figures import RunFigures, read_figures
from eaglepipe.export.trained import open_trained
from eaglepipe.files.hashing import hash_file
from eaglepipe.train import run_training
from eaglepipe.training.run.checkpoint import load_checkpoint, load_latest
from eaglepipe.training.run.metrics import read_metrics
from tests.processes import run_eaglepipe
from tests.tiny_project import TinyProject

NESTED = "[" * 10_000 + "]" * 10_000
DOCUMENTS = [
    b"", b"null", b"[]", b"[1, 2]", b'"text"', b"7", b"NaN", b"{}", b'{"kind": "step"}', b'{"kind": ["step"]}',
    b'{"kind": "step", "step": 1e999}', b"\xff\xfe", bytes(range(256)), b"\x00" * 64, NESTED.encode(),
    b'{"a": ' + NESTED.encode() + b"}", b'{"step": ' + b"9" * 5000 + b"}", b'{"\\ud800": 1}',
]  # fmt: skip
VALUES = [
    "null",
    '"text"',
    "true",
    "-1",
    "[]",
    "{}",
    "[null]",
    '["a"]',
    "NaN",
    "1e999",
    "1" + "0" * 400,
    "[1e999]",
    NESTED,
]
"""Each takes the place of one value."""


@pytest.fixture(scope="module")
def finished(project: TinyProject, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, read-only for tests."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = {"cache.root": sealed_cache.parent, "train.output_dir": folder, "train.max_steps": 2}
    run_training(project.recipe(**settings), [sealed_cache])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def with_each_value(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a JSON object with one of its values replaced, or left out, in every way."""
    for name in document:
        marked = json.dumps({**document, name: "%value%"})
        yield from ((f"{name} = {value[:20]}", marked.replace('"%value%"', value)) for value in VALUES)
        yield f"without {name}", json.dumps({key: value for key, value in document.items() if key != name})


def outcome(action: Callable[[], object]) -> EaglepipeError | None:
    """Return the expected error that an action ends with, if any; every other error fails the test."""
    try:
        action()
    except EaglepipeError as error:
        assert "\n" not in str(error).partition("mistake(s)")[0] and error.exit_code in (2, 3)
        return error
    return None


@pytest.mark.parametrize("line", DOCUMENTS, ids=lambda line: repr(line[:20]))
def test_a_line_of_metrics_that_is_no_row_is_named_unless_a_kill_tore_it(run: Path, line: bytes) -> None:
    path = run / "metrics.jsonl"
    rows = path.read_bytes()
    num_rows = rows.count(b"\n")
    if b"\n" not in line and line.strip():
        path.write_bytes(rows + line)
        assert len(list(read_metrics(path))) == num_rows
    path.write_bytes(rows + line + b"\n" + rows)
    with pytest.raises(CorruptError, match=rf"metrics\.jsonl:{num_rows + 1}: no row of metrics .*; move the file away"):
        list(read_metrics(path))


@pytest.mark.parametrize("kind", ["step", "evaluation"])
def test_a_row_of_metrics_with_any_value_is_drawn_or_refused(run: Path, kind: str) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    number = next(i for i in reversed(range(len(lines))) if json.loads(lines[i])["kind"] == kind)
    drawn = []
    for name, changed in with_each_value(json.loads(lines[number])):
        path.write_text("\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n")
        if outcome(lambda: list(read_metrics(path))) is None:
            drawn.append(name)
    assert drawn and all(name.endswith((" null", " -1")) for name in drawn)


def test_extreme_figures_are_drawn(run: Path) -> None:
    rows = list(read_metrics(run / "metrics.jsonl"))
    for row, value in zip(rows, (1e300, None, -1e300, 0.0, 1e300, None), strict=False):
        row |= {name: value for name in row if isinstance(row[name], float) or row[name] is None}
        row |= {name: [value or 0.0] * len(row[name]) for name in row if isinstance(row[name], tuple)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert outcome(partial(write_report, run)) is None


def test_any_evaluation_is_shown_or_refused(run: Path) -> None:
    path = run / "eval.json"
    for document in (*DOCUMENTS, b'{"table": 7}', b'{"bigram_acceptance_length": true}'):
        path.write_bytes(document)
        error = outcome(partial(read_evaluation, path))
        assert isinstance(error, CorruptError) or (error is None and document[:1] == b"{")


def test_any_record_of_a_run_gives_a_card_or_is_refused(run: Path) -> None:
    path = run / "train.json"
    record = json.loads(path.read_text())
    for document in DOCUMENTS:
        path.write_bytes(document)
        assert isinstance(outcome(partial(read_figures, path)), CorruptError)
    shown = []
    for name, text in with_each_value({name: record[name] for name in RunFigures.model_fields}):
        path.write_text(text)
        if outcome(partial(read_figures, path)) is None:
            shown.append(name)
            card = model_card(open_trained(run), LAYOUTS["vllm"], dtype="float32", target_name="a/b")
            assert "## The run" in str(card)
    assert shown and all(name.endswith((" null", " -1", " []")) or name.startswith("without") for name in shown)


def forge(checkpoint: Path, state: bytes) -> None:
    """Write the state of a checkpoint, and a marker that agrees with it."""
    path = checkpoint / "state.json"
    path.write_bytes(state)
    marker = json.loads((checkpoint / "COMPLETE").read_text())
    marker["state.json"] = {"bytes": len(state), "xxh3_128": hash_file(path)}
    (checkpoint / "COMPLETE").write_text(json.dumps(marker))


def test_any_state_of_a_checkpoint_is_refused_and_an_older_one_is_used(run: Path) -> None:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    shutil.copytree(newest, newest.with_name("step-0000001"))
    whole = json.loads((newest / "state.json").read_text())
    within = json.dumps({**whole, "state": "%state%"})
    states = [*((repr(document), document) for document in DOCUMENTS)]
    states += [(name, text.encode()) for name, text in with_each_value(whole)]
    states += [(name, within.replace('"%state%"', text).encode()) for name, text in with_each_value(whole["state"])]
    used = []
    for name, state in states:
        forge(newest, state)
        checkpoint = load_latest(run / "checkpoints", lambda _: None)
        assert checkpoint is not None
        if checkpoint.folder == newest:
            used.append(name)
    older = {"dtype = null", "without dtype"}  # releases that recorded none
    assert set(used) == {"version = true", "contract = {}", "first = null", "best = null", *older}


@pytest.mark.parametrize("marker", DOCUMENTS, ids=lambda line: repr(line[:20]))
def test_any_marker_of_a_checkpoint_is_refused(run: Path, marker: bytes) -> None:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "COMPLETE").write_bytes(marker)
    with pytest.raises(CorruptError, match=r"COMPLETE|not the bytes"):
        load_checkpoint(newest)


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("recipe.yaml", ["report", "export"]),
        ("metrics.jsonl", ["report", "train"]),
        ("checkpoints/step-0000002/state.json", ["train"]),
    ],
)
def test_a_folder_a_loop_and_binary_content_in_place_of_a_runs_file_end_in_one_message(
    run: Path, project: TinyProject, sealed_cache: Path, name: str, commands: list[str]
) -> None:
    train = [project.recipe_file, f"cache.root={sealed_cache.parent}", f"train.output_dir={run}", "train.max_steps=2"]
    arguments = {"report": [run], "export": [run, "--to", "vllm"], "train": train}
    path = run / name
    path.rename(run / "away")
    for make in (path.mkdir, partial(path.symlink_to, path), partial(path.write_bytes, b"\xff[{")):
        make()
        for command in commands:
            done = run_eaglepipe(command, *arguments[command])
            assert done.returncode in (0, 2, 3) and "Traceback" not in done.stderr, (command, done.stderr)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
