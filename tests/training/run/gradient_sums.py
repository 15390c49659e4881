"""What summing gradients costs two ranks: the sum once a step, against torch's DistributedDataParallel.

`python -m tests.training.run.gradient_sums [ROUNDS]` prints the CPU seconds of both, alternating in the same processes,
and the largest deviation of either from the gradients of one process.
"""

import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig

from eaglepipe.eagle.core import Eagle3TrainerModule
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.training.run.gradients import sum_gradients
from eaglepipe.training.run.ranks.distributed import World, join_world
from tests.ranks import run_ranks

HIDDEN, VOCAB, DRAFT_VOCAB, SLOTS, MICRO_BATCHES, STEPS = 512, 8192, 8192, 256, 4, 3


class _Step(nn.Module):
    """The forward that DistributedDataParallel wraps."""

    def __init__(self, trainer: Eagle3TrainerModule) -> None:
        super().__init__()
        self.trainer = trainer

    def forward(self, batch: dict[str, Any], divisors: torch.Tensor) -> torch.Tensor:
        return self.trainer(**batch, normalizers=divisors).loss


def _trainer() -> Eagle3TrainerModule:
    target = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_hidden_layers=8,
        max_position_embeddings=SLOTS,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    config = draft_config_from_target(target.to_dict(), draft_vocab_size=DRAFT_VOCAB, num_aux_hidden_states=3)
    draft = LlamaEagle3DraftModel(config).float()
    draft.freeze_embeddings()
    ids = torch.arange(DRAFT_VOCAB)
    return Eagle3TrainerModule(draft, ids, torch.ones(VOCAB, dtype=torch.bool), 3).train()


def _batch(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(1, SLOTS, dtype=torch.bool)
    supervised = mask.clone()
    supervised[:, -1] = False
    return {
        "input_ids": torch.randint(VOCAB, (1, SLOTS), generator=generator),
        "attention_mask": mask,
        "loss_mask": supervised,
        "position_mask": supervised,
        "aux_hidden_states": torch.randn(1, SLOTS, 3 * HIDDEN, generator=generator),
        "target_probs": torch.randn(1, SLOTS, DRAFT_VOCAB, generator=generator).softmax(-1),
    }


def _parameters(step: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in step.parameters() if parameter.requires_grad]


def _clear(step: nn.Module) -> None:
    for parameter in _parameters(step):
        parameter.grad = None


def _by_sum(step: _Step, batches: list[dict[str, Any]], divisors: torch.Tensor, world: World) -> None:
    for batch in batches:
        step(batch, divisors).backward()
    sum_gradients(_parameters(step), world)


def _by_ddp(ddp: Any, batches: list[dict[str, Any]], divisors: torch.Tensor, world: World) -> None:
    """The mean over ranks, of losses as many times too large."""
    with ddp.no_sync():
        for batch in batches[:-1]:
            (world.size * ddp(batch, divisors)).backward()
    (world.size * ddp(batches[-1], divisors)).backward()


def _measure(rounds: int) -> None:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        step = _Step(_trainer())
        ddp = DistributedDataParallel(_Step(_trainer()), gradient_as_bucket_view=True, find_unused_parameters=False)
        batches = [_batch(seed) for seed in range(world.size * MICRO_BATCHES)]
        divisors = torch.tensor([(SLOTS - 1 - depth) * len(batches) for depth in range(3)])
        own = batches[world.rank * MICRO_BATCHES : (world.rank + 1) * MICRO_BATCHES]
        alone = _Step(_trainer())
        for batch in batches:
            alone(batch, divisors).backward()
        ways: dict[str, tuple[Any, Any]] = {"sum": (_by_sum, step), "DDP": (_by_ddp, ddp)}
        seconds = dict.fromkeys(ways, 0.0)
        for number in range(rounds + 1):
            for name, (way, module) in ways.items():
                _clear(module)
                world.barrier()
                begun = time.process_time()
                for _ in range(STEPS):
                    _clear(module)
                    way(module, own, divisors, world)
                seconds[name] += (time.process_time() - begun) if number else 0.0  # the first one warms up
        for name, (_, module) in ways.items():
            pairs = zip(_parameters(module), _parameters(alone), strict=True)
            worst = max(((a.grad - b.grad).norm() / b.grad.norm()).item() for a, b in pairs)  # type: ignore[operator,union-attr]
            each = seconds[name] / (rounds * STEPS)
            print(f"rank {world.rank} {name}: {each:.3f} CPU s a step, deviation {worst:.1e}", flush=True)


def main(rounds: int) -> None:
    for done in run_ranks(2, _measure, rounds):
        print(done.stdout, end="")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
