"""`eaglepipe eval`: measure the draft of a finished run."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from eaglepipe.commands.common import JsonOption, RunArgument, RunCaches, print_report, reporter
from eaglepipe.errors import ConfigError


def evaluate(
    run: RunArgument,
    target: Annotated[Path | None, typer.Option(help="the target's folder, to decode with it too")] = None,
    cache: RunCaches = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, max=99, help="length of the drafted chain; repeatable (5)")
    ] = None,
    tree: Annotated[
        list[str] | None, typer.Option(help="EAGLE-2 tree SIZExDEPTH or SIZExDEPTHxWIDTH, as in 24x5x8; repeatable")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0)] = 1.0,
    prompts: Annotated[Path | None, typer.Option(help="conversations; default: the held-out samples")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="prompts to decode")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    samples: Annotated[int | None, typer.Option(min=1, help="held-out samples; default: as in training")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts decoded together")] = 1,
    ignore_end: Annotated[bool, typer.Option(help="decode max-new-tokens past any end of an answer")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a draft: simulated from its cache and, with --target, by real speculative decoding."""
    from eaglepipe.decoding.verify import SamplingRule
    from eaglepipe.evaluation.evaluate import evaluate_run
    from eaglepipe.evaluation.options import EvalOptions

    needs_target = {
        "--tree": tree,
        "--temperature": temperature,
        "--top-p": top_p < 1,
        "--prompts": prompts,
        "--batch-size": batch_size > 1,
        "--ignore-end": ignore_end,
    }
    if ignored := [name for name, value in needs_target.items() if value and target is None]:
        raise ConfigError(f"{', '.join(ignored)}: for decoding with the target; give its folder with --target")
    options = EvalOptions(
        caches=tuple(cache or ()),
        target=target,
        prompts=prompts,
        depths=tuple(k or (5,)),
        trees=tuple(map(tree_shape, tree or ())),
        rule=SamplingRule(temperature=temperature, top_p=top_p),
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        num_samples=samples,
        batch_size=batch_size,
        ignore_end=ignore_end,
        device=device,
        seed=seed,
    )
    print_report(evaluate_run(run, options, reporter(as_json)), as_json)


def tree_shape(text: str) -> Any:
    """Parse SIZExDEPTH or SIZExDEPTHxWIDTH; the width is 8 by default, or the size if that is less."""
    from eaglepipe.evaluation.drafting import TreeShape

    if (match := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d?)(?:x([1-9]\d?))?", text)) is None:
        raise ConfigError(f"--tree {text}: not SIZExDEPTH or SIZExDEPTHxWIDTH, as in 24x5 or 24x5x8")
    size, depth = int(match[1]), int(match[2])
    return TreeShape(size=size, depth=depth, width=int(match[3] or min(8, size)))
