"""`data regenerate` against vLLM's own server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eaglepipe.generation.answering import Prompt
from eaglepipe.generation.regenerate import run_regenerate
from eaglepipe.recipe.load import parse_recipe

MAX_LENGTH = 320
START_SECONDS = 240


@pytest.fixture(scope="module")
def server(served_project: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MAX_LENGTH), "--enforce-eager"]
    arguments += ["--kv-cache-memory-bytes", str(64 * 2**20)]
    arguments += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]  # seeds on CPU need whole prompts
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(served_project.target),
        *arguments,
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{url}/v1/models", timeout=2):
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
            time.sleep(0.5)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_token_ids_are_those_that_the_server_samples(server: str, served_project: Any, tmp_path: Path) -> None:
    prompts = [{"id": str(n), "messages": [{"role": "user", "content": f"Tell me {n} things."}]} for n in range(12)]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    sampling = {"max_new_tokens": 200, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    sources = [{"path": str(source)}]
    recipe = parse_recipe(
        {
            "name": "served",
            "target": {"path": str(served_project.target)},
            "data": {"sources": sources},
            "regenerate": {"sources": sources, "output": str(tmp_path / "a.jsonl"), "endpoint": server, **sampling},
        }
    )
    lines: list[str] = []
    result = run_regenerate(recipe, report=lines.append)
    assert "token ids both ways" in lines[0]
    assert result.success + result.skipped == result.input == len(prompts) and result.figures == {}
    rows = [json.loads(line) for line in Path(result.output).read_text().splitlines()]
    assert rows
    for row in rows[:4]:
        start = row["loss_mask"].index(1)
        prompt, end = row["input_ids"][:start], row["input_ids"][-1]
        purpose = (3, int(row["id"].rpartition(":")[2]), 0)
        seed = Prompt(token_ids=np.array(prompt, dtype=np.int32), purpose=purpose).seed
        body = {"model": str(served_project.target), "prompt": prompt, "max_tokens": 200, "temperature": 1.0}
        body |= {"top_p": 0.9, "seed": seed, "stop_token_ids": [end], "return_token_ids": True}
        assert prompt + _ask(server, body) == row["input_ids"]


def _ask(server: str, body: dict[str, Any]) -> list[int]:
    """Return the ids that the server samples for a request of our own."""
    request = urllib.request.Request(
        f"{server}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        ids: list[int] = json.load(reply)["choices"][0]["token_ids"]
    return ids
