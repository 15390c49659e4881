"""Block drafts of any origin go out as each engine reads them, or are refused with what the engine lacks."""

import json
from pathlib import Path

import pytest
import torch

from eaglepipe.drafts.folder import read_draft_folder
from eaglepipe.drafts.init_from import init_from
from eaglepipe.errors import DraftError
from eaglepipe.export.check.check import check_draft
from eaglepipe.export.layouts import ENGINES, Engine
from eaglepipe.export.write import export_draft
from tests.drafts.block_drafts import DEPTH, KNOWN, ROOT, recorded, states_of, target_of
from tests.export.block_loaders import load_blocks
from tests.export.made_drafts import LLAMA, make_draft, save_draft

_SGLANG: dict[str, tuple[str, ...]] = {
    "dflash_defaults": ("draft_vocab_size: 24 of 48",),
    "dflash_window": ("draft_vocab_size: 24 of 48", "sliding_window: of 4", "final boundary, 10"),
    "dflash_mixed": ("sliding_window: of 4",),
    "dspark_gated": ("draft_vocab_size: 24 of 48",),
    "dspark_bonus_anchor": ("sample_from_anchor: false",),
    "dspark_rnn": ("draft_vocab_size: 24 of 48",),
}
_VLLM: dict[str, tuple[str, ...]] = {
    "dspark_gated": ("markov_head_type: 'gated'",),
    "dspark_rnn": ("markov_head_type: 'rnn'",),
}
REFUSED = {"sglang": _SGLANG, "vllm": _VLLM, "hf": _SGLANG, "speculators": {}}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target's config, which gives its depth."""
    folder = tmp_path_factory.mktemp("target")
    config = {**LLAMA, "vocab_size": 48, "num_hidden_layers": DEPTH}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", KNOWN)
def test_engines_read_the_same_draft_or_are_said_to_lack_something(
    name: str, engine: Engine, target: Path, tmp_path: Path
) -> None:
    if expected := REFUSED[engine].get(name):
        with pytest.raises(DraftError) as refusal:
            export_draft(ROOT / name, engine, out=tmp_path / "out", target=target)
        assert "\n" not in str(refusal.value) and all(reason in str(refusal.value) for reason in expected)
        assert not (tmp_path / "out").exists()
        return
    out = export_draft(ROOT / name, engine, out=tmp_path / "out", target=target, dtype="bfloat16").folder
    report = check_draft(out, engine)
    assert report.ok, report.table()
    theirs, original = load_blocks(engine, out), read_draft_folder(ROOT / name)
    config, shape = original.config, original.shape
    own = {key: value for key, value in original.tensors.items() if key not in ("d2t", "t2d", "lm_head.weight")}
    assert theirs.weights.keys() == own.keys()
    assert all(torch.equal(theirs.weights[key], value) for key, value in own.items())
    assert theirs.boundaries == tuple(config["aux_hidden_state_layer_ids"])
    assert theirs.mask_token == config["mask_token_id"]
    assert theirs.guesses_at_anchor == config["sample_from_anchor"]
    assert theirs.rope == config["transformer_layer_config"]["rope_parameters"]
    kinds, window = config["transformer_layer_config"]["layer_types"], shape.sliding_window
    slides = [kind == "sliding_attention" for kind in kinds]
    causal = not config["sliding_window_non_causal"]
    assert theirs.layers == tuple((window if slide else None, slide and causal) for slide in slides)
    if shape.has_vocab_map:
        assert theirs.head is not None and torch.equal(theirs.head, original.tensors["lm_head.weight"])
        assert torch.equal(theirs.target_ids, original.tensors["t2d"].nonzero()[:, 0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", KNOWN)
def test_export_of_an_export_is_the_same_draft(name: str, engine: Engine, target: Path, tmp_path: Path) -> None:
    if engine in REFUSED and name in REFUSED[engine]:
        return
    first = export_draft(ROOT / name, engine, out=tmp_path / "first", target=target).folder
    second = export_draft(first, "speculators", out=tmp_path / "second").folder
    one, other = (read_draft_folder(folder) for folder in (ROOT / name, second))
    assert one.shape == other.shape
    assert one.config["aux_hidden_state_layer_ids"] == other.config["aux_hidden_state_layer_ids"]
    assert one.raw_tensors.keys() == other.raw_tensors.keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_own_draft_goes_out_and_comes_in_again(engine: Engine, target: Path, tmp_path: Path) -> None:
    """A draft as a run leaves it, with the target's embeddings and head, of which exports hold neither."""
    settings = {"mask_token_id": 47, "num_hidden_layers": 2, "sliding_window": 4}
    ours = make_draft(target_of("dflash"), "dflash", **settings)
    folder = save_draft(ours, tmp_path / "run")
    result = export_draft(folder, engine, out=tmp_path / "out", target=None, dtype="float32")
    assert check_draft(result.folder, engine).ok
    left_out = {finding.name for finding in result.warnings if "left out" in finding.message}
    assert left_out == (set() if engine == "vllm" else {"embed_tokens.weight", "lm_head.weight"})
    again, io = make_draft(target_of("dflash"), "dflash", scale=0.1, **settings), recorded("dflash")
    init_from(again, result.folder)
    assert torch.equal(states_of(again, io), states_of(ours, io))


@pytest.mark.parametrize(
    ("engine", "command"),
    [
        ("vllm", '{"method": "dflash", "model": "THIS_FOLDER", "num_speculative_tokens": 3}'),
        ("sglang", "--speculative-algorithm DFLASH --speculative-draft-model-path THIS_FOLDER "),
    ],
)
def test_card_tells_how_to_serve_the_block(engine: Engine, command: str, target: Path, tmp_path: Path) -> None:
    out = export_draft(ROOT / "dflash", engine, out=tmp_path / "out", target=target).folder
    card = (out / "README.md").read_text()
    assert command in card and "| block | 4 slots, 3 guesses |" in card and "parallel_drafting" not in card
    assert engine != "sglang" or "--speculative-num-draft-tokens 4" in card
    assert "DFlash draft for" in card


def test_run_folder_without_mask_token_or_block_size_is_refused(tmp_path: Path) -> None:
    folder = save_draft(make_draft(target_of("dflash"), "dflash", mask_token_id=47), tmp_path / "run")
    (folder / "eaglepipe_digests.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["mask_token_id"], config["block_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DraftError, match=r"block_size: absent.*mask_token_id: absent"):
        export_draft(folder, "vllm", out=tmp_path / "out")
