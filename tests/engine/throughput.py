"""How fast stage 1 is through vLLM: against bare prefill of the same requests, and against transformers.

`python -m tests.engine.throughput TARGET FOLDER [dtype]`: a few shards a round; the engines take turns in one process.
CPU seconds are those of the engine's process, or of this one: on a busy machine only they can be compared. Those of
the extracting engine are told by thread too: the engine's own is to cost what bare prefill does, and the other one,
which captures, is what a cache costs beside it.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from eaglepipe.demo.corpus import write_corpus
from eaglepipe.precompute.engine.feed import Claim, Feed
from eaglepipe.precompute.engine.run import EngineRun
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.plan import PrecomputePlan, resume_plan
from eaglepipe.precompute.shard_run import ShardRun, publish_fixed_files
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import StopFlag
from eaglepipe.target.capture import load_target_model
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import Engine, open_engine
from tests.stage_one import plan_in_an_earlier_order

ROUNDS, SHARDS_A_ROUND, SHARD_TOKENS, BATCH_TOKENS = 2, 3, 4096, 2048
NAMES = ("through vLLM", "bare vLLM prefill", "transformers")


def batched(numbers: range, count: int) -> Iterator[list[int]]:
    rest = iter(numbers)
    while batch := list(islice(rest, count)):
        yield batch


def make_recipe(target: Path, folder: Path, dtype: str) -> Recipe:
    sources = write_corpus(folder / "data", seed=0, train_rows=600, prompt_rows=1).train
    listed = ", ".join(f"{{path: {path}}}" for path in sources)
    file = folder / "recipe.yaml"
    file.write_text(
        f"name: speed\ntarget: {{path: {target}, dtype: {dtype}, engine: vllm}}\n"
        f"data: {{max_length: 1024, sources: [{listed}]}}\nvocab: {{draft_size: 16000}}\n"
        f"cache: {{root: {folder / 'caches'}, shard_bytes: 1GB}}\nprecompute: {{batch_tokens: {BATCH_TOKENS}}}\n"
        f"train: {{output_dir: {folder / 'run'}}}\n"
    )
    return load_recipe(file, ["cache.shard_bytes=11MB"])


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of all threads of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busiest_threads(process: int) -> tuple[float, float]:
    """Return the CPU seconds so far of the two threads of a process that took most."""
    fields = [stat.read_text().rpartition(")")[2].split() for stat in Path(f"/proc/{process}/task").glob("*/stat")]
    ticks = sorted((int(own[11]) + int(own[12]) for own in fields), reverse=True)
    first, second = (ticks / os.sysconf("SC_CLK_TCK") for ticks in (*ticks, 0)[:2])
    return first, second


def timed(work: Callable[[], object], process: int) -> tuple[float, float]:
    """Return the seconds of some work, and the CPU seconds of a process meanwhile."""
    started, before = time.monotonic(), cpu_seconds(process)
    work()
    return time.monotonic() - started, cpu_seconds(process) - before


def bare(engine: Engine, plan: PrecomputePlan, shards: Sequence[int]) -> None:
    numbers = [int(number) for shard in shards for group in plan.layout.shards[shard] for number in group]
    for number in numbers:
        tokens = plan.layout.tokens.read(number).input_ids.tolist()
        engine.add(str(number), tokens, EngineSampling(max_tokens=1))
    assert sum(1 for _ in engine.finished()) == len(numbers)


def main() -> None:
    """Print seconds and tokens a second of each, and the ratios of their medians."""
    target, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    recipe = make_recipe(target, folder, sys.argv[3] if len(sys.argv) > 3 else "float32")
    cache = plan_in_an_earlier_order(recipe, SHARD_TOKENS)
    inputs = read_stage1_inputs(recipe)
    plan = resume_plan(inputs, cache)
    run = EngineRun(inputs, plan, StopFlag(), print)
    publish_fixed_files(inputs, plan, run.target)
    plain = ShardRun(inputs, plan, load_target_model(recipe.target, inputs.spec.aux_layer_ids, "cpu"), StopFlag())
    longest = int(plan.layout.statistics.num_tokens.max()) + 1
    defaults = {"max_num_batched_tokens": BATCH_TOKENS, "max_num_seqs": 256}
    spare = folder / "spare"
    spare.mkdir(exist_ok=True)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}  # a thousand tokens
    with (
        run._engine() as engine,
        open_engine(recipe.target, target, max_length=longest, defaults=defaults, report=print) as other,
        ProgressLine("", total=None, unit="tok", enabled=False) as progress,
    ):
        own_cpu, captured = [0.0, 0.0], 0
        rounds = list(batched(range(len(plan.layout.shards)), SHARDS_A_ROUND))
        for number, shards in enumerate([rounds[0][:1], *rounds[: ROUNDS + 1][1:]]):
            feed = Feed(inputs, plan, engine, progress, spare)
            claims = (Claim(shard=shard) for shard in shards)
            work = (
                (lambda feed=feed, claims=claims: feed.run(claims), engine._process.pid),
                (lambda shards=shards: bare(other, plan, shards), other._process.pid),
                (lambda shards=shards: plain.write_again(shards, lambda _: {}), os.getpid()),
            )
            tokens = sum(map(plan.layout.shard_tokens, shards))
            for name, (action, process) in zip(NAMES, work, strict=True):
                before = busiest_threads(process)
                wall, cpu = timed(action, process)
                if number and name == NAMES[0]:
                    spent = zip(own_cpu, before, busiest_threads(process), strict=True)
                    own_cpu, captured = [sum_ + new - old for sum_, old, new in spent], captured + tokens
                print(
                    f"{len(shards)} shards, {tokens:,} tokens, {name}: {wall:.2f} s, {tokens / wall:,.0f} tok/s, "
                    f"{cpu:.2f} s of CPU",
                    flush=True,
                )
                if number:  # the first warms up
                    seconds[name].append((wall / tokens * 1000, cpu / tokens * 1000))
    own, capturing = (seconds / captured * 1e6 for seconds in own_cpu)
    print(f"through vLLM, by thread: the engine's {own:,.0f}, the capturing one {capturing:,.0f} µs of CPU a token")
    supervised = plan.document.supervised_tokens / plan.document.tokens
    print(f"supervised: {supervised:.0%} of {plan.document.tokens:,} tokens")
    for kind, index in (("wall", 0), ("CPU", 1)):
        medians = {name: statistics.median(pair[index] for pair in pairs) for name, pairs in seconds.items()}
        print(f"{kind}: " + ", ".join(f"{name} {value * 1000:,.0f} µs a token" for name, value in medians.items()))
        for name in NAMES[1:]:
            print(f"  {name} / through vLLM: {medians[name] / medians[NAMES[0]]:.3f}")


if __name__ == "__main__":
    main()
