"""Facts about the standard library: signatures, first docstring lines and members of its well-known modules.

The list of modules is fixed, and none of them does anything visible when imported.
"""

import functools
import importlib
import inspect
import types
from dataclasses import dataclass
from random import Random
from typing import Any

from eaglepipe.demo.corpus_types import Exchange, Source, listing, plural

MODULES = """
    abc argparse array ast asyncio base64 bdb binascii bisect builtins bz2 cProfile calendar cmath cmd code codecs
    codeop collections collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars
    copy copyreg csv ctypes dataclasses datetime decimal difflib dis doctest email email.header email.message
    email.mime.text email.policy email.utils enum errno filecmp fileinput fnmatch fractions ftplib functools gc
    getopt getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http http.client http.cookiejar
    http.cookies http.server imaplib importlib importlib.metadata importlib.resources importlib.util inspect io
    ipaddress itertools json keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal
    math mimetypes mmap modulefinder multiprocessing multiprocessing.pool multiprocessing.shared_memory netrc
    numbers operator optparse os os.path pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath
    pprint profile pstats py_compile pyclbr pydoc queue quopri random re reprlib runpy sched secrets select
    selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string
    stringprep struct subprocess symtable sys tabnanny tarfile tempfile textwrap threading time timeit token
    tokenize trace traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.error urllib.parse
    urllib.request urllib.robotparser uuid venv warnings wave weakref webbrowser wsgiref.headers wsgiref.util
    xml.dom.minidom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xmlrpc.client zipapp zipfile
    zipimport zlib zoneinfo
"""
_LONGEST_SIGNATURE = 120
_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional only",
    inspect.Parameter.KEYWORD_ONLY: "keyword only",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One documented callable; `members` are the public methods of a class."""

    name: str
    module: str
    kind: str
    summary: str
    signature: inspect.Signature | None
    members: tuple[str, ...]


@functools.cache
def entries() -> dict[str, Entry]:
    """Every documented public callable of the modules that this Python has, by dotted name."""
    found: dict[str, Entry] = {}
    for module_name in MODULES.split():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for entry in _entries_of(module):
            found.setdefault(entry.name, entry)
    return found


def _entries_of(module: types.ModuleType) -> list[Entry]:
    found = []
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", module.__name__) not in _homes(module):
            continue
        dotted = f"{module.__name__}.{name}"
        if inspect.isclass(value):
            found.append(_entry(dotted, module, "class", value))
            found.extend(
                _entry(f"{dotted}.{method}", module, "method", vars(value)[method]) for method in _methods(value)
            )
        elif callable(value):
            found.append(_entry(dotted, module, "function", value))
    return [entry for entry in found if entry is not None]


def _homes(module: types.ModuleType) -> tuple[str | None, ...]:
    """Where a module's own things say they are from: itself, or the C module behind it."""
    return (module.__name__, f"_{module.__name__}", module.__name__.partition(".")[0], None)


def _methods(cls: type) -> tuple[str, ...]:
    return tuple(sorted(name for name, value in vars(cls).items() if not name.startswith("_") and callable(value)))


def _entry(name: str, module: types.ModuleType, kind: str, value: Any) -> Entry | None:
    documentation = value.__dict__.get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
    summary = _first_line(documentation)
    if summary is None:
        return None
    return Entry(
        name=name.removeprefix("builtins."),
        module=module.__name__,
        kind=kind,
        summary=summary,
        signature=_signature(value),
        members=_methods(value) if inspect.isclass(value) else (),
    )


def _first_line(documentation: object) -> str | None:
    """The first sentence-like line of a docstring, or None where it says nothing that can be quoted."""
    lines = documentation.strip().splitlines() if isinstance(documentation, str) else []
    line = lines[0].strip() if lines else ""
    is_prose = 12 <= len(line) <= 120 and line.isascii() and line.count(" ") >= 2
    quotable = is_prose and " at 0x" not in line and "->" not in line
    return line.rstrip(".") if quotable else None


def _signature(value: Any) -> inspect.Signature | None:
    """A signature that reads the same in every process, or None."""
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):
        return None
    bare = signature.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    text = str(bare)
    return bare if len(text) <= _LONGEST_SIGNATURE and not set("<{/\\") & set(text.replace(", /", "")) else None


def _keys() -> list[str]:
    return sorted(entries())


def _exchanges(key: str, rng: Random) -> tuple[Exchange, ...]:
    entry = entries()[key]
    exchanges = [_purpose(entry, rng)]
    if entry.signature is not None:
        exchanges.append(_call(entry, entry.signature, rng))
    if len(entry.members) >= 2:
        exchanges.append(_members(entry, rng))
    return tuple(exchanges)


def _purpose(entry: Entry, rng: Random) -> Exchange:
    question = rng.choice(
        (
            f"What does {entry.name} do?",
            f"What is {entry.name} for?",
            f"Explain {entry.name} to me.",
            f"What does the documentation say about {entry.name}?",
        )
    )
    where = f"in the module {entry.module}" if entry.module != "builtins" else "that is built into Python"
    call = f"{_short(entry)}{entry.signature}" if entry.signature else "not recorded"
    return Exchange(
        question=question,
        sentences=(
            f"{entry.name} is a {entry.kind} {where}.",
            f"Its documentation begins: {entry.summary}.",
            f"Its signature is {call}.",
        ),
    )


def _short(entry: Entry) -> str:
    return entry.name.rpartition(".")[2]


def _call(entry: Entry, signature: inspect.Signature, rng: Random) -> Exchange:
    question = rng.choice(
        (
            f"How do I call {entry.name}?",
            f"What are the parameters of {entry.name}?",
            f"Which arguments does {entry.name} take?",
        )
    )
    parameters = list(signature.parameters.values())
    return Exchange(
        question=question,
        sentences=(
            f"The call is {_short(entry)}{signature}.",
            f"It has {plural(len(parameters), 'parameter')}"
            + (f": {listing([_described(parameter) for parameter in parameters[:6]])}" if parameters else "")
            + (", and more." if len(parameters) > 6 else "."),
        ),
    )


def _described(parameter: inspect.Parameter) -> str:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"*{parameter.name} for any further positional arguments"
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return f"**{parameter.name} for any further keyword arguments"
    kind = f" ({_KINDS[parameter.kind]})" if parameter.kind in _KINDS else ""
    if parameter.default is inspect.Parameter.empty:
        return f"{parameter.name}{kind} is required"
    return f"{parameter.name}{kind} defaults to {parameter.default!r}"


def _members(entry: Entry, rng: Random) -> Exchange:
    question = rng.choice(
        (
            f"Which methods does {entry.name} have?",
            f"What can I do with a {entry.name}?",
            f"List the methods of {entry.name}.",
        )
    )
    shown = list(entry.members[:8])
    rest = len(entry.members) - len(shown)
    return Exchange(
        question=question,
        sentences=(
            f"{entry.name} defines {plural(len(entry.members), 'public method')}.",
            f"In alphabetical order they {'begin with' if rest else 'are'} {listing(shown)}.",
            f"Its documentation begins: {entry.summary}.",
        ),
    )


SOURCE = Source(
    name="stdlib",
    system_prompt="You answer questions about the Python standard library.",
    keys=_keys,
    exchanges=_exchanges,
)
