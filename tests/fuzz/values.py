"""Values that a careful reader refuses and a careless one trips over, and mutations of JSON trees, texts and bytes."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tree = Any
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**31 - 1, 2**40, 2**63, 2**63 - 1, -(2**63), 2**64, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0", "-1", "0x10", "1e9", "nan", "inf", "true", "null", "auto", "~", "\n", "{{ x }}", "%s", "*"),
    *("\ud800", "a\ud83d", "\x1b[31mred\x1b[0m", "a\x00b", "\u202e", "\ufeff", "é" * 40, "x" * 300, "x" * 5000),
    *("../../outside", "/", ".", "..", "~/x", "a/b", "/dev/zero", "/proc/self/mem", "file:///etc/passwd", "org/name"),
    *([], {}, [None], [0], [1, 2, 3], ["x"], [[]], [{}], {"x": 1}, {"": ""}, {"a": {"b": {"c": []}}}, [-1, -1]),
)
NESTED = "@nested@"
"""Stands for a value nested deeper than any parser goes; `json_text` writes it."""
_DEPTH = 20_000


def hostile(rng: random.Random) -> Any:
    """Return one hostile value."""
    if rng.random() < 0.04:
        return NESTED
    if rng.random() < 0.03:
        return [rng.choice((0, 1, "x", None))] * 100_000
    return copy.deepcopy(rng.choice(HOSTILE))


def mutate(tree: Tree, rng: random.Random, *, times: int | None = None) -> Tree:
    """Return a copy of a JSON tree with one to three changes, each at a random place."""
    holder = [copy.deepcopy(tree)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        _change(holder, rng)
    return holder[0]


def _change(holder: list[Any], rng: random.Random) -> None:
    parent, key = rng.choice(list(_places(holder)))
    value = parent[key]
    change = rng.randrange(9)
    if change <= 3:
        parent[key] = hostile(rng)
    elif change == 4 and parent is not holder:
        del parent[key]
    elif change == 5:
        parent[key] = rng.choice(([value], {"x": value}, [value, value], str(value)[:2000]))
    elif change == 6 and isinstance(value, dict):
        value[str(rng.choice(("x", "", "id", "path", "type", "a" * 300)))] = hostile(rng)
    elif change == 6 and isinstance(value, list) and value:
        value.insert(rng.randrange(len(value) + 1), rng.choice((hostile(rng), value[0])))
    elif change == 7:
        other, at = rng.choice(list(_places(holder)))
        parent[key] = copy.deepcopy(other[at]) if len(str(other[at])) < 100_000 else None
    else:
        parent[key] = _near(value, rng)


def _near(value: Any, rng: random.Random) -> Any:
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and abs(value) < 2**900:
        return rng.choice((value + 1, value - 1, -value, value * 2, value // 2, value * 1000, value + 0.5, str(value)))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e6, value / 1e6, value + 1e-9))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return rng.choice((value[:at], value[at:], value + value, value.upper(), value[:at] + "\x1b[7m" + value[at:]))
    return rng.sample(value, len(value)) if isinstance(value, list) else hostile(rng)


def _places(tree: Any) -> Any:
    """Yield (container, key) of every value below; of long lists, a few."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:40]) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def json_text(tree: Any, **options: Any) -> str:
    """Return JSON with whatever it holds, as a careless writer would: NaN, half surrogates, very deep values."""
    return json.dumps(tree, **options).replace(f'"{NESTED}"', "[" * _DEPTH + "]" * _DEPTH)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one change: flips, cuts, repeats, insertions, another encoding."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 4, 64, 4096)))
    noise = rng.choice((b"\xff", b"\x00", b'"', b"{", b"[" * 9000, b"\xed\xa0\x80", b"9" * 5000))
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: _flipped(data, rng),
        lambda: _flipped(data, rng),
        lambda: data[:at],
        lambda: data[:at] + data[end:],
        lambda: data[:at] + data[at:end] * rng.choice((2, 100)) + data[end:],
        lambda: data[:at] + rng.randbytes(end - at) + data[end:],
        lambda: data[:at] + bytes(end - at) + data[end:],
        lambda: data[:at] + noise + data[at:],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: b"",
        lambda: data + data,
        lambda: PICKLE,
    )
    return rng.choice(changes)()


PICKLE = b"cposix\nsystem\n(S'true'\ntR."
"""A pickle that calls os.system("true")."""


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_json_file(path: Path, rng: random.Random, source: Path | None = None) -> None:
    """Rewrite a JSON file changed: mostly its values, at times its bytes."""
    data = (source or path).read_bytes()
    if rng.random() < 0.15:
        path.write_bytes(mutate_bytes(data, rng))
        return
    tree = json.loads(data)
    if rng.random() < 0.05:
        path.write_text(json_text(hostile(rng)))
    elif rng.random() < 0.05 and isinstance(tree, dict) and tree:
        key, text = next(iter(tree)), json_text(tree)
        path.write_text(f"{text[:-1]}, {json.dumps(key)}: {json_text(tree[key])}}}")
    else:
        path.write_text(json_text(mutate(tree, rng), ensure_ascii=rng.random() < 0.5), errors="surrogatepass")
