"""A fault for children: a forward that takes for ever."""

import time


def stall() -> None:
    """Let the first forward of this process take for ever."""
    from eaglepipe.precompute.shard_run import ShardRun

    def forward(*_: object) -> None:
        print("stalled", flush=True)
        time.sleep(600)

    ShardRun._encoded = forward  # type: ignore[assignment, method-assign]
