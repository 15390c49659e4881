"""The EAGLE-3 training step of SpecForge, on the samples and from the weights of the compact path."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from eaglepipe.bench.peers.batches import DecodedBatch, decoded_layouts, unpadded_rows
from eaglepipe.bench.peers.set_ups import FastestSetUp
from eaglepipe.bench.step_paths import StepPath
from eaglepipe.bench.timing import Spent

_STEP_DECAY = 0.8  # weight of a TTT step's loss over that of the step before it, as in its trainer


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A batch, and whether its probabilities come from its compact teacher or from logits of the whole vocabulary."""

    batch: DecodedBatch
    compact_teacher: bool


class SpecforgeEagle3:
    """Its draft, teacher and unroll, with the draft's own weights; of its two teachers, the faster one.

    It cannot pack: a batch is one document, or several of equal length, and so holds no padding. The cache has the
    head's rows of the draft vocabulary alone; the others, which its teachers read too, are zeros here.
    """

    def __init__(self, path: StepPath) -> None:
        self._path, self._device = path, path.setup.device
        self._attention = "flex_attention" if self._device.type == "cuda" else "sdpa"
        self._head = whole_head(path).to(self._device)
        (batches,) = decoded_layouts(path, {"documents alone": unpadded_rows(path.setup)}).values()
        calls = {
            f"documents of one length a batch, {teacher}": [
                _Call(batch=batch, compact_teacher=compact) for batch in batches
            ]
            for teacher, compact in (("compact teacher", True), ("teacher of all logits", False))
        }
        models = {self._attention: self._model()}
        self._passes = FastestSetUp(models, calls, self._step, self._device, warm_up=True)

    @property
    def note(self) -> str:
        """How it runs."""
        losses = "Triton" if self._device.type == "cuda" else "plain compiled"
        return f"specforge: {self._passes.description}, {losses} losses"

    def run_all(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass; return what it took and each step's summed loss, float64 [K]."""
        return self._passes.run_all()

    def _step(self, model: Any, call: _Call) -> torch.Tensor:
        dtype, packed = self._path.setup.dtype, call.batch.packed
        autocast = torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32)
        with _losses_for(self._device), autocast:
            means, *_ = model(
                input_ids=packed.input_ids,
                attention_mask=packed.attention_mask,
                loss_mask=packed.position_mask[..., None].int(),
                hidden_states=call.batch.aux,
                **self._teacher(call),
            )
        sum(_STEP_DECAY**k * mean for k, mean in enumerate(means)).backward()
        return torch.stack(means).detach().double().cpu() * packed.input_ids.numel()

    def _teacher(self, call: _Call) -> dict[str, Any]:
        states = call.batch.last_hidden
        if call.compact_teacher:
            return {"target": None, "target_hidden_for_compact": states, "target_head_weight": self._head}
        return {"target": F.linear(states, self._head)}

    def _model(self) -> Any:
        from specforge.algorithms.eagle3.model import OnlineEagle3Model
        from specforge.modeling.draft import LlamaForCausalLMEagle3
        from transformers import LlamaConfig

        own: Any = self._path.module.draft_model
        config = LlamaConfig(**{**own.config.to_dict(), "norm_output": True})  # there: the norm before the lm_head
        draft = LlamaForCausalLMEagle3(config, attention_backend=self._attention)
        draft.load_state_dict({_its_name(name): tensor for name, tensor in own.state_dict().items()})
        draft.freeze_embedding()
        steps = self._path.setup.preset.ttt_steps
        return OnlineEagle3Model(draft, length=steps, attention_backend=self._attention).to(self._device).train()


def whole_head(path: StepPath) -> torch.Tensor:
    """Return the target's lm_head over the whole vocabulary, float32 [V, H]; rows that the cache lacks are zeros."""
    cache = path.setup.cache
    rows = cache.start_tensors()["lm_head.weight"].float()
    head = rows.new_zeros(cache.spec.vocab_size, rows.shape[1])
    head[cache.vocab.selected_token_ids] = rows
    return head


def _its_name(name: str) -> str:
    return name.replace("model.layers.0.", "midlayer.").removeprefix("model.")


@contextmanager
def _losses_for(device: torch.device) -> Iterator[None]:
    """Let its model use the package's plain loss where the one of Triton kernels cannot run."""
    from specforge.algorithms.eagle3 import model
    from specforge.core import loss

    kernels = model.LogSoftmaxLoss
    if device.type != "cuda":
        model.LogSoftmaxLoss = type("PlainLoss", (), {"apply": staticmethod(loss._compute_loss)})
    try:
        yield
    finally:
        model.LogSoftmaxLoss = kernels
