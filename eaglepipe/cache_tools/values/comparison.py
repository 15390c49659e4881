"""Sums over all columns of the samples that two caches share."""

from typing import Any

import numpy as np
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.sampled import SampledSupervision
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.values.columns import (
    Side,
    compare_aux,
    compare_every_last_hidden,
    compare_supervision,
)
from eaglepipe.cache_tools.values.sums import EqualitySums, NumberSums, ProbabilitySums, StateSums

_SHOWN = 5


class Comparison:
    """What has been found so far; samples are added one after the other."""

    def __init__(self, a: Cache, b: Cache) -> None:
        self._a, self._b = Side(a), Side(b)
        self.layers = [layer for layer in a.spec.aux_layer_ids if layer in b.spec.aux_layer_ids]
        self.same_vocab = a.vocab.selected_token_ids.tolist() == b.vocab.selected_token_ids.tolist()
        self.compared = 0  # samples
        self.places: list[str] = []  # the first rows that must be equal and are not
        self.equal: dict[str, EqualitySums] = {}
        self.probabilities, self.draft_mass = ProbabilitySums(), NumberSums()
        self._aux = [StateSums() for _ in self.layers]
        self._last_hidden = self._every_last_hidden = StateSums()

    @property
    def _drawn(self) -> bool:
        """Whether one side's probabilities were drawn, and the other's were not."""
        kinds = [side.cache.spec.supervision for side in (self._a, self._b)]
        return SampledSupervision.name in kinds and kinds[0] != kinds[1]

    @property
    def states(self) -> dict[str, StateSums]:
        """Deviations of states by column; none of columns that the caches do not share."""
        found = {f"aux_hidden_states[{layer}]": sums for layer, sums in zip(self.layers, self._aux, strict=True)}
        found["last_hidden_states"] = self._last_hidden
        found["last_hidden_states of all tokens"] = self._every_last_hidden
        return {name: sums for name, sums in found.items() if sums.rows}

    @property
    def not_compared(self) -> dict[str, str]:
        """Columns that the caches do not share, and why."""
        a, b = (side.cache.spec for side in (self._a, self._b))
        reasons = {}
        for layer in sorted({*a.aux_layer_ids} ^ {*b.aux_layer_ids}):
            reasons[f"aux_hidden_states[{layer}]"] = f"only in {'A' if layer in a.aux_layer_ids else 'B'}"
        if self._a.hidden is None or self._b.hidden is None:
            reasons["last_hidden_states"] = f"supervision is {a.supervision} in A, {b.supervision} in B"
        if self._drawn:
            kinds = f"supervision is {a.supervision} in A, {b.supervision} in B"
            reasons["target_probs"] = f"{kinds}, and drawn entries are right in the mean alone"
        if not self.same_vocab:
            reasons["target_probs, draft_mass, position_mask"] = "the draft vocabularies differ"
        return reasons

    def add(self, one: CachedSample, other: CachedSample) -> None:
        """Add a sample of A and that of B with the same id; if their tokens differ, nothing else is compared."""
        if not np.array_equal(one.input_ids, other.input_ids):
            self._count("input_ids", np.array([True]), f"input_ids of {one.sample_id}")
            return
        self.compared += 1
        self._count("input_ids", np.array([False]), "")
        for name in ("loss_mask", "supervised"):
            different = getattr(one, name) != getattr(other, name)
            self._count(name, different, f"{name} of {one.sample_id}, token {int(different.argmax())}")
        both = one.supervised & other.supervised
        self._count("target_top1", one.target_top1[both] != other.target_top1[both], None)
        if self.same_vocab:
            self._count("position_mask", one.position_mask[both] != other.position_mask[both], None)
            masses = (torch.from_numpy(sample.draft_mass[both]) for sample in (one, other))
            self.draft_mass += NumberSums.between(*masses)
        self._add_numbers(one, other)

    def _add_numbers(self, one: CachedSample, other: CachedSample) -> None:
        found = compare_aux(self._a, self._b, one, other, self.layers)
        self._aux = [old + new for old, new in zip(self._aux, found, strict=True)]
        states, distributions = compare_supervision(
            self._a, self._b, one, other, probabilities=self.same_vocab and not self._drawn
        )
        self._last_hidden += states
        self.probabilities += distributions
        if self._a.keeps_all and self._b.keeps_all:
            self._every_last_hidden += compare_every_last_hidden(self._a, self._b, one, other)

    def _count(self, name: str, different: Any, place: str | None) -> None:
        self.equal[name] = self.equal.get(name, EqualitySums()) + EqualitySums.between(different)
        if place is not None and different.any() and len(self.places) < _SHOWN:
            self.places.append(place)
