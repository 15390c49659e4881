"""The values that writers take and readers give: one sample, and the index of all."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.samples.sample_ids import SampleIds
from eaglepipe.cache.supervision.columns import HostColumns


@dataclass(frozen=True, kw_only=True)
class CachedSample:
    """One conversation as stored, unshifted; arrays are read-only views of its bytes.

    T tokens. Row i supervises the distribution after token i.
    """

    sample_id: str
    source: str
    input_ids: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.bool_]  # [T] assistant tokens
    supervised: NDArray[np.bool_]  # [T] this token and the next belong to one assistant turn
    position_mask: NDArray[np.bool_]  # [T] supervised, and the target's top-1 is in the draft vocabulary
    target_top1: NDArray[np.int32]  # [T] the target's argmax, -1 if unsupervised
    draft_mass: NDArray[np.float32]  # [T] share of the full softmax inside the draft vocabulary, 0 if unsupervised
    aux_payload: NDArray[np.uint8]  # [T, aux row bytes], encoded
    aux_scales: NDArray[np.floating] | None  # [T, scales], for codecs that have them, in the codec's dtype
    supervision: HostColumns  # columns of the supervised tokens by name, see `cache.supervision.columns`
    last_hidden_payload: NDArray[np.uint8] | None = None  # [T, supervision row bytes], if every token's is stored


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Metadata of N samples in cache order, known without touching a shard."""

    sample_ids: Sequence[str]
    num_tokens: NDArray[np.int32]  # [N]
    num_supervised: NDArray[np.int32]  # [N]
    sources: tuple[str, ...]
    source_of: NDArray[np.integer]  # [N] index into sources
    weights: NDArray[np.float64] | None = None  # [N] expected visits of a sample in an epoch; None: once
    conversation_hashes: NDArray[np.uint64] | None = None  # [N] of the ids, if they are stored


def join_indices(indices: Iterable[SampleIndex]) -> SampleIndex:
    """Return the index of the samples of several shards or caches in order, without weights.

    Each is added as it comes, so that an iterator need not hold them all beside their sum.
    """
    num_tokens, num_supervised, source_of, hashes = array("i"), array("i"), array("i"), array("Q")
    all_hashed = True
    numbers: dict[str, int] = {}

    def ids() -> Iterator[Sequence[str]]:
        nonlocal all_hashed
        for index in indices:
            own = [numbers.setdefault(source, len(numbers)) for source in index.sources]
            num_tokens.frombytes(index.num_tokens.astype(np.int32).tobytes())
            num_supervised.frombytes(index.num_supervised.astype(np.int32).tobytes())
            source_of.frombytes(np.array(own, np.int32)[index.source_of].tobytes())
            if index.conversation_hashes is not None:
                hashes.frombytes(index.conversation_hashes.tobytes())
            all_hashed &= index.conversation_hashes is not None
            yield index.sample_ids

    sample_ids = SampleIds.joined(ids())  # fills the other columns on its way
    return SampleIndex(
        sample_ids=sample_ids,
        num_tokens=np.array(num_tokens, np.int32),
        num_supervised=np.array(num_supervised, np.int32),
        sources=tuple(numbers),
        source_of=np.array(source_of, np.int32),
        conversation_hashes=np.array(hashes, np.uint64) if all_hashed else None,
    )
