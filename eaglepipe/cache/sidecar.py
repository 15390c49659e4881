"""The sidecar of a shard: its counts, the samples that were refused, and an index of those that it holds.

Two readers do less than `load_document`: one is for sidecars whose bytes a manifest lists, one leaves the index out.
"""

from pathlib import Path
from typing import Any

import xxhash
from pydantic import ValidationError, model_validator
from pydantic_core import from_json, to_json

from eaglepipe.cache.manifest import (
    CHECKSUM_KEY,
    Count,
    Digest,
    Document,
    FileEntry,
    ShardEntry,
    load_document,
    repair_advice,
)
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.errors import CorruptError
from eaglepipe.files.system_errors import explained_read_errors

REFUSED = "refused"
CODEC_OVERFLOW = "codec_overflow"
UNFINISHED = "unfinished"
EMPTY_ANSWER = "empty_answer"
UNANSWERED = "unanswered"
LONG_ANSWER = "long_answer"
OF_ANSWERS = frozenset({UNFINISHED, EMPTY_ANSWER, UNANSWERED, LONG_ANSWER})
"""Reasons that are known once the target has answered, of caches of its own answers."""
REFUSALS = frozenset({REFUSED, CODEC_OVERFLOW}) | OF_ANSWERS
"""Reasons of drops that sidecars list sample by sample."""


class RefusedSample(Document):
    """A sample that the target could not be trusted on."""

    sample_id: str
    reason: str

    @property
    def cause(self) -> str:
        """The reason under which `drops` counts it, by the beginning of its text.

        One that begins with `codec` blames the encoding, and one of `OF_ANSWERS`, with a colon, the answer.
        """
        if (named := self.reason.partition(":")[0]) in OF_ANSWERS:
            return named
        return CODEC_OVERFLOW if self.reason.startswith("codec ") else REFUSED


class ShardIndex(Document):
    """Per-sample metadata, in shard order; lists of equal length."""

    sample_ids: tuple[str, ...]
    num_tokens: tuple[Count, ...]
    num_supervised: tuple[Count, ...]
    sources: tuple[str, ...]
    source_of: tuple[Count, ...]


class Sidecar(Document):
    """`shards/NNNNN.json`: published after its shard; its presence means that the shard is done."""

    schema_version: int
    identity: str
    shard: ShardEntry
    refused: tuple[RefusedSample, ...]
    index: ShardIndex

    @model_validator(mode="after")
    def _counts_agree(self) -> "Sidecar":
        index, shard = self.index, self.shard
        columns = (index.sample_ids, index.num_tokens, index.num_supervised, index.source_of)
        if {len(column) for column in columns} != {shard.samples}:
            raise ValueError(f"the index does not hold {shard.samples} samples")
        if (sum(index.num_tokens), sum(index.num_supervised)) != (shard.tokens, shard.supervised_tokens):
            raise ValueError("the index does not add up to the shard's tokens")
        if any(source >= len(index.sources) for source in index.source_of):
            raise ValueError("the index names a source that is not listed")
        return self


class _SealedSidecar(Sidecar):
    xxh3_128: Digest


def load_sealed_sidecar(path: Path, entry: FileEntry) -> Sidecar:
    """Read a sidecar whose bytes the manifest lists, so that its checksum of itself adds nothing.

    Raises:
        CacheError: another schema version.
        CorruptError: not the listed bytes, or no sidecar.
    """
    with explained_read_errors(path):
        data = path.read_bytes()
    if xxhash.xxh3_128_hexdigest(data) != entry.xxh3_128:
        advice = repair_advice(path.parent.parent)
        raise CorruptError(f"{path}: its bytes do not match the manifest's checksum; {advice}")
    try:
        sidecar = _SealedSidecar.model_validate_json(data)
    except ValidationError:
        return load_document(path, Sidecar)  # raises, and names the field
    return sidecar if sidecar.schema_version == SCHEMA_VERSION else load_document(path, Sidecar)


class SidecarHead(Document):
    """The part of a sidecar that does not grow with its samples."""

    identity: str
    shard: ShardEntry
    refused: tuple[RefusedSample, ...]


def load_sidecar_head(path: Path) -> SidecarHead:
    """Read a sidecar without its index, at a tenth of the cost: its checksum decides; raises as `load_document` does.

    Lists that do not fit the shard's counts are left to whoever reads the index.
    """
    with explained_read_errors(path):
        data = path.read_bytes() if path.is_file() else b""
    try:
        fields = from_json(data, allow_inf_nan=False)
        declared = fields.pop(CHECKSUM_KEY)
        if fields["schema_version"] == SCHEMA_VERSION and declared == xxhash.xxh3_128_hexdigest(_sorted_json(fields)):
            head = {name: fields[name] for name in SidecarHead.model_fields}
            return SidecarHead.model_validate_json(to_json(head))
    except (ValueError, KeyError, TypeError, AttributeError):  # also a ValidationError
        pass
    sidecar = load_document(path, Sidecar)  # raises, unless its bytes are spelled otherwise
    return SidecarHead(identity=sidecar.identity, shard=sidecar.shard, refused=sidecar.refused)


def _sorted_json(value: Any) -> bytes:
    """Return the canonical form of a sidecar's fields, whose dicts are nested in dicts and in one list."""
    ordered = {name: value[name] for name in sorted(value)}
    ordered["index"] = dict(sorted(value["index"].items()))
    ordered["shard"] = dict(sorted(value["shard"].items()))
    ordered["refused"] = [dict(sorted(sample.items())) for sample in value["refused"]]
    return to_json(ordered)
