"""mount(8), umount(8), fstab and systemd: what an administrator expects of a file system."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fsgateway.installing import HELPERS
from tests.fakes.archives import SplitTree, snapshot, stat
from tests.fakes.datastores import local_datastore
from tests.guest_disks import make_disk
from tests.machine import LEAVE_OTHERS_MOUNTS
from tests.program import environment, error_line, mounted, run, started

pytestmark = [pytest.mark.needs("fuse", "root"), pytest.mark.xdist_group("mount")]

TIME = "2025-01-01T00:00:00Z"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    datastore = local_datastore(tmp_path / "store")
    tree = SplitTree()
    tree.file(b"file", b"content", stat(0o100666, uid=5, gid=6))
    with snapshot(datastore, f"host/h/{TIME}") as builder:
        builder.split_tree("root", tree)
        builder.blob("a.conf", b"line\n")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sbin")
    printed = run("mount", "--install-helpers", folder).stdout
    assert printed.split() == [str(folder / name) for name in HELPERS]
    return folder


# A chroot that is no mount cannot be made private: there what was done is undone at the end.
SYSTEM = f"""
    mount --make-rprivate / 2>/dev/null || trap 'umount -l /usr/sbin' EXIT
    {LEAVE_OTHERS_MOUNTS}
    mount -t overlay overlay -o "lowerdir=$1:/usr/sbin" /usr/sbin
    eval "$2"
"""


def on_a_system_with(helpers: Path, script: str) -> str:
    """Run a shell script on a machine that has the helpers in /sbin; returns what it says.

    Mounts that it makes are gone with it.
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", SYSTEM, "sh", helpers,
         script],
        capture_output=True, text=True, check=False, timeout=120, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class TestHelpers:
    def test_writable_has_to_be_said(self, helpers: Path, repository: Path, tmp_path: Path) -> None:
        """mount(8) says rw by itself: that alone is not enough."""
        there, heads = tmp_path / "m", tmp_path / "heads"
        there.mkdir()
        said = on_a_system_with(
            helpers,
            f"""
            mount -t vaultway -o rw {repository} {there}
            ls {there}/host/h; mkdir {there}/host/new 2>&1 || true
            umount {there}
            mount -t vaultway -o writable,seal=close,_netdev,heads={heads} {repository} {there}
            cat {there}/host/h/current/a.conf
            echo changed >{there}/host/h/current/root.pxar/file
            umount {there}
            mount -t vaultway {repository} {there}
            cat {there}/host/h/latest/root.pxar/file
            umount {there}
            """,
        )
        lines = said.splitlines()
        assert lines[:2] == [TIME, "latest"]
        assert "Read-only file system" in lines[2]
        assert lines[3:] == ["line", "changed"]

    @pytest.mark.parametrize("kind", ["vaultway", "fuse.vaultway"])
    @pytest.mark.parametrize("options", ["", "-o defaults,_netdev", "-o ro,noatime,user", "-o rw"])
    def test_mount_and_umount(
        self, helpers: Path, repository: Path, tmp_path: Path, kind: str, options: str
    ) -> None:
        """With or without ro, which mount(8) does not add by itself.

        umount(8) waits for the end of the process where it knows us: it looks up what it knows of a
        mount, and so its helper, only if that had an option for user space, as _netdev or user.
        """
        there = tmp_path / "m"
        there.mkdir()
        is_known = "_netdev" in options or "user" in options
        wait = "" if is_known else "timeout 20 tail --pid=$pid -f /dev/null"
        said = on_a_system_with(
            helpers,
            f"""
            mount -t {kind} {options} {repository} {there}
            cat {there}/host/h/latest/a.conf
            grep " {there} " /proc/mounts
            pid=$(getfattr --only-values -n user.vaultway.pid {there})
            umount {there}
            {wait}
            test ! -d /proc/$pid || grep -q '^State:.Z' /proc/$pid/status
            """,
        )
        assert "line\n" in said
        shown = said.split(f" {there} ")[1].split()
        assert shown[0] == "fuse.vaultway"
        assert "ro" in shown[1].split(",")
        assert ("noatime" in shown[1].split(",")) == ("noatime" in options)
        assert ("noexec" in shown[1].split(",")) == ("user" in options)

    def test_fstab(self, helpers: Path, repository: Path, tmp_path: Path) -> None:
        """With everything that a line for systemd may have, and what only mount(8) reads."""
        options = (
            "ro,nofail,_netdev,noauto,allow_other,default_permissions,noatime,uid=1234,gid=4321,"
            "umask=022,x-systemd.automount,x-systemd.mount-timeout=30,X-mount.mkdir,memory=64M"
        )
        fstab = tmp_path / "fstab"
        fstab.write_text(f"{repository} {tmp_path}/m fuse.vaultway {options} 0 0\n")
        said = on_a_system_with(
            helpers,
            f"""
            mount -T {fstab} {tmp_path}/m
            stat -c '%u:%g:%a' {tmp_path}/m/host/h/latest/root.pxar/file
            grep " {tmp_path}/m " /proc/mounts
            umount {tmp_path}/m
            """,
        )
        assert said.splitlines()[0] == "1234:4321:644"
        assert {"ro", "noatime", "allow_other", "default_permissions"} <= set(
            said.split("fuse.vaultway ")[1].split()[0].split(",")
        )

    def test_what_is_refused(self, helpers: Path, repository: Path, tmp_path: Path) -> None:
        there = tmp_path / "m"
        there.mkdir()
        script = f"""
            mount -t fuse.vaultway -o ro,frobnicate {repository} {there} && exit 1
            mount -f -t fuse.vaultway {repository} {there}
            ! mountpoint -q {there}
        """
        said = on_a_system_with(helpers, script)
        assert "vaultway: mount option frobnicate: unknown" in said

    def test_lazy_and_forced(self, helpers: Path, repository: Path, tmp_path: Path) -> None:
        """In use: refused by name, unless it is to be detached."""
        there = tmp_path / "m"
        there.mkdir()
        said = on_a_system_with(
            helpers,
            f"""
            for how in -l -f; do
                mount -t vaultway -o _netdev {repository} {there}
                exec 5<{there}/host/h/latest/a.conf
                umount {there} && exit 1
                [ $how = -f ] && exec 5<&-
                umount $how {there}
                ! mountpoint -q {there}
                exec 5<&-
            done
            """,
        )
        assert said.count("is in use") == 2

    def test_no_right_to_install(self, tmp_path: Path) -> None:
        line = error_line("mount", "--install-helpers", tmp_path / "missing", expect=16)
        assert "missing/mount.vaultway" in line


