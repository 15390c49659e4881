"""The corpus of a recipe, tokenised into one staged file, and the list of the rows that were dropped on the way."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from eaglepipe.cache.fixed_files import file_problem, record_files, recorded_files
from eaglepipe.cache.manifest import DROPS_FILE, FileEntry
from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.sources import CorpusFingerprint, iter_conversations
from eaglepipe.chat.tokens import TokenSample, iter_token_samples
from eaglepipe.errors import EaglepipeError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.leftovers import leftover_siblings, remove_abandoned
from eaglepipe.files.publish import PendingFile, explained_os_errors
from eaglepipe.precompute.answers.prompts import iter_prompts
from eaglepipe.precompute.imported.corpus import ForeignCorpus
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import StagedPrompt, StagedStates, count_tokens, write_staging
from eaglepipe.recipe.config import TargetConfig


@contextmanager
def staged_corpus(
    inputs: Stage1Inputs, path: Path, report: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[PendingFile, DropLog, PendingFile, str]]:
    """Tokenise the corpus, each row parsed once, into a file beside `path` that is not published.

    With it come the drops, the file that lists them, which is not published either, and the corpus's fingerprint.
    """
    data = inputs.recipe.data
    _check_writable(path.parent)
    remove_abandoned(leftover_siblings(path))
    file, listed = PendingFile(path), PendingFile(path.with_name(f"{path.name}.drops"))
    drops = DropLog(listed.stream)
    try:
        corpus = _corpus(inputs, drops, report)
        if write_staging(corpus.samples, file, kind=corpus.kind) == 0:
            drops.check(0, data.max_drop_fraction)
        yield file, drops, listed, corpus.hexdigest()
    finally:
        file.abort()
        listed.abort()


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    """Samples to be staged, all of one kind, and the fingerprint of those that were read so far."""

    samples: Iterable[TokenSample]
    kind: type[TokenSample]
    hexdigest: Callable[[], str]


def _corpus(inputs: Stage1Inputs, drops: DropLog, report: Callable[[str], None]) -> _Corpus:
    data = inputs.recipe.data
    if data.imported is not None:
        foreign = ForeignCorpus(inputs, drops, report)
        return _Corpus(samples=foreign.samples(), kind=StagedStates, hexdigest=foreign.hexdigest)
    fingerprint = CorpusFingerprint()
    rows = fingerprint.through(iter_conversations(data.sources))
    if data.generate is not None:
        return _Corpus(samples=iter_prompts(rows, inputs, drops), kind=StagedPrompt, hexdigest=fingerprint.hexdigest)
    tokens = iter_token_samples(rows, inputs.chat, data, drops, inputs.spec.vocab_size)
    served = _served(tokens, inputs.recipe.target, drops)
    return _Corpus(samples=served, kind=TokenSample, hexdigest=fingerprint.hexdigest)


def _served(samples: Iterable[TokenSample], target: TargetConfig, drops: DropLog) -> Iterator[TokenSample]:
    """Yield the samples that the target's engine may read at once."""
    limit = target.engine_args.get("max_model_len")
    for sample in samples:
        if limit is None or (num_tokens := count_tokens(sample)[0]) <= limit:
            yield sample
            continue
        detail = f"{num_tokens:,} tokens, and target.engine_args.max_model_len is {limit:,}"
        drops.add("too_long_for_engine", where=f"sample id {sample.sample_id!r}", source=sample.source, detail=detail)


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise EaglepipeError(f"{root}: not writable ({error.strerror}); set cache.root to a folder that is") from None


def publish_drops(folder: Path, identity: str, drops: DropLog, listed: PendingFile) -> None:
    """Publish the list of drops if there are any, and record that it is published, or that there is none."""
    if has_corpus_files(folder, identity):  # by another worker, whose paths may be others
        return
    entries = (publish_list(folder, listed),) if drops.counts.total() else ()
    record_files(folder, "corpus", identity, entries)


def publish_list(folder: Path, listed: PendingFile) -> FileEntry:
    """Publish the list of drops."""
    with explained_os_errors(listed.path):
        listed.stream.flush()
        num_bytes, digest = listed.temporary.stat().st_size, hash_file(listed.temporary)
    listed.publish(path=folder / DROPS_FILE)
    return FileEntry(path=DROPS_FILE, bytes=num_bytes, xxh3_128=digest)


def has_corpus_files(folder: Path, identity: str) -> bool:
    """Return whether the files that come with the tokenised corpus are published, every byte."""
    entries = recorded_files(folder, "corpus", identity)
    return entries is not None and all(file_problem(folder, entry) is None for entry in entries)
