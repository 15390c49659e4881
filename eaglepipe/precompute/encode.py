"""Captured states as the columns of the cache: supervised and encoded where they lie, then moved to host memory.

Any number of rows may be encoded at a time: a row's columns depend on no other row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.columns import Columns, HostColumns, split_rows, to_host
from eaglepipe.cache.supervision.kind import EntryRule, SupervisionKind
from eaglepipe.cache.types import CachedSample
from eaglepipe.chat.tokens import TokenSample, supervised_tokens
from eaglepipe.target.model import CapturedStates
from eaglepipe.target.supervision import HeadLogits, supervise
from eaglepipe.vocab import DraftVocab


@dataclass(frozen=True, kw_only=True)
class RowMasks:
    """What rows [N] of samples need besides their states."""

    supervised: NDArray[np.bool_]  # [N], S of them set
    hints: NDArray[np.int64]  # [S, ...], see `EntryRule.hints`

    @classmethod
    def of(cls, samples: Sequence[TokenSample], rule: EntryRule) -> "RowMasks":
        """Return those of all tokens of some samples, one after the other."""
        masks = [supervised_tokens(sample.turns) for sample in samples]
        hints = [
            rule.hints(sample.sample_id, sample.input_ids, mask) for sample, mask in zip(samples, masks, strict=True)
        ]
        return cls(supervised=np.concatenate(masks), hints=np.concatenate(hints))

    def cut(self, start: int, end: int) -> "RowMasks":
        """Return those of rows [start, end)."""
        before, inside = (int(self.supervised[rows].sum()) for rows in (slice(start), slice(start, end)))
        return RowMasks(supervised=self.supervised[start:end], hints=self.hints[before : before + inside])


@dataclass(frozen=True, kw_only=True)
class EncodedStates:
    """Columns of N rows, S of them supervised, in host memory."""

    faults: dict[str, NDArray[np.bool_]]  # [N] by what is not finite: the target, or a codec
    columns: dict[str, NDArray[Any] | None]  # [N, ...] by the names of `CachedSample`
    supervision: HostColumns  # of S rows

    @property
    def finite(self) -> NDArray[np.bool_]:
        """[N] as stored."""
        finite: NDArray[np.bool_] = ~np.logical_or.reduce(list(self.faults.values()))
        return finite


def joined(parts: Sequence[EncodedStates]) -> EncodedStates:
    """Return the rows of several parts, at least one, in their order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return EncodedStates(
        faults={name: np.concatenate([part.faults[name] for part in parts]) for name in first.faults},
        columns={
            name: None if column is None else np.concatenate([part.columns[name] for part in parts])
            for name, column in first.columns.items()
        },
        supervision={name: np.concatenate([part.supervision[name] for part in parts]) for name in first.supervision},
    )


