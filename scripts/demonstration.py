"""What scripts/demo runs: every step through `.venv/bin/vaultway` only, as a user would, and a
table of what it took.

Leaves nothing mounted, running or lying around, also when it is interrupted or fails.
"""

import argparse
import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

TOP = Path(__file__).parent.parent
PROGRAM = TOP / ".venv/bin/vaultway"
BOOT_TIMEOUT_S = 120
CHANGED_SHARE = 100  # one file in a hundred


class DemoError(Exception):
    """A step did not do what it should; the message is the user's line."""


@dataclass
class Table:
    """The steps, as they are done."""

    rows: list[tuple[str, int | None, float, str]] = field(default_factory=list)

    def add(self, step: str, size: int | None, seconds: float, remark: str = "") -> None:
        self.rows.append((step, size, seconds, remark))
        print(f"    {remark or 'done'} ({seconds:.1f} s)", flush=True)

    def print(self) -> None:
        width = max(len(step) for step, *_ in self.rows)
        head = f"{'step':{width}}  {'bytes':>15}  {'MB/s':>8}  {'seconds':>8}  "
        print(f"\n{head}\n{'-' * (len(head) + 30)}")
        for step, size, seconds, remark in self.rows:
            amount = "" if size is None else f"{size:,}"
            rate = "" if size is None else f"{size / 1e6 / max(seconds, 1e-3):,.0f}"
            print(f"{step:{width}}  {amount:>15}  {rate:>8}  {seconds:8.1f}  {remark}")


