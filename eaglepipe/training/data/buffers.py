"""Host memory that batches take and give back by being dropped: fresh pages cost more than the copy into them.

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
    """Blocks for one taking thread; giving back happens wherever the last holder is."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor on the host."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _SMALL_BYTES:
            return torch.empty(shape, dtype=dtype)
        block = self._block(num_bytes)
        lent = block[:num_bytes].view()
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _block(self, num_bytes: int) -> NDArray[np.uint8]:
        """The smallest free block that is large enough; where there is none, a new one in place of a smaller one."""
        free = sorted((self._free.popleft() for _ in range(len(self._free))), key=len)
        fitting = next((place for place, block in enumerate(free) if len(block) >= num_bytes), None)
        block = None if fitting is None else free.pop(fitting)
        if block is None and free:
            free.pop()
        self._free.extend(free)
        return np.empty(num_bytes + num_bytes // _SLACK, np.uint8) if block is None else block
