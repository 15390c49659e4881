"""`eaglepipe eval`: measure the draft of a finished run."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from eaglepipe.commands.common import JsonOption, RunArgument, RunCaches, print_report, reporter
from eaglepipe.errors import ConfigError


def evaluate(
    run: RunArgument,
    target: Annotated[Path | None, typer.Option(help="the target's folder or GGUF file, to decode with it too")] = None,
    cache: RunCaches = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", min=1, max=99, help="length of the drafted chain; repeatable (5)"),
    ] = None,
    tree: Annotated[
        list[str] | None, typer.Option(help="EAGLE-2 tree SIZExDEPTH or SIZExDEPTHxWIDTH, as in 24x5x8; repeatable")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0)] = 1.0,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="file of conversations, or chat, code or maths; repeatable; default: the held-out samples"),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="prompts to decode, of each set")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    samples: Annotated[int | None, typer.Option(min=1, help="held-out samples; default: as in training")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts decoded together")] = 1,
    ignore_end: Annotated[bool, typer.Option(help="decode max-new-tokens past any end of an answer")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    engine: Annotated[
        str | None, typer.Option(help="vllm: serve target and draft in it too; without --target, the recipe's")
    ] = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="interpreter of an environment with vllm; default: this one")
    ] = None,
    engine_args: Annotated[
        list[str] | None, typer.Option(help="arguments of the engine: JSON, or NAME=VALUE; repeatable")
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="with --engine: judge this exported folder, not an export of its own")
    ] = None,
    engine_lookup: Annotated[
        bool, typer.Option("--engine-lookup", help="with --engine: serve the engine's own prompt lookup too, beside it")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="address of a running vLLM or SGLang server of target and draft, to judge it")
    ] = None,
    endpoint_key_env: Annotated[
        str | None, typer.Option(help="environment variable with the key of --endpoint")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a draft: simulated from its cache, decoding with the target, and as an engine serves it."""
    from eaglepipe.decoding.verify import SamplingRule
    from eaglepipe.evaluation.evaluate import evaluate_run
    from eaglepipe.evaluation.options import EndpointOptions, EvalOptions

    needs_target = {
        "--tree": tree,
        "--temperature": temperature,
        "--top-p": top_p < 1,
        "--prompts": prompts,
        "--batch-size": batch_size > 1,
        "--ignore-end": ignore_end,
    }
    if endpoint is not None:
        for name in ("--temperature", "--top-p", "--prompts", "--batch-size"):
            needs_target.pop(name)
    elif endpoint_key_env is not None:
        raise ConfigError("--endpoint-key-env: for a running server; name it with --endpoint")
    if ignored := [name for name, value in needs_target.items() if value and target is None and engine is None]:
        raise ConfigError(f"{', '.join(ignored)}: for decoding with the target; give its folder with --target")
    needs_engine = {
        "--engine-python": engine_python,
        "--engine-args": engine_args,
        "--draft": draft,
        "--engine-lookup": engine_lookup or None,
    }
    if ignored := [name for name, value in needs_engine.items() if value is not None and engine is None]:
        raise ConfigError(f"{', '.join(ignored)}: for serving the draft; add --engine vllm")
    options = EvalOptions(
        caches=tuple(cache or ()),
        target=target,
        prompts=tuple(prompts or ()),
        depths=tuple(k or ()),
        trees=tuple(map(tree_shape, tree or ())),
        rule=SamplingRule(temperature=temperature, top_p=top_p),
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        num_samples=samples,
        batch_size=batch_size,
        ignore_end=ignore_end,
        device=device,
        seed=seed,
        engine=engine_options(engine, engine_python, engine_args or [], draft, lookup=engine_lookup),
        endpoint=None if endpoint is None else EndpointOptions(url=endpoint, key_variable=endpoint_key_env),
    )
    print_report(evaluate_run(run, options, reporter(as_json)), as_json)


def engine_options(
    engine: str | None, python: Path | None, arguments: list[str], draft: Path | None, *, lookup: bool
) -> Any:
    """Return the engine that `--engine` names; None if it is not given."""
    from eaglepipe.evaluation.options import EngineOptions

    if engine is None:
        return None
    if engine != "vllm":
        raise ConfigError(f"--engine {engine}: only vllm is started here; --endpoint judges a running server")
    if python is not None and not python.is_file():
        raise ConfigError(f"--engine-python {python}: no such file; give the interpreter of an environment with vllm")
    if draft is not None and not (draft / "config.json").is_file():
        raise ConfigError(f"--draft {draft}: no exported draft, it has no config.json")
    return EngineOptions(python=python, arguments=engine_arguments(arguments), draft=draft, lookup=lookup)


def engine_arguments(texts: list[str]) -> dict[str, Any]:
    """Parse JSON objects and NAME=VALUE, whose value is JSON or else text; later ones overrule earlier ones."""
    arguments: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                arguments |= json.loads(text)
            except ValueError as error:
                raise ConfigError(f"--engine-args {text}: not a JSON object ({error})") from None
            continue
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--engine-args {text}: neither JSON nor NAME=VALUE, as in max_model_len=4096")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = {"True": True, "False": False, "None": None}.get(value, value)
    own = {"model": "the target is --target", "speculative_config": "eval writes it; see --draft and --k"}
    if taken := next((name for name in own if name in arguments), None):
        raise ConfigError(f"--engine-args {taken}: {own[taken]}; leave it out")
    return arguments


def tree_shape(text: str) -> Any:
    """Parse SIZExDEPTH or SIZExDEPTHxWIDTH; the width is 8 by default, or the size if that is less."""
    from eaglepipe.evaluation.drafting import TreeShape

    if (match := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d?)(?:x([1-9]\d?))?", text)) is None:
        raise ConfigError(f"--tree {text}: not SIZExDEPTH or SIZExDEPTHxWIDTH, as in 24x5 or 24x5x8")
    size, depth = int(match[1]), int(match[2])
    return TreeShape(size=size, depth=depth, width=int(match[3] or min(8, size)))
