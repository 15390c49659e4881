"""Findings of a check of a draft folder, and their report."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from eaglepipe.errors import printable, shortened
from eaglepipe.export.layouts import Engine, Severity

Kind = Literal["missing", "unexpected", "misshapen", "values", "field", "file"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault (the draft would not load, or be served wrongly) or a warning."""

    severity: Severity
    kind: Kind
    name: str  # of the tensor, the config field or the file
    message: str
    is_suspicion: bool = False  # depends on a fact that only the draft's makers know

    def line(self) -> str:
        return printable(f"{self.severity:7}  {self.kind:10}  {self.name}: {self.message}")


Findings = Iterator[Finding]


def error(name: str, message: str, kind: Kind = "field") -> Finding:
    return Finding(severity="error", kind=kind, name=shortened(name), message=shortened(message))


def warning(name: str, message: str, kind: Kind = "field") -> Finding:
    return Finding(severity="warning", kind=kind, name=shortened(name), message=shortened(message))


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings, errors first."""

    folder: Path
    engine: Engine
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        findings = [asdict(finding) for finding in self.findings]
        return {"folder": str(self.folder), "engine": self.engine, "ok": self.ok, "findings": findings}

    def table(self) -> str:
        verdict = "fits" if self.ok else f"does not fit: {len(self.errors)} error(s)"
        lines = [finding.line() for finding in self.findings]
        return "\n".join([*lines, f"{self.folder} for {self.engine}: {verdict}"])
