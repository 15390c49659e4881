"""The layer modules that SGLang's model files import, in plain torch: one rank, no quantization, no kernels.

Initial values are SGLang's: norms are ones, biases of its linear layers zeros, weights whatever memory held.
"""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import nn

RANK = SimpleNamespace(is_first_rank=True, is_last_rank=True, rank_in_group=0, world_size=1)
PARALLEL = SimpleNamespace(tp_size=1, tp_rank=0, pp_group=RANK, enable_dp_lm_head=False)
SPEC = SimpleNamespace(
    speculative_draft_window_size=None,
    speculative_draft_model_path="draft",
    speculative_draft_model_revision=None,
    speculative_draft_attention_backend=None,
)
PLAIN = object()


class Struct:
    """As much of `msgspec.Struct` as a record of fields with defaults needs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__()

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def load_whole(parameter: torch.Tensor, loaded: torch.Tensor) -> None:
    assert parameter.shape == loaded.shape, f"{list(loaded.shape)} for a parameter of {list(parameter.shape)}"
    parameter.data.copy_(loaded)


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6, **kwargs: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, states: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        total = states if residual is None else states + residual
        scale = (total.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        normed = total * scale * self.weight
        return normed if residual is None else (normed, total)

    def fuse_input_quant(self, linear: nn.Module) -> None:
        return


class Linear(nn.Module):
    """A linear layer of parts, each loaded by itself; it returns the output and no bias."""

    def __init__(self, inputs: int, parts: dict[Any, int], bias: bool) -> None:
        super().__init__()
        self.parts = parts
        self.weight = _weight(sum(parts.values()), inputs)
        self.bias = nn.Parameter(torch.zeros(sum(parts.values()))) if bias else None
        if len(parts) > 1:
            for parameter in self.parameters():
                parameter.weight_loader = self._load_part  # type: ignore[attr-defined]

    def _load_part(self, parameter: torch.Tensor, loaded: torch.Tensor, part: Any) -> None:
        names = list(self.parts)
        start = sum(self.parts[name] for name in names[: names.index(part)])
        load_whole(parameter[start : start + self.parts[part]], loaded)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return F.linear(states, self.weight, self.bias), None


class QKVParallelLinear(Linear):
    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        keys = total_num_kv_heads * head_size
        super().__init__(hidden_size, {"q": total_num_heads * head_size, "k": keys, "v": keys}, bias)


class MergedColumnParallelLinear(Linear):
    def __init__(self, inputs: int, outputs: list[int], bias: bool = True, **kwargs: Any) -> None:
        super().__init__(inputs, dict(enumerate(outputs)), bias)


class RowParallelLinear(Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(inputs, {0: outputs}, bias)


class Embedding(nn.Module):
    def __init__(self, rows: int, width: int, **kwargs: Any) -> None:
        super().__init__()
        self.weight = _weight(rows, width)
        self.org_vocab_size = rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight)


class LogitsProcessor(nn.Module):
    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size

    def forward(self, ids: Any, states: torch.Tensor, head: Any, batch: Any, aux: Any = None) -> Any:
        logits = (states @ head.weight.T)[..., : self.vocab_size]
        return SimpleNamespace(logits=logits, states=states if aux is None else torch.cat(list(aux), dim=-1))


class SiluAndMul(nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, up = states.chunk(2, dim=-1)
        return F.silu(gate) * up


class DualGemm:
    def __init__(self, *args: Any) -> None:
        return

    def can_run(self, *args: Any) -> bool:
        return False


class RadixAttention(nn.Module):
    """Attention over the keys that the batch keeps."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        scaling: float,
        num_kv_heads: int,
        layer_id: int,
        sliding_window_size: int = -1,
        attn_type: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.num_kv_heads, self.layer_id = num_heads, head_dim, num_kv_heads, layer_id
        self.scaling, self.sliding_window_size, self.attn_type = scaling, sliding_window_size, attn_type

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Any) -> torch.Tensor:
        parts = query.unflatten(-1, (-1, self.head_dim)), *(x.unflatten(-1, (-1, self.head_dim)) for x in (key, value))
        output: torch.Tensor = batch.attend(self, *parts)
        return output.flatten(-2)


