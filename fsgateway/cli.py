"""`vaultway mount` and `vaultway umount`.

Cheap to import: pyfuse3, trio and the store come in when a command runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsgateway.installing import SBIN, InstallHelpers, PrintUnit
from store.cli.disk_keys import add_disk_key_option, disk_keys
from store.cli.options import (
    add_command,
    add_key_options,
    add_repository_options,
    get_namespace,
    get_settings,
    load_key,
    repository_name,
)
from store.errors import InvalidName
from store.repositories.option_kinds import MEMORY
from store.repositories.options import label

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsgateway.options import MountOptions
    from store.repositories.settings import RepositorySettings

MOUNT_NOTES = """\
mount options (-o, separated by commas):
  allow_other           other users may enter; modes, owners and ACLs of the backup protect
  default_permissions   the kernel enforces modes, owners and ACLs
  memory=SIZE           memory for decoded chunks (default: 256M)
  uid=N,gid=N           show every file as theirs; umask=MODE takes bits off every mode
  versions              host|vm|ct/ID/versions/root.pxar/FILE/TIME: all versions of each file
  shadow-copy           host|vm|ct/ID/shadow/root.pxar/@GMT-...: for Samba's shadow_copy2
  ns=, keyfile=, log=   as --ns, --keyfile and --log, for fstab; disk-keyfile= likewise
  endpoint=, cache=...  all repository options; a comma in a value is \\, or in "double quotes"
  no-micro-vm           start none for a guest's disk: see drive-scsi0.img.d below
  kernel_cache          the kernel caches disks of 64 MiB and more, too: good for who reads the same
                        parts of one again and again, slower for who copies it
  nonempty              mount over a directory with something in it, which it hides
  noatime, nodev, ...   as for every mount; ro is the default

a writable mount: host|vm|ct/ID/current/ is the group's head, which becomes its next snapshot
  rw                    (in fstab and with mount(8): writable; there rw alone means nothing)
  seal=idle:N           N seconds after the last write, and at umount (default: idle:300); else
                        seal=close: at umount; seal=manual: by `vaultway head seal` only
  heads=DIRECTORY       where heads are (default: ~/.local/state/vaultway/heads)
  journal=SIZE          room for each there (default: 16G); the rest moves to the datastore
  noxattr               no extended attributes and ACLs in the whole mount: small files go faster

in /etc/fstab, after `vaultway mount --install-helpers` (then also: mount -t vaultway ...):
  /srv/backup  /mnt/vault  fuse.vaultway  ro,nofail,allow_other,keyfile=/etc/vault.json  0  0
  prod         /mnt/prod   fuse.vaultway  ro,nofail,allow_other,_netdev                  0  0
as a service of systemd: vaultway mount --print-unit

what is there:
  host|vm|ct/ID/TIME/   snapshots, with `latest`; namespaces are in ns/NAME/
  root.pxar/            a backed-up tree       drive-scsi0.img   a disk, as a sparse raw file
  index.json            the manifest
  drive-scsi0.img.d/    the files inside the disk: part1/, part1.raw, labels and VG-LV as links;
                        part1.unclean/ was in use, and nothing here can replay its journal

