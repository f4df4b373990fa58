"""Runs one part and prints each outcome as a line of JSON."""

import json
import os
import sys

from tests.posix.cases import USERS, run_cases


def main() -> None:
    """`python -m tests.posix DIRECTORY calls|pairs USER STEP`, or `stories`."""
    directory, part, *rest = sys.argv[1:]
    os.umask(0o022)
    if part == "stories":
        from tests.posix.stories import run_stories

        results = run_stories(os.fsencode(directory))
    else:
        assert rest[0] in USERS
        pairs, step = part == "pairs", int(rest[1])
        results = run_cases(os.fsencode(directory), rest[0], pairs=pairs, step=step)
    for name, result in results:
        print(json.dumps([name, result], default=str), flush=True)


main()
