import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.errors import InvalidName
from store.format.pxar.globs import translate
from store.format.pxar.patterns import Match, Pattern, PatternList, parse_exclude_file

INCLUDE, EXCLUDE = Match.INCLUDE, Match.EXCLUDE


def matches(glob: str, text: str) -> bool:
    return re.fullmatch(translate(glob.encode()), text.encode(), re.DOTALL) is not None


GLOBS = [
    ("/hey/*/you", "/hey/asdf/you /hey//you", "/hey/a/b/you /heyasdf/you /heyasdfyou /hey/you"),
    ("/hey/**/you", "/hey/a/you /hey/a/b/you /hey/you /hey//you", "/heya/you /heyyou /hey/ayou"),
    ("/he[yx]/**/you", "/hey/a/b/you /hex/you", "/hez/a/you /hez/you"),
    ("/he[^yx]/**/you", "/hez/a/b/you /hez/you /hez//you", "/hey/a/you /hex/you"),
    ("/tes[a-t]", "/tesa /test", "/tesu /tes /testoolong / /t"),
    ("/tes[a-t]/a?a", "/test/aba /test/aaa", "/tesu/aaa /test/a/a /test/ab /test/xax"),
    ("a*b*c", "axxbxxc axxbxxbxxcxxc abc", "axxbxxcxx axxb/xxc ab"),
    ("a*b*c*", "axxbxxc axxbxxcxx abc", "axxbxx abc/d"),
    ("a/b**/c", "a/bxx/c a/b/c", "a/bxx/yy/c"),
    (
        "**/lost+found",
        "lost+found /lost+found a/b/lost+found",
        "lost+found2 xlost+found lost+found/",
    ),
    ("a/**", "a/b a/b/c a/", "a b/a"),
    ("**", "a a/b /", ""),
    ("a/**/b/**/c", "a/b/c a/x/b/y/c a/b/b/c/c", "a/c a/xb/c a/b/xc"),
    ("*.tmp", ".tmp a.tmp", "a/b.tmp a.tmpx"),
    ("a**", "a ab", "a/b"),
    ("[[:digit:]a][[:upper:]]", "0A aZ", "bA 0a A0"),
    ("[-a]", "a -", "b"),
    ("[z-a]", "a m z", "A"),
    (r"[\]x]", "] x", "\\"),
    (r"\*\[", "*[", "a["),
    ("[]", "", "a ]"),
    ("[^]", "a / ]", ""),
    ("[!a]", "! a", "b"),
    ("?", "a", "aa /"),
    ("[^a]b", "/b xb", "ab"),
]


@pytest.mark.parametrize(("glob", "taken", "refused"), GLOBS)
def test_globs(glob: str, taken: str, refused: str) -> None:
    for text in taken.split():
        assert matches(glob, text), text
    for text in refused.split():
        assert not matches(glob, text), text
    assert matches(glob, "") == (glob == "**")


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("alnum", "aZ0"),
        ("alpha", "aZ"),
        ("blank", " \t"),
        ("cntrl", "\x01\x7f"),
        ("digit", "09"),
        ("graph", "!~a"),
        ("lower", "az"),
        ("print", " a\x7f"),
        ("punct", "!/:@[`{~"),
        ("space", " \t\n\f\r"),
        ("upper", "AZ"),
        ("xdigit", "0aFf"),
    ],
)
def test_named_classes(name: str, members: str) -> None:
    for member in members:
        assert matches(f"[[:{name}:]]", member)
        assert not matches(f"[^[:{name}:]]", member)
    assert not matches(f"[[:{name}:]]", "\xe4")


@pytest.mark.parametrize(
    "glob",
    ["", "\0", "a\0b", "a\\", "[", "[^", "[a", "[a-", "[a\\", "[[:", "[[:foo:]]", "[[:digit]"],
)
def test_bad_globs(glob: str) -> None:
    with pytest.raises(InvalidName):
        translate(glob.encode())


