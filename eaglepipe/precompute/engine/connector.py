"""The connector that vLLM loads: a finished request's states go from its cache of states to the capture thread.

Half of it runs with the scheduler, which delays the release of a finished request's blocks, and half in the workers, of
which the one that holds the states, at the first rank of its tensor-parallel group, reads them.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eaglepipe.precompute.engine.capture_thread import CaptureThread, FinishedRequest, choose_window_rows
from eaglepipe.precompute.engine.job import JOB, CaptureJob
from eaglepipe.precompute.engine.request import SampleRequest
from eaglepipe.precompute.engine.shards import ShardsInMaking

try:
    from vllm.config import get_layers_from_vllm_config
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1,
        KVConnectorMetadata,
        SupportsHMA,
    )
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
    from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer
    from vllm.v1.kv_cache_interface import HiddenStateCacheSpec
except ImportError:  # everything stays importable without vLLM
    KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA = (type(name, (), {}) for name in ("Base", "Metadata", "HMA"))

_IDLE_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class PendingSave:
    """A finished request, and the blocks that hold its states."""

    request_id: str
    params: dict[str, Any]
    token_ids: list[int]
    block_ids: list[int]


@dataclass
class CaptureMetadata(KVConnectorMetadata):
    """What the scheduler tells the workers in a step."""

    pending: list[PendingSave] = field(default_factory=list)
    is_idle: bool = False  # no token is computed in this step


class CaptureConnector(KVConnectorBase_V1, SupportsHMA):
    """Only stores: nothing is ever loaded into an engine."""

    thread: CaptureThread | None = None  # of the worker that writes

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._job = CaptureJob.from_text(self._kv_transfer_config.get_from_extra_config(JOB, ""))
        self._group = _group_of_states(kv_cache_config)
        self._pending: list[PendingSave] = []
        self._states: torch.Tensor | None = None  # [blocks, boundaries, tokens of a block, Ht]
        self._read = _ReadRequests()

    def get_finished_count(self) -> int:
        """Return how many workers tell that a request is read."""
        return 1

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Return that no token is loaded."""
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is loaded."""

    def build_connector_meta(self, scheduler_output: Any) -> CaptureMetadata:
        """Hand over the requests that have finished since the last step."""
        pending, self._pending = self._pending, []
        return CaptureMetadata(pending=pending, is_idle=scheduler_output.total_num_scheduled_tokens == 0)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Hold the blocks of a request that asked for its states and was not aborted."""
        params = request.kv_transfer_params
        asked = SampleRequest.from_params(params)
        if asked is None or not block_ids or request.status.name == "FINISHED_ABORTED":
            return False, None
        prompt = request.prompt_token_ids
        token_ids = asked.read_tokens(prompt, request.all_token_ids[len(prompt) :])
        self._pending.append(
            PendingSave(request_id=request.request_id, params=params, token_ids=token_ids, block_ids=list(block_ids))
        )
        return True, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Hold the blocks of a request in the group of states."""
        if self._group >= len(block_ids):
            return False, None
        return self.request_finished(request, block_ids[self._group])

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Find the cache of states in this worker, and start to write if it is this one's part."""
        layers = get_layers_from_vllm_config(self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches))
        if not layers or get_tensor_model_parallel_rank() != 0:
            return
        (name,) = layers
        states = self._states = kv_caches[name]
        expected = (len(self._job.boundaries), self._job.spec.hidden_size)
        if (states.shape[1], states.shape[3]) != expected:
            raise ValueError(
                f"the cache of states has shape {tuple(states.shape)}; (·, {expected[0]}, ·, {expected[1]})"
            )
        head = self._job.head(str(states.device))
        stream = torch.cuda.Stream(states.device) if states.is_cuda else None
        encoder = self._job.encoder(head)
        self.thread = CaptureThread(
            encoder,
            head.final_norm,
            ShardsInMaking(Path(self._job.folder), self._job.spec, self._job.identity),
            window_rows=choose_window_rows(encoder, on_cpu=not states.is_cuda),
            around=None if stream is None else lambda: torch.cuda.stream(stream),
        )

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Queue the requests that finished; returns those whose states were read."""
        metadata = self._get_connector_metadata() if self.has_connector_metadata() else None
        if self.thread is None or not isinstance(metadata, CaptureMetadata):
            return None, None
        for pending in metadata.pending:
            self._submit(pending, self.thread)
        return self._read.take(wait=metadata.is_idle) or None, None

    def _submit(self, pending: PendingSave, thread: CaptureThread) -> None:
        asked = SampleRequest.from_params(pending.params)
        assert asked is not None and self._states is not None
        self._read.expect()
        rows = _BlockRows(self._states, pending.block_ids, on_release=lambda: self._read.add(pending.request_id))
        thread.submit(FinishedRequest(request=asked, sample=asked.sample(pending.token_ids), rows=rows))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """States are read when their request has finished."""

    def wait_for_save(self) -> None:
        """States are read when their request has finished."""

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """Return the layout in which all states of a token lie together."""
        return "LBNHC"


class _BlockRows:
    """States of one request in blocks of the engine's cache."""

    def __init__(self, states: torch.Tensor, block_ids: list[int], on_release: Any) -> None:
        self._states, self._on_release = states, on_release
        self._blocks = torch.tensor(block_ids, dtype=torch.long)
        self._written = torch.cuda.Event() if states.is_cuda else None
        if self._written is not None:
            self._written.record()  # behind the forward that wrote the last rows

    def read(self, start: int, end: int) -> torch.Tensor:
        if self._written is not None:
            self._written.wait()
        size = self._states.shape[2]
        tokens = torch.arange(start, end)
        blocks = self._blocks[tokens // size].to(self._states.device, non_blocking=True)
        offsets = (tokens % size).to(self._states.device, non_blocking=True)
        return self._states[blocks, :, offsets]

    def release(self) -> None:
        self._on_release()


class _ReadRequests:
    """Requests whose blocks are free again, told by the capture thread and taken by the engine's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ids: set[str] = set()
        self._expected = 0

    def expect(self) -> None:
        with self._changed:
            self._expected += 1

    def add(self, request_id: str) -> None:
        with self._changed:
            self._ids.add(request_id)
            self._expected -= 1
            self._changed.notify_all()

    def take(self, *, wait: bool) -> set[str]:
        """Return them; with `wait`, after a short time for the first of those that are expected."""
        with self._changed:
            if wait and self._expected:
                self._changed.wait_for(lambda: bool(self._ids), timeout=_IDLE_SECONDS)
            ids, self._ids = self._ids, set()
            return ids


def _group_of_states(kv_cache_config: Any) -> int:
    """Return the number of the group of blocks that holds the states."""
    groups = [] if kv_cache_config is None else kv_cache_config.kv_cache_groups
    found = [i for i, group in enumerate(groups) if isinstance(group.kv_cache_spec, HiddenStateCacheSpec)]
    if len(found) == 1:
        return found[0]
    if not found and len(groups) <= 1:
        return 0
    raise ValueError(f"the states are in no group of their own among {len(groups)} groups of vLLM's cache")
