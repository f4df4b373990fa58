"""Runs the system's own tools: a compiler, package tools."""

import subprocess

from store.errors import BackendError

TIMEOUT_S = 600


def run_tool(command: list[str], what: str, folder: str) -> str:
    """What it prints. Raises BackendError: it failed (with its last line), or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False,
            text=True, errors="replace", timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{what}: not done after {TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BackendError(f"{what} failed: {lines[-1] if lines else done.returncode}")
    return done.stdout