class TestNonempty:
    def test_a_filled_directory_is_covered_only_when_asked(
        self, repository: Path, tmp_path: Path
    ) -> None:
        there = tmp_path / "m"
        there.mkdir()
        (there / "mine").touch()
        assert "is not empty" in error_line("mount", repository, there, expect=2)
        assert not there.is_mount()
        with mounted(repository, there, "-o", "nonempty") as mount:
            assert os.listdir(mount) == ["host"]
        assert os.listdir(there) == ["mine"]


class TestService:
    """What systemd hears, in the words of sd_notify(3)."""

    @pytest.mark.parametrize("abstract", [False, True])
    def test_notify(self, repository: Path, tmp_path: Path, abstract: bool) -> None:
        there = tmp_path / "m"
        there.mkdir()
        place = f"@{tmp_path}/notify" if abstract else str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(place.replace("@", "\0"))
            manager.settimeout(30)
            env = {"NOTIFY_SOCKET": place}
            with started("mount", "--foreground", repository, there, env=env) as process:
                first = manager.recv(4096).decode().splitlines()
                assert first == ["READY=1", f"STATUS=Mounted {repository} at {there}"]
                assert (there / "host/h/latest/a.conf").read_bytes() == b"line\n"
                process.terminate()
                assert manager.recv(4096).decode().splitlines()[0] == "STOPPING=1"
                assert process.wait(20) == 0

    def test_a_mount_in_the_background_is_no_service(
        self, repository: Path, tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            with mounted(repository, tmp_path / "m", env={"NOTIFY_SOCKET": f"{tmp_path}/notify"}):
                pass
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(4096)

    def test_unit(self, tmp_path: Path) -> None:
        """systemd finds nothing to say about it, and it starts this program."""
        text = run("mount", "--print-unit").stdout
        assert "Type=notify\n" in text
        command = next(line for line in text.splitlines() if line.startswith("ExecStart="))
        assert Path(command.removeprefix("ExecStart=").split()[0]).is_absolute()
        for name in ("vaultway-mount@.service", "vaultway-mount@prod.service"):
            (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / "vaultway-mount@prod.service"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_the_rights_of_the_unit_are_enough(self, repository: Path, tmp_path: Path) -> None:
        """As root without the capabilities that the unit takes away, on somebody else's files."""
        text = run("mount", "--print-unit").stdout
        subprocess.run(["chown", "-R", "nobody", repository], check=True)
        repository.chmod(0o700)
        there = tmp_path / "m"
        there.mkdir()
        program = text.partition("ExecStart=")[2].split(" mount ")[0]
        command = f"""
            {program} mount {repository} {there} -o allow_other --log {tmp_path}/log
            cat {there}/host/h/latest/a.conf
            {program} umount {there}
        """
        done = subprocess.run(
            [*with_the_rights_of(text), "sh", "-ec", command],
            capture_output=True, text=True, check=False, env=environment(), timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "line\n"), done.stderr

    @pytest.mark.needs("nbd")
    def test_its_rights_are_enough_to_look_into_disks(self, tmp_path: Path) -> None:
        """A journal is replayed, and the children, who are nobody's, can be ended."""
        disk = tmp_path / "disk"
        make_disk(disk, "ext4", 16)
        recover = ["/usr/sbin/debugfs", "-w", "-R", "feature needs_recovery", str(disk)]
        subprocess.run(recover, check=True, capture_output=True)
        unit = run("mount", "--print-unit").stdout
        done = subprocess.run(
            [*with_the_rights_of(unit), sys.executable, "-c", LOOK_INSIDE, str(disk)],
            capture_output=True, text=True, check=False, timeout=60, env=environment(),
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "clean [b'lost+found']\n"), done.stderr


def with_the_rights_of(unit: str) -> list[str]:
    """What a command is put behind to have the capabilities that a unit leaves it."""
    bounds = next(x for x in unit.splitlines() if x.startswith("CapabilityBoundingSet="))
    names = bounds.removeprefix("CapabilityBoundingSet=").lower().replace("cap_", "").split()
    kept = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", "--bounding-set", kept, "--no-new-privs"]


LOOK_INSIDE = """
import sys
from pathlib import Path
from store.disks.disk import DiskOptions, open_disk
from tests.fakes.disk_files import DiskFile

disk = open_disk(DiskFile(Path(sys.argv[1])), "disk", DiskOptions(use_machine=False))
(part,) = disk.parts
tree = part.open_tree()
print(part.state, [entry.name for entry in tree.iterate(tree.root())])
disk.close()
"""
