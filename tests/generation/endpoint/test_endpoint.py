"""`data regenerate` against real servers on loopback, sound ones and broken ones."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from eaglepipe.errors import ConfigError, EaglepipeError, UnreachableError
from eaglepipe.generation.regenerate import RegenerateResult, run_regenerate
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from tests.generation.endpoint.server import Handler, Served, running
from tests.processes import run_eaglepipe, start_eaglepipe

ROWS = 24
KEY = "sk-a-key-that-nobody-may-see"


def conversation(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me about {number} " * (1 + number % 3)}]
    if number % 3 == 0:
        more = {"role": "user", "content": "And then?"}
        messages += [{"role": "assistant", "content": "old"}, more, {"role": "assistant", "content": "older"}]
    return {"id": f"row{number}", "messages": messages}


@pytest.fixture(scope="module")
def folder(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target's folder without weights."""
    folder = tmp_path_factory.mktemp("weightless") / "talker"
    folder.mkdir()
    for file in project.target.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def sound(folder: Path) -> Served:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letters = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).isalpha()]
    return Served(tokenizer=tokenizer, model="org/talker", letters=letters, end=tokenizer.eos_token_id)


@pytest.fixture
def serve(sound: Served) -> Iterator[Callable[..., Served]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **habits: stack.enter_context(
            running(replace(sound, bodies=[], counts=type(sound.counts)(), **habits))
        )


@pytest.fixture
def make_recipe(folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(conversation(number)) + "\n" for number in range(ROWS)))

    def make(*servers: Served, name: str = "answers.jsonl", **settings: Any) -> Recipe:
        regenerate = {
            "sources": [{"path": str(source)}],
            "output": str(tmp_path / name),
            "endpoint": [server.url for server in servers],
            "max_new_tokens": 40,
            "temperature": 0.7,
            "seed": 5,
            "concurrency": 8,
            "backoff_s": 0.01,
            "timeout_s": 0.5,
            **settings,
        }
        file = tmp_path / "recipe.yaml"
        file.write_text(json.dumps(_tree(folder, source, regenerate)))
        return load_recipe(file)

    return make


def _tree(folder: Path, source: Path, regenerate: dict[str, Any]) -> dict[str, Any]:
    sections = {"target": {"path": str(folder)}, "data": {"sources": [{"path": str(source)}]}}
    return {"name": "answers", **sections, "regenerate": regenerate}


def run(recipe: Recipe) -> RegenerateResult:
    return run_regenerate(recipe, report=lambda _: None)


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_rows_are_the_servers_own_token_ids_behind_the_prompts_that_it_read(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe]
) -> None:
    server = serve()
    result = run(make_recipe(server, request={"top_k": 7}))
    assert (result.success, result.input, result.figures) == (ROWS, ROWS, {})
    rows = read(result.output)
    assert [row["id"].partition("#")[0] for row in rows] == sorted(
        (row["id"].partition("#")[0] for row in rows), key=lambda name: int(name.removeprefix("prompts:row"))
    )
    asked = {tuple(body["prompt"]): body for body in server.bodies}
    for row in rows:
        starts = [i for i in range(1, len(row["loss_mask"])) if row["loss_mask"][i] > row["loss_mask"][i - 1]]
        for start in starts:
            body = asked[tuple(row["input_ids"][:start])]
            expected = server.answer(body["prompt"], body)
            assert row["input_ids"][start : start + len(expected)] == expected
            assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.7, 1.0, 7, 40)
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies) == ROWS + ROWS // 3
    settings = json.loads(Path(result.output + ".report.json").read_text())["settings"]
    assert settings["target"]["endpoint_model"].endswith("talker")


