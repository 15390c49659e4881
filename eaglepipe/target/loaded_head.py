"""The head of a loaded target: from last hidden states to its logits, and the tensors that a draft starts from.

Shapes: T tokens of the probe, Ht target hidden, V vocabulary, D draft vocabulary, N any rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eaglepipe.errors import TargetError
from eaglepipe.target.layers import final_norm_weight, head_spec_candidates
from eaglepipe.target.load import LoadedTarget
from eaglepipe.target_head import HeadSpec
from eaglepipe.vocab import DraftVocab

PROBE_LENGTH = 4


@dataclass(frozen=True, kw_only=True)
class LoadedHead:
    """A target's lm_head as a module, with the transform of its output."""

    target: LoadedTarget
    decoder: nn.Module
    module: nn.Module
    spec: HeadSpec

    @torch.no_grad()
    def logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits, float32 [N, V], of last hidden states [N, Ht]."""
        return self.spec.apply(self.module(last_hidden))

    @torch.no_grad()
    def narrow_logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits [N, V] in the narrowest type that holds those of `logits` exactly."""
        raw: torch.Tensor = self.module(last_hidden)
        return raw if self.spec == HeadSpec() else self.spec.apply(raw)

    def start_tensors(self, vocab: DraftVocab, *, full_head: bool) -> dict[str, torch.Tensor]:
        """Return the tensors that a draft starts from, on the CPU in the target's dtype.

        `embed_tokens.weight` [V, Ht], `lm_head.weight` [D, Ht] and `lm_head.bias` [D] (rows of the draft vocabulary),
        `lm_head_full.weight` [V, Ht] and `lm_head_full.bias` [V] with `full_head`, `norm.weight` [Ht].
        """
        target = self.target
        tensors = {
            "embed_tokens.weight": target.model.get_input_embeddings().weight[: target.vocab_size],
            "norm.weight": final_norm_weight(self.decoder, target.hidden_size).to(target.dtype),
        }
        for name in ("weight", "bias"):
            parameter = getattr(self.module, name, None)
            if parameter is None:
                continue
            tensors[f"lm_head.{name}"] = parameter[vocab.selected_token_ids.to(parameter.device)]
            if full_head:
                tensors[f"lm_head_full.{name}"] = parameter
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class HeadedTarget:
    """The part of a `TargetModel` that a loaded target's config and head answer."""

    target: LoadedTarget
    _head: LoadedHead

    @property
    def hidden_size(self) -> int:
        """Ht."""
        return self.target.hidden_size

    @property
    def architectures(self) -> list[str]:
        """Names by which a draft is chosen."""
        return self.target.architectures

    def head_logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits, float32 [N, V], of last hidden states [N, Ht]."""
        return self._head.logits(last_hidden)

    def narrow_logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits [N, V] in the narrowest type that holds them exactly."""
        return self._head.narrow_logits(last_hidden)

    def head_spec(self) -> HeadSpec:
        """Return the scale and soft cap that turn raw head outputs into logits."""
        return self._head.spec

    def draft_start_tensors(self, vocab: DraftVocab, *, full_head: bool) -> dict[str, torch.Tensor]:
        """Return the tensors that a draft starts from, as `LoadedHead.start_tensors`."""
        return self._head.start_tensors(vocab, full_head=full_head)


def probe_ids(target: LoadedTarget) -> torch.Tensor:
    """Return the ids by which a target's own logits are compared with ours: int64 [1, T]."""
    return torch.arange(PROBE_LENGTH, device=target.device)[None] % target.vocab_size


@torch.no_grad()
def probe_logits(target: LoadedTarget) -> torch.Tensor:
    """Return the whole model's own logits of the probe, float32 [T, V].

    This is the first forward of a target: compressed-tensors replaces the compressed weights by usable ones in a hook
    that only the whole model calls.

    Raises:
        TargetError: the model's own forward fails.
    """
    with explained_forward(target):
        logits: torch.Tensor = target.model(input_ids=probe_ids(target), use_cache=False).logits
    return logits[0].float()


@torch.no_grad()
def find_head_spec(
    target: LoadedTarget, head: nn.Module, last_hidden: torch.Tensor, expected: torch.Tensor
) -> HeadSpec:
    """Return the first candidate with which the head gives the logits of the whole model's own forward.

    Args:
        last_hidden: of the probe [T, Ht].
        expected: the model's own logits of the probe, float32 [T, V].

    Raises:
        TargetError: none does.
    """
    raw = head(last_hidden)
    tolerance = 1e-4 if target.dtype == torch.float32 else 16 * torch.finfo(target.dtype).eps
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    candidates = head_spec_candidates(target.text_config)
    errors = [float((spec.apply(raw) - expected).abs().max()) for spec in candidates]
    for spec, error in zip(candidates, errors, strict=True):
        if not error > allowed:  # a NaN passes, since it is refused sample by sample
            return spec
    raise TargetError(
        f"{type(target.model).__name__}: its logits are not lm_head(last hidden state) with any scaling that its "
        f"config names (they differ by {min(errors):.3g}); this architecture cannot be captured faithfully"
    )


def find_head(target: LoadedTarget) -> nn.Module:
    """Return the lm_head, which has a row for every token.

    Raises:
        TargetError: there is none, or its rows contradict the config.
    """
    head, name = target.model.get_output_embeddings(), type(target.model).__name__
    if head is None or not isinstance(head.weight, torch.Tensor):
        raise TargetError(f"{name}: it has no lm_head")
    if head.weight.shape[0] != target.vocab_size:
        raise TargetError(
            f"{name}: its lm_head has {head.weight.shape[0]} rows, its config a vocabulary of {target.vocab_size}"
        )
    return head


def config_fields(target: LoadedTarget) -> dict[str, Any]:
    """Return the fields of the target's config.json, its architectures named."""
    fields: dict[str, Any] = target.model.config.to_dict()
    fields.pop("_name_or_path", None)
    return {**fields, "architectures": target.architectures}


@contextmanager
def explained_forward(target: LoadedTarget) -> Iterator[None]:
    """Turn what a target's own code raises in its forward into a TargetError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as failure:
        name = type(target.model).__name__
        raise TargetError(f"{name}: its own forward fails: {str(failure)[:300]}") from failure
