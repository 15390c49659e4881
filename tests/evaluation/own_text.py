"""A target's own greedy answers, as rows to train drafts on that reach a useful acceptance in seconds."""

import json
from pathlib import Path

import numpy as np
import torch

from eaglepipe.decoding.decode import StoppingCriteria, speculate
from eaglepipe.decoding.text_drafters import no_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.steps.stepping import SteppingTarget


def write_own_text(target: Path, file: Path, *, rows: int, tokens: int) -> None:
    """Let the target continue random prompts, and write prompts and answers as tokenised rows."""
    loaded = load_target(TargetConfig(path=str(target)), "cpu")
    generator = np.random.default_rng(0)
    sizes = generator.integers(3, 9, rows)
    prompts = [generator.integers(5, loaded.vocab_size, size).astype(np.int32) for size in sizes]
    answers = speculate(
        SteppingTarget(HFEagle3TargetModel(loaded, [2, 4, 5])),
        no_drafter(torch.device("cpu")),
        prompts,
        rule=SamplingRule(),
        criteria=StoppingCriteria(max_new_tokens=tokens),
        batch_size=rows,
        generator=torch.Generator(),
    ).answers
    with file.open("w") as stream:
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            mask = [0] * len(prompt) + [1] * len(answer.token_ids)
            row = {"id": str(number), "input_ids": [*prompt.tolist(), *answer.token_ids], "loss_mask": mask}
            stream.write(json.dumps(row) + "\n")
