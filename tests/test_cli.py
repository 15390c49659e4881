"""What a user meets at the prompt: exit codes, one message, no traceback, JSON where asked for."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run_eaglepipe, start_eaglepipe
from tests.tiny_project import TinyProject


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['eaglepipe', '--help']\nfrom eaglepipe.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("precompute", "train", "export", "estimate", "demo", "doctor", "cache", "data", "recipe", "bench"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["precompute", "demoo"], "did you mean 'demo'?"),
        (["precompute", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["train", "demo", "train.ttt_step=3"], "did you mean 'ttt_steps'?"),
        (["precompute", "demo", "--workers", "5/2"], "--workers"),
        (["export", "x", "--to", "tensorrt"], "one of vllm, sglang, speculators, hf"),
        (["cache", "info", "."], "not a cache"),
        (["cache", "verify", "nowhere"], "not a cache"),
        (["precompute", "demo", "--frobnicate"], "No such option"),
        (["cache", "ls", ".", "y"], "unexpected extra argument"),
        (["cache", "ls", "nowhere"], "does not exist"),
        (["eval", "x", "--tree", "4x2", "--batch-size", "2"], "--tree, --batch-size: for decoding with the target"),
        (["eval", "x", "--k", "100"], "--k"),
        (["export", "--check", "x", "--to", "vllm", "--push", "a/b"], "--push: has no meaning with --check"),
        (["recipe", "cp", "demo", "/dev/null/demo.yaml"], "cannot be written"),
    ],
)
def test_users_mistake_is_one_message_with_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_eaglepipe(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_stages_and_reports_work_through_the_command_line(project: TinyProject, tmp_path: Path) -> None:
    recipe, root = project.recipe_file, f"cache.root={tmp_path / 'caches'}"
    made = run_eaglepipe("precompute", recipe, root, "--json")
    assert made.returncode == 0, made.stderr
    folder = json.loads(made.stdout)["folder"]

    info = json.loads(run_eaglepipe("cache", "info", folder, "--json").stdout)
    wanted = {
        "samples", "tokens", "supervised_tokens", "bytes", "bytes_per_token", "complete", "identity",
        "aux_layer_ids", "draft_vocab_size", "supervision", "aux_codec",
    }  # fmt: skip
    assert wanted <= info.keys()
    assert info["complete"] is True and info["aux_layer_ids"] == [2, 4, 5] and info["draft_vocab_size"] == 160
    assert info["bytes_per_token"] == pytest.approx(info["bytes"] / info["tokens"], rel=1e-3)

    listed = run_eaglepipe("cache", "ls", EAGLEPIPE_CACHE_ROOT=str(tmp_path / "caches"))
    assert Path(folder).name in listed.stdout and "complete" in listed.stdout
    assert run_eaglepipe("cache", "path", recipe, root).stdout.strip() == folder

    peek = json.loads(run_eaglepipe("cache", "peek", folder, "--top", "2", "--json").stdout)
    assert all(len(row["top"]) == 2 * row["supervised"] for row in peek["rows"])
    recoded = run_eaglepipe("cache", "recode", tmp_path / "fp16", folder, "--aux-codec", "fp16", "--json")
    assert recoded.returncode == 0, recoded.stderr
    assert json.loads(recoded.stdout)["errors"]["aux_hidden_states"]["max"] > 0
    differing = run_eaglepipe("cache", "diff", folder, tmp_path / "fp16", "--json")
    assert differing.returncode == 2 and json.loads(differing.stdout)["equal"] is False

    plan = run_eaglepipe("train", recipe, root, "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["total_steps"] > 0
    trained = run_eaglepipe(
        "train", recipe, root, f"train.output_dir={tmp_path / 'run'}", "train.max_steps=2", "--json"
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["steps"] == 2
    assert f"cache     {folder}: " in trained.stderr
    assert (tmp_path / "run" / "draft" / "model.safetensors").exists()

    shard = next((Path(folder) / "shards").glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    quick = run_eaglepipe("cache", "verify", folder)
    full = run_eaglepipe("cache", "verify", folder, "--full", "--json")
    assert quick.returncode == 0 and "--full" in quick.stdout
    assert full.returncode == 3
    report = json.loads(full.stdout)
    assert not report["ok"] and any(shard.name in problem for problem in report["problems"])
    refused = run_eaglepipe("train", recipe, root, f"train.output_dir={tmp_path / 'run2'}")
    assert refused.returncode == 3 and shard.name in refused.stderr and "Traceback" not in refused.stderr


def test_a_cache_is_found_by_content_where_target_and_corpus_have_moved(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(project.folder, tmp_path / "elsewhere"))
    there = [moved / Path(source.path).relative_to(project.folder) for source in project.recipe().data.sources]
    sources = [f"data.sources.{number}.path={path}" for number, path in enumerate(there)]
    words = [project.recipe_file, f"cache.root={sealed_cache.parent}", f"target.path={moved / 'target'}", *sources]
    assert run_eaglepipe("cache", "path", *words).stdout.strip() == str(sealed_cache)
    plan = run_eaglepipe("train", *words, "--dry-run", "--json")
    assert plan.returncode == 0 and json.loads(plan.stdout)["total_steps"] > 0, plan.stderr
    Path(moved / "target" / "config.json").unlink()
    gone = run_eaglepipe("train", *words, "--dry-run")
    assert gone.returncode == 2 and "target.path: " in gone.stderr and "train.caches" in gone.stderr


def test_preview_marks_the_supervised_part(project: TinyProject) -> None:
    shown = run_eaglepipe("data", "preview", project.recipe_file, "-n", "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("supervised") == 2 and "⟦" in shown.stdout


def test_recipes_that_ship_are_listed_shown_and_copied(tmp_path: Path) -> None:
    names = json.loads(run_eaglepipe("recipe", "ls", "--json").stdout)
    assert {"demo", "llama3.1-8b", "qwen3-8b"} <= names.keys() and all(names.values())
    copy = tmp_path / "mine.yaml"
    assert run_eaglepipe("recipe", "cp", "demo", copy).returncode == 0
    assert run_eaglepipe("recipe", "cp", "demo", copy).returncode == 2
    shown = run_eaglepipe("recipe", "show", copy, "train.seed=5")
    assert "seed: 5" in shown.stdout


def test_estimate_prices_encodings_and_marks_the_recipes_own(project: TinyProject) -> None:
    done = run_eaglepipe("estimate", project.recipe_file, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert sum(encoding["chosen"] for encoding in report["encodings"]) == 1
    assert "B/token" in run_eaglepipe("estimate", project.recipe_file).stdout


def test_closed_pipe_is_no_traceback(project: TinyProject) -> None:
    reader = subprocess.Popen(
        [sys.executable, "-m", "eaglepipe", "recipe", "show", str(project.recipe_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None and reader.stderr is not None
    reader.stdout.close()
    assert "Traceback" not in reader.stderr.read()
    reader.wait()


def test_terminal_escapes_in_names_are_written_out() -> None:
    done = run_eaglepipe("cache", "info", "\x1b[31mred")
    assert "\x1b" not in done.stderr and "\\x1b[31mred" in done.stderr


def little_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31,) * 2)


def test_memory_that_is_not_there_is_one_line_with_exit_code_4(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    overrides = [f"cache.root={sealed_cache.parent}", f"train.output_dir={tmp_path}"]
    large = ["draft.num_hidden_layers=1000", "draft.intermediate_size=131072"]  # 50 GB
    done = run_eaglepipe("train", project.recipe_file, *overrides, *large, before=little_memory)
    assert done.returncode == 4, done.stderr
    assert "out of memory" in done.stderr and "micro_batch_tokens" in done.stderr and "Traceback" not in done.stderr


def test_doctor_answers() -> None:
    report = json.loads(run_eaglepipe("doctor", "--json").stdout)
    assert report["eaglepipe"] and report["torch"] and "cuda" in report


@pytest.mark.parametrize("arguments", [["recipe", "ls", "--json"], ["doctor"]])
def test_of_several_processes_the_first_alone_prints_the_result(arguments: list[str]) -> None:
    first, second = (run_eaglepipe(*arguments, WORLD_SIZE="2", RANK=rank).stdout for rank in ("0", "1"))
    assert _without_free_disk(first) == _without_free_disk(run_eaglepipe(*arguments).stdout) != "" and second == ""


def _without_free_disk(printed: str) -> str:
    """Other processes write to the disk between two calls of `doctor`."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("free for"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_the_corpus_is_read_is_one_line_with_exit_code_75(
    project: TinyProject, tmp_path: Path, number: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "endless.jsonl")
    overrides = [f"data.sources=[{{path: {tmp_path / 'endless.jsonl'}}}]", f"cache.root={tmp_path / 'caches'}"]
    process = start_eaglepipe("precompute", project.recipe_file, *overrides)
    writer = os.open(tmp_path / "endless.jsonl", os.O_WRONLY)  # returns once the corpus is being read
    process.send_signal(number)
    done = process.wait()
    os.close(writer)
    assert done.returncode == 75, done.stderr
    assert done.stderr.startswith(f"stopped: stopped by {number.name}") and "Traceback" not in done.stderr