class FusedOp(nn.Module):
    """A module whose plain torch form is the one that runs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)


class Stage:
    """One half of a layer, whose output is added to the residual when the next one begins."""

    def __init__(self, read: object, norm: nn.Module) -> None:
        self.read, self.norm = read, norm

    def prepare(self, states: torch.Tensor, batch: Any, capture: Any = None) -> torch.Tensor:
        batch.residual = states if batch.residual is None else batch.residual + states
        if capture is not None:
            capture(batch.residual)
        read: torch.Tensor = batch.residual if self.read is PLAIN else self.norm(batch.residual)
        return read

    def finish(self, states: torch.Tensor, batch: Any) -> torch.Tensor:
        return states


class Residual:
    """The functions on the residual of a batch."""

    @staticmethod
    def start(batch: Any) -> None:
        batch.residual = None

    @staticmethod
    def fold(states: torch.Tensor, batch: Any) -> torch.Tensor:
        total: torch.Tensor = batch.residual + states
        return total

    @staticmethod
    def take_output(states: torch.Tensor, batch: Any) -> torch.Tensor:
        return states

    complete_output = take_output

    @staticmethod
    def final_norm(states: torch.Tensor, batch: Any, norm: Any, capture: Any = None, **kwargs: Any) -> torch.Tensor:
        if capture is not None:
            capture(states)
        normed: torch.Tensor = norm(states)
        return normed


def qk_norm(
    q: torch.Tensor, k: torch.Tensor, q_norm: nn.Module, k_norm: nn.Module, head_dim: int, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norms of query and key heads."""
    first, second = (norm(x.unflatten(-1, (-1, head_dim))) for x, norm in ((q, q_norm), (k, k_norm)))
    return first.flatten(-2), second.flatten(-2)


def rope_config(config: Any) -> tuple[Any, Any]:
    """Theta and parameters of positions, of a config as transformers 5 reads it."""
    return config.rope_parameters.get("rope_theta", 10000), config.rope_parameters


_LINEAR = "srt.layers.linear."
_VOCAB = "srt.layers.vocab_parallel_embedding."
_BOUNDARY = "srt.layers.layer_boundary."
_CONTEXT = "srt.runtime_context."
STAND_INS: dict[str, Any] = {
    "srt.layers.layernorm.RMSNorm": RMSNorm,
    f"{_LINEAR}QKVParallelLinear": QKVParallelLinear,
    f"{_LINEAR}MergedColumnParallelLinear": MergedColumnParallelLinear,
    f"{_LINEAR}RowParallelLinear": RowParallelLinear,
    f"{_LINEAR}LinearParallelGroup": str,
    f"{_VOCAB}VocabParallelEmbedding": Embedding,
    f"{_VOCAB}ParallelLMHead": Embedding,
    "srt.layers.logits_processor.LogitsProcessor": LogitsProcessor,
    "srt.layers.logits_processor.LogitsProcessorOutput": SimpleNamespace,
    "srt.layers.logits_processor.should_apply_lm_head_quant_method": lambda *args: False,
    "srt.layers.activation.SiluAndMul": SiluAndMul,
    "srt.layers.dual_gemm.DualGemm": DualGemm,
    "srt.layers.radix_attention.RadixAttention": RadixAttention,
    "srt.layers.radix_attention.AttentionType": SimpleNamespace(DECODER="decoder", ENCODER_ONLY="encoder_only"),
    "srt.layers.attention.index_topk_share.IndexTopKShareState": lambda *args: MagicMock(),
    "srt.layers.utils.get_layer_id": lambda name: None,
    f"{_BOUNDARY}append_stages": lambda *stages: [Stage(read, norm) for read, norm in stages],
    f"{_BOUNDARY}declare_attn": lambda read=None, **kwargs: read,
    f"{_BOUNDARY}declare_ffn": lambda **kwargs: None,
    f"{_BOUNDARY}residual.batch": Residual,
    f"{_BOUNDARY}residual.post_norm.PLAIN_READOUT": PLAIN,
    "srt.model_loader.weight_utils.default_weight_loader": load_whole,
    "srt.models.utils.apply_qk_norm": qk_norm,
    "srt.utils.add_prefix": lambda name, prefix: f"{prefix}.{name}" if prefix else name,
    "srt.utils.is_cpu": lambda: True,
    "srt.utils.common.get_compiler_backend": lambda *args, **kwargs: "eager",
    "srt.utils.hf_transformers_utils.get_rope_config": rope_config,
    "kernels.fused_op.BaseFusedOp": FusedOp,
    f"{_CONTEXT}get_parallel": lambda: PARALLEL,
    f"{_CONTEXT}get_spec": lambda: SPEC,
    f"{_CONTEXT}publish_role": lambda: None,
    "srt.platforms.current_platform": SimpleNamespace(
        is_out_of_tree=lambda: False, empty_cache=lambda: None, synchronize=lambda: None
    ),
    "srt.environ.envs": None,
}


class _Switch:
    """An environment variable of SGLang, unset."""

    def __init__(self, value: Any = False) -> None:
        self.get = lambda: value


class _Switches:
    SGLANG_ROPE_CACHE_FP32 = _Switch(True)
    SGLANG_RAGGED_VERIFY_MODE = _Switch("static")

    def __getattr__(self, name: str) -> _Switch:
        return _Switch()


STAND_INS["srt.environ.envs"] = _Switches()
