"""The demo's target: a small Llama, trained on the demo's conversations within three minutes of two cores.

Narrow and deep: its layers differ in their worth to a draft, which those of a wide and shallow model of equal cost do
not, and it takes many times as long as a draft's one layer, so that drafting pays.

The number of steps is fixed, so that one machine always makes the same target; a slower one reaches its time limit
first, and the learning rate follows whichever share is further on, so that it too ends fully annealed.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from eaglepipe.demo.corpus import read_rows
from eaglepipe.demo.muon import Muon
from eaglepipe.demo.target_data import MicroBatch, encode, steps
from eaglepipe.progress import without_library_output

INITIALIZER_RANGE = 0.05  # attention is sharp enough to learn copying early


@dataclass(frozen=True, kw_only=True)
class TargetShape:
    """Sizes of the target: 0.75M parameters."""

    hidden_size: int = 48
    intermediate_size: int = 96
    num_hidden_layers: int = 24
    num_attention_heads: int = 3
    num_key_value_heads: int = 3


@dataclass(frozen=True, kw_only=True)
class TargetTraining:
    """How the target is trained: `rows` at each step, in micro-batches of `micro_rows` for the cores to share."""

    max_steps: int = 560
    max_seconds: float = 130.0
    rows: int = 12
    micro_rows: int = 3
    learning_rate: float = 1.2e-2
    vector_learning_rate_ratio: float = 1.5  # of what AdamW trains, embeddings and norms, to `learning_rate`
    warmup_share: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """A finished target; `loss` is the mean over the last tenth of the steps, in nats per answer token."""

    folder: Path
    num_parameters: int
    num_steps: int
    num_tokens: int
    loss: float
    seconds: float
    stopped_by_time: bool


def train_target(
    files: Iterable[Path],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    training: TargetTraining = TargetTraining(),
    shape: TargetShape = TargetShape(),
    on_step: Callable[[float], None] | None = None,
) -> TargetReport:
    """Train a target on the rows of `files` and save it with its tokenizer as a transformers folder.

    Args:
        on_step: called after each step with its loss, in nats per answer token.
    """
    started = time.monotonic()
    model = build_model(tokenizer, shape, seed=training.seed)
    examples = encode(tokenizer, read_rows(files))
    batches = steps(examples, rows=training.rows, micro_rows=training.micro_rows, seed=training.seed)
    losses, num_tokens = _train(model, batches, training, on_step)
    model.config.use_cache = True
    with without_library_output():
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return TargetReport(
        folder=folder,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_steps=len(losses),
        num_tokens=num_tokens,
        loss=fmean(losses[-max(1, len(losses) // 10) :]),
        seconds=time.monotonic() - started,
        stopped_by_time=len(losses) < training.max_steps,
    )


def build_model(tokenizer: PreTrainedTokenizerBase, shape: TargetShape, *, seed: int) -> LlamaForCausalLM:
    """Return a fresh float32 Llama with tied embeddings; the caller's random state stays as it was."""
    config = LlamaConfig(
        **asdict(shape),
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float().train()
    with torch.no_grad():
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.mul_((2 * shape.num_hidden_layers) ** -0.5)
    return model


def _train(
    model: LlamaForCausalLM,
    batches: Iterator[list[MicroBatch]],
    training: TargetTraining,
    on_step: Callable[[float], None] | None,
) -> tuple[list[float], int]:
    """Return the loss of each step, and the tokens of all."""
    update = _optimizer(model, training)
    started, progress, num_tokens = time.monotonic(), 0.0, 0
    losses: list[float] = []
    with side_by_side(math.ceil(training.rows / training.micro_rows)) as pool:
        while progress < 1.0:
            batch = next(batches)
            losses.append(accumulate_gradients(model, batch, pool))
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            update(training.learning_rate * rate_factor(progress, training.warmup_share))
            progress = max(len(losses) / training.max_steps, (time.monotonic() - started) / training.max_seconds)
            num_tokens += sum(micro.num_tokens for micro in batch)
            if on_step is not None:
                on_step(losses[-1])
    return losses, num_tokens


@contextmanager
def side_by_side(num_tasks: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads for tasks that run at once, no more than the cores, each with its share of them for its operators.

    Operators of a narrow model are too small to be split: two cores get more from two micro-batches than from one.
    """
    cores = torch.get_num_threads()
    num_threads = min(cores, num_tasks)
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(cores // num_threads,))
    try:
        with pool:
            yield pool
    finally:
        torch.set_num_threads(cores)


def rate_factor(progress: float, warmup_share: float) -> float:
    """Return a linear warm-up, then a linear decay that reaches zero as `progress` reaches one."""
    if progress < warmup_share:
        return max(progress, 0.01) / warmup_share
    return (1.0 - progress) / (1.0 - warmup_share)


def accumulate_gradients(model: LlamaForCausalLM, batch: list[MicroBatch], pool: ThreadPoolExecutor) -> float:
    """Leave in the parameters the gradients of the mean loss over a step's answer tokens, and return that loss.

    They are added longest first, whichever thread was done first, so that a step is the same each time.
    """
    num_labels = sum(int(micro.is_label.sum()) for micro in batch)
    longest_first = pool.map(partial(_gradients, model, num_labels), reversed(batch))
    losses, gradients = zip(*longest_first, strict=True)
    for parameter, *parts in zip(model.parameters(), *gradients, strict=True):
        parameter.grad = torch.stack(parts).sum(dim=0)
    return sum(losses)


def _gradients(model: LlamaForCausalLM, num_labels: int, micro: MicroBatch) -> tuple[float, tuple[Tensor, ...]]:
    """A micro-batch's share of the loss and its gradients; the head runs on answer tokens alone."""
    hidden = model.model(input_ids=micro.input_ids).last_hidden_state[:, :-1][micro.is_label]
    labels = micro.input_ids[:, 1:][micro.is_label]
    loss = F.cross_entropy(model.lm_head(hidden), labels, reduction="sum") / num_labels
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def _optimizer(model: LlamaForCausalLM, training: TargetTraining) -> Callable[[float], None]:
    """Return a step at a learning rate: Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    matrix_ids = set(map(id, matrices))
    vectors = [parameter for parameter in model.parameters() if id(parameter) not in matrix_ids]
    muon = Muon(matrices, weight_decay=training.weight_decay)
    adamw = torch.optim.AdamW(vectors, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(learning_rate: float) -> None:
        for group in adamw.param_groups:
            group["lr"] = learning_rate * training.vector_learning_rate_ratio
        adamw.step()
        muon.step(learning_rate)

    return step