@dataclass(frozen=True, kw_only=True)
class StateEncoder:
    """The settings of a cache that turn states into its columns."""

    head_logits: HeadLogits
    vocab: DraftVocab
    spec: ShardSpec
    rule: EntryRule  # of sparse or sampled supervision; other kinds ignore it
    head_chunk_rows: int  # supervised rows that go through the lm_head at once

    @torch.no_grad()
    def encode(self, states: CapturedStates, masks: RowMasks) -> EncodedStates:
        """Encode states of N rows; only supervised rows go through the lm_head."""
        spec, kind, aux, last_hidden = self.spec, self.spec.kind, states.aux, states.last_hidden
        device, supervised = last_hidden.device, masks.supervised
        supervised_rows = torch.from_numpy(np.flatnonzero(supervised)).to(device)
        supervised_hidden = last_hidden.index_select(0, supervised_rows)
        hints = torch.from_numpy(masks.hints).to(device)
        hints = self.rule.located(hints, self.vocab.selected_token_ids.to(device))

        def encode_chunk(probs: torch.Tensor, rows: slice) -> Columns:
            return kind.encode(probs, hints[rows], self.rule)

        encode = encode_chunk if kind.stores_probabilities else None
        answers = supervise(self.head_logits, supervised_hidden, self.vocab, self.head_chunk_rows, encode=encode)
        columns, every_row = answers.columns, None
        if spec.last_hidden == "all":
            every_row = spec.rows.encode(last_hidden).payload
            columns = {kind.column: every_row.index_select(0, supervised_rows)}
        elif not kind.stores_probabilities:
            columns = kind.encode(supervised_hidden, hints, self.rule)

        # What is encoded decides: a narrow type may overflow where the target did not.
        encoded_aux = spec.aux.encode(aux)
        by_aux_codec = spec.aux.finite_rows(encoded_aux)
        by_target = _finite_rows(last_hidden)
        if not by_aux_codec.all():  # no codec makes a number finite that was not
            by_target &= _finite_rows(aux)
        by_target[supervised_rows] &= answers.finite
        by_codec = torch.ones_like(by_target)
        by_codec[supervised_rows] = kind.finite_rows(columns)
        if every_row is not None:
            by_codec &= spec.rows.finite_rows(EncodedRows(payload=every_row))
        dtype = str(aux.dtype).removeprefix("torch.")
        faults = {
            f"the target's states or logits ({dtype}) are not finite": ~by_target,
            f"codec {spec.aux_codec} of cache.aux_codec overflows": ~by_aux_codec,
            f"codec {spec.supervision_codec} of {_codec_setting(kind)} overflows": ~by_codec,
        }
        return EncodedStates(
            faults={fault: mask.cpu().numpy() for fault, mask in faults.items()},
            columns={
                "supervised": supervised,
                "position_mask": _scatter(supervised, answers.position_mask, False),
                "target_top1": _scatter(supervised, answers.target_top1, -1),
                "draft_mass": _scatter(supervised, answers.draft_mass, 0.0),
                "aux_payload": encoded_aux.payload.cpu().numpy(),
                "aux_scales": None if encoded_aux.scales is None else encoded_aux.scales.cpu().numpy(),
                "last_hidden_payload": None if every_row is None else every_row.cpu().numpy(),
            },
            supervision=to_host(columns),
        )


def cached_samples(samples: Sequence[TokenSample], encoded: EncodedStates) -> Iterator[CachedSample | tuple[str, str]]:
    """Yield each sample as the cache stores it, or (id, reason) if its numbers are not finite.

    Args:
        encoded: the rows of all samples, one after the other.
    """
    finite = encoded.finite
    supervision = split_rows(encoded.supervision, [int(supervised_tokens(sample.turns).sum()) for sample in samples])
    for sample, rows, supervised_columns in zip(samples, _spans(samples), supervision, strict=True):
        if not finite[rows].all():
            yield sample.sample_id, _reason(encoded, rows)
            continue
        columns: dict[str, Any] = {name: None if c is None else c[rows] for name, c in encoded.columns.items()}
        yield CachedSample(
            sample_id=sample.sample_id,
            source=sample.source,
            input_ids=sample.input_ids,
            loss_mask=sample.turns > 0,
            supervision=supervised_columns,
            **columns,
        )


def num_refused(samples: Sequence[TokenSample], encoded: EncodedStates) -> int:
    """Count the samples whose numbers are not finite."""
    finite = encoded.finite
    return sum(not finite[rows].all() for rows in _spans(samples))


def _reason(encoded: EncodedStates, rows: slice) -> str:
    """Return the first fault of a sample: the target's own before those that only encoding made."""
    fault, broken = next((fault, mask[rows]) for fault, mask in encoded.faults.items() if mask[rows].any())
    return f"{fault} from token {int(np.argmax(broken))} on"


def _spans(samples: Sequence[TokenSample]) -> Iterator[slice]:
    """The rows of each sample."""
    start = 0
    for sample in samples:
        yield slice(start, start + len(sample.input_ids))
        start += len(sample.input_ids)


def _codec_setting(kind: SupervisionKind) -> str:
    return f"cache.{kind.codec_setting}" if kind.codec_setting else "the supervision"


def _finite_rows(rows: torch.Tensor) -> torch.Tensor:
    """bool [N] of rows [N, ...]."""
    return torch.isfinite(rows).flatten(1).all(dim=1)


def _scatter(supervised: NDArray[np.bool_], values: torch.Tensor, elsewhere: float) -> NDArray[Any]:
    """[S] values of supervised tokens -> [N], with `elsewhere` for the others."""
    compact = values.cpu().numpy()
    scattered = np.full(len(supervised), elsewhere, compact.dtype)
    scattered[supervised] = compact
    return scattered
