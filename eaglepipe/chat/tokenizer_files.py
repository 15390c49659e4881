"""A tokenizer as the files of a model's folder give it, checked before its use, and its chat templates."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eaglepipe.errors import DataError, TargetError, TemplateError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.library_errors import explained_library_errors, without_panic_report


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local model folder.

    Raises:
        TargetError: there is none.
    """
    if not folder.exists():
        raise TargetError(f"{folder}: no such folder")
    with explained_library_errors(TargetError, f"{folder}: no tokenizer can be loaded"), without_panic_report():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _check_usable(tokenizer)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_template(folder)
    return tokenizer


def _check_usable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use what a tokenizer's files may give wrong types, which some libraries notice in the first use alone."""
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise ValueError(f"model_max_length is {str(limit)[:80]!r}, not a number")
    if not (tokenizer.chat_template is None or isinstance(tokenizer.chat_template, str | dict)):
        raise ValueError(f"chat_template is a {type(tokenizer.chat_template).__name__}, not a text")
    if isinstance(tokenizer.chat_template, dict) and not all(
        isinstance(value, str) for value in tokenizer.chat_template.values()
    ):
        raise ValueError("chat_template holds values that are no texts")
    if tokenizer.vocab_size == 0:  # added tokens left out
        raise ValueError("its vocabulary is empty")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        getattr(tokenizer, name)


def read_templates(tokenizer: PreTrainedTokenizerBase, choice: str | None) -> tuple[str, str | None]:
    """Read the Jinja source of a tokenizer's chat template, and that of its template for tools if it has one apart.

    Args:
        choice: path of a Jinja file, or the name of one of the tokenizer's templates, that renders every conversation.

    Raises:
        DataError: the file cannot be read.
        TemplateError: the tokenizer has no template and no file is given, or several and none of them is the default.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if choice is not None and choice in named and not Path(choice).expanduser().exists():
        return named[choice], None
    if choice is not None:
        try:
            return Path(choice).expanduser().read_text(encoding="utf-8"), None
        except (OSError, UnicodeDecodeError) as error:
            names = f"; the tokenizer's own are named {', '.join(sorted(named))}" if named else ""
            raise DataError(f"data.chat_template: {choice} cannot be read: {error}{names}") from None
    if named and "default" not in named:
        raise TemplateError(
            f"the tokenizer has several chat templates ({', '.join(sorted(named))}) and none is the default; name one "
            "in data.chat_template"
        )
    try:
        return tokenizer.get_chat_template(), named.get("tool_use")
    except ValueError:
        raise TemplateError(
            "the tokenizer has no chat template; name a Jinja file in data.chat_template, or give sources of "
            "`format: tokenized`"
        ) from None


def _processor_template(folder: Path) -> str | None:
    """Return the template in chat_template.json, where processors of multimodal models keep it."""
    file = folder / "chat_template.json"
    if not file.is_file():
        return None
    template = read_json_object(file).get("chat_template")
    return template if isinstance(template, str) else None
