import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.cli.shell_words import shell_word, split_words
from store.trees.names import quote

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name", "plain name"),
        ("ünï".encode(), "ünï"),
        (b"back\\slash'", "back\\slash'"),
        (b"a\nb", r"$'a\nb'"),
        (b"\x1b[31m'\\", r"$'\e[31m\'\\'"),
        (b"\xff\xc3\xa9", r"$'\xffé'"),
        ("\u202e".encode(), r"$'\xe2\x80\xae'"),
        (b"$'x'", r"$'$\'x\''"),
    ],
)
def test_quote(name: bytes, shown: str) -> None:
    assert quote(name) == shown


@given(NAMES)
def test_one_printable_line_that_reads_back(name: bytes) -> None:
    assert quote(name).isprintable()
    for text in (shell_word(name),) + ((quote(name),) if quote(name).startswith("$'") else ()):
        words = split_words(text)
        assert [word.text for word in words] == [name]
        assert not words[0].is_glob


@pytest.mark.parametrize("name", [b"a\nb'\\\xff\x01x", b"sp ace*?[x]$#\"'", b"\x7f\x9f\xc2\x85"])
def test_bash_reads_the_same(name: bytes) -> None:
    text = shell_word(name)
    done = subprocess.run(["bash", "-c", f"printf %s {text}"], capture_output=True, check=True)
    assert done.stdout == name
