"""`data preview`: the first samples of a recipe, as its target would read them."""

from itertools import islice

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.preview import preview_samples
from eaglepipe.chat.sources import check_regenerated, iter_conversations
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.chat.tokens import iter_token_samples
from eaglepipe.precompute.answers.prompts import iter_prompts
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.load import resolve_folder


def preview_recipe(recipe: Recipe, *, count: int, colour: bool) -> str:
    """Return the text of the first `count` samples that are not dropped; assistant turns in colour or in brackets.

    Rows that were dropped on the way to them follow as a table of reasons.

    Raises:
        DataError: every row was dropped, or a source cannot be read.
    """
    check_regenerated(recipe)
    folder = resolve_folder(recipe.target, weights=False)
    chat = load_chat_tokenizer(load_tokenizer(folder, recipe.target.trust_remote_code), recipe.data)
    drops = DropLog()
    rows = iter_conversations(recipe.data.sources)
    generate = recipe.data.generate is not None
    read = iter_prompts(rows, read_stage1_inputs(recipe), drops) if generate else None
    samples = list(islice(read or iter_token_samples(rows, chat, recipe.data, drops), count))
    text = preview_samples(samples, chat.tokenizer, colour=colour)
    if not (dropped := drops.counts.total()):
        return text
    num_rows = len(samples) + dropped
    if not samples and count:
        drops.check(0, recipe.data.max_drop_fraction)
    return f"{text}\n\ndropped {dropped:,} of the first {num_rows:,} rows\n{drops.table(num_rows)}"
