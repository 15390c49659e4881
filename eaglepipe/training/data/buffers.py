"""Host memory that batches borrow until they are dropped: fresh pages cost more than the copy into them.

Whoever holds a tensor, or any view of it, keeps its block; a block is lent again only when nobody does.
"""

import math
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

_SMALL_BYTES = 2**16  # the allocator reuses its own memory for such blocks
_SLACK = 8  # a new block is larger by this part, since batches differ a little; pages never touched cost nothing


class BufferPool:
    """Blocks lent to one thread; a block comes back when its last holder, in any thread, drops it."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor on the host."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _SMALL_BYTES:
            return torch.empty(shape, dtype=dtype)
        block = self._block(num_bytes)
        lent = block[:num_bytes].view()
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _block(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return the smallest free block that is large enough; otherwise a new one in place of the largest."""
        free = sorted((self._free.popleft() for _ in range(len(self._free))), key=len)
        fitting = next((index for index, block in enumerate(free) if len(block) >= num_bytes), None)
        block = None if fitting is None else free.pop(fitting)
        if block is None and free:
            free.pop()
        self._free.extend(free)
        return np.empty(num_bytes + num_bytes // _SLACK, np.uint8) if block is None else block
