"""Stage 1 through vLLM: the numbers of transformers, in shards that survive whatever ends a run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.columns import take_rows
from eaglepipe.cache_tools.repair import repair_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.demo.corpus import write_corpus
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target_head import TargetHead
from tests.stage_one import plan_in_an_earlier_order, quiet
from tests.tiny_project import TinyProject

SERVED = {"target.engine": "vllm", "target.engine_args": "{kv_cache_memory_bytes: 268435456}"}
EXACT = {"cache.aux_codec": "fp32", "cache.hidden_codec": "fp32", "target.dtype": "float32"}


def smollm2_recipe(target: Path, folder: Path, **overrides: Any) -> Recipe:
    sources = write_corpus(folder / "data", seed=0, train_rows=24, prompt_rows=1).train
    file = folder / "smollm2.yaml"
    listed = ", ".join(f"{{path: {path}}}" for path in sources)
    file.write_text(
        f"name: smollm2\ntarget: {{path: {target}}}\ndata: {{max_length: 160, sources: [{listed}]}}\n"
        f"vocab: {{draft_size: 8000}}\ncache: {{root: {folder / 'caches'}, shard_bytes: 8MB}}\n"
        f"precompute: {{batch_tokens: 512}}\ntrain: {{output_dir: {folder / 'run'}}}\n"
    )
    return load_recipe(file, [f"{key}={value}" for key, value in {**EXACT, **overrides}.items()])


def decoded(cache: Cache, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Aux states [T, A, Ht] and last hidden states [S, Ht] as stored."""
    stored = cache.read(sample)
    payload = EncodedRows(payload=torch.from_numpy(stored.aux_payload.copy()))
    rows = take_rows(stored.supervision, np.arange(stored.supervised.sum()))
    return cache.spec.aux.decode(payload), cache.spec.kind.decode_rows(rows)


def assert_close(mine: torch.Tensor, other: torch.Tensor) -> None:
    """Compare a sample's states [T, ..., Ht] relative to their norms: all together, and the worst one of them.

    Sums are taken in another order, so a state of small norm, or after a huge one, is rounded otherwise.
    """
    assert float((mine - other).norm() / other.norm()) < 1e-5
    assert float(((mine - other).norm(dim=-1) / other.norm(dim=-1)).max()) < 1e-4


def test_the_states_of_a_real_target_are_those_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    folders = [
        Path(run_precompute(smollm2_recipe(smollm2, tmp_path, **engine), report=quiet).folder)
        for engine in ({}, SERVED)
    ]
    assert all(verify_cache(folder).ok for folder in folders)
    plain, served = map(Cache.open, folders)
    head = TargetHead.from_tensors(plain.start_tensors(), plain.head)
    equal = total = 0
    for sample in range(plain.num_samples):
        expected, stored = plain.read(sample), served.read(sample)
        assert stored.sample_id == expected.sample_id
        assert np.array_equal(stored.input_ids, expected.input_ids)
        (aux, hidden), (aux_expected, hidden_expected) = decoded(served, sample), decoded(plain, sample)
        assert_close(aux, aux_expected)
        assert_close(hidden, hidden_expected)
        assert float((head.probabilities(hidden) - head.probabilities(hidden_expected)).abs().max()) < 1e-4
        np.testing.assert_allclose(stored.draft_mass, expected.draft_mass, atol=1e-4)
        equal += int((stored.target_top1 == expected.target_top1).sum())
        total += len(stored.target_top1)
    assert equal >= 0.9999 * total
    for name in ("target.safetensors", "vocab.safetensors", "target_config.json", "head.json"):
        paths = [folder / name for folder in folders]
        assert all(path.exists() for path in paths) is paths[0].exists()
        if paths[0].exists():
            assert paths[0].read_bytes() == paths[1].read_bytes()


class Run:
    """`eaglepipe precompute` of a planned cache of many small shards, in a process of its own."""

    def __init__(self, project: TinyProject, folder: Path, root: Path) -> None:
        self.folder = folder
        overrides = [f"{key}={value}" for key, value in many_shards(root).items()]
        command = [sys.executable, "-m", "eaglepipe", "precompute", str(project.recipe_file), *overrides]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def sidecars(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "shards").glob("*.json")}

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        end = time.monotonic() + 240
        while not is_there():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.002)

    def engine(self) -> int:
        """The process in which vLLM runs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (found,) = [pid for pid in children if b"vllm_engine.host" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(found)

    def in_the_making(self) -> set[str]:
        return {path.name.split(".")[1] for path in (self.folder / "shards").glob(".*.tmp")}


def many_shards(root: Path) -> dict[str, Any]:
    return {**SERVED, "cache.root": root, "cache.shard_bytes": "40KiB", "precompute.batch_tokens": 256}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_whatever_ends_a_run_a_rerun_redoes_the_open_shards_alone(served_project: TinyProject, tmp_path: Path) -> None:
    recipe = served_project.recipe(**many_shards(tmp_path))
    folder = plan_in_an_earlier_order(recipe, 256)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        run = Run(served_project, folder, tmp_path)
        before = run.sidecars()
        run.wait_for(lambda run=run, before=before: len(run.sidecars()) > len(before) + 2)  # type: ignore[misc]
        engine, started = run.engine(), time.monotonic()
        run.process.send_signal(number)
        output = run.process.communicate(timeout=30)[0]
        assert run.process.returncode == code, output
        assert time.monotonic() - started < 5
        time.sleep(0.5)
        assert not is_alive(engine)
        assert len(run.in_the_making()) <= 2
        assert {name: run.sidecars()[name] for name in before} == before
    run = Run(served_project, folder, tmp_path)
    before = run.sidecars()
    run.wait_for(lambda: len(run.sidecars()) > len(before) + 2)
    os.kill(run.engine(), signal.SIGKILL)
    output = run.process.communicate(timeout=30)[0]
    assert run.process.returncode == 4
    assert "vLLM was killed, mostly because memory ran out" in output
    assert "Traceback" not in output
    two = [Run(served_project, folder, tmp_path) for _ in range(2)]
    for run in two:
        output = run.process.communicate(timeout=240)[0]
        assert run.process.returncode == 0, output
    assert verify_cache(folder).ok
    assert not run.in_the_making()
    plain = Path(run_precompute(served_project.recipe(**{"cache.root": tmp_path / "plain"}), report=quiet).folder)
    ids = [
        {cache.read(number).sample_id for number in range(cache.num_samples)}
        for cache in map(Cache.open, (plain, folder))
    ]
    assert ids[0] == ids[1]


def test_a_damaged_sample_alone_is_computed_again(served_project: TinyProject, tmp_path: Path) -> None:
    recipe = served_project.recipe(**{**SERVED, "cache.root": tmp_path})
    folder = Path(run_precompute(recipe, report=quiet).folder)
    shard = folder / "shards" / "00000.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 0xFF]) + whole[len(whole) // 2 + 1 :])
    report = repair_cache(folder, overrides=["target.engine_args={kv_cache_memory_bytes: 268435456}"], report=quiet)
    assert report.samples_computed == 1
    assert verify_cache(folder).ok
