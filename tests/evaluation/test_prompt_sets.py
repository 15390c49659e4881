"""The sets of prompts that ship, and prompts by name."""

from pathlib import Path

import pytest

from eaglepipe.chat.sources import Conversation, iter_conversations
from eaglepipe.errors import DataError
from eaglepipe.evaluation.prompts import read_prompt_sets
from eaglepipe.precompute.inputs import read_chat_tokenizer
from eaglepipe.recipe.config import SourceConfig
from eaglepipe.resources import shipped_prompts
from tests.tiny_project import VOCAB_SIZE, TinyProject


@pytest.mark.parametrize("name", ["chat", "code", "maths"])
def test_a_set_that_ships_holds_a_few_dozen_prompts_each_asked_once(name: str) -> None:
    rows = list(iter_conversations([SourceConfig(path=str(shipped_prompts()[name]))]))
    asked = [row.messages[-1]["content"] for row in rows if isinstance(row, Conversation) and row.messages]
    assert len(asked) == len(rows) == len(set(asked))
    assert 30 <= len(rows) <= 40
    assert any(len(row.messages) > 1 for row in rows if isinstance(row, Conversation) and row.messages)


def test_sets_are_named_or_files_and_an_unanswered_end_is_a_prompt_of_its_own(
    project: TinyProject, tmp_path: Path
) -> None:
    chat = read_chat_tokenizer(project.recipe(), project.target)
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "What is 7?", "completion": "A number."}\n')
    maths, own = read_prompt_sets([Path("maths"), file], chat, VOCAB_SIZE)
    assert (maths.name, own.name, len(own.prompts)) == ("maths", "own.jsonl", 1)
    two_turns = [prompt for prompt in maths.prompts if prompt.sample_id == maths.prompts[4].sample_id]
    assert len(two_turns) == 2
    assert len(two_turns[1].token_ids) > len(two_turns[0].token_ids)


def test_a_mistyped_set_names_the_nearest_one(project: TinyProject) -> None:
    chat = read_chat_tokenizer(project.recipe(), project.target)
    with pytest.raises(DataError, match="did you mean maths"):
        read_prompt_sets([Path("math")], chat, VOCAB_SIZE)
