"""Methods of an engine's workers that stage 1 calls; each returns None in the workers that write nothing."""

from typing import Any

from eaglepipe.precompute.engine.capture_thread import CaptureThread


class CaptureExtension:
    """Mixed into vLLM's worker."""

    def eaglepipe_status(self) -> dict[str, Any] | None:
        """Return what the capture thread has done."""
        thread = _thread()
        return None if thread is None else thread.status()

    def eaglepipe_put_known(self, shard: int, num_places: int, places: dict[str, int], spare: str) -> None:
        """Have samples of a shard taken from a spare file."""
        thread = _thread()
        if thread is not None:
            thread.put_known(shard, num_places, places, spare)

    def eaglepipe_settle(self, outcomes: list[dict[str, Any]], shard: int, num_places: int | None) -> None:
        """Say what becomes of answers of a shard, and how many places it has once that is known."""
        thread = _thread()
        if thread is not None:
            thread.settle(outcomes, shard, num_places)


def _thread() -> CaptureThread | None:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    thread: CaptureThread | None = get_kv_transfer_group().thread
    return thread
