"""The findings of checks, their file and their table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from engine.documents import from_tree, parse_json
from engine.errors import UserError

Level = Literal["ok", "warning", "failure"]
COLOURS: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
FILE = "doctor.json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's table."""

    check: str
    """Its subject."""
    level: Level
    """How bad it is."""
    said: str
    """The finding in words, with its unit."""
    advice: str = ""
    """What to do about it; empty where all is well."""


def judged(check: str, said: str, *, warn: bool = False, fail: bool = False, advice: str = "") -> Finding:
    """Make a finding whose advice is left out where all is well."""
    level: Level = "failure" if fail else "warning" if warn else "ok"
    return Finding(check=check, level=level, said=said, advice=advice if level != "ok" else "")


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Write the findings where the command that asked for them looks."""
    (folder / FILE).write_text(json.dumps([asdict(finding) for finding in findings], indent=1))


def read_findings(folder: Path) -> list[Finding]:
    """Read the findings that a job wrote; none if it did not come so far."""
    try:
        content = parse_json((folder / FILE).read_bytes())
        return [from_tree(Finding, finding) for finding in content] if isinstance(content, list) else []
    except (FileNotFoundError, UserError):
        return []


def findings_table(findings: Sequence[Finding], *, title: str) -> Table:
    """Show the findings as a table, the worst in colour."""
    table = Table(title=title, show_lines=False)
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(
            finding.check, Text(finding.level, style=COLOURS[finding.level]), Text(finding.said), Text(finding.advice)
        )
    return table
