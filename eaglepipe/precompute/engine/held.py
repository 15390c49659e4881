"""Samples of answers whose states are encoded, held until it is known what becomes of them: a place, or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import ShardItem
from eaglepipe.precompute.engine.shards import UNKNOWN_PLACES, ShardsInMaking


class HeldAnswers:
    """Answers and decisions about them come in any order; whichever is second settles an answer."""

    def __init__(self, shards: ShardsInMaking) -> None:
        self._shards = shards
        self._items: dict[str, ShardItem] = {}
        self._decided: dict[str, tuple[int, Mapping[str, Any]]] = {}

    def take(self, key: str, item: ShardItem) -> None:
        """Hold the encoded sample of an answer, or put it where it was decided."""
        if key in self._decided:
            self._put(item, *self._decided.pop(key))
        else:
            self._items[key] = item

    def settle(self, shard: int, outcomes: Sequence[Mapping[str, Any]]) -> None:
        """Take decisions.

        Args:
            outcomes: each with `place` and `sample_id` and either the `key` of an answer or the `reason` that there is
                none; or with a `key` alone, whose answer is dropped.
        """
        for outcome in outcomes:
            if (reason := outcome.get("reason")) is not None:
                self._shards.put(shard, UNKNOWN_PLACES, outcome["place"], (outcome["sample_id"], reason))
            elif (key := outcome["key"]) in self._items:
                self._put(self._items.pop(key), shard, outcome)
            else:
                self._decided[key] = shard, outcome

    def _put(self, item: ShardItem, shard: int, outcome: Mapping[str, Any]) -> None:
        if (place := outcome.get("place")) is None:
            return
        own: ShardItem
        if isinstance(item, CachedSample):
            own = replace(item, sample_id=outcome["sample_id"])
        else:
            own = outcome["sample_id"], item[1]
        self._shards.put(shard, UNKNOWN_PLACES, place, own)
