"""The restore shell, on archives and disks, as a script and at a terminal."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from store.cli.catalog_shell import Shell
from store.cli.shell_terminal import Completer, batch, terminal
from store.cli.shell_words import ends_in_word, split_words
from store.datastore.archives import SnapshotReader
from store.datastore.chunk_cache import ChunkCache
from store.errors import InvalidName
from store.names import Namespace, Snapshot
from store.trees.base import FileTree
from store.trees.joined import JoinedTree, Member
from store.trees.paths import root_of
from tests.fakes.archives import snapshot
from tests.fakes.datastores import local_datastore
from tests.fakes.trees import File, GuestTree, Hard, Link, Nodes, archive

NODES: Nodes = {
    b"etc": {
        b"a b": File(b"space"),
        b"fstab": File(b"/dev/sda1\n", mode=0o100600),
        b"new\nline": File(b"1"),
        b"ssh": {b"key": File(b"secret"), b"key.pub": File(b"public")},
    },
    b"link": Link(b"etc"),
    b"twin": Hard(b"etc/fstab"),
    b"x*": {b"star": File(b"*")},
}
Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def reader(tmp_path: Path) -> SnapshotReader:
    datastore = local_datastore(tmp_path / "store")
    name = "host/x/2025-01-01T00:00:00Z"
    with snapshot(datastore, name) as builder:
        builder.blob("x.conf", b"")
    return SnapshotReader(datastore, Namespace(), Snapshot.parse(name), None, ChunkCache(1 << 20))


@pytest.fixture(params=["archive", "disk"])
def tree(request: pytest.FixtureRequest) -> FileTree:
    if request.param == "archive":
        return archive(NODES)
    fstab = NODES[b"etc"][b"fstab"]
    guest = GuestTree(NODES | {b"twin": fstab})
    return JoinedTree([Member(b"part1", open_tree=lambda: guest), Member(b"root", target=b"part1")])


@pytest.fixture
def shell(reader: SnapshotReader, tree: FileTree) -> Shell:
    shell = Shell(reader, tree, "root.pxar", root_of(tree))
    if isinstance(tree, JoinedTree):
        shell.run("cd root")
    return shell


@pytest.fixture
def script(shell: Shell, capfd: pytest.CaptureFixture[str]) -> Script:
    """Runs lines; returns exit code, stdout and stderr."""

    def run(*lines: str) -> tuple[int, str, str]:
        code = batch(shell, io.StringIO("".join(f"{line}\n" for line in lines)))
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def top(tree: FileTree) -> str:
    return "/part1" if isinstance(tree, JoinedTree) else ""


def test_looking_around(script: Script, top: str) -> None:
    assert script("ls")[1].splitlines() == ["etc/", "link", "twin", "x*/"]
    assert script("cd etc", "pwd", "ls")[1].splitlines() == [
        f"{top}/etc", "a b", "fstab", r"$'new\nline'", "ssh/",
    ]  # fmt: skip
    assert script("cd ../link/ssh", "pwd")[1] == f"{top}/etc/ssh\n"
    assert script(f"ls '{top}/x*'")[1] == "star\n"
    assert script(f"ls {top}/etc/ssh/*.pub")[1] == f"{top}/etc/ssh/key.pub\n"
    assert script(f"ls {top}/link")[1].splitlines()[0] == "a b"
    assert script(f"ls -d {top}/etc/s*")[1] == f"{top}/etc/ssh/\n"
    assert script(f"ls -l {top}/etc/fstab")[1].startswith("-rw-------")
    assert script("cat 'key' key.pub")[1] == "secretpublic"
    assert script("cd", "pwd")[1] == "/\n"


def test_stat(script: Script, top: str) -> None:
    code, out, _ = script("stat etc/fstab link twin")
    assert code == 0
    assert f"File: {top}/etc/fstab" in out
    assert "(0600/-rw-------)" in out
    assert f"File: {top}/link -> etc" in out
    assert "2023-11-14T22:13:20Z (1700000000.000000000)" in out


def test_errors_do_not_end_it(script: Script) -> None:
    code, out, err = script("cd nowhere", "frobnicate", "ls --bad", "cat etc", "ls 'x", "pwd")
    assert code == 10
    assert out.endswith("\n")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error"] * 5
    assert "no such command; `help` lists them" in err
    assert "no such option; usage: ls" in err
    assert script("", "# a comment", "pwd")[0] == 0


def test_exit_ends_it(script: Script) -> None:
    assert script("exit", "cd nowhere")[0] == 0


def test_help(script: Script, shell: Shell) -> None:
    out = script("help")[1]
    assert all(command.usage in out for command in shell.commands.values())
    assert script("help ls")[1].startswith("ls [-l]")


def test_selecting(script: Script, top: str) -> None:
    assert script("select etc/ssh/* 'x*'")[1] == "3 more selected, 3 in all\n"
    assert script("find *.pub fstab --select")[1].splitlines() == [
        f"{top}/etc/fstab",
        f"{top}/etc/ssh/key.pub",
    ]
    assert script("list-selected")[1].splitlines() == [
        f"{top}/etc/fstab",
        f"{top}/etc/ssh/key",
        f"{top}/etc/ssh/key.pub",
        f"{top}/x*",
    ]
    assert script("cd etc", "deselect ssh/*.pub 'x*'")[1] == "1 fewer selected, 3 in all\n"
    assert script("deselect /**/x\\*")[1] == "1 fewer selected, 2 in all\n"
    assert script("clear-selected", "list-selected") == (0, "", "")
    assert script("select nothing-*")[0] == 10


@pytest.mark.needs("root")
def test_restore_of_what_is_selected(script: Script, top: str, tmp_path: Path) -> None:
    target = tmp_path / "a target"
    code, out, err = script("select etc/ssh twin etc/fstab etc/n*", f"restore-selected '{target}'")
    assert (code, err) == (0, "")
    assert f"to {target}" in out
    below = target / top.strip("/")
    found = sorted(str(path.relative_to(below)) for path in below.rglob("*"))
    assert found == [
        "etc", "etc/fstab", "etc/new\nline", "etc/ssh", "etc/ssh/key", "etc/ssh/key.pub", "twin",
    ]  # fmt: skip
    assert (below / "twin").samefile(below / "etc/fstab")
    assert script(f"restore-selected '{target}'")[0] == 10, "it is not empty"
    assert script(f"restore-selected '{target}' --overwrite")[0] == 0


@pytest.mark.needs("root")
def test_restore_of_a_directory(script: Script, tmp_path: Path) -> None:
    restores = (f"restore {tmp_path}/all", f"restore {tmp_path}/some --pattern *.pub")
    assert script("cd etc", *restores)[0] == 0
    assert sorted(os.listdir(tmp_path / "all")) == ["a b", "fstab", "new\nline", "ssh"]
    assert [path.name for path in (tmp_path / "some").rglob("*")] == ["ssh", "key.pub"]
    code, _, err = script("restore-selected /nowhere", "restore", "restore - ")
    assert code == 10
    assert err.splitlines()[0].startswith("error: nothing is selected")


def test_control_c_goes_back_to_the_prompt(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the prompt and in a command; Ctrl-D leaves."""
    typed = iter([KeyboardInterrupt(), "interrupt me", "pwd", EOFError()])

    def answer(prompt: str) -> str:
        assert prompt.startswith("root.pxar:/")
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    def interrupted(_words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", answer)
    command = shell.commands["pwd"]._replace(run=interrupted)
    monkeypatch.setitem(shell.commands, "interrupt", command)
    terminal(shell)
    out, err = capfd.readouterr()
    assert err == "interrupted\n"
    assert out.startswith("^C\n/")


def test_termination_ends_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from store.cli.main import Terminated

    def terminated(_words: object) -> None:
        raise Terminated

    command = shell.commands["pwd"]._replace(run=terminated)
    monkeypatch.setitem(shell.commands, "pwd", command)
    with pytest.raises(Terminated):
        shell.run("pwd")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sel", ["select "]),
        ("re", ["restore ", "restore-selected "]),
        ("ls e", ["ls etc/"]),
        ("ls etc/a", ["ls etc/a\\ b "]),
        ("ls etc/a\\ ", ["ls etc/a\\ b "]),
        ("ls 'etc/a b", ["ls etc/a\\ b "]),
        ("ls etc/n", [r"ls $'etc/new\nline' "]),
        ("ls link/ssh/", ["ls link/ssh/key ", "ls link/ssh/key.pub "]),
        ("stat twin x", ["stat twin x\\*/"]),
        ("ls no/where", []),
        ("cd ", ["cd etc/", "cd link ", "cd twin ", "cd x\\*/"]),
    ],
)
def test_completion(shell: Shell, typed: str, offered: list[str]) -> None:
    completer = Completer(shell)
    found = []
    while (line := completer.complete(typed, len(found))) is not None:
        found.append(line)
    assert found == offered


@pytest.mark.parametrize(
    ("line", "words", "globs"),
    [
        ("a b  c", [b"a", b"b", b"c"], [False] * 3),
        ("'*' \"*\" \\* *", [b"*"] * 4, [False, False, False, True]),
        ('a\'b c\'d"e\\"f"', [b'ab cde"f'], [False]),
        (r"$'a\n\xff\'\101\e'x", [b"a\n\xff'A\x1bx"], [False]),
        ("'' a#b #c", [b"", b"a#b"], [False, False]),
        ("$x", [b"$x"], [False]),
    ],
)
def test_words(line: str, words: list[bytes], globs: list[bool]) -> None:
    found = split_words(line)
    assert [word.text for word in found] == words
    assert [word.is_glob for word in found] == globs


@pytest.mark.parametrize("line", ["'a", '"a', '"a\\', "$'a", "$'a\\'", "a\\"])
def test_open_quotes(line: str) -> None:
    with pytest.raises(InvalidName, match="not closed"):
        split_words(line)
    assert len(split_words(line, finish=False)) == 1
    assert ends_in_word(line)
    assert ends_in_word("a ") is False
