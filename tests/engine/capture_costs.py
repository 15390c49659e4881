"""What a token costs stage 1 besides the target's layers, in CPU time by phase.

`python -m tests.engine.capture_costs TARGET [dtype] [profile]`: one thread, so that the seconds of a thread are all.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.sparse import SparseRule
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.freed_memory import keep_freed_memory
from eaglepipe.precompute.encode import RowMasks, StateEncoder, cached_samples
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.tables import text_table
from eaglepipe.target.capture import load_target_model
from eaglepipe.target.model import CapturedStates
from eaglepipe.target.supervision import supervise
from eaglepipe.vocab import build_draft_vocab

LENGTH, SAMPLES, ROUNDS, SUPERVISED = 256, 8, 3, 0.55
PROFILES = {"compact": ("int4", "int8"), "lean": ("rot4", "rot5"), "exact": ("bf16", "bf16")}


def cpu(work: Callable[[], Any]) -> float:
    """Return the CPU microseconds of the fastest of a few runs, a token."""
    taken = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return min(taken) / (LENGTH * SAMPLES) * 1e6


@torch.no_grad()
def main() -> None:
    """Print the phases, and their shares of what the target's layers take of the same tokens."""
    keep_freed_memory()
    torch.set_num_threads(1)
    config = TargetConfig(path=sys.argv[1], dtype=sys.argv[2] if len(sys.argv) > 2 else "bfloat16")
    aux_codec, hidden_codec = PROFILES[sys.argv[3] if len(sys.argv) > 3 else "compact"]
    model = load_target_model(config, (2, 15, 27), "cpu")
    width, size = model.hidden_size, model.target.vocab_size
    spec = ShardSpec(
        supervision="hidden",
        aux_codec=aux_codec,
        supervision_codec=hidden_codec,
        aux_layer_ids=(2, 15, 27),
        hidden_size=width,
        vocab_size=size,
        draft_vocab_size=size // 3,
    )
    rng = np.random.default_rng(0)
    turns = np.where(np.arange(LENGTH) < LENGTH * (1 - SUPERVISED), 0, 1).astype(np.int32)
    samples = [
        TokenSample(
            sample_id=f"s{n}", source="made", input_ids=rng.integers(0, size, LENGTH).astype(np.int32), turns=turns
        )
        for n in range(SAMPLES)
    ]
    rule = SparseRule(tolerance=0.02, max_entries=8)
    logits = getattr(model, "narrow_logits", model.head_logits)
    vocab = build_draft_vocab(rng.permutation(size), spec.draft_vocab_size, size)
    encoder = StateEncoder(head_logits=logits, vocab=vocab, spec=spec, rule=rule, head_chunk_rows=1024)
    states: CapturedStates = model.capture_tokens([sample.input_ids for sample in samples])
    masks = RowMasks.of(samples, rule)
    hidden = states.last_hidden[torch.from_numpy(masks.supervised)]
    items = list(cached_samples(samples, encoder.encode(states, masks)))

    def write() -> None:
        with tempfile.TemporaryDirectory() as name:
            writer = ShardWriter(Path(name), 0, spec=spec, identity="made")
            for item in items:
                writer.add(item)
            writer.finish()

    forward = cpu(lambda: model.capture_tokens([sample.input_ids for sample in samples]))
    product = cpu(lambda: [logits(part) for part in hidden.split(256)])
    head = cpu(lambda: supervise(logits, hidden, vocab, 1024))
    aux = cpu(lambda: spec.aux.encode(states.aux))
    rows = cpu(lambda: spec.kind.encode(hidden))
    whole = cpu(lambda: encoder.encode(states, masks))
    phases = {
        "layers of the target": forward,
        "head's product": product,
        "going over the logits": head - product,
        f"aux states to {aux_codec}": aux,
        f"last hidden states to {hidden_codec}": rows,
        "checks and the rest of encoding": whole - head - aux - rows,
        "digests, hash and file": cpu(write),
    }
    table = [(name, f"{value:.1f}", f"{value / forward:.1%}") for name, value in phases.items()]
    print(f"{config.path}, {config.dtype}: {masks.supervised.mean():.0%} of {LENGTH * SAMPLES:,} tokens supervised")
    print(text_table({"": "left", "µs of CPU a token": "right", "of the layers": "right"}, table, indent=2))
    best, found = forward / (forward + product), forward / sum(phases.values())
    print(f"of the rate of the layers alone: {found:.3f}, and {best:.3f} if only the head's product were left")


if __name__ == "__main__":
    main()
