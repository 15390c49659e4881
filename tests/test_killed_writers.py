"""Every command that writes, killed while a temporary file is there: run again it ends, and nothing is left over."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from eaglepipe.files.leftovers import leftovers
from eaglepipe.files.publish import publish_bytes
from tests.cache.derived import few
from tests.processes import run_eaglepipe, start
from tests.tiny_project import TinyProject

KILLED = -signal.SIGKILL


def kill_at(event: str, name: str) -> None:
    """Kill this process when it is about to rename to, link to or remove the first path whose name ends like that."""

    def watch(current: str, arguments: tuple[object, ...]) -> None:
        if current == event and str(arguments[0 if event == "shutil.rmtree" else 1]).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_at(name: str, event: str = "os.rename") -> Callable[[], None]:
    return partial(kill_at, event, name)


def remains(folder: Path) -> list[str]:
    """Names of temporary files, locks and descriptions of who holds them."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name in {".writer.lock", ".writer.holder", "work"} or path.suffix in {".tmp", ".lock", ".holder"}
    ]


def check(folder: Path, words: list[object], kills: list[Callable[[], None]]) -> None:
    """Kill the command at each moment, each time going on from what the one before left, and then let it end."""
    for kill in kills:
        killed = run_eaglepipe(*words, before=kill)
        assert killed.returncode == KILLED, (kill, killed.stderr)
        assert remains(folder), kill
    done = run_eaglepipe(*words)
    assert done.returncode == 0, done.stderr
    assert remains(folder) == []


def test_precompute(project: TinyProject, tmp_path: Path) -> None:
    overrides = {**few(project), "cache.root": tmp_path}
    words = ["precompute", project.recipe_file, *(f"{name}={value}" for name, value in overrides.items())]
    kills = [
        killed_at("tokens.arrow"),
        killed_at("plan.json", "os.link"),
        killed_at("00000.json"),
        killed_at("work", "shutil.rmtree"),
    ]
    check(tmp_path, words, kills)


def test_recode(dense_cache: Path, tmp_path: Path) -> None:
    kills = [
        killed_at("plan.json"),
        killed_at("00000.arrow"),
        killed_at("work", "shutil.rmtree"),
    ]
    check(tmp_path, ["cache", "recode", tmp_path / "out", dense_cache, "--aux-codec", "fp16"], kills)


def test_train_and_what_reads_its_run(project: TinyProject, sealed_cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ["train", project.recipe_file, f"cache.root={sealed_cache.parent}", f"train.output_dir={run}"]
    kills = [killed_at(name) for name in ("step-0000002", "train.json")]
    check(run, [*train, "train.max_steps=2"], kills)
    check(run, ["eval", run, "--num-prompts", "2", "--max-new-tokens", "4"], [killed_at("eval.json")])
    check(run, ["report", run], [killed_at("loss.png")])
    check(run, ["export", run, "--to", "vllm"], [killed_at("config.json"), killed_at("export/vllm")])


def test_regenerate(project: TinyProject, tmp_path: Path) -> None:
    target = Path(shutil.copytree(project.target, tmp_path / "target"))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(3, 320, 2))}))
    source, output = {"path": str(project.sources[0]), "max_samples": 4}, tmp_path / "answers" / "out.jsonl"
    section = json.dumps({"sources": [source], "output": str(output), "max_new_tokens": 40})
    words = ["data", "regenerate", project.recipe_file, f"target.path={target}", f"regenerate={section}"]
    check(output.parent, words, [killed_at("report.json"), killed_at("/out.jsonl")])


def test_copied_recipe(tmp_path: Path) -> None:
    check(tmp_path, ["recipe", "cp", "demo", tmp_path / "my.yaml"], [killed_at("my.yaml"), killed_at("my.yaml")])


def _begin_to_tokenise(root: Path) -> None:
    kill_at("os.rename", "other.tokens.arrow")
    publish_bytes(root / "other.tokens.arrow", b"half")


def test_cache_clean_removes_what_killed_writers_of_any_recipe_left_under_a_root(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    overrides = {**few(project), "cache.root": tmp_path}
    words = ["precompute", project.recipe_file, *(f"{name}={value}" for name, value in overrides.items())]
    assert run_eaglepipe(*words, before=killed_at("00000.arrow")).returncode == KILLED
    assert start(_begin_to_tokenise, tmp_path).wait().returncode == KILLED
    shutil.copytree(sealed_cache, tmp_path / "complete")
    (tmp_path / "complete" / "work" / "claims").mkdir(parents=True)
    (tmp_path / ".mine.tmp").touch()
    cleaned = run_eaglepipe("cache", "clean", tmp_path)
    assert cleaned.returncode == 0, cleaned.stderr
    assert cleaned.stdout.count("removed ") == 3
    assert leftovers(tmp_path) == [] and not (tmp_path / "complete" / "work").exists()
    assert (tmp_path / ".mine.tmp").exists()


def test_cache_clean_names_the_command_that_cleans_a_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    refused = run_eaglepipe("cache", "clean", tmp_path)
    assert refused.returncode == 2 and "`eaglepipe train`" in refused.stderr
