"""The documents that describe a cache: its plan (first) and manifest (last), and the base of these and of sidecars.

Each carries a checksum of itself, so that a flipped byte in any of them is seen. Nothing declared in a file is
trusted before it is compared with the files on disk.
"""

import json
import re
import shlex
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec
from eaglepipe.errors import CacheError, CorruptError, first_line
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import json_bytes
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.target_head import HeadSpec

MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"
DROPS_FILE = "drops.jsonl"
REPORT_FILE = "recode.json"
"""Figures of a cache that was made from others."""
SHARDS_FOLDER = "shards"
CHECKSUM_KEY = "xxh3_128"
MAX_DOCUMENT_BYTES = 256 * 2**20
MAX_SHARDS = 10**6
ALL_LAST_HIDDEN = "all_last_hidden"
"""The feature of a cache whose `last_hidden_states` have an entry at every token, supervised or not."""
ROTATED_STATES = "rotated_states"
"""The feature of a cache some of whose states are in one of the codecs that rotate."""
SAMPLED_SUPERVISION = "sampled_supervision"
"""The feature of a cache whose supervision is `sampled`."""
KNOWN_FEATURES = frozenset({ALL_LAST_HIDDEN, ROTATED_STATES, SAMPLED_SUPERVISION})

Count = Annotated[
    int, Field(ge=0, le=2**63 - 1, strict=True), WithJsonSchema({"minimum": 0, "type": "integer"})
]  # the schema files do not state what no cache comes near
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Document(BaseModel):
    """A JSON document of the cache: strict, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_PLAIN_PATH = re.compile(r"[\w-]+(?:[./][\w-]+)*", re.ASCII)  # without .. and absolute beginnings


class FileEntry(Document):
    """A published file, by its path relative to the cache."""

    path: str
    bytes: Count
    xxh3_128: Digest

    @model_validator(mode="after")
    def _stays_inside(self) -> "FileEntry":
        if _PLAIN_PATH.fullmatch(self.path):  # of many thousands, nearly all
            return self
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith(("/", "\\")) or ".." in parts or "\\" in self.path or ":" in self.path:
            raise ValueError(f"path {self.path!r} leaves the cache's folder")
        return self


class ShardEntry(FileEntry):
    """A shard and what it holds."""

    samples: Count
    tokens: Count
    supervised_tokens: Count


class SpecDocument(Document):
    """How to read the shards."""

    supervision: str
    aux_codec: str
    supervision_codec: str
    aux_layer_ids: tuple[Annotated[int, Field(ge=1)], ...]
    hidden_size: Annotated[int, Field(gt=0)]
    vocab_size: Annotated[int, Field(gt=0)]
    draft_vocab_size: Annotated[int, Field(gt=0)]
    max_length: Annotated[int, Field(gt=0)]
    logit_scale: float
    soft_cap: float | None

    def head(self) -> HeadSpec:
        return HeadSpec(logit_scale=self.logit_scale, soft_cap=self.soft_cap)


class Manifest(Document):
    """`manifest.json`: written last; its presence is completeness."""

    schema_version: int
    features: tuple[str, ...]
    name: str
    identity: str
    created_by: str
    complete: bool
    spec: SpecDocument
    samples: Count
    tokens: Count
    supervised_tokens: Count
    bytes: Count
    drops: dict[str, Count]
    shards: tuple[ShardEntry, ...]
    sidecars: tuple[FileEntry, ...]
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> "Manifest":
        paths = [entry.path for entry in self.all_files()]
        if len(set(paths)) < len(paths):
            repeated = sorted(path for path, count in Counter(paths).items() if count > 1)
            raise ValueError(f"files listed twice: {', '.join(repeated[:8])}")
        for field in ("samples", "tokens", "supervised_tokens", "bytes"):
            total = sum(getattr(shard, field) for shard in self.shards)
            if getattr(self, field) != total:
                raise ValueError(f"{field} is {getattr(self, field)}, the shards hold {total}")
        if len(self.sidecars) != len(self.shards):
            raise ValueError(f"{len(self.shards)} shards, but {len(self.sidecars)} sidecars")
        return self

    def shard_spec(self) -> ShardSpec:
        fields = self.spec.model_dump(exclude={"max_length", "logit_scale", "soft_cap"})
        return ShardSpec(**fields, last_hidden="all" if ALL_LAST_HIDDEN in self.features else "supervised")

    def all_files(self) -> tuple[FileEntry, ...]:
        return (*self.shards, *self.sidecars, *self.files)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)


class Plan(Document):
    """`plan.json`: written first, put if absent; who resumes must have the same identity."""

    schema_version: int
    name: str
    identity: str
    identity_fields: dict[str, Any]
    declared: dict[str, Any]
    batch_tokens: Count
    samples: Count
    tokens: Count
    supervised_tokens: Count
    shards: Count
    drops: dict[str, Count]
    staging: FileEntry

    @model_validator(mode="after")
    def _can_be_listed(self) -> "Plan":
        if self.shards > MAX_SHARDS:
            raise ValueError(f"{self.shards:,} shards; a cache has at most {MAX_SHARDS:,}")
        return self


AnyDocument = TypeVar("AnyDocument", bound=Document)


def repair_advice(folder: Path) -> str:
    """Return the advice that ends every message about damage to a complete cache."""
    return f"run `eaglepipe cache repair {shlex.quote(str(folder))}`"


def file_entry(path: str, data: bytes) -> FileEntry:
    """Return the entry of a file with these bytes."""
    return FileEntry(path=path, bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))


def document_bytes(document: Document) -> bytes:
    """Return a document as published: its fields and the checksum over them."""
    fields = document.model_dump(mode="json")
    return json_bytes({**fields, CHECKSUM_KEY: hash_json(fields)})


def load_document(path: Path, kind: type[AnyDocument]) -> AnyDocument:
    """Read and check a document of the cache.

    Raises:
        CacheError: absent, or of another schema version or with features this version does not know.
        CorruptError: not the published document.
    """
    raw = _read_object(path)
    version, declared = raw.get("schema_version"), raw.pop(CHECKSUM_KEY, None)
    try:
        digest = hash_json(raw)
    except (ValueError, RecursionError) as error:  # infinity as 1e999, half a surrogate pair, nested too deeply
        raise CorruptError(f"{path}: holds a value that no document of a cache has: {first_line(error)}") from None
    is_foreign = version != SCHEMA_VERSION or isinstance(version, bool)
    reason = f"schema version {version!r}; this eaglepipe reads version {SCHEMA_VERSION}" if is_foreign else ""
    if declared != digest:
        also = f" ({reason})" if reason else ""
        folder = path.parent.parent if path.parent.name == SHARDS_FOLDER else path.parent
        raise CorruptError(f"{path}: its checksum does not match its content{also}; {repair_advice(folder)}")
    if is_foreign:
        raise CacheError(f"{path}: {reason}")
    features = raw.get("features") if isinstance(raw.get("features"), list) else ()
    if strange := [str(name) for name in features or () if str(name) not in KNOWN_FEATURES]:
        raise CacheError(f"{path}: needs features that this eaglepipe does not know: {', '.join(strange)}")
    try:
        return kind.model_validate_json(json.dumps(raw))
    except ValidationError as error:  # also nested more deeply than its own parser goes
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CorruptError(
            f"{path}: {field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None


def _read_object(path: Path) -> dict[str, Any]:
    with explained_read_errors(path):
        if not path.exists():
            raise CacheError(f"{path} does not exist")
        if not path.is_file():  # reading a pipe would wait for ever
            raise CorruptError(f"{path}: not a file")
        num_bytes = path.stat().st_size
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise CorruptError(f"{path}: {num_bytes:,} bytes is no {path.name}")
    return read_json_object(path, strict=True)


def json_schema(kind: type[Document]) -> dict[str, Any]:
    """Return the JSON Schema of a published document, checksum included, as `cache_schemas/` holds it."""
    schema = kind.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"][CHECKSUM_KEY] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    schema["required"] = [*schema["required"], CHECKSUM_KEY]
    return schema
