"""A tree as text: every fact of every inode, one JSON line each, as tests/golden/list-tree.py
prints it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"


def list_tree(directory: Path, *options: str) -> list[str]:
    """Return the lines of list-tree.py for `directory`. Options: --no-owner, --no-xattr."""
    command = [sys.executable, str(GOLDEN / "list-tree.py"), str(directory), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def expected_tree(revision: int, below: str = "") -> list[str]:
    """Return what a restore of the golden tree must list; `below` cuts out one directory of it.

    A hard link whose first path lies outside `below` becomes a plain file there.
    """
    lines = (GOLDEN / "expected" / f"tree.{revision}.jsonl").read_text().splitlines()
    if not below:
        return lines
    facts: list[dict[str, Any]] = []
    for entry in map(json.loads, lines):
        if entry["path"] == below or entry["path"].startswith(below + "/"):
            entry["path"] = entry["path"][len(below) + 1 :]
            facts.append(entry)
    return [json.dumps(entry, sort_keys=True) for entry in facts]


def differences(found: list[str], expected: list[str]) -> list[str]:
    """Return the lines only one side has, marked - (expected) and + (found); at most 20."""
    missing, extra = set(expected) - set(found), set(found) - set(expected)
    return [f"- {line}" for line in sorted(missing)[:10]] + [
        f"+ {line}" for line in sorted(extra)[:10]
    ]