def reference(glob: bytes, text: bytes) -> bool:
    """The same rules for `*`, `**`, `?` and literals, by trying everything."""
    if not glob:
        return not text
    stars = len(glob) - len(glob.lstrip(b"*"))
    if stars == 0:
        same = text[:1] == glob[:1] or (glob[:1] == b"?" and text[:1] not in (b"", b"/"))
        return same and reference(glob[1:], text[1:])
    rest = glob[stars:]
    deep = stars > 1 and (not rest or rest.startswith(b"/"))
    if deep and rest and reference(rest[1:], text):
        return True
    reach = len(text) if deep else (text + b"/").index(b"/")
    return any(reference(rest, text[skip:]) for skip in range(reach + 1))


def reference_whole(glob: bytes, text: bytes) -> bool:
    """`**` in the middle of a component is a `*`."""
    parts = [
        part if part.strip(b"*") == b"" else re.sub(rb"\*+", b"*", part)
        for part in glob.split(b"/")
    ]
    return reference(b"/".join(parts), text)


@given(
    st.text("ab*?/", min_size=1, max_size=9).map(str.encode),
    st.text("ab/", min_size=1, max_size=9).map(str.encode),
)
@settings(max_examples=1500)
def test_globs_against_the_rules(glob: bytes, text: bytes) -> None:
    assert bool(re.fullmatch(translate(glob), text, re.DOTALL)) == reference_whole(glob, text)


@pytest.mark.parametrize(
    "glob",
    ["*a" * 30 + "b", "**/" * 30 + "b", "**/*a*a*a/" * 8 + "b", "*?" * 30 + "b", "[^x]*" * 30],
)
def test_hostile_globs_end(glob: str) -> None:
    patterns = PatternList([glob])
    began = time.perf_counter()
    patterns.matches(b"/" + b"a" * 255 + b"/a" * 100 + b"/" + b"a" * 255 + b"x", False)
    assert time.perf_counter() - began < 2


def ask(patterns: list[str], path: str, *, is_directory: bool = False) -> Match | None:
    return PatternList(patterns).matches(path.encode(), is_directory)


def test_tails_and_anchors() -> None:
    for path in ("/a", "/x/a", "/x/y/a"):
        assert ask(["a"], path) is EXCLUDE
    for path in ("/xa", "/a/x", "/ax"):
        assert ask(["a"], path) is None
    assert ask(["/a"], "/a") is EXCLUDE
    assert ask(["/a"], "/x/a") is None
    assert ask(["x/a"], "/y/x/a") is EXCLUDE
    assert ask(["x/a"], "/y/xx/a") is None


def test_the_last_match_decides() -> None:
    patterns = ["*.o", "!keep.o", "/drop/keep.o"]
    assert ask(patterns, "/a.o") is EXCLUDE
    assert ask(patterns, "/x/keep.o") is INCLUDE
    assert ask(patterns, "/drop/keep.o") is EXCLUDE
    assert ask(patterns, "/a.c") is None
    assert ask(["!a", "a", "!a"], "/a") is INCLUDE


def test_directories_only() -> None:
    for pattern in ("cache/", "cache//"):
        assert ask([pattern], "/x/cache", is_directory=True) is EXCLUDE
        assert ask([pattern], "/x/cache") is None
    assert ask(["a", "!a/"], "/a", is_directory=True) is INCLUDE
    assert ask(["a", "!a/"], "/a") is EXCLUDE


def test_a_path_with_newlines() -> None:
    assert ask(["*.o"], "/a\nb/c\n.o") is EXCLUDE
    assert ask(["a"], "/a\n") is None


def test_an_empty_list() -> None:
    patterns = PatternList()
    assert not patterns
    assert patterns.matches(b"/a", False) is None
    assert patterns.prelude() is None
    assert patterns.command_line_text() is None
    patterns.pop(0)


