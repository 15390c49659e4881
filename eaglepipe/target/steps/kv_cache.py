"""Keys and values of earlier tokens in buffers with room to spare.

A cache that concatenates copies everything at every token: on a CPU half the time of an answer of 512 tokens.
"""

import inspect

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from eaglepipe.errors import TargetError
from eaglepipe.files.library_errors import explained_library_errors

_GROWTH = 1.5
_SPARE_TOKENS = 32


class RoomyLayer(DynamicLayer):
    """One layer's keys and values [B, heads, tokens, head_dim]: views of larger buffers, extended in place."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens; returns all keys and values so far."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_room, self._value_room = _room_for(key_states, stop), _room_for(value_states, stop)
        elif stop > self._key_room.shape[-2]:
            self._key_room = _room_for(key_states, int(stop * _GROWTH), self.keys)
            self._value_room = _room_for(value_states, int(stop * _GROWTH), self.values)
        self._key_room[:, :, start:stop] = key_states
        self._value_room[:, :, start:stop] = value_states
        self.keys, self.values = self._key_room[:, :, :stop], self._value_room[:, :, :stop]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only."""
        super().batch_select_indices(indices)
        if self.is_initialized:
            self._key_room, self._value_room = self.keys, self.values

    def move(self, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        """Copy tokens within each row, from slots [B, m] to slots [B, m]."""
        rows = torch.arange(len(sources), device=sources.device)[:, None]
        for room in (self._key_room, self._value_room):
            room[rows, :, destinations] = room[rows, :, sources]

    def shorten(self, num_tokens: int) -> None:
        """Forget the tokens from `num_tokens` on."""
        self.keys, self.values = self._key_room[:, :, :num_tokens], self._value_room[:, :, :num_tokens]


def make_cache(config: PretrainedConfig) -> DynamicCache:
    """Return the cache that the architecture needs, its plain layers made roomy.

    Raises:
        TargetError: the config describes no cache.
    """
    cache = _empty_cache(config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def make_rewindable_cache(config: PretrainedConfig) -> DynamicCache:
    """Return a cache whose every layer keeps all tokens and can forget some: `cache.layers` are `RoomyLayer`.

    Raises:
        TargetError: a layer with a state that cannot be taken back (recurrent, linear attention).
    """
    cache = _empty_cache(config)
    strange = {type(layer).__name__ for layer in cache.layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    if strange:
        raise TargetError(
            f"speculative decoding takes rejected tokens back, which this target's {', '.join(sorted(strange))} "
            f"({config.model_type}) cannot do here"
        )
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def _room_for(states: torch.Tensor, num_tokens: int, old: torch.Tensor | None = None) -> torch.Tensor:
    room = states.new_empty(*states.shape[:2], num_tokens + _SPARE_TOKENS, states.shape[-1])
    if old is not None:
        room[:, :, : old.shape[-2]] = old
    return room


def cache_argument(model: nn.Module) -> str:
    """Return the name under which a model's forward takes its cache: `cache`, or `past_key_values` in older ones."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _empty_cache(config: PretrainedConfig) -> DynamicCache:
    with explained_library_errors(TargetError, "the target's config describes no cache of keys and values"):
        return DynamicCache(config=config)
