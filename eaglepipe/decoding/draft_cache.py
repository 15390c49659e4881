"""Keys and values of a draft layer: those of verified slots, and behind them those of guesses, which never stay.

Shapes: B rows, S places, kv key-value heads, d head size, n new tokens.
"""

import torch

_SPARE_PLACES = 64


class DraftCache:
    """One layer. Verified slot t of a row lies at place t; guesses lie behind the longest row."""

    def __init__(self) -> None:
        self._room: torch.Tensor | None = None  # [2, B, S, kv, d], zeros where nothing was written

    def write(self, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> None:
        """Put keys and values [B, n, kv, d] at int64 places [B, n]."""
        room = self._grown(key, int(places.max()) + 1)
        rows = torch.arange(len(places), device=places.device)[:, None]
        room[0][rows, places] = key
        room[1][rows, places] = value

    def first(self, num_places: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at places below `num_places`, [B, kv, num_places, d] each."""
        assert self._room is not None
        key, value = self._room[:, :, :num_places].transpose(2, 3)
        return key, value

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        assert self._room is not None
        self._room = self._room[:, rows]

    def _grown(self, like: torch.Tensor, num_places: int) -> torch.Tensor:
        old = self._room
        if old is not None and old.shape[2] >= num_places:
            return old
        room = like.new_zeros(2, len(like), num_places + num_places // 2 + _SPARE_PLACES, *like.shape[2:])
        if old is not None:
            room[:, :, : old.shape[2]] = old
        self._room = room
        return room
