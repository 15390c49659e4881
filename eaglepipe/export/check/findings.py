"""What a check of a draft folder found."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning"]
Kind = Literal["missing", "unexpected", "misshapen", "values", "field", "file"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong (the draft would not load, or be served wrongly) or worth knowing (a warning)."""

    severity: Severity
    kind: Kind
    name: str  # of the tensor, the config field or the file
    message: str
    is_suspicion: bool = False  # of what only the draft's makers know

    def line(self) -> str:
        return f"{self.severity:7}  {self.kind:10}  {self.name}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings, errors first."""

    folder: Path
    engine: str
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "engine": self.engine,
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self) -> str:
        verdict = "fits" if self.ok else f"does not fit: {len(self.errors)} error(s)"
        return "\n".join(
            [*(finding.line() for finding in self.findings), f"{self.folder} for {self.engine}: {verdict}"]
        )


def error(kind: Kind, name: str, message: str) -> Finding:
    return Finding(severity="error", kind=kind, name=name, message=message)


def suspicion(severity: Severity, name: str, message: str) -> Finding:
    return Finding(severity=severity, kind="field", name=name, message=message, is_suspicion=True)


def warning(kind: Kind, name: str, message: str) -> Finding:
    return Finding(severity="warning", kind=kind, name=name, message=message)