def test_exclude_files() -> None:
    content = b"# comment\n\n  *.tmp \t\n/top\n!/sub/keep.tmp\r\n!b\n[bad\ndir/\n !!c\n\\#d\n/"
    patterns, bad = parse_exclude_file(content, b"some/dir")
    assert bad == [b"[bad"]
    assert [(p.glob, p.match, p.directories_only, p.anchored) for p in patterns] == [
        (b"*.tmp", EXCLUDE, False, False),
        (b"/some/dir/top", EXCLUDE, False, True),
        (b"/some/dir/sub/keep.tmp", INCLUDE, False, True),
        (b"b", INCLUDE, False, False),
        (b"dir", EXCLUDE, True, False),
        (b"c", EXCLUDE, False, False),
        (b"\\#d", EXCLUDE, False, False),
        (b"/some/dir", EXCLUDE, True, True),
    ]


def test_exclude_files_of_the_root() -> None:
    patterns, _ = parse_exclude_file(b"/top\n!/keep", b"")
    assert [p.glob for p in patterns] == [b"/top", b"/keep"]


def test_exclude_files_come_and_go() -> None:
    patterns = PatternList(["*.o"])
    assert patterns.matches(b"/d/a.o", False) is EXCLUDE
    assert patterns.push_exclude_file(b"!/a.o\n*.c\n[bad\n", b"d") == (2, [b"[bad"])
    assert patterns.matches(b"/d/a.o", False) is INCLUDE
    assert patterns.matches(b"/e/a.o", False) is EXCLUDE
    assert patterns.matches(b"/d/x/b.c", False) is EXCLUDE
    patterns.pop(2)
    assert patterns.matches(b"/d/a.o", False) is EXCLUDE
    assert patterns.matches(b"/d/x/b.c", False) is None
    assert patterns.push_exclude_file(b"a\nb\n", b"") == (2, [])
    assert patterns.matches(b"/a", False) is EXCLUDE
    patterns.pop(2)
    assert patterns.push_exclude_file(b"b\nc\n", b"") == (2, [])
    assert patterns.matches(b"/a", False) is None
    assert patterns.command_line_text() == b"*.o\n"


def test_glob_characters_in_a_directorys_path_act_as_such() -> None:
    patterns = PatternList()
    patterns.push_exclude_file(b"/f", b"a*")
    assert patterns.matches(b"/ax/f", False) is EXCLUDE


def test_the_command_lines_text_and_prelude() -> None:
    patterns, bad = PatternList.from_command_line(
        ["*.o", "!keep", "dir//", "[bad", "", '/\u00e9"', "/"], skip_lost_and_found=True
    )
    assert bad == ["[bad", ""]
    text = '*.o\n!keep\ndir/\n/\u00e9"\n/\nlost+found\n'
    assert patterns.command_line_text() == text.encode()
    assert patterns.prelude() == (
        '{"exclude-patterns":"*.o\\n!keep\\ndir/\\n/\u00e9\\"\\n/\\nlost+found\\n"}'.encode()
    )


def test_names_that_are_not_utf_8() -> None:
    patterns = PatternList([b"/\xff".decode("utf-8", "surrogateescape")])
    assert patterns.matches(b"/\xff", False) is EXCLUDE
    with pytest.raises(InvalidName, match="UTF-8"):
        patterns.prelude()


@pytest.mark.parametrize("make", [PatternList, lambda texts: Pattern.parse(texts[0].encode())])
def test_bad_patterns(make: Callable[[list[str]], object]) -> None:
    for text in ("[", "", "!", "a\\"):
        with pytest.raises(InvalidName):
            make([text])


def test_many_patterns_are_quick() -> None:
    patterns = PatternList([f"*.ext{number}" for number in range(100)] + ["!x", "**/cache/"])
    began = time.perf_counter()
    for number in range(1000):
        assert patterns.matches(b"/srv/www/site/%d.html" % number, False) is None
    assert time.perf_counter() - began < 1
