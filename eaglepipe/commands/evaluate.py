"""`eaglepipe eval`: judge the draft of a finished run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from eaglepipe.commands.common import JsonOption, print_json, reporter
from eaglepipe.errors import ConfigError


def evaluate(
    run: Annotated[Path, typer.Argument(help="the folder that `eaglepipe train` wrote")],
    target: Annotated[
        Path | None, typer.Option(help="the target's folder: decode with it, not only from the cache")
    ] = None,
    cache: Annotated[
        list[Path] | None, typer.Option(help="where the run's cache is now; default: as its recipe says")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, max=99, help="chain of so many guesses; repeat (5)")
    ] = None,
    tree: Annotated[
        list[str] | None, typer.Option(help="EAGLE-2 tree SIZExDEPTH or SIZExDEPTHxWIDTH, as in 24x5x8; repeat")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0)] = 1.0,
    prompts: Annotated[Path | None, typer.Option(help="conversations; default: the held-out samples")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="prompts that are decoded")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    samples: Annotated[int | None, typer.Option(min=1, help="held-out samples; default: as in training")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts decoded together")] = 1,
    ignore_end: Annotated[bool, typer.Option(help="decode max-new-tokens, whatever ends an answer")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """How good a draft is: simulated from its cache and, with --target, by real speculative decoding."""
    from eaglepipe.decoding.verify import SamplingRule
    from eaglepipe.evaluation.evaluate import evaluate_run
    from eaglepipe.evaluation.options import EvalOptions

    if target is None:
        _refuse_without_target(
            {
                "--tree": tree,
                "--temperature": temperature,
                "--top-p": top_p < 1,
                "--prompts": prompts,
                "--batch-size": batch_size > 1,
                "--ignore-end": ignore_end,
            }
        )
    options = EvalOptions(
        caches=tuple(cache or ()),
        target=target,
        prompts=prompts,
        depths=tuple(k or (5,)),
        trees=tuple(_tree_shape(text) for text in tree or ()),
        rule=SamplingRule(temperature=temperature, top_p=top_p),
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        num_samples=samples,
        batch_size=batch_size,
        ignore_end=ignore_end,
        device=device,
        seed=seed,
    )
    result = evaluate_run(run, options, reporter(as_json))
    print_json(result.to_json(), as_json)
    if not as_json:
        typer.echo(result.table())


def _refuse_without_target(given: Mapping[str, object]) -> None:
    """What only real decoding reads is refused where there is none, not passed over."""
    ignored = [name for name, value in given.items() if value]
    if ignored:
        raise ConfigError(f"{', '.join(ignored)}: for decoding with the target; say where it is with --target")


def _tree_shape(text: str) -> Any:
    from eaglepipe.evaluation.drafting import TreeShape

    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d?)(?:x([1-9]\d?))?", text)
    if found is None:
        raise ConfigError(f"--tree {text}: not SIZExDEPTH or SIZExDEPTHxWIDTH, as in 24x5 or 24x5x8")
    size, depth, width = (None if part is None else int(part) for part in found.groups())
    assert size is not None and depth is not None
    return TreeShape(size=size, depth=depth, width=width or min(8, size))
