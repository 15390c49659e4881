"""How fast stage 1 is through vLLM: against bare prefill of the same requests, and against transformers.

`python -m tests.engine.throughput TARGET FOLDER [dtype]`: one shard a round; the engines take turns in one process.
"""

import statistics
import sys
import time
from collections.abc import Callable
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

ROUNDS, SHARD_TOKENS, BATCH_TOKENS = 3, 4096, 2048


def make_recipe(target: Path, folder: Path, dtype: str) -> Recipe:
    sources = write_corpus(folder / "data", seed=0, train_rows=200, prompt_rows=1).train
    listed = ", ".join(f"{{path: {path}}}" for path in sources)
    file = folder / "recipe.yaml"
    file.write_text(
        f"name: speed\ntarget: {{path: {target}, dtype: {dtype}, engine: vllm}}\n"
        f"data: {{max_length: 1024, sources: [{listed}]}}\nvocab: {{draft_size: 16000}}\n"
        f"cache: {{root: {folder / 'caches'}, shard_bytes: 1GB}}\nprecompute: {{batch_tokens: {BATCH_TOKENS}}}\n"
        f"train: {{output_dir: {folder / 'run'}}}\n"
    )
    return load_recipe(file, ["cache.shard_bytes=11MB"])


def timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def bare(engine: Engine, plan: PrecomputePlan, shard: int) -> None:
    numbers = [int(number) for group in plan.layout.shards[shard] for number in group]
    for number in numbers:
        tokens = plan.layout.tokens.read(number).input_ids.tolist()
        engine.add(f"{shard}-{number}", tokens, EngineSampling(max_tokens=1))
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
    rates: dict[str, list[float]] = {"through vLLM": [], "bare vLLM prefill": [], "transformers": []}
    with (
        run._engine() as engine,
        open_engine(recipe.target, target, max_length=longest, defaults=defaults, report=print) as other,
        ProgressLine("", total=None, unit="tok", enabled=False) as progress,
    ):
        for shard in range(min(ROUNDS + 1, len(plan.layout.shards))):
            feed = Feed(inputs, plan, engine, progress, spare)
            work = {
                "through vLLM": lambda feed=feed, shard=shard: feed.run(iter([Claim(shard=shard)])),
                "bare vLLM prefill": lambda shard=shard: bare(other, plan, shard),
                "transformers": lambda shard=shard: plain.write_again([shard], lambda _: {}),
            }
            tokens = plan.layout.shard_tokens(shard)
            for name, action in work.items():
                seconds = timed(action)
                print(f"shard {shard}, {tokens:,} tokens, {name}: {seconds:.2f} s, {tokens / seconds:,.0f} tok/s")
                if shard:  # the first warms up
                    rates[name].append(tokens / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name}: {rate:,.0f} tok/s, median of {len(rates[name])}")
    print(f"through vLLM / bare: {medians['through vLLM'] / medians['bare vLLM prefill']:.3f}")
    print(f"through vLLM / transformers: {medians['through vLLM'] / medians['transformers']:.3f}")


if __name__ == "__main__":
    main()
