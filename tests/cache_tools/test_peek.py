"""`cache peek` shows what the target said, from the cache alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.peek_texts import peek_cache, turns_of
from eaglepipe.chat.tokens import supervised_tokens
from eaglepipe.errors import CacheError, ConfigError, CorruptError
from tests.cache.damage import flip
from tests.cache.derived import make_cache
from tests.tiny_project import TinyProject

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("supervision", ["hidden", "dense", "sparse"])
def test_probabilities_are_the_targets_own(
    project: TinyProject, sealed_cache: Path, tmp_path: Path, supervision: str
) -> None:
    rows = json.dumps([{"path": str(project.sources[0]), "max_samples": 2}])
    other = {"cache.supervision": supervision, "data.sources": rows}
    folder = sealed_cache if supervision == "hidden" else make_cache(project, tmp_path, **other)
    peek = peek_cache(folder, "1", top=4, rows=":").to_json()
    model = AutoModelForCausalLM.from_pretrained(project.target)
    tokenizer = AutoTokenizer.from_pretrained(project.target)
    ids = torch.tensor([[row["token_id"] for row in peek["rows"]]])
    with torch.no_grad():
        probs = model(ids).logits[0].float().softmax(-1)
    selected = load_file(folder / "vocab.safetensors")["selected_token_ids"]
    for position, row in enumerate(peek["rows"]):
        assert row["position"] == position and row["supervised"] == bool(row["top"])
        if not row["supervised"]:
            assert row["draft_mass"] is None and row["target_top1"] is None
            continue
        inside = probs[position, selected]
        assert row["draft_mass"] == pytest.approx(float(inside.sum()), abs=1e-3)
        assert row["target_top1"] == int(probs[position].argmax())
        assert row["top1_in_draft_vocab"] == (row["target_top1"] in selected)
        best = (inside / inside.sum()).topk(4).values.tolist()
        assert [one["probability"] for one in row["top"]] == pytest.approx(best, abs=1e-3)
        of_token = dict(zip(selected.tolist(), (inside / inside.sum()).tolist(), strict=True))
        assert all(one["probability"] == pytest.approx(of_token[one["id"]], abs=1e-3) for one in row["top"])
        assert row["next_token_id"] == ids[0, position + 1]
    word = next(row for row in peek["rows"] if tokenizer.decode([row["token_id"]]).isalpha())
    assert word["text"] == tokenizer.decode([word["token_id"]])


def test_sparse_rows_show_what_is_stored_and_the_tail(project: TinyProject, tmp_path: Path) -> None:
    rows = json.dumps([{"path": str(project.sources[0]), "max_samples": 2}])
    few = {"cache.supervision": "sparse", "cache.max_entries": 7, "data.sources": rows}
    peek = peek_cache(make_cache(project, tmp_path, **few), "1", top=20, rows=":")
    shown = [row for row in peek.to_json()["rows"] if row["supervised"]]
    assert shown
    for row in shown:
        probs = [one["probability"] for one in row["top"]]
        assert len(probs) == 7 and probs == sorted(probs, reverse=True)
        assert row["tail_mass"] == pytest.approx(1 - sum(probs), abs=1e-6)
    assert f"(tail {shown[0]['tail_mass']:.3f})" in peek.text(colour=False)


def test_a_sample_is_found_by_number_and_by_id(sealed_cache: Path) -> None:
    sample_id = Cache.open(sealed_cache).index.sample_ids[2]
    by_id = peek_cache(sealed_cache, sample_id, top=1, rows="0:2").to_json()
    assert by_id == peek_cache(sealed_cache, "2", top=1, rows=":2").to_json()
    assert by_id["sample_id"] == sample_id and len(by_id["rows"]) == 2
    with pytest.raises(CacheError, match=re.escape(f"closest id is {sample_id!r}")):
        peek_cache(sealed_cache, sample_id + "x", top=1, rows=None)
    with pytest.raises(CacheError, match="no sample '9999'"):
        peek_cache(sealed_cache, "9999", top=1, rows=None)
    with pytest.raises(ConfigError, match="expected a:b"):
        peek_cache(sealed_cache, "0", top=1, rows="5")


def test_text_is_marked_and_holds_nothing_a_terminal_obeys(sealed_cache: Path) -> None:
    peek = peek_cache(sealed_cache, "0", top=5, rows=None)
    coloured, plain = peek.text(colour=True), peek.text(colour=False)
    assert ANSI.search(coloured) and "⟦" in plain
    for text in (ANSI.sub("", coloured), plain):
        assert all(char.isprintable() or char == "\n" for char in text)
    first = int(Cache.open(sealed_cache).read(0).supervised.argmax())
    assert re.search(rf"^ +{first} '", plain, re.MULTILINE)
    assert re.search(r"(in|OUT) +'", plain)


def test_control_characters_in_ids_and_tokens_are_escaped(sealed_cache: Path) -> None:
    peek = peek_cache(sealed_cache, "0", top=2, rows=None)
    hostile = replace(peek.sample, sample_id="a\x1b]0;owned\x07", source="b\x1b[2J")
    text = replace(peek, sample=hostile).text(colour=False)
    assert "\x1b" not in text and "\x07" not in text and "\\x1b]0;owned\\x07" in text


def test_turns_give_back_the_mask_and_the_supervision(sealed_cache: Path) -> None:
    cache = Cache.open(sealed_cache)
    for number in range(cache.num_samples):
        sample = cache.read(number)
        turns = turns_of(sample)
        assert np.array_equal(turns > 0, sample.loss_mask)
        assert np.array_equal(supervised_tokens(turns), sample.supervised)


def test_a_damaged_sample_or_head_is_refused(cache_copy: Path) -> None:
    for name in ("target.safetensors", Cache.open(cache_copy).manifest.shards[0].path):
        original = (cache_copy / name).read_bytes()
        for position in range(len(original) // 8, len(original), len(original) // 4):
            flip(cache_copy / name, position)
        with pytest.raises(CorruptError, match=Path(name).name):
            for number in range(Cache.open(cache_copy).manifest.shards[0].samples):
                peek_cache(cache_copy, str(number), top=1, rows=":")
        (cache_copy / name).write_bytes(original)
