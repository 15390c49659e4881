"""Checks how a config names the aux layers: readers differ by one, and none of them ever says so."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from eaglepipe.drafts.aux_ids import likely_convention, to_boundaries, to_outputs
from eaglepipe.drafts.reading import AUX_IDS, AuxSpelling, Ids, eagle_config, is_speculators, read_aux, read_num_aux
from eaglepipe.export.check.findings import Finding, error, suspicion, warning
from eaglepipe.export.engines import Engine

NESTED = f"eagle_config.{AUX_IDS}"
READS_TOP: tuple[Engine, ...] = ("vllm", "speculators", "hf")
READS_NESTED: tuple[Engine, ...] = ("sglang", "hf")


def check_aux(
    engine: Engine, config: Mapping[str, Any], *, depth: int | None, target_type: str | None
) -> Iterator[Finding]:
    """Findings on the aux layers; `depth` is the target's number of layers, where it is known."""
    yield from _malformed(config)
    spelling = read_aux(config)
    top, nested = spelling.top, spelling.eagle
    if top and nested:
        yield from _disagreement(top, nested, depth, target_type)
    elif nested and engine in READS_TOP:
        yield from _only_nested(engine, nested, spelling, depth)
    elif nested:
        yield from _suspected(NESTED, nested, "outputs", depth, reader="SGLang takes them for layer outputs")
    elif top and engine in READS_NESTED and not is_speculators(config):
        yield from _only_top(top, depth)
    elif top:
        yield from _suspected(AUX_IDS, top, "boundaries", depth, reader=f"{engine} takes them for boundaries")
    yield from _range_and_order(top, nested, depth, target_type)
    yield from _number(config, top or nested)


def _malformed(config: Mapping[str, Any]) -> Iterator[Finding]:
    for name, level in ((AUX_IDS, config), (NESTED, eagle_config(config))):
        value = level.get(AUX_IDS)
        if value is None:
            continue
        if not isinstance(value, list) or not value or not all(type(item) is int for item in value):
            yield error("field", name, f"{value!r} is not a list of layer numbers")


def _disagreement(top: Ids, nested: Ids, depth: int | None, target_type: str | None) -> Iterator[Finding]:
    wanted = to_outputs(top)
    if target_type == "gpt_oss" and depth in top:
        wanted = top
    if nested == wanted:
        return
    if depth is None and target_type in (None, "gpt_oss") and nested == top:
        hint = "; right only for a gpt-oss target whose depth is the last id (--target would tell)"
    else:
        hint = ""
    yield error(
        "field",
        NESTED,
        f"vLLM captures boundaries {list(top)}, SGLang {list(to_boundaries(nested))}; "
        f"for boundaries {list(top)} this must be {list(wanted)}{hint}",
    )


def _only_nested(engine: Engine, nested: Ids, spelling: AuxSpelling, depth: int | None) -> Iterator[Finding]:
    if engine == "speculators":
        yield error("field", NESTED, f"speculators reads {AUX_IDS} at the top level only, and takes the default layers")
        return
    meant = likely_convention(nested, depth)
    if meant == "boundaries" and spelling.layer_ids == nested and engine == "vllm":
        yield warning("field", NESTED, "right for vLLM; SGLang would add 1 to each")
        return
    yield error(
        "field",
        NESTED,
        f"vLLM takes {list(nested)} for boundaries, SGLang for layer outputs (boundaries "
        f"{list(to_boundaries(nested))}), and vLLM's V2 runner looks for layer_ids; write the boundaries as "
        f"{AUX_IDS} at the top level",
    )


def _only_top(top: Ids, depth: int | None) -> Iterator[Finding]:
    if likely_convention(top, depth) == "boundaries" and 0 not in top and depth not in top:
        yield warning("field", AUX_IDS, "SGLang ignores it; the default layers, which it takes, are the same")
        return
    yield error(
        "field",
        AUX_IDS,
        f"SGLang ignores it and captures the default layers; add {NESTED} with {list(to_outputs(top))}",
    )


def _suspected(name: str, ids: Ids, reading: str, depth: int | None, *, reader: str) -> Iterator[Finding]:
    meant = likely_convention(ids, depth)
    if meant is not None and meant != reading:
        what = "boundaries" if meant == "boundaries" else "layer outputs (NVIDIA ModelOpt and SpecForge write those)"
        yield suspicion("error", name, f"{list(ids)} look like {what}, but {reader}")
    elif meant is None and ids[0] == 1 and reading == "boundaries":
        yield suspicion("warning", name, f"{reader}; a first id of 1 often means layer outputs")


def _range_and_order(
    top: Ids | None, nested: Ids | None, depth: int | None, target_type: str | None
) -> Iterator[Finding]:
    for name, ids in ((AUX_IDS, top), (NESTED, nested)):
        if ids is None:
            continue
        if any(later <= earlier for earlier, later in pairwise(ids)):
            yield error(
                "field", name, f"{list(ids)} do not ascend; vLLM sorts them, and the chunks of fc no longer match"
            )
        last = depth if name == AUX_IDS or target_type == "gpt_oss" else None if depth is None else depth - 1
        if min(ids) < 0 or (last is not None and max(ids) > last):
            yield error("field", name, f"{list(ids)} leave the target's {depth} layers")


def _number(config: Mapping[str, Any], ids: Ids | None) -> Iterator[Finding]:
    count = read_num_aux(config)
    if ids is not None and len(ids) != count:
        yield error("field", "num_aux_hidden_states", f"readers expect {count} aux layers, the ids name {len(ids)}")
