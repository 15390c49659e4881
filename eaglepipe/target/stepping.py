"""A target that reads a few tokens at a time, a tree of guesses among them, and takes back those that are refused.

Rows are aligned on the left: token p of a row lies at place p of the cache once it is kept, so that places are
positions. New tokens go behind the longest row; `keep` moves the good ones of each row to where they belong.
Shapes: B rows, n new tokens of each, C places in use, A aux layers, Ht target hidden, V vocabulary.
"""

from dataclasses import dataclass

import torch

from eaglepipe.errors import TargetError
from eaglepipe.target.capture import CapturedStates, HFEagle3TargetModel
from eaglepipe.target.kv_cache import RoomyLayer, attention_window, make_rewindable_cache
from eaglepipe.target.load import TargetModel

_PROBE_PREFIX = 3
_PROBE_PARENTS = (0, 0, 1, 1, 2)  # of tokens 1..5 after the root, in a tree with two branches at each level


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the target makes of new tokens."""

    states: CapturedStates  # of all of them, [B, n, ...]
    logits: torch.Tensor  # float32 [B, n, V], or [B, 1, V] after each row's last token where only that was asked for


class SteppingTarget:
    """A causal LM with a cache that can be rewound. One batch at a time, begun by `read_prompts`."""

    def __init__(self, model: HFEagle3TargetModel) -> None:
        """Raises TargetError where the architecture cannot read a tree of tokens exactly."""
        self.model, self.target = model, model.target
        self._window = attention_window(self.target.text_config)
        self._probe()

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that is read exactly: the positions it has, and the window of layers that have one."""
        limits = [self._window, getattr(self.target.text_config, "max_position_embeddings", None)]
        return min((limit for limit in limits if limit is not None), default=None)

    def read_prompts(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> Read:
        """Begin a batch: right-padded prompts [B, P] with lengths int64 [B]; logits after each one's last token."""
        batch, longest = input_ids.shape
        self.check_room(longest)
        self._cache = make_rewindable_cache(self.target.text_config)
        self._lengths, self._used = lengths, 0
        causal = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril().expand(batch, -1, -1)
        positions = torch.arange(longest, device=self.device).expand(batch, -1)
        states = self._run(input_ids, positions, causal)
        last = states.last_hidden[torch.arange(batch, device=self.device), lengths - 1]
        self._used = longest
        return Read(states=states, logits=self.model.head_logits(last)[:, None])

    def read(self, input_ids: torch.Tensor, ancestors: torch.Tensor) -> Read:
        """Read a tree of new tokens after what each row has kept; nothing is kept of them until `keep`.

        Args:
            input_ids: [B, n].
            ancestors: bool [B, n, n], True where token i may read token j: j is i, or on the way from the root to i.
        """
        batch, num_new = input_ids.shape
        depths = ancestors.sum(dim=-1) - 1
        self.check_room(self._used + 1)
        places = torch.arange(self._used, device=self.device)
        kept = (places < self._lengths[:, None])[:, None].expand(-1, num_new, -1)
        states = self._run(input_ids, self._lengths[:, None] + depths, torch.cat((kept, ancestors), dim=-1))
        logits = self.model.head_logits(states.last_hidden.flatten(0, 1)).unflatten(0, (batch, num_new))
        return Read(states=states, logits=logits)

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
            if in_place:
                layer.shorten(self._used)
            else:
                layer.move(sources, destinations, self._used)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64 [B']."""
        self._lengths = self._lengths[rows]
        self._cache.batch_select_indices(rows)

    def _run(self, input_ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> CapturedStates:
        lowest = torch.finfo(self.target.dtype).min
        mask = torch.zeros(visible.shape, dtype=self.target.dtype, device=self.device).masked_fill(~visible, lowest)
        return self.model.run(
            input_ids,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
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
                "window of its sliding layers, which a tree of guesses does not fit); use shorter prompts or answers"
            )

    @torch.no_grad()
    def _probe(self) -> None:
        """A small tree, read in one go and taken back, must give what its paths give as plain sequences."""
        vocab = self.target.vocab_size
        ids = torch.arange(1, _PROBE_PREFIX + len(_PROBE_PARENTS) + 2, device=self.device) % vocab
        prefix, tree = ids[:_PROBE_PREFIX], ids[_PROBE_PREFIX:]
        ancestors = torch.eye(len(tree), dtype=torch.bool, device=self.device)
        for node, parent in enumerate(_PROBE_PARENTS, start=1):
            ancestors[node] |= ancestors[parent]
        self.read_prompts(prefix[None], torch.tensor([len(prefix)], device=self.device))
        found = self.read(tree[None], ancestors[None]).states.last_hidden[0]
        for node in range(len(tree)):
            path = torch.cat((prefix, tree[ancestors[node]]))[None]
            expected = self.model.capture(path, torch.ones_like(path)).last_hidden[0, -1]
            error = float((found[node] - expected).float().abs().max())
            if not error <= _allowed(self.target) * max(1.0, float(expected.float().abs().max())):
                raise TargetError(
                    f"{type(self.target.model).__name__} does not read a tree of tokens as it reads each of its paths "
                    f"(states differ by {error:.3g}): its attention ignores the mask it is given; speculative decoding "
                    "cannot be measured with it here"
                )


def _allowed(target: TargetModel) -> float:
    return 1e-3 if target.dtype == torch.float32 else 32 * torch.finfo(target.dtype).eps
