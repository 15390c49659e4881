"""What a block of a DFlash draft reads: against an explicit loop over packed documents, on every path."""

import pytest
import torch

from eaglepipe.eagle.dflash.config import dflash_config_from_target
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.dflash.visibility import BlockVisibility, DenseVisibility
from eaglepipe.errors import DraftError
from tests.training.tiny_source import TARGET_CONFIG

CPU = torch.device("cpu")
LENGTHS = (7, 1, 12)
ANCHORS = ((1, 4, 6), (0,), (0, 3, 3, 9))  # slots of each document; the anchor's token is the one after
WIDTH = 4


def make_draft(num_hidden_layers: int = 2, **settings) -> DFlashDraftModel:
    torch.manual_seed(3)
    settings = {"block_size": WIDTH, "mask_token_id": 39, "draft_vocab_size": 24, **settings}
    config = dflash_config_from_target(TARGET_CONFIG, num_hidden_layers=num_hidden_layers, **settings)
    return DFlashDraftModel(config).float()


def make_visibility(kind: type[BlockVisibility] = BlockVisibility) -> BlockVisibility:
    starts, stops, begin = [], [], 0
    for length, anchors in zip(LENGTHS, ANCHORS, strict=True):
        starts += [begin] * len(anchors)
        stops += [begin + anchor + 1 for anchor in anchors]
        begin += length
    bounds = {"starts": torch.tensor(starts), "stops": torch.tensor(stops)}
    return kind(**bounds, num_context=begin, width=WIDTH, device=CPU)


def by_loop(window: int | None, causal: bool) -> torch.Tensor:
    """Token by token: (document, token before which a block stands) against (document, token) of every key."""
    slots = [(document, slot) for document, length in enumerate(LENGTHS) for slot in range(length)]
    blocks = [(document, anchor + 1) for document, anchors in enumerate(ANCHORS) for anchor in anchors]
    rows = []
    for number, (document, anchor_token) in enumerate(blocks):
        for place in range(WIDTH):
            row = []
            for of, token in slots:
                near = window is None or token >= anchor_token - window
                row.append(of == document and token < anchor_token and near)
            for other in range(len(blocks)):
                row += [other == number and not (causal and later > place) for later in range(WIDTH)]
            rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_visibility_is_that_of_an_explicit_loop(window: int | None, causal: bool) -> None:
    expected = by_loop(window, causal)
    layer = make_visibility().of_layer(window, causal=causal)
    assert torch.equal(layer.dense(), expected)
    spread = torch.zeros_like(expected)
    for chunk in layer.chunks:
        spread[chunk.queries.start : chunk.queries.stop, chunk.keys] = chunk.visible
    assert torch.equal(spread, expected)
    wide = layer.block_mask.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert not (expected & ~wide[: len(expected), : expected.shape[1]]).any()
    rows = torch.tensor([0, 3, 4, 17, 30])
    assert torch.equal(layer.of_queries(rows).dense(), expected[rows])


def test_blocks_of_flex_attention_leave_out_what_none_of_their_slots_reads() -> None:
    documents, length = 20, 128
    starts = torch.arange(documents).repeat_interleave(16) * length
    stops = starts + torch.arange(1, 17).repeat(documents) * 8
    view = BlockVisibility(starts=starts, stops=stops, num_context=documents * length, width=8, device=CPU)
    blocks = view.block_mask.to_dense()[0, 0]
    assert blocks.shape == (20, 40) and blocks.sum() == 40  # its document, and itself


@pytest.mark.parametrize("windows", [{}, {"sliding_window": 3}, {"sliding_window": 2, "full_attention_layers": (0,)}])
@pytest.mark.parametrize("non_causal", [False, True])
def test_fast_paths_equal_the_dense_reference(windows: dict, non_causal: bool) -> None:
    draft = make_draft(**windows, sliding_window_non_causal=non_causal)
    generator = torch.Generator().manual_seed(0)
    num_blocks, num_context = sum(map(len, ANCHORS)), sum(LENGTHS)
    ids = torch.randint(40, (num_blocks, WIDTH), generator=generator)
    positions = torch.arange(num_blocks)[:, None] + torch.arange(WIDTH)
    context = draft.project_hidden_states(torch.randn(num_context, 48, generator=generator))
    arguments = (ids, positions, context, torch.arange(num_context))
    expected = draft(*arguments, make_visibility(DenseVisibility))
    torch.testing.assert_close(draft(*arguments, make_visibility()), expected)
    rows = torch.tensor([1, 2, 5, 11, 19, 31])
    torch.testing.assert_close(draft(*arguments, make_visibility(), rows=rows), expected[rows])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 1}, r"block_size must be an int of at least 2.*not 1"),
        ({"mask_token_id": None}, r"without mask token.*draft\.mask_token_id"),
        ({"mask_token_id": 40}, "mask token 40 is outside the target's vocabulary of 40 ids"),
    ],
)
def test_configs_that_make_no_block_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        make_draft(**settings)


def test_names_of_tensors_are_those_of_the_engines() -> None:
    names = {name for name in make_draft(num_hidden_layers=1).state_dict() if not name.startswith("layers.")}
    assert names == {
        "fc.weight",
        "hidden_norm.weight",
        "norm.weight",
        "embed_tokens.weight",
        "lm_head.weight",
        "d2t",
        "t2d",
    }
    layer = {name for name in make_draft(num_hidden_layers=1).state_dict() if name.startswith("layers.0.")}
    parts = [f"self_attn.{name}_proj" for name in "qkvo"] + ["self_attn.q_norm", "self_attn.k_norm"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    assert layer == {f"layers.0.{part}.weight" for part in parts}
