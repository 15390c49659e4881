"""A target that reads a few tokens at a time, a tree of guesses among them, and takes back those that are refused.

Rows are aligned on the left: token p of a row lies in slot p of the cache once it is accepted, so that slots are
positions. New tokens go behind the longest row; `keep` moves the accepted ones of each row to their slots.
Shapes: B rows, n new tokens of each, C slots in use, A aux layers, Ht target hidden, V vocabulary.
"""

from dataclasses import dataclass

import torch

from eaglepipe.errors import TargetError
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.model import CapturedStates
from eaglepipe.target.positions import max_positions
from eaglepipe.target.steps.kv_cache import RoomyLayer, cache_argument, make_rewindable_cache
from eaglepipe.target.steps.tree_mask import additive_mask, layer_kinds

_PROBE_PREFIX = 3
_PROBE_ROOM = 8
_MAX_PROBED_WINDOW = 4096
_PROBE_PARENTS = (0, 0, 1, 1, 2)  # of tokens 1..5 after the root, in a tree with two branches at each level


@dataclass(frozen=True, kw_only=True)
class TargetOutput:
    """States and logits of new tokens."""

    states: CapturedStates  # of all of them, [B, n, ...]
    logits: torch.Tensor  # float32 [B, n, V], or [B, 1, V] of each row's last token alone


class SteppingTarget:
    """A causal LM with a cache that can be rewound. One batch at a time, begun by `read_prompts`."""

    def __init__(self, model: HFEagle3TargetModel) -> None:
        """Raises TargetError if the architecture cannot read a tree of tokens exactly."""
        self.model, self.target = model, model.target
        self._kinds = layer_kinds(self.target.text_config)
        self._windows_known = True
        window = self._kinds.sliding_window
        if window is not None:
            binds = window + _PROBE_ROOM <= (self.max_tokens or _MAX_PROBED_WINDOW)
            if binds and window <= _MAX_PROBED_WINDOW and self._is_exact(window + 1):
                return
            self._windows_known = False
        if not self._is_exact(_PROBE_PREFIX):
            raise TargetError(
                f"{type(self.target.model).__name__} does not read a tree of tokens as it reads each of its paths: its "
                "attention ignores the mask it is given; speculative decoding cannot be measured with it here"
            )

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that is read exactly, by its positions and by windows that no mask can express."""
        window = None if self._windows_known else self._kinds.sliding_window
        limits = [window, self._kinds.longest_exact, max_positions(self.target.text_config)]
        return min((limit for limit in limits if limit is not None), default=None)

    def read_prompts(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> TargetOutput:
        """Begin a batch: right-padded prompts [B, P] with lengths int64 [B]; logits after each one's last token."""
        batch, longest = input_ids.shape
        self.check_room(longest)
        self._cache = make_rewindable_cache(self.target.text_config)
        self._lengths, self._used = lengths, 0
        causal = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril().expand(batch, -1, -1)
        positions = torch.arange(longest, device=self.device).expand(batch, -1)
        states = self._run(input_ids, positions, positions, causal)
        last = states.last_hidden[torch.arange(batch, device=self.device), lengths - 1]
        self._used = longest
        return TargetOutput(states=states, logits=self.model.head_logits(last)[:, None])

    def read(self, input_ids: torch.Tensor, ancestors: torch.Tensor) -> TargetOutput:
        """Read a tree of new tokens after the accepted ones of each row; none of them is accepted until `keep`.

        Args:
            input_ids: [B, n].
            ancestors: bool [B, n, n], True if token i may read token j: j is i, or on the way from the root to i.
        """
        batch, num_new = input_ids.shape
        depths = ancestors.sum(dim=-1) - 1
        self.check_room(self._used + 1)
        slots = torch.arange(self._used, device=self.device)
        accepted = (slots < self._lengths[:, None])[:, None].expand(-1, num_new, -1)
        positions = self._lengths[:, None] + depths
        keys = torch.cat((slots.expand(batch, -1), positions), dim=1)
        states = self._run(input_ids, positions, keys, torch.cat((accepted, ancestors), dim=-1))
        logits = self.model.head_logits(states.last_hidden.flatten(0, 1)).unflatten(0, (batch, num_new))
        return TargetOutput(states=states, logits=logits)

    def keep(self, nodes: torch.Tensor, counts: torch.Tensor) -> None:
        """Keep of the tokens just read `nodes` [B, m] in this order, the first `counts` [B] of each row, and no others.

        Args:
            nodes: indices of new tokens; those beyond a row's count may be any valid index.
        """
        steps = torch.arange(nodes.shape[1], device=self.device)
        sources, destinations = self._used + nodes, self._lengths[:, None] + steps
        self._lengths = self._lengths + counts
        self._used = int(self._lengths.max())
        in_place = torch.equal(sources, destinations)
        for layer in self._cache.layers:
            assert isinstance(layer, RoomyLayer)
            if not in_place:
                layer.move(sources, destinations)
            layer.shorten(self._used)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64 [B']."""
        self._lengths = self._lengths[rows]
        self._cache.batch_select_indices(rows)

    def _run(
        self, input_ids: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor, visible: torch.Tensor
    ) -> CapturedStates:
        return self.model.run(
            input_ids,
            attention_mask=additive_mask(visible, positions, keys, self._kinds, self.target.dtype),
            position_ids=positions,
            use_cache=True,
            **{cache_argument(self.target.model): self._cache},
        )

    def check_room(self, num_tokens: int) -> None:
        """Refuse sequences of so many tokens if they could not be read exactly.

        Raises:
            TargetError: naming the limit.
        """
        limit = self.max_tokens
        if limit is not None and num_tokens > limit:
            raise TargetError(
                f"a sequence of {num_tokens} tokens: this target is read exactly up to {limit} (its positions, or the "
                "window of some layers, which no mask can express); use shorter prompts or answers"
            )

    @torch.no_grad()
    def _is_exact(self, prefix_length: int) -> bool:
        """Return whether a small tree after a prefix gives the states of its paths read as plain sequences."""
        size = len(_PROBE_PARENTS) + 1
        ids = torch.arange(1, prefix_length + size + 1, device=self.device) % self.target.vocab_size
        prefix, tree = ids[:prefix_length], ids[prefix_length:]
        ancestors = torch.eye(size, dtype=torch.bool, device=self.device)
        for node, parent in enumerate(_PROBE_PARENTS, start=1):
            ancestors[node] |= ancestors[parent]
        dtype = self.target.dtype
        tolerance = 1e-3 if dtype == torch.float32 else 32 * torch.finfo(dtype).eps
        self.read_prompts(prefix[None], torch.tensor([len(prefix)], device=self.device))
        tree_states = self.read(tree[None], ancestors[None]).states.last_hidden[0]
        for node in range(size):
            path = torch.cat((prefix, tree[ancestors[node]]))[None]
            expected = self.model.capture(path, torch.ones_like(path)).last_hidden[0, -1]
            error = float((tree_states[node] - expected).float().abs().max())
            if not error <= tolerance * max(1.0, float(expected.float().abs().max())):
                return False
        return True
