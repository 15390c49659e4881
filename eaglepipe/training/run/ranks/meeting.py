"""The ranks of one start of a run find each other in a store that may hold what earlier starts left.

torchrun's store outlives the processes that it starts again, and whoever reads an address there that a killed process
has left waits for it in vain. So all that a start writes goes under a name that rank 0 draws, once it knows everybody.
"""

import json
import time
import uuid

from torch.distributed.distributed_c10d import Store

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 600.0  # some ranks load their data from a slower disk


def meet(store: Store, rank: int, size: int, *, patience_seconds: float = _PATIENCE_SECONDS) -> str:
    """Return a name that the ranks of this start alone know, for all that they write.

    Raises:
        RuntimeError: not all ranks came.
    """
    own = uuid.uuid4().hex
    deadline = time.monotonic() + patience_seconds
    store.set(f"here/{rank}", own)
    while time.monotonic() < deadline:
        name = _gather(store, own, size) if rank == 0 else _answer(store, own, rank)
        if name is not None:
            return name
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"rank {rank} waited {patience_seconds:.0f} s for the others")


def _gather(store: Store, name: str, size: int) -> str | None:
    """Invite those that are here, as rank 0, which may be such that have ended; the name once all have answered."""
    here = [_read(store, f"here/{rank}") for rank in range(size)]
    store.set("invitation", json.dumps([name, here]))
    answers = [_read(store, f"answer/{rank}") for rank in range(1, size)]
    return name if all(answer == f"{name}/{one}" for answer, one in zip(answers, here[1:], strict=True)) else None


def _answer(store: Store, own: str, rank: int) -> str | None:
    """Answer an invitation that holds this process; its name then."""
    invitation = _read(store, "invitation")
    name, here = json.loads(invitation) if invitation else ("", [])
    if rank >= len(here) or here[rank] != own:
        return None
    store.set(f"answer/{rank}", f"{name}/{own}")
    return str(name)


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