class Faults:
    """Each request fails in a way of its own, the first time that it comes."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.number = 0

    def __call__(self, handler: Handler, payload: bytes) -> bool:
        if handler.served.bodies[-1] is None:
            return False
        name = repr(json.loads(payload)["choices"][0])
        if name in self.seen:
            return False
        self.seen.add(name)
        self.number += 1
        document = json.loads(payload)
        choice = document["choices"][0]
        match self.number % 9:
            case 0:
                handler.reply(500, b"oops")
            case 1:
                handler.reply(429, b"{}", retry_after="0")
            case 2:
                time.sleep(1.2)
                handler.hang_up()
            case 3:
                handler.hang_up()
            case 4:
                handler.hang_up(payload[: len(payload) // 2], announced=len(payload))
            case 5:
                handler.reply(200, payload[: len(payload) // 2])
            case 6:
                choice["token_ids"] = [token + 1 for token in choice["token_ids"]]
                handler.reply(200, json.dumps(document).encode())
            case 7:
                choice["token_ids"] = [10**6] * len(choice["token_ids"])
                handler.reply(200, json.dumps(document).encode())
            case _:
                choice["finish_reason"] = "abort"
                handler.reply(200, json.dumps(document).encode())
        return True


def test_a_server_that_fails_in_every_way_gives_the_bytes_of_a_sound_one(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe]
) -> None:
    expected = Path(run(make_recipe(serve(), name="sound.jsonl")).output).read_bytes()
    faults = Faults()
    result = run(make_recipe(serve(fault=faults), retries=30))
    assert faults.number >= ROWS
    assert Path(result.output).read_bytes() == expected and result.success == ROWS


def test_failed_rows_are_counted_and_a_rerun_answers_only_them(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe]
) -> None:
    expected = Path(run(make_recipe(serve(), name="sound.jsonl")).output).read_bytes()
    poisoned = serve(fault=lambda handler, _: len(_) % 2 == 0 and handler.reply(500, b"") is None)
    with pytest.raises(UnreachableError, match=r"got no answer.*success \+ .* = 24 input") as caught:
        run(make_recipe(poisoned, retries=1, concurrency=64))
    answered = int(str(caught.value).split(" success")[0].rpartition(" ")[2])
    assert 0 < answered < ROWS
    healthy = serve()
    result = run(make_recipe(healthy))
    assert Path(result.output).read_bytes() == expected
    assert len(healthy.bodies) < ROWS + ROWS // 3


def test_a_few_failed_rows_may_be_left_out(serve: Callable[..., Served], make_recipe: Callable[..., Recipe]) -> None:
    poisoned = serve(fault=lambda handler, _: len(_) % 2 == 0 and handler.reply(500, b"") is None)
    result = run(make_recipe(poisoned, retries=0, concurrency=64, max_failed_fraction=1.0))
    assert result.success + result.errors + result.skipped == result.input == ROWS
    assert result.errors_by_reason == {"the endpoint failed": result.errors} and 0 < result.errors < ROWS


def test_work_is_shared_by_weight_and_a_dead_servers_share_goes_to_the_others(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe]
) -> None:
    expected = Path(run(make_recipe(serve(), name="sound.jsonl")).output).read_bytes()
    one, three = serve(), serve()
    recipe = make_recipe(one, three, endpoint=[one.url, {"url": three.url, "weight": 3}], name="two.jsonl")
    assert Path(run(recipe).output).read_bytes() == expected
    assert len(one.bodies) == 8 and len(three.bodies) == 24
    healthy = serve()
    recipe = make_recipe(endpoint=["http://127.0.0.1:9", healthy.url], name="one.jsonl")
    assert Path(run(recipe).output).read_bytes() == expected


def test_an_endpoint_of_another_model_is_refused_unless_it_is_named(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe]
) -> None:
    server = serve(model="org/other")
    with pytest.raises(ConfigError, match=r"serves 'org/other', and the target is .*name it in regenerate.model"):
        run(make_recipe(server))
    with pytest.raises(ConfigError, match=r"regenerate.model is 'mine'"):
        run(make_recipe(server, model="mine"))
    assert run(make_recipe(server, model="org/other")).success == ROWS
    assert not server.bodies[0].get("messages")


def test_a_tokenizer_that_differs_is_refused(serve: Callable[..., Served], make_recipe: Callable[..., Recipe]) -> None:
    class Shifted:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def decode(self, ids: list[int]) -> str:
            return self._tokenizer.decode([token + 1 for token in ids])

    server = serve()
    shifted = replace(server, tokenizer=Shifted(server.tokenizer))
    with running(shifted), pytest.raises(ConfigError, match="its tokenizer is not the target's"):
        run(make_recipe(shifted))


def test_no_server_at_all_ends_as_unreachable_with_its_reason(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9/v1: ") as caught:
        run(make_recipe(endpoint="http://127.0.0.1:9", retries=1))
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("completions", [True, False])
def test_text_is_tokenised_with_a_warning_where_no_ids_come(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe], completions: bool
) -> None:
    lines: list[str] = []
    server = serve(token_ids=False, completions=completions)
    result = run_regenerate(make_recipe(server), report=lines.append)
    assert result.success == ROWS and result.figures["tokenised"] == ROWS + ROWS // 3
    assert "tokenise differently from what was sampled" in lines[-1]
    assert ("messages" in server.bodies[0]) is not completions
    for row in read(result.output):
        assert server.tokenizer.decode(row["input_ids"][:-1]).endswith(row["messages"][-1]["content"])
        assert row["input_ids"][-1] == server.end


def test_prompts_that_the_server_has_no_room_for_are_counted(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe]
) -> None:
    starts = sorted(row["loss_mask"].index(1) for row in read(run(make_recipe(serve(), name="sound.jsonl")).output))
    server = serve(max_model_len=starts[len(starts) // 2] + 40)
    result = run(make_recipe(server, max_new_tokens=40))
    assert result.errors_by_reason == {"prompt too long": result.errors} and 0 < result.errors < ROWS
    assert result.success + result.errors == ROWS
    short = run(make_recipe(serve(), max_new_tokens=9, name="short.jsonl"))
    assert short.skipped_by_reason["unfinished after max_new_tokens"] > 0


def test_the_key_is_sent_and_never_shown(
    serve: Callable[..., Served],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(key=KEY)
    with pytest.raises(ConfigError, match="TALKER_KEY is not set"):
        run(make_recipe(server, api_key_env="TALKER_KEY"))
    monkeypatch.setenv("TALKER_KEY", KEY + "-old")
    with pytest.raises(EaglepipeError, match="refuses the key in TALKER_KEY") as caught:
        run(make_recipe(server, api_key_env="TALKER_KEY"))
    shown = str(caught.value)
    monkeypatch.setenv("TALKER_KEY", KEY)
    assert run_regenerate(make_recipe(server, api_key_env="TALKER_KEY")).success == ROWS
    for wrong in ({"api_key_env": KEY}, {"endpoint": f"http://me:{KEY}@127.0.0.1:1"}):
        with pytest.raises(ConfigError) as refused:
            make_recipe(server, **wrong)
        shown += str(refused.value)
    (tmp_path / "recipe.yaml").unlink()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    output = capsys.readouterr()
    assert KEY not in shown + output.out + output.err and KEY.encode() not in written


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_stopped_in_the_middle_it_goes_on_with_the_rows_that_lack(
    serve: Callable[..., Served], make_recipe: Callable[..., Recipe], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    expected = Path(run(make_recipe(serve(), name="sound.jsonl")).output).read_bytes()
    slow = serve(reply_delay_s=0.1)
    make_recipe(slow, concurrency=2, timeout_s=60)
    command = ("data", "regenerate", tmp_path / "recipe.yaml")
    child = start_eaglepipe(*command)
    deadline = time.monotonic() + 60
    log = tmp_path / "answers.jsonl.part"
    while (not log.exists() or log.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.reply_delay_s = 30.0
    time.sleep(0.3)
    asked = time.monotonic()
    os.kill(child.pid, number)
    done = child.wait()
    assert done.returncode == code and time.monotonic() - asked < 5
    assert number == signal.SIGKILL or "answered so far are in" in done.stderr
    slow.reply_delay_s = 0.0
    before = log.read_bytes().count(b"\n") - 1
    slow.bodies.clear()
    again = run_eaglepipe(*command)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "answers.jsonl").read_bytes() == expected
    assert before >= 2 and len(slow.bodies) <= (ROWS - before) * 2
