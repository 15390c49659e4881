"""Samples of a cache as speculators takes them: token ids, and the states of all its layers in one tensor.

speculators applies the target's final norm to the last of the states. A cache holds its output y = x / rms(x) · g, so
that x is y / g, up to a length that gives y again.

Shapes: T tokens, A aux layers, Ht the target's hidden size.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError


class CacheStates:
    """The states of a cache's samples, by their number; opened where it is used, so that it goes to other processes."""

    def __init__(self, folder: Path) -> None:
        """Raises CacheError if the cache keeps no last hidden states."""
        self._cache = Cache.open(folder)
        if self._cache.spec.kind.stores_probabilities:
            raise CacheError(
                f"{folder}: holds probabilities (supervision {self._cache.spec.supervision}), and speculators needs "
                "last hidden states; make the cache with cache.supervision=hidden"
            )
        self._gain = self._cache.start_tensors()["norm.weight"].float()
        self._eps = _eps(self._cache.target_config)

    @property
    def cache(self) -> Cache:
        """The cache."""
        return self._cache

    def read(self, number: int) -> dict[str, torch.Tensor]:
        """Return `token_ids` int64 [T] and `hidden_states` [T, A + 1, Ht], the last of them before the final norm.

        Last hidden states that the cache does not keep are 0, at tokens that carry no loss.
        """
        sample, spec = self._cache.read(number), self._cache.spec
        scales = None if sample.aux_scales is None else torch.from_numpy(np.copy(sample.aux_scales))
        aux = spec.decode_aux(EncodedRows(payload=torch.from_numpy(np.copy(sample.aux_payload)), scales=scales))
        last = before_norm(self._last_hidden(sample).float(), self._gain, self._eps)
        states = torch.cat([aux.float(), last[:, None]], dim=1)
        return {"token_ids": torch.from_numpy(sample.input_ids.astype(np.int64)), "hidden_states": states}

    def loss_mask(self, number: int) -> torch.Tensor:
        """Return the tokens that carry a loss, bool [T]: those of the assistant whose last hidden state is kept."""
        sample = self._cache.read(number)
        kept = sample.loss_mask if sample.last_hidden_payload is not None else sample.supervised
        return torch.from_numpy(np.copy(kept))

    def _last_hidden(self, sample: CachedSample) -> torch.Tensor:
        spec = self._cache.spec
        if sample.last_hidden_payload is not None:
            return spec.rows.decode(EncodedRows(payload=torch.from_numpy(np.copy(sample.last_hidden_payload))))
        payload = torch.from_numpy(np.copy(sample.supervision[spec.kind.column]))
        kept = spec.rows.decode(EncodedRows(payload=payload))
        rows = torch.zeros(len(sample.input_ids), spec.hidden_size, dtype=kept.dtype)
        rows[torch.from_numpy(np.copy(sample.supervised))] = kept
        return rows


def before_norm(normed: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Return states [T, Ht] whose RMS norm with `gain` [Ht] and `eps` is `normed`, float32; rows of 0 stay so.

    With z = y / g of mean square m, the norm of s · z is s / sqrt(s² · m + eps) · y: y itself for s² = eps / (1 - m). A
    row whose rounding makes m 1 or more is the norm of no state; it comes back shorter, by the root of m.
    """
    dead = gain == 0
    direction = torch.where(dead, 0.0, normed / torch.where(dead, 1.0, gain)).double()
    lacking = 1.0 - direction.square().mean(dim=-1, keepdim=True)
    scale = torch.where(lacking > 0, (eps / lacking.clamp(min=1e-12)).sqrt(), 1.0)
    return (direction * scale).float()


def _eps(config: dict[str, Any]) -> float:
    """Return the epsilon of the final norm that a target's config names."""
    text = config.get("text_config")
    found = config.get("rms_norm_eps", text.get("rms_norm_eps") if isinstance(text, dict) else None)
    return float(found) if isinstance(found, int | float) and found > 0 else 1e-6
