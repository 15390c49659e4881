"""Files of a cache that are cut while a process reads them: it ends with an error of ours, never by a signal."""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.errors import EXIT_CORRUPT, CorruptError
from tests.cache.damage import flip
from tests.processes import Child, start, start_eaglepipe
from tests.tiny_project import TinyProject

ROUNDS = 2
NO_PAUSES = ("train.eval_every_steps=10000", "train.checkpoint_every_steps=10000")


def read_for_ever(folder: Path) -> None:
    """Do what training does, epoch after epoch; a shard that is cut ends it."""
    try:
        cache = Cache.open(folder)
        while True:
            cache.start_tensors()
            samples = [cache.read(number) for number in range(cache.num_samples)]
            for sample in samples:  # touched only after all of them were read, as a step's are
                [np.copy(column) for column in (sample.aux_payload, *sample.supervision.values())]
            print("epoch", flush=True)
    except CorruptError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def cut_at_random(child: Child, folder: Path, rng: random.Random, is_reading: Callable[[], bool]) -> Path:
    deadline = time.monotonic() + 60
    while child.is_running and not is_reading() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    shard = folder / rng.choice(load_manifest(folder).shards).path
    os.truncate(shard, rng.choice((0, 1, 4096, rng.randrange(shard.stat().st_size))))
    return shard


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_shard_cut_while_it_is_read_is_an_error_that_names_it(cache_copy: Path, seed: int) -> None:
    child = start(read_for_ever, cache_copy)
    shard = cut_at_random(child, cache_copy, random.Random(seed), lambda: "epoch" in child.output())
    done = child.wait()
    assert done.returncode == EXIT_CORRUPT, done
    assert shard.name in done.stderr and "cache repair" in done.stderr


def test_training_ends_with_an_error_when_a_shard_is_cut(
    project: TinyProject, cache_copy: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = (f"train.output_dir={run}", f'train.caches=["{cache_copy}"]', "train.epochs=300", *NO_PAUSES)
    child = start_eaglepipe("train", project.recipe_file, *settings)
    metrics = run / "metrics.jsonl"
    shard = cut_at_random(child, cache_copy, random.Random(1), lambda: metrics.exists() and metrics.stat().st_size > 0)
    done = child.wait()
    assert done.returncode == EXIT_CORRUPT and shard.name in done.stderr.splitlines()[-1], done


def test_sample_is_checked_again_once_its_shard_was_written_to(cache_copy: Path) -> None:
    cache = Cache.open(cache_copy)
    shard = cache_copy / cache.manifest.shards[0].path
    cache.read(1)
    held = cache.read(1)
    before = held.aux_payload.copy()
    data = shard.read_bytes()
    flip(shard, data.index(before.tobytes()) + before.size // 2)
    assert np.array_equal(held.aux_payload, before), "a sample that is held does not change"
    with pytest.raises(CorruptError, match=rf"{shard.name}, sample 1 .*checksum"):
        cache.read(1)


def test_parts_of_a_batch_are_those_of_the_whole(sealed_cache: Path) -> None:
    file = ArrowFile(sealed_cache / load_manifest(sealed_cache).shards[0].path)
    whole = file.read(0)
    parts = file.read_columns(0)
    assert parts.metadata == whole.metadata and not parts.is_compressed
    for column, expected in zip(parts.batch.columns, whole.batch.columns, strict=True):
        for buffer, other in zip(column.buffers(), expected.buffers(), strict=True):
            if buffer is not None:
                file.read_part(parts, buffer, 0, buffer.size)
                assert buffer.equals(other)
