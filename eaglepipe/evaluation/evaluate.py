"""`eaglepipe eval`: measure the draft of a run, simulated from its cache and, if there is a target, by decoding.

An engine may serve the draft as well, so that the same table holds simulated, real and served figures.
"""

from dataclasses import replace
from pathlib import Path

from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.text_drafters import bigram_drafter, lookup_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.bigram import Ints, bigram_acceptance_length, bigram_table
from eaglepipe.evaluation.drafting import chain_drafter, tree_drafter
from eaglepipe.evaluation.eval_report import EvalReport
from eaglepipe.evaluation.figures.measured_sets import Measured
from eaglepipe.evaluation.finished_run import FinishedRun, open_run
from eaglepipe.evaluation.heldout_figures import heldout_figures
from eaglepipe.evaluation.options import DEFAULT_DEPTH, GREEDY, EvalOptions, Report
from eaglepipe.evaluation.prompts import PromptSet, cached_turns, read_prompt_sets
from eaglepipe.evaluation.real_decoding import OpenTarget, measure_real, open_target
from eaglepipe.evaluation.replay import measure_replayed, own_text_share
from eaglepipe.evaluation.served.endpoint import EndpointFigures, measure_endpoint
from eaglepipe.evaluation.served.engine_process import require_engine
from eaglepipe.evaluation.served.gap import Gap, compare_totals
from eaglepipe.evaluation.served.judge import judge_engine
from eaglepipe.evaluation.target_match import TargetMatch
from eaglepipe.evaluation.vocabulary_origin import VocabularyOrigin
from eaglepipe.files.json_object import text_config
from eaglepipe.files.publish import publish_json
from eaglepipe.precompute.inputs import read_chat_tokenizer
from eaglepipe.target.load import find_local_weights, resolve_folder
from eaglepipe.training.run.ranks.distributed import join_world


def evaluate_run(folder: Path, options: EvalOptions, report: Report = lambda _: None) -> EvalReport:
    """Measure a run's draft and leave `eval.json` in its folder.

    Raises:
        EaglepipeError: run, caches or target are missing or do not fit together, or an engine cannot serve the draft.
    """
    run = open_run(folder, options.caches, max_samples=options.num_samples)
    options = _with_depths(run, _with_target(run, options))
    with join_world(options.device) as world:
        run.draft.to(world.device)
        trees = [tree_drafter(run, shape) for shape in options.trees]
        # The target is opened before the minutes that reading the cache takes: it may not fit the run.
        target = None if options.target is None else open_target(run, options, world.device, report)
        sets = _prompt_sets(run, target, options)

        report(f"{len(run.heldout)} held-out samples, from the cache alone")
        heldout = heldout_figures(run, world, seed=options.seed)
        origin = VocabularyOrigin(run.source.vocab)
        bigrams = bigram_table(origin.training(map(run.source.read, run.split.train.tolist())))
        heldout_samples = origin.heldout(map(run.source.read, run.split.heldout.tolist()))
        bigram_length = bigram_acceptance_length(bigrams, heldout_samples, heldout[0].num_depths)

        turns = cached_turns(run, options.num_prompts, max_new_tokens=options.max_new_tokens)
        chains = _chain_drafters(run, options, GREEDY, bigrams)
        measurements = measure_replayed(run, chains, turns, options, report)
        measured: list[Measured] = []
        gaps: list[Gap] = []
        endpoint: EndpointFigures | None = None
        sets = sets or [PromptSet(name="held-out prompts", prompts=[turn.prompt for turn in turns])]
        if options.endpoint is not None:
            ends = None if target is None else frozenset[int]() if options.ignore_end else target.stop_ids
            endpoint = measure_endpoint(run, sets, ends, options=options, report=report)
            options = replace(options, depths=tuple(dict.fromkeys((*options.depths, endpoint.depth))))
        if target is not None:
            drafters = [*_chain_drafters(run, options, options.rule, bigrams), *trees]
            measured = measure_real(target, drafters, sets, options, report)
            if options.engine is not None:
                served, gaps = judge_engine(run, target, sets, measured, options=options, report=report)
                measured += served
            if endpoint is not None:
                gaps += compare_totals(endpoint.measurements, measured, seed=options.seed)

    result = EvalReport(
        run=str(folder),
        heldout=heldout,
        bigram_acceptance_length=bigram_length,
        own_text_share=own_text_share(run.source, turns),
        unseen_vocabulary_share=origin.unseen_share(),
        measurements=(
            *measurements,
            *(one.measurement for one in measured),
            *(() if endpoint is None else endpoint.measurements),
        ),
        notes=(*_depth_notes(run, options), *(() if endpoint is None else endpoint.notes)),
        gaps=tuple(gaps),
        target=TargetMatch() if target is None else target.match,
    )
    publish_json(folder / "eval.json", result.to_json())
    return result


def _with_target(run: FinishedRun, options: EvalOptions) -> EvalOptions:
    """Return the options with the recipe's target if an engine is to serve it and none is named."""
    if options.engine is None:
        return options
    require_engine(options.engine.python)
    if options.target is not None:
        return options
    if (found := find_local_weights(run.recipe.target)) is None:
        raise EaglepipeError(
            f"--engine serves the target, and {run.recipe.target.path} is not on this machine; give its folder with "
            "--target"
        )
    return replace(options, target=found)


def _with_depths(run: FinishedRun, options: EvalOptions) -> EvalOptions:
    """Return the options with a depth if none is given, no more than a parallel draft was trained for."""
    train = run.recipe.train
    depth = min(DEFAULT_DEPTH, train.depths) if train.family.is_parallel else DEFAULT_DEPTH
    return replace(options, depths=options.depths or (depth,))


def _depth_notes(run: FinishedRun, options: EvalOptions) -> list[str]:
    """Name the depths that a parallel draft was not trained for; others go on from one guess to the next."""
    train = run.recipe.train
    trained = f"the draft was trained for {train.depths} guesses a round, not for those after them"
    beyond = [depth for depth in options.depths if train.family.is_parallel and depth > train.depths]
    return [f"K = {depth}: {trained}" for depth in beyond]


def _prompt_sets(run: FinishedRun, target: OpenTarget | None, options: EvalOptions) -> list[PromptSet]:
    """Read the prompts that are named, with the tokenizer of the target or, without one, of the recipe's."""
    if not options.prompts:
        return []
    if target is not None:
        chat = target.chat
    else:
        chat = read_chat_tokenizer(run.recipe, resolve_folder(run.recipe.target, weights=False))
    vocab_size = int(text_config(run.source.target_config)["vocab_size"])
    return read_prompt_sets(options.prompts, chat, vocab_size, options.num_prompts)


def _chain_drafters(run: FinishedRun, options: EvalOptions, rule: SamplingRule, bigrams: Ints) -> list[Drafter]:
    """Return the baselines at the greatest depth, and the draft at each."""
    deepest, device = max(options.depths), run.draft.device
    baselines = [bigram_drafter(bigrams, deepest, device), lookup_drafter(deepest, device)] if options.baselines else []
    return [*baselines, *(chain_drafter(run, depth, rule) for depth in options.depths)]
