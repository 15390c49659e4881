"""The draft vocabulary of a recoded cache: chosen as stage 1 does, from the token counts that the cache keeps."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save

from eaglepipe.cache.consistency import START_FILE, VOCAB_FILE
from eaglepipe.cache.manifest import PLAN_NAME
from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.drafts.published_vocab import published_vocab
from eaglepipe.errors import ConfigError, CorruptError, VocabError
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.tensors import CONFIG_FILE
from eaglepipe.recipe.config import DataConfig
from eaglepipe.vocab import DraftVocab, build_draft_vocab, vocab_tensors


def new_vocab(cache: Cache, *, draft_size: int | None, vocab_from: Path | None) -> DraftVocab | None:
    """Return the draft vocabulary of that size, or of that cache or published draft; None if it is the cache's own.

    Raises:
        ConfigError: both are asked for.
        VocabError: the other cache is of another tokenizer or target vocabulary.
    """
    if vocab_from is not None and draft_size is not None:
        raise ConfigError("the draft vocabulary is either of a size or another cache's, not both")
    if vocab_from is not None:
        vocab = _vocab_from(vocab_from, cache)
    elif draft_size is not None:
        chat = _chat_tokenizer(cache)  # whose special ids stage 1 forces into a draft vocabulary
        special = set() if chat is None else chat.special_ids()
        forced = {token_id for token_id in special if token_id < cache.spec.vocab_size}
        vocab = build_draft_vocab(cache.vocab.counts.numpy(), draft_size, cache.spec.vocab_size, forced)
    else:
        return None
    return None if torch.equal(vocab.selected_token_ids, cache.vocab.selected_token_ids) else vocab


def end_of_turn(cache: Cache) -> int | None:
    """Return the id that ends a turn; None if the corpus came as token ids."""
    chat = _chat_tokenizer(cache)
    return None if chat is None else chat.end_of_turn


def vocab_files(vocab: DraftVocab, tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Return `vocab.safetensors`, and `target.safetensors` with the head rows of the new draft vocabulary."""
    prefix = "lm_head_full." if "lm_head_full.weight" in tensors else "lm_head."
    full = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    new = {**tensors, **{f"lm_head_full.{part}": tensor for part, tensor in full.items()}}
    new.update({f"lm_head.{part}": tensor[vocab.selected_token_ids] for part, tensor in full.items()})
    return {VOCAB_FILE: save(vocab_tensors(vocab)), START_FILE: save(new)}


def _vocab_from(folder: Path, cache: Cache) -> DraftVocab:
    if (folder / CONFIG_FILE).is_file():
        return published_vocab(folder, cache.vocab.counts)
    other = Cache.open(folder)
    tokenizers = [load_plan(one.folder).identity_fields["data"].get("tokenizer") for one in (other, cache)]
    if other.spec.vocab_size != cache.spec.vocab_size or tokenizers[0] != tokenizers[1]:
        raise VocabError(f"{other.folder} and {cache.folder} do not have the same tokenizer and target vocabulary")
    return replace(other.vocab, counts=cache.vocab.counts)


def _chat_tokenizer(cache: Cache) -> ChatTokenizer | None:
    folder = cache.folder / "tokenizer"
    if not folder.is_dir():
        return None
    plan_file = cache.folder / PLAN_NAME
    with explained_library_errors(CorruptError, f"{plan_file}: its settings of data are none"):
        data = DataConfig.model_validate({**load_plan(cache.folder).declared["data"], "chat_template": None})
    return load_chat_tokenizer(load_tokenizer(folder), data)
