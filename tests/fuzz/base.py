"""What cases start from: a project, caches of each kind, runs, exports and answers, made once by the commands."""

import copy
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.files.hashing import hash_file
from tests.fuzz.forked import run_command, run_forked

ENGINES = ("vllm", "sglang", "speculators", "hf")
KINDS = {"hidden": {}, "dense": {"supervision": "dense"}, "sparse": {"profile": "tiny"}}

_TIMES = re.compile(r'("[a-z_]*(?:seconds|tokens_per_s|wait_share)": )[0-9.e-]+')


@dataclass(frozen=True, kw_only=True)
class Base:
    """Folders to copy from, never to write into."""

    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / "target"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    def cache(self, kind: str = "hidden") -> Path:
        """The complete cache with this kind of supervision."""
        return next(folder for folder in self._caches(kind) if (folder / "manifest.json").exists())

    def begun_cache(self) -> Path:
        """A cache that lacks shards and its manifest."""
        return next(self._caches("begun"))

    def _caches(self, kind: str) -> Any:
        return (path for path in sorted((self.folder / "caches" / kind).iterdir()) if path.is_dir())

    def export(self, engine: str) -> Path:
        return self.folder / "exports" / engine

    def recipe(self, **sections: Any) -> dict[str, Any]:
        """The project's recipe, sections updated."""
        return _merged(_recipe(self.folder), sections)

    def write_recipe(self, path: Path, **sections: Any) -> Path:
        """Write that recipe as JSON, which is YAML."""
        path.write_text(json.dumps(self.recipe(**sections)))
        return path

    def copy(self, source: Path, target: Path) -> Path:
        """Copy a folder, so that the case may damage it."""
        return Path(shutil.copytree(source, target, symlinks=True))


def make_base(folder: Path) -> Base:
    """Make the project and run the commands; every one must succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    base = Base(folder=folder)
    _succeed(run_forked(lambda: _make_project(folder), folder))
    for kind, cache in {**KINDS, "begun": {}}.items():
        recipe = base.write_recipe(folder / f"{kind}.yaml", cache={"root": str(folder / "caches" / kind), **cache})
        workers = ["--workers", "0/2"] if kind == "begun" else []
        _succeed(run_command(["precompute", str(recipe), *workers], folder))
    recipe = folder / "hidden.yaml"
    _succeed(run_command(["train", str(recipe)], folder))
    for engine in ENGINES:
        words = ["export", str(base.run), "--to", engine, "--out", str(base.export(engine))]
        _succeed(run_command([*words, "--target-name", "org/tiny"], folder))
    _succeed(run_command(["data", "regenerate", str(recipe)], folder))
    _without_times(folder)
    shutil.rmtree(folder / ".child")
    return base


def _without_times(folder: Path) -> None:
    """Write over the times that runs record, so that inputs depend on nothing but the seed."""
    for path in sorted(folder.rglob("*")):
        if path.name in ("train.json", "metrics.jsonl", "state.json", "answers.jsonl.report.json"):
            path.write_text(
                re.sub(r'("[a-z_]*(?:seconds|tokens_per_s|wait_share)": )[0-9.e-]+', r"\g<1>0.25", path.read_text())
            )
    for marker in sorted(folder.rglob("COMPLETE")):
        declare_checkpoint(marker.parent)


def declare_checkpoint(checkpoint: Path) -> None:
    """Make the marker of a checkpoint declare its files as they are now."""
    marker = checkpoint / "COMPLETE"
    entries = json.loads(marker.read_text())
    for name, entry in entries.items():
        path = checkpoint / name
        if isinstance(entry, dict) and path.is_file():
            entry.update(bytes=path.stat().st_size, xxh3_128=hash_file(path))
    marker.write_text(json.dumps(entries))


def _succeed(ended: Any) -> None:
    assert ended.code == 0, f"{ended.stdout}\n{ended.stderr}"


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(tree)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _recipe(folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "target": {"path": str(folder / "target")},
        "data": {"max_length": 96, "max_drop_fraction": 1.0, "sources": [{"path": str(folder / "rows.jsonl")}]},
        "vocab": {"draft_size": 96},
        "cache": {"root": str(folder / "caches" / "hidden"), "profile": "exact", "shard_bytes": "60KiB"},
        "precompute": {"batch_tokens": 512, "device": "cpu"},
        "draft": {"intermediate_size": 16},
        "train": {
            "output_dir": str(folder / "run"),
            "device": "cpu",
            "dtype": "float32",
            "ttt_steps": 2,
            "max_steps": 2,
            "batch_tokens": 256,
            "micro_batch_tokens": 256,
            "heldout_fraction": 0.2,
            "eval_every_steps": 1,
            "checkpoint_every_steps": 1,
            "log_every_steps": 1,
        },
        "regenerate": {
            "sources": [{"path": str(folder / "prompts.jsonl")}],
            "output": str(folder / "answers" / "answers.jsonl"),
            "max_new_tokens": 24,
            "temperature": 5.0,
            "seed": 2,
            "batch_size": 1,
        },
    }


def _make_project(folder: Path) -> None:
    from eaglepipe.demo.corpus import read_rows, write_corpus
    from eaglepipe.demo.tokenizer import train_tokenizer
    from tests.tiny_project import save_random_llama

    corpus = write_corpus(folder / "corpus", seed=0, train_rows=16, prompt_rows=8)
    for name, files in (("rows", corpus.train), ("prompts", corpus.prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read_rows(files)))
    tokenizer = train_tokenizer(corpus.train, 280)
    save_random_llama(
        folder / "target",
        tokenizer,
        vocab_size=288,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