A snapshot whose key is missing is listed, but cannot be read; the log says which key it needs.
"""
MIN_MEMORY = 32 << 20


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    mount = add_command(
        subparsers,
        "mount",
        run_mount,
        "Show a datastore as a file system, read-only unless told otherwise.",
        "vaultway mount /srv/backup /mnt/vault",
        MOUNT_NOTES,
    )
    mount.add_argument(
        "repository",
        metavar="REPOSITORY",
        nargs="?",
        help="the datastore (default: $PBS_REPOSITORY)",
    )
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    mount.add_argument(
        "-o", dest="options", metavar="OPTION,...", action="append", default=[], help="below"
    )
    mount.add_argument("-f", "--foreground", action="store_true", help="stay until it is unmounted")
    mount.add_argument("--ns", metavar="NAMESPACE", help="show this namespace and those below it")
    add_repository_options(mount, repository=False, namespace=False)
    mount.add_argument(
        "--log", metavar="FILE", help="log of the background process (default: syslog)"
    )
    add_key_options(mount)
    add_disk_key_option(mount)
    mount.add_argument(
        "--install-helpers",
        action=InstallHelpers,
        nargs="?",
        const=SBIN,
        metavar="DIRECTORY",
        help=f"write the helpers of mount(8) and umount(8) into {SBIN}, and end",
    )
    mount.add_argument(
        "--print-unit",
        action=PrintUnit,
        nargs=0,
        help="print a template unit for systemd, vaultway-mount@.service, and end",
    )
    umount = add_command(
        subparsers,
        "umount",
        run_umount,
        "Unmount a datastore and wait until its process has ended.",
        "vaultway umount /mnt/vault",
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")
    umount.add_argument(
        "-l", "--lazy", action="store_true", help="detach it even if it is in use, and do not wait"
    )


def run_mount(args: argparse.Namespace) -> int:
    """Start a mount; in the background unless told otherwise."""
    from fsgateway.background import log_to, start_in_background
    from fsgateway.mountpoints import check_empty, check_fuse, check_mountpoint
    from fsgateway.notify import forget, notify
    from fsgateway.options import parse_options

    options = parse_options(args.options)
    mountpoint = check_mountpoint(Path(args.mountpoint))
    check_fuse(options)
    work = _work(args, options, mountpoint)
    if not options.nonempty:
        check_empty(mountpoint)
    if args.foreground:
        if args.log or options.log:
            log_to(args.log or options.log)
        work(lambda: notify("READY=1", f"STATUS=Mounted {repository_name(args)} at {mountpoint}"))
        return 0
    forget()

    def work_and_log(ready: "Callable[[], None]") -> None:
        log_to(args.log or options.log)
        work(ready)

    start_in_background(work_and_log)
    return 0


def _work(
    args: argparse.Namespace, options: "MountOptions", mountpoint: Path
) -> "Callable[[Callable[[], None]], None]":
    """What the mount's process does.

    What may ask somebody is done now, while there is a terminal: for the key's passphrase, by a
    command that prints a secret. The datastore is opened then: no thread or connection survives a
    fork.
    """
    from store.repositories.credentials import with_secrets

    args = argparse.Namespace(**vars(args), mount_options=options.repository)
    settings = get_settings(args)
    _refuse_to_hide(settings, mountpoint)
    if settings.memory_bytes < MIN_MEMORY:
        what = label("memory", given := args.chosen.options["memory"])
        size = MEMORY.format(given.value)
        raise InvalidName(f"{what} {size}: a mount needs at least {MIN_MEMORY >> 20}M, two chunks")
    namespace = get_namespace(args)
    key = load_key(args)
    guests = disk_keys((*args.disk_keyfile, *options.disk_keyfiles))
    settings = with_secrets(settings)

    def work(ready: "Callable[[], None]") -> None:
        from fsgateway.mount import MountRequest, serve
        from store.repositories.repository import open_datastore

        with open_datastore(settings) as datastore:
            request = MountRequest(
                repository_name(args), mountpoint, options, key, namespace, guests
            )
            serve(request, datastore, ready)

    return work


def _refuse_to_hide(settings: "RepositorySettings", mountpoint: Path) -> None:
    """A mount over what it reads, or a part of it, would read itself and wait for ever."""
    from fsgateway.mountpoints import resolved

    for directory in settings.directories():
        path = resolved(directory)
        what = "the datastore" if directory == settings.directory else "what it reads,"
        if path == mountpoint or mountpoint in path.parents:
            raise InvalidName(f"mount point {mountpoint}: would hide {what} {path}")
        if path in mountpoint.parents:
            raise InvalidName(f"mount point {mountpoint}: is in {what} {path}")


def run_umount(args: argparse.Namespace) -> int:
    """Take a mount away."""
    from fsgateway.mountpoints import unmount

    unmount(Path(args.mountpoint), lazy=args.lazy)
    return 0