class Demo:
    """The scratch directory and everything that runs in it."""

    def __init__(self, source: Path, scratch: Path) -> None:
        self.source, self.scratch, self.table = source, scratch, Table()
        self.tree, self.store, self.key = (
            scratch / "tree",
            scratch / "datastore",
            scratch / "key.json",
        )
        self.mountpoint, self.socket = scratch / "mnt", scratch / "nbd.sock"
        self.children: list[subprocess.Popen[str]] = []

    def run(self) -> None:
        self.make_sources()
        self.create_datastore()
        self.back_up_tree("first backup of the tree, encrypted")
        self.back_up_machine()
        changed = self.change_files()
        self.back_up_tree("again, metadata mode", changed)
        self.read_through_mount()
        self.boot_from_export()
        self.table.print()

    def vaultway(self, *arguments: object, show: bool = True) -> str:
        """Run the program and return what it printed."""
        words = [str(argument) for argument in arguments]
        if show:
            print(
                "  $ vaultway " + " ".join(word.replace(str(self.scratch), "…") for word in words),
                flush=True,
            )
        return self.finish([PROGRAM, *words], f"vaultway {words[0]}")

    def finish(self, command: list[object], what: str) -> str:
        """Run a command to its end; its words on stderr go with the error."""
        environment = os.environ | {"PBS_REPOSITORY": str(self.store)}
        with self.child(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            output, errors = process.communicate()
        if process.returncode:
            last = (errors.strip() or output.strip() or "no word").splitlines()[-1]
            raise DemoError(f"{what}: exit {process.returncode}: {last}")
        return output

    @contextlib.contextmanager
    def child(self, command: list[object], **options: object) -> Iterator[subprocess.Popen[str]]:
        """A process that does not outlive the block."""
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, text=True, **options)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def make_sources(self) -> None:
        print(
            f"A copy of {self.source} (we are going to change files) and a virtual machine's disk:",
            flush=True,
        )
        began = time.monotonic()
        self.tree.mkdir()
        # Whatever can't be read (sockets, others' files) is not there to be backed up, and no
        # reason to stop.
        with self.child(
            ["cp", "-a", "--", f"{self.source}/.", self.tree], stderr=subprocess.DEVNULL
        ) as copy:
            copy.wait()
        files = sum(len(names) for _, _, names in os.walk(self.tree))
        if not files:
            raise DemoError(f"{self.source}: nothing to back up there")
        self.table.add(
            "copy the tree", tree_size(self.tree), time.monotonic() - began, f"{files:,} files"
        )
        began = time.monotonic()
        self.finish([TOP / "scripts/make-vm", self.scratch / "machine"], "scripts/make-vm")
        self.disk = self.scratch / "machine/disk.raw"
        (self.scratch / "machine/qemu-server.conf").write_text(
            "boot: order=scsi0\nmemory: 256\nscsi0: demo:disk\n"
        )
        used = self.disk.stat().st_blocks * 512
        self.table.add(
            "make the VM disk",
            used,
            time.monotonic() - began,
            f"{self.disk.stat().st_size >> 20} MiB disk",
        )

    def create_datastore(self) -> None:
        print("An empty datastore and a key:", flush=True)
        began = time.monotonic()
        self.vaultway("datastore", "create", self.store)
        self.vaultway("key", "create", self.key, "--kdf", "none")
        self.table.add("create datastore and key", None, time.monotonic() - began)

    def back_up(self, *arguments: object) -> tuple[dict[str, int], float]:
        began = time.monotonic()
        output = self.vaultway(
            "backup", *arguments, "--keyfile", self.key, "--output-format", "json"
        )
        return json.loads(output), time.monotonic() - began

    def back_up_tree(self, step: str, changed: int | None = None) -> None:
        print(f"{step.capitalize()}:", flush=True)
        time.sleep(1 - time.time() % 1)  # two snapshots of a group can't have the same second
        result, seconds = self.back_up(
            f"root.pxar:{self.tree}", "--backup-type", "host", "--backup-id", "demo",
            "--change-detection-mode", "metadata",
        )  # fmt: skip
        stored = f"stored {result['stored'] / 1e6:,.1f} MB"
        if changed:
            stored += f" for {changed / 1e6:,.1f} MB of changed files"
        self.table.add(step, result["size"], seconds, stored)

    def back_up_machine(self) -> None:
        print("The machine's disk and configuration:", flush=True)
        result, seconds = self.back_up(
            f"drive-scsi0.img:{self.disk}",
            f"qemu-server.conf:{self.disk.parent / 'qemu-server.conf'}",
            "--backup-type", "vm", "--backup-id", "100",
        )  # fmt: skip
        self.table.add(
            "back up the VM", result["size"], seconds, f"stored {result['stored'] / 1e6:,.1f} MB"
        )

    def change_files(self) -> int:
        """Append to, overwrite and add files, 1 % in all; returns the bytes of the changed
        files."""
        began, rng, changed = time.monotonic(), random.Random(7), 0
        files = [path for path in regular_files(self.tree) if path.lstat().st_nlink == 1]
        chosen = rng.sample(files, max(1, len(files) // CHANGED_SHARE))
        for number, path in enumerate(chosen):
            if number % 3 == 0:
                with path.open("ab") as file:
                    file.write(rng.randbytes(1000))
            elif number % 3 == 1:
                path.write_bytes(rng.randbytes(5000))
            else:
                path = path.with_name(path.name[:200] + ".new")
                path.write_bytes(rng.randbytes(20_000))
            changed += path.stat().st_size
        print("Some files change:", flush=True)
        self.table.add(
            "change files",
            changed,
            time.monotonic() - began,
            f"{len(chosen)} of {len(files):,} files",
        )
        return changed

    def read_through_mount(self) -> None:
        print("The whole datastore as a file system:", flush=True)
        self.mountpoint.mkdir()
        began = time.monotonic()
        self.vaultway("mount", self.store, self.mountpoint, "--keyfile", self.key)
        self.table.add(
            "mount", None, time.monotonic() - began, " ".join(sorted(os.listdir(self.mountpoint)))
        )
        root = self.mountpoint / "host/demo/latest/root.pxar"
        began = time.monotonic()
        output = self.finish(["find", root, "-printf", "%s\\n"], "find")
        seconds = time.monotonic() - began
        self.table.add(
            "list all of the tree",
            None,
            seconds,
            f"{output.count(chr(10)):,} entries with attributes",
        )
        self.copy_one_file(root)
        self.vaultway("umount", self.mountpoint)

    def copy_one_file(self, root: Path) -> None:
        largest = max(regular_files(self.tree), key=lambda path: path.stat().st_size)
        name, target, began = (
            largest.relative_to(self.tree),
            self.scratch / "copied-out",
            time.monotonic(),
        )
        shutil.copy(root / name, target)
        seconds = time.monotonic() - began
        if not filecmp.cmp(largest, target, shallow=False):
            raise DemoError(f"{name}: the copy is not the file that was backed up")
        self.table.add("copy a file out", target.stat().st_size, seconds, f"{name}: identical")

    def boot_from_export(self) -> None:
        print("The machine, booted straight from its backup:", flush=True)
        command = ["export", "vm/100", "--socket", self.socket, "--keyfile", self.key]
        print(
            "  $ vaultway "
            + " ".join(str(word).replace(str(self.scratch), "…") for word in command),
            flush=True,
        )
        environment = os.environ | {"PBS_REPOSITORY": str(self.store)}
        began = time.monotonic()
        with self.child([PROGRAM, *command], env=environment, stdout=subprocess.PIPE) as export:
            assert export.stdout
            if not export.stdout.readline():
                raise DemoError(f"vaultway export: exit {export.wait()}")
            self.table.add("export over NBD", None, time.monotonic() - began)
            self.boot(f"nbd+unix:///?socket={self.socket}")

    def boot(self, uri: str) -> None:
        qemu = [
            "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
            "-m", "256", "-display", "none", "-monitor", "none", "-serial", "stdio",
            "-no-reboot", "-nic", "none",
            "-drive", f"file={uri},format=raw,if=virtio,snapshot=on",
        ]  # fmt: skip
        print("  $ qemu-system-x86_64 … -drive file=nbd+unix:///?socket=…/nbd.sock,…", flush=True)
        began, said = time.monotonic(), []
        deadline = (
            signal.setitimer
        )  # the guest's console blocks us: an alarm ends a guest that hangs
        deadline(signal.ITIMER_REAL, BOOT_TIMEOUT_S)
        with self.child(list(qemu), stdout=subprocess.PIPE, errors="replace") as machine:
            assert machine.stdout
            for line in machine.stdout:
                if line.startswith("VAULTWAY"):
                    said.append(line.strip())
                    print(f"    guest: {line.strip()}", flush=True)
                    if "boot ok" in line:
                        self.table.add(
                            "boot from the backup",
                            None,
                            time.monotonic() - began,
                            "marker on the console",
                        )
        deadline(signal.ITIMER_REAL, 0)
        if not any("data ok" in line for line in said):
            raise DemoError(f"the machine did not come up: {said or 'silence'}")
        self.table.add(
            "guest reads all its files", None, time.monotonic() - began, "sums agree, powered off"
        )

    def clean_up(self) -> None:
        """Unmount and remove; children ended with their blocks."""
        if os.path.ismount(self.mountpoint):
            subprocess.run([PROGRAM, "umount", self.mountpoint], capture_output=True, check=False)
        if os.path.ismount(self.mountpoint):
            subprocess.run(
                ["fusermount3", "-u", "-z", self.mountpoint], capture_output=True, check=False
            )
        if not os.path.ismount(self.mountpoint):  # never remove through a mount
            shutil.rmtree(self.scratch, ignore_errors=True)


def tree_size(tree: Path) -> int:
    """Bytes of all regular files, as `ls` counts them."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(tree)
        for name in names
    )


def regular_files(tree: Path) -> list[Path]:
    """The files in it, without symlinks and whatever else a tree holds, sorted."""
    paths = (Path(folder, name) for folder, _, names in os.walk(tree) for name in names)
    return sorted(path for path in paths if stat.S_ISREG(path.lstat().st_mode))


def scratch_parent(source: Path, wanted: str | None) -> str:
    """Where there is room for a copy of the tree, its backup and the machine; raises DemoError."""
    need = 2 * tree_size(source) + (1 << 30)
    places = (
        [wanted] if wanted else list(dict.fromkeys((tempfile.gettempdir(), "/var/tmp", "/dev/shm")))
    )
    for place in places:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free > need:
                return place
    raise DemoError(
        f"no {need / 1e9:.1f} GB free in {', '.join(places)}: give a smaller DIRECTORY, or --work"
    )


def interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGALRM:
        raise DemoError(f"the machine did not power off within {BOOT_TIMEOUT_S} s")
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="See Vaultway work, in a scratch directory."
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path("/usr/share"), help="the tree to back up"
    )
    parser.add_argument(
        "--work", help="where the scratch directory goes (default: where there is room)"
    )
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, interrupt)
    began, demo = time.monotonic(), None
    try:
        parent = scratch_parent(arguments.directory, arguments.work)
        scratch = Path(tempfile.mkdtemp(prefix="vaultway-demo-", dir=parent))
        demo = Demo(arguments.directory.resolve(), scratch)
        demo.run()
        print(f"\nAll of it in {time.monotonic() - began:.0f} s. Nothing is left behind.")
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    else:
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if demo:
            demo.clean_up()


if __name__ == "__main__":
    sys.exit(main())
