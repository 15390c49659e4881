"""An objective's costs follow the products that its forwards and backwards make, counted by torch document by document.

The target is of Llama-3.1-8B's proportions at a width of 32, so that the costs' own figures hold.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eaglepipe.cache.types import CachedSample
from eaglepipe.training.data import costs as costs_module
from eaglepipe.training.data.batch import DataPosition, StepPlan
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.objectives import eagle1 as objective_eagle1
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.objectives.interface import make_objective
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.ranks.distributed import World
from tests.family_sections import draft_config, train_config
from tests.training.tiny_source import (
    NUM_AUX,
    TARGET_CONFIG,
    TinySource,
    as_bytes,
    made_index,
    tiny_source,
    tiny_spec,
    tiny_vocab,
)

CPU = World(device=torch.device("cpu"))
WIDTH, VOCAB, DRAFT_VOCAB = 32, 1002, 250
UNIT = 2 * 4 * WIDTH**2 * 3  # FLOP of a token's context: three aux layers, keys and values; forward and backward
DOCUMENTS = [(40, [(10, 39)]), (60, [(48, 59)]), (96, [(1, 95)]), (120, [(112, 119)]), (180, [(20, 80), (140, 179)])]
"""Tokens, and the runs of them that are supervised."""


@dataclass(frozen=True, kw_only=True)
class Scaled8B(TinySource):
    """Llama-3.1-8B with everything but its depth divided by 128."""

    @property
    def target_config(self) -> dict[str, Any]:
        sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 112, "num_attention_heads": 4}
        return {**TARGET_CONFIG, **sizes, "max_position_embeddings": 256}


def document(number: int, length: int, turns: list[tuple[int, int]], *, for_eagle1: bool) -> CachedSample:
    generator = torch.Generator().manual_seed(number)
    mask = np.zeros(length, np.bool_)
    for first, end in turns:
        mask[first:end] = True
    hidden = torch.randn(length, WIDTH, generator=generator)
    probs = torch.rand(int(mask.sum()), DRAFT_VOCAB, generator=generator).softmax(1)
    return replace(
        tiny_source(1).samples[0],
        sample_id=str(number),
        input_ids=np.arange(length, dtype=np.int32) % VOCAB,
        loss_mask=mask,
        supervised=mask,
        position_mask=mask,
        target_top1=np.where(mask, 1, -1).astype(np.int32),
        draft_mass=mask.astype(np.float32),
        aux_payload=as_bytes(torch.randn(length, NUM_AUX * WIDTH, generator=generator)),
        supervision={"last_hidden_states": as_bytes(hidden[torch.from_numpy(mask)])}
        if for_eagle1
        else {"target_probs": as_bytes(probs)},
        last_hidden_payload=as_bytes(hidden) if for_eagle1 else None,
    )


def source(*, for_eagle1: bool) -> Scaled8B:
    head = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    return Scaled8B(
        identity="scaled",
        samples=tuple(document(i, *shape, for_eagle1=for_eagle1) for i, shape in enumerate(DOCUMENTS)),
        spec=replace(
            tiny_spec("hidden" if for_eagle1 else "dense", for_eagle1=for_eagle1),
            hidden_size=WIDTH,
            vocab_size=VOCAB,
            draft_vocab_size=DRAFT_VOCAB,
        ),
        max_length=180,
        vocab=tiny_vocab(torch.arange(DRAFT_VOCAB), VOCAB),
        tensors={
            "embed_tokens.weight": torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)),
            "lm_head.weight": head[:DRAFT_VOCAB],
            "lm_head_full.weight": head,
        },
    )


def make_learner(cached: Scaled8B, num_layers: int, **settings: Any) -> Learner:
    config = train_config(micro_batch_tokens=256, device="cpu", **settings)
    of_family = {"eagle1": {}, "eagle3": {"fc_norm": True}, "peagle": {"fc_norm": True, "mask_token_id": 0}}
    shape = draft_config(config.objective, num_hidden_layers=num_layers, **of_family[config.objective])
    return Learner(cached, build_draft(cached, config, shape), config, CPU)


class WeightProducts(TorchDispatchMode):
    """FLOP of the products with weights; those of attention are batched, or in kernels of their own."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        matrices = {aten.mm: args[:2], aten.addmm: args[1:3], aten.addmm_: args[1:3]}.get(func.overloadpacket)
        if matrices is not None:
            self.flops += 2 * matrices[0].numel() * matrices[1].shape[1]
        return func(*args, **(kwargs or {}))


def flops(learner: Learner, cached: Scaled8B, sample: int, *, training: bool) -> int:
    objective = learner.objective if training else learner.evaluation
    plan = StepPlan(samples=np.array([sample]), micro_batches=(((sample,),),), after=DataPosition())
    draw = partial(objective.draw, training=training)
    loader = Loader(cached, [plan], draw=draw, columns=objective.columns, device=CPU.device, prefetch_batches=1)
    with loader, WeightProducts() as counter:
        for header, batches in loader:
            if training:
                learner.step(batches, header.counts, 0.0)
            else:
                for batch in batches:
                    learner.measure(batch)
    return counter.flops


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "eagle3", "ttt_steps": 5},
        {"objective": "peagle", "peagle_depths": 6},
        {"objective": "peagle", "peagle_depths": 6, "sequence_partitions": 3},
        {"objective": "eagle1", "ttt_steps": 3},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_costs_are_the_products_of_each_document(
    settings: dict[str, Any], num_layers: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (costs_module, objective_eagle1):
        monkeypatch.setattr(module, "PAIR_COST", 0.0)  # torch does not count the CPU's attention kernels
    cached = source(for_eagle1=settings["objective"] == "eagle1")
    learner = make_learner(cached, num_layers, **settings)
    counted = np.array([flops(learner, cached, n, training=training) for n in range(len(DOCUMENTS))]) / UNIT
    ratios = counted / learner.costs(cached.index, training=training)
    assert ratios.max() / ratios.min() < 1.15
    assert not training or 0.9 < ratios.min() < ratios.max() < 1.15


@pytest.mark.parametrize("objective", ["eagle3", "peagle", "eagle1"])
def test_cost_grows_with_tokens_supervision_and_the_keys_that_are_read(objective: str) -> None:
    index = made_index(np.array([100, 100, 200, 200]), np.array([0, 50, 50, 100]))
    priced = make_objective(train_config(objective))
    costs = priced.costs(index, num_layers=1, training=True)
    assert np.all(np.diff(costs) > 0) and costs[2] - costs[1] > 100
    assert np.all(priced.costs(index, num_layers=2, training=True)[1:] > costs[1:])


def test_fewer_samples_of_the_depths_cost_less_than_all_of_them() -> None:
    cached = source(for_eagle1=False)
    few, all_of_them = (
        make_objective(train_config("peagle", cod_ratio=ratio)).costs(cached.index, num_layers=1, training=True)
        for ratio in (0.3, 1.0)
    )
    assert np.all(few < all_of_them) and few.sum() < 0.5 * all_of_them.sum()
    held_out = make_objective(train_config("peagle", cod_ratio=0.3))
    assert np.array_equal(held_out.costs(cached.index, num_layers=1, training=False), all_of_them)
