"""`data preview`: the first samples of a recipe, as its target would read them."""

from itertools import islice

from eaglepipe.chat.preview import preview_samples
from eaglepipe.chat.sources import check_regenerated, iter_conversations
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import load_tokenizer
from eaglepipe.chat.tokens import DropCounts, iter_token_samples
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.load import resolve_folder


def preview_recipe(recipe: Recipe, *, count: int, colour: bool) -> str:
    """Return the text of the first `count` samples that are not dropped; assistant turns in colour or in brackets."""
    check_regenerated(recipe)
    folder = resolve_folder(recipe.target, weights=False)
    chat = load_chat_tokenizer(load_tokenizer(folder, recipe.target.trust_remote_code), recipe.data)
    samples = iter_token_samples(iter_conversations(recipe.data.sources), chat, recipe.data, DropCounts())
    return preview_samples(islice(samples, count), chat.tokenizer, colour=colour)
