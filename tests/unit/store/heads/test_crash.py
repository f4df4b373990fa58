"""Killed at any moment, or with the power gone: what was synced is there, byte for byte.

A child works on a head and dies at a seeded call of what writes to the disk. It tells through a
pipe what it has synced. A tree must then be as it was after some operation not before the last sync
that was answered; an image may have lost what was not flushed, sector by sector.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.datastore.archives import ChunkCache, SnapshotReader
from store.datastore.snapshots import SyncLevel
from store.format.crypt import CryptConfig
from store.heads import Heads
from store.heads.database import Rows
from store.heads.head import OpenHead
from store.heads.tree import HeadTree
from tests.fakes.datastores import GROUP, ROOT, local_datastore
from tests.fakes.heads import move_all

KEY = CryptConfig(bytes(range(32)))
SIZE = 6 << 20
STEPS = 60
RUNS = int(os.environ.get("HEAD_RUNS", "25"))  # four times of each kind; 250 make a thousand

State = dict[bytes, bytes | None]
Step = tuple[Any, ...]


def plan(seed: int) -> list[Step]:
    """What the child does, from its seed."""
    chance = random.Random(seed)
    names = [b"a", b"b", b"c", b"d/x", b"d/y"]
    steps: list[Step] = [("mkdir", b"d")]
    for number in range(STEPS):
        kind = chance.choices(
            [
                "write",
                "truncate",
                "unlink",
                "rename",
                "sync",
                "image",
                "zero",
                "flush",
                "seal",
                "move",
            ],
            [8, 2, 2, 3, 3, 6, 1, 3, 0.4, 0.8],
        )[0]
        name, other = chance.choice(names), chance.choice(names)
        data = bytes([number + 1]) * chance.choice([10, 3000, 70000])
        offset = chance.randrange(0, 5000)
        sector = chance.randrange(SIZE // 512 - 200) * 512
        steps.append((kind, name, other, offset, data, sector))
    return steps


def apply(state: State, step: Step) -> None:
    """The same on a dictionary of paths."""
    kind, name = step[:2]
    if kind == "mkdir":
        state[name] = None
    elif kind == "write":
        _, _, _, offset, data, _ = step
        old = state.get(name) or b""
        state[name] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
    elif kind == "truncate" and name in state:
        old = state[name] or b""
        state[name] = old[: step[3]].ljust(step[3], b"\0")
    elif kind == "unlink":
        state.pop(name, None)
    elif kind == "rename" and name in state and name != step[2]:
        state[step[2]] = state.pop(name)


class Child:
    """Does the steps, and dies at the chosen call."""

    def __init__(self, place: Path, seed: int, pipe: int, key: CryptConfig | None) -> None:
        self.pipe = pipe
        self.heads = Heads(
            local_datastore_again(place), place / "heads", key=key, sync_level=SyncLevel.NONE
        )
        self.head = self.heads.open(ROOT, GROUP)
        self.tree = self.head.tree("root.pxar")
        self.image = self.head.image("disk.img")
        self.steps = plan(seed)

    def run(self) -> None:
        for number, step in enumerate(self.steps):
            self.do(step)
            if step[0] in ("sync", "seal", "move"):
                os.write(self.pipe, b"t%d\n" % number)
            if step[0] in ("sync", "flush", "seal", "move"):
                os.write(self.pipe, b"i%d\n" % number)

    def parent(self, name: bytes) -> tuple[int, bytes]:
        directory, slash, last = name.rpartition(b"/")
        if not slash:
            return self.tree.root, name
        return self.tree.lookup(self.tree.root, directory).number, last

    def number(self, name: bytes) -> int | None:
        try:
            return self.tree.lookup(*self.parent(name)).number
        except FileNotFoundError:
            return None

    def do(self, step: Step) -> None:
        kind, name = step[:2]
        number = self.number(name) if kind in ("write", "truncate", "unlink", "rename") else None
        if kind == "mkdir":
            self.tree.mkdir(self.tree.root, name, 0o755, 0, 0)
        elif kind == "write":
            self.write(number, name, step[3], step[4])
        elif kind == "truncate" and number:
            self.tree.setattr(number, size=step[3])
        elif kind == "unlink" and number:
            self.tree.unlink(*self.parent(name))
        elif kind == "rename" and number:
            self.tree.rename(*self.parent(name), *self.parent(step[2]))
        elif kind == "image":
            self.image.write(step[5], step[4][:4096].ljust(4096, step[4][:1]))
        elif kind == "zero":
            self.image.zero(step[5], 65536)
        elif kind == "flush":
            self.image.flush()
        elif kind == "sync":
            self.tree.sync()
        elif kind == "seal":
            self.head.seal()
        elif kind == "move":
            move_all(self.head)

    def write(self, number: int | None, name: bytes, offset: int, data: bytes) -> None:
        if number is None:  # one step: a crash between the two is not in the model
            with self.head.journal.lock:
                number = self.tree.create(*self.parent(name), 0o644, 0, 0).number
                self.tree.write(number, offset, data)
        else:
            self.tree.write(number, offset, data)


def local_datastore_again(place: Path) -> Any:
    from store.backends.local.nfs import open_directory
    from store.datastore.datastore import Datastore

    return Datastore("vault", open_directory(str(place / "vault")))


def dying_at(count: int, synced: Path) -> None:
    """Let this process die before the nth call that writes; note what is synced until then."""
    left = [count]

    def counted(function: Callable[..., Any], *, after: Callable[..., None] | None = None) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if after is not None:
                after(*arguments)
            return result

        return call

    log = os.open(synced, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        os.write(log, f"{os.fstat(file).st_size} {path}\n".encode())

    def note_commit(rows: Rows, statement: str, *_: Any) -> None:
        if statement == "COMMIT":
            path = f"{rows.path}-wal"
            os.write(log, f"{os.stat(path).st_size} {path}\n".encode())

    os.pwritev = counted(os.pwritev)
    os.fdatasync = counted(os.fdatasync, after=note)
    os.fsync = counted(os.fsync, after=note)
    os.unlink = counted(os.unlink)
    os.rename = counted(os.rename)
    Rows.execute = counted(Rows.execute, after=note_commit)  # type: ignore[method-assign]
    Rows.execute_many = counted(Rows.execute_many)  # type: ignore[method-assign]


def prepare(place: Path, key: CryptConfig | None) -> None:
    """A head with an empty tree and an image."""
    datastore = local_datastore(place / "vault")
    with Heads(datastore, place / "heads", key=key, sync_level=SyncLevel.NONE).open(
        ROOT, GROUP
    ) as head:
        head.create_tree("root.pxar")
        head.create_image("disk.img", SIZE)
    datastore.close()


def killed(place: Path, seed: int, key: CryptConfig | None) -> tuple[int, int]:
    """Run a child until it dies; the last steps that it said were synced, of tree and image."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            child = Child(place, seed, writer, key)
            dying_at(random.Random(~seed).randrange(3, 220), place / "synced")
            child.run()
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException as error:  # noqa: BLE001 - tell the parent, whatever it is
            os.write(writer, f"!{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().split()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), said
    tree = [int(word[1:]) for word in said if word.startswith(b"t")]
    image = [int(word[1:]) for word in said if word.startswith(b"i")]
    return (tree or [-1])[-1], (image or [-1])[-1]


def lose_unsynced(place: Path, chance: random.Random) -> None:
    """Cut the journal's files somewhere behind what was synced, and spoil what is left of that."""
    sizes: dict[str, int] = {}
    for line in (place / "synced").read_text().splitlines():
        text, _, path = line.partition(" ")
        sizes[path] = max(int(text), sizes.get(path, 0))
    for file_path in (place / "heads").rglob("*"):
        if file_path.suffix not in (".seg", ".sqlite-wal") or not file_path.stat().st_size:
            continue
        synced, size = sizes.get(str(file_path), 0), file_path.stat().st_size
        if file_path.suffix == ".sqlite-wal" and not synced:
            continue  # nothing was committed: it is as the opening left it
        if synced < size:
            kept = chance.randint(synced, size)
            with file_path.open("r+b") as file:
                file.truncate(kept)
                if chance.random() < 0.5:
                    start = chance.randint(synced, kept)
                    file.seek(start)
                    file.write(bytes(kept - start))


def contents(tree: HeadTree) -> State:
    return dict(_walk(tree, tree.root, b""))


def _walk(tree: HeadTree, directory: int, path: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    for name, found, _ in tree.iterate(directory):
        if found.is_directory:  # type: ignore[attr-defined]
            yield path + name, None
            yield from _walk(tree, found.number, path + name + b"/")
        else:
            yield path + name, tree.read(found.number, 0, found.size)


def check_tree(head: OpenHead, steps: list[Step], synced: int) -> None:
    found = contents(head.tree("root.pxar"))
    state: State = {}
    for number, step in enumerate(steps):
        if number > synced and state == found:
            return
        apply(state, step)
    assert state == found, (synced, sorted(state), sorted(found))


def check_image(head: OpenHead, steps: list[Step], synced: int) -> None:
    """Every sector is as after the last sync, or as a later write left it."""
    data = head.image("disk.img").read(0, SIZE)
    allowed = bytearray(SIZE)
    later: dict[int, set[bytes]] = {}
    for number, step in enumerate(steps):
        if step[0] == "image":
            start, piece = step[5], step[4][:1] * 4096
        elif step[0] == "zero":
            start, piece = step[5], bytes(65536)
        else:
            continue
        if number <= synced:
            allowed[start : start + len(piece)] = piece
            continue
        for offset in range(start, start + len(piece), 512):
            later.setdefault(offset, set()).add(piece[:512])
    for offset in range(0, SIZE, 512):
        sector = data[offset : offset + 512]
        if sector != allowed[offset : offset + 512]:
            assert sector in later.get(offset, ()), (synced, offset, sector[:4])


def check_sealed(head: OpenHead, key: CryptConfig | None) -> None:
    """What is there can be sealed, and reads back from the snapshot."""
    before = contents(head.tree("root.pxar"))
    disk = head.image("disk.img").read(0, SIZE)
    snapshot = head.seal()
    reader = SnapshotReader(head.datastore, ROOT, snapshot, key, ChunkCache(32 << 20))
    assert reader.open_image("disk.img").read(0, SIZE) == disk
    accessor = reader.open_tree("root.pxar")
    for path, content in before.items():
        entry = accessor.resolve(path)
        assert content is None or accessor.read(entry, 0, entry.size) == content


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("part", range(4))
@pytest.mark.expect_warnings
def test_what_was_synced_survives(tmp_path: Path, part: int, power: bool) -> None:
    for run in range(RUNS):
        seed = (part * 2 + power) * 1000 + run
        key = KEY if seed % 2 else None
        place = tmp_path / str(run)
        place.mkdir()
        prepare(place, key)
        tree, image = killed(place, seed, key)
        if power:
            lose_unsynced(place, random.Random(seed))
        with Heads(
            local_datastore_again(place), place / "heads", key=key, sync_level=SyncLevel.NONE
        ).open(ROOT, GROUP) as head:
            steps = plan(seed)
            check_tree(head, steps, tree)
            check_image(head, steps, image)
            if run % 5 == 0:
                check_sealed(head, key)
