"""The plan of a run, made from metadata before its first step, and the contract that a resumed run must meet."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaglepipe.errors import CacheError, ConfigError, CorruptError
from eaglepipe.families import FAMILIES
from eaglepipe.files.json_object import diff_fields
from eaglepipe.recipe.training import TrainConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.training.data.batch import PackingLimits, SampleSource, Split, TrainingSource
from eaglepipe.training.data.order import SampleOrder, choose_heldout, layout_digest, split_samples
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.ranks.sequence import check_ranks, sequence_share

FREE_ON_RESUME = frozenset(
    {
        "output_dir",
        "caches",
        "epochs",
        "max_steps",
        "micro_batch_tokens",
        "pack_length",
        "device",
        "dtype",
        "gradient_checkpointing",
        "shard",
        "sequence_parallel",
        "sequence_partitions",
        "chunk_tokens",
        "eval_every_steps",
        "early_stop_patience",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "trackers",
        "prefetch_batches",
    }
)
"""Settings of `train` that may change between two starts of one run: they pack, watch or end it, but do not decide what
an optimizer step learns. `caches` is among them because identity and weights are compared, not the paths."""

_SECTIONS = ("draft", "train")


LAYOUT = "layout"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The samples, steps and bounds of a run."""

    split: Split
    evaluated: NDArray[np.int64]  # the held-out samples that evaluations read
    total_steps: int
    train_tokens: int  # of the first epoch
    order: SampleOrder
    limits: PackingLimits
    notes: tuple[str, ...] = ()


def plan_run(source: TrainingSource, config: TrainConfig, world: World) -> RunPlan:
    """Plan a run from the cache's index.

    Raises:
        ConfigError: rows are shorter than the longest sample, or longer than a micro-batch, or the ranks cannot be
            divided into those that share a sample.
    """
    check_ranks(config, world)
    index = source.index
    stored = index.conversation_hashes
    split = split_samples(index.sample_ids, config.heldout_fraction, stored=stored)
    limits = PackingLimits(
        pack_length=row_length(source, config),
        micro_batch_tokens=config.micro_batch_tokens * config.sequence_parallel,
        world_size=world.size // config.sequence_parallel,
        rank=world.rank // config.sequence_parallel,
        share=sequence_share(config, world),
    )
    order = SampleOrder(
        samples=split.train,
        num_tokens=index.num_tokens,
        weights=index.weights,
        identity=source.identity,
        seed=config.seed,
        epochs=config.epochs,
        batch_tokens=config.batch_tokens,
    )
    steps = order.count_steps()
    return RunPlan(
        split=split,
        evaluated=choose_heldout(index.sample_ids, split, config.eval_max_samples, stored=stored),
        total_steps=steps if config.max_steps is None else min(steps, config.max_steps),
        train_tokens=order.count_tokens(),
        order=order,
        limits=limits,
        notes=tuple(_notes(split, config)),
    )


def row_length(source: TrainingSource, config: TrainConfig) -> int:
    """Return the slots of a packed row at most: as asked for, else a whole micro-batch, in which nothing is padded.

    A family whose attention holds a row's scores whole gets rows no longer than the longest sample may be.

    Raises:
        ConfigError: rows are shorter than the longest sample, or longer than a micro-batch.
    """
    longest = int(source.index.num_tokens.max())
    ranks = config.sequence_parallel
    micro_batch = config.micro_batch_tokens * ranks
    name = "train.micro_batch_tokens" if ranks == 1 else f"train.micro_batch_tokens of all {ranks} ranks of a sample"
    length = config.pack_length or micro_batch
    if config.pack_length is None and config.family.holds_scores:
        length = min(length, source.max_length)
    if length > micro_batch:
        raise ConfigError(
            f"train.pack_length is {length}, more than {name} ({micro_batch}): a micro-batch holds whole rows"
        )
    if length < longest:
        name = name if config.pack_length is None else "train.pack_length"
        more = "" if not config.family.splits_sequences else ", or let more ranks share it (train.sequence_parallel)"
        raise ConfigError(
            f"{name} is {length}, but the longest sample has {longest} tokens; raise it to at least that{more}"
        )
    return length


def _notes(split: Split, config: TrainConfig) -> list[str]:
    if config.heldout_fraction == 0.0 or len(split.heldout) == 0:
        return ["nothing is held out: no evaluation, no early stop, and the last step's draft is the result"]
    share = len(split.heldout) / (len(split.heldout) + len(split.train))
    if len(split.heldout) == 1:
        return [f"one sample is held out ({share:.1%}); its acceptance length tells little about others"]
    return []


def resume_contract(recipe: Recipe, source: SampleSource, *, init_digest: str | None = None) -> dict[str, Any]:
    """Return what must be the same for a run to continue: the cache, the draft's shape and what a step learns.

    The draft that a run started from is compared by the digest of its weights, not by its path. `layout` tells apart
    caches of one identity that hold their samples in another order, and so would give every step other samples.
    """
    train = recipe.train.model_dump(mode="json", exclude=set(FREE_ON_RESUME))
    draft = recipe.draft.model_dump(mode="json", exclude={"init"})
    init = {} if init_digest is None else {"init": init_digest}
    return {"cache": source.identity, LAYOUT: layout_digest(source.index), "draft": draft, "train": train, **init}


def check_contract(saved: dict[str, Any], current: dict[str, Any], folder: str) -> None:
    """Refuse to continue another run.

    Raises:
        CacheError: the cache is another one, or its samples are in another order.
        ConfigError: settings differ, each named with both values.
        CorruptError: `saved` holds no settings.
    """
    if not isinstance(saved.get("cache"), str) or not all(isinstance(saved.get(name), dict) for name in _SECTIONS):
        raise CorruptError(f"{folder}: its newest checkpoint holds no settings of a run; delete it to go on without")
    if saved["cache"] != current["cache"]:
        raise CacheError(
            f"{folder} was trained from cache {saved['cache']}, this is {current['cache']}; "
            "give train.output_dir another value to start a new run"
        )
    layouts = saved.get(LAYOUT, current[LAYOUT]), current[LAYOUT]  # runs of earlier releases did not record theirs
    if layouts[0] != layouts[1]:
        raise CacheError(
            f"{folder} was trained from cache {saved['cache']} with its samples in another order than this one's, "
            "which was computed anew: its steps would take other samples; continue with the cache that it was trained "
            "from, or give train.output_dir another value to start a new run"
        )
    differences = list(diff_fields(_completed(saved, current), current))
    if differences:
        lines = "\n  ".join(differences)
        raise ConfigError(
            f"{folder} cannot be continued with these changes; undo them or change train.output_dir\n  {lines}"
        )


def _completed(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Return a contract with the settings of `current`: one it was written without had its default.

    Older contracts also hold settings of other families, always with their defaults.
    """
    family = FAMILIES[current["train"]["objective"]]
    fields = family.load(family.recipe).model_fields
    defaults = {name: fields[name].default.model_dump(mode="json") for name in _SECTIONS}
    sections = {
        name: {key: saved[name].get(key, defaults[name].get(key)) for key in current[name]} for name in defaults
    }
    return {**saved, LAYOUT: current[LAYOUT], **sections}
