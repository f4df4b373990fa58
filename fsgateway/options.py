"""The `-o` options of a mount: read, checked, and turned into what libfuse takes.

Those of the repository (`store.repositories.options`) are among them, under the same names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from store.errors import InvalidName
from store.repositories.option_kinds import BOOLEAN, parse_size
from store.repositories.options import BY_NAME, Given, read

SIZE = re.compile(r"\d+[kmgt]?", re.IGNORECASE | re.ASCII)
PIECE = re.compile(
    r"""\\(?P<escaped>.) | "(?P<quoted>[^"]*)" | (?P<comma>,) | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)

# What fstab lines carry for mount(8) and systemd; it means nothing to a file system.
IGNORED = frozenset(
    (
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "atime",
        "diratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "async",
        "sync",
        "dirsync",
    )
)
PASSED_ON = frozenset(("noatime", "nodiratime", "dev", "nodev", "suid", "nosuid", "exec", "noexec"))

DEFAULT_SEAL = "idle:300"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the mount looks and what it may use.

    uid, gid: show every file as theirs. umask: bits taken off every mode. nonempty: mount over a
    directory that is not empty. log: as the option of `vaultway mount`. disk_keyfiles: as
    `--disk-keyfile`. micro_vm: may be started. versions, shadow_copy: what groups show beside their
    snapshots. writable: `current/` of each group is its head. seal: when heads become snapshots
    (`SealPolicy`). heads: their directory. journal_bytes: room for each of them there. xattrs:
    extended attributes, ACLs; without, fewer requests. kernel_cache: also for large images, for who
    reads the same parts of one again and again. repository: options of the repository.
    flags: passed on to libfuse.
    """

    allow_other: bool = False
    default_permissions: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0
    nonempty: bool = False
    log: str | None = None
    disk_keyfiles: tuple[str, ...] = ()
    micro_vm: bool = True
    versions: bool = False
    shadow_copy: bool = False
    writable: bool = False
    seal: str = DEFAULT_SEAL
    heads: str | None = None
    journal_bytes: int | None = None
    xattrs: bool = True
    kernel_cache: bool = False
    repository: Mapping[str, Given] = field(default_factory=dict)
    flags: frozenset[str] = field(default_factory=frozenset)

    @property
    def enforces_permissions(self) -> bool:
        """Other users may come in only where modes, owners and ACLs protect."""
        return self.default_permissions or self.allow_other or self.writable

    def for_fuse(self, repository: str) -> set[str]:
        """The options for `pyfuse3.init`.

        Never max_read=: it breaks the mount, as pyfuse3 does not announce it.
        """
        name = (
            repository.encode("ascii", "replace").decode().replace("\\", "\\\\").replace(",", "\\,")
        )
        options = {
            "rw" if self.writable else "ro",
            f"fsname={name}",
            "subtype=vaultway",
            *self.flags,
        }
        if self.allow_other:
            options.add("allow_other")
        if self.enforces_permissions:
            options.add("default_permissions")
        return options


def _number(name: str, value: str, base: int = 10) -> int:
    try:
        number = int(value, base)
    except ValueError as error:
        raise InvalidName(f"mount option {name}={value}: not a number") from error
    if not 0 <= number < 2**32 - 1:
        raise InvalidName(f"mount option {name}={value}: out of range")
    return number


def _size(name: str, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise InvalidName(f"mount option {name}={value}: {error}") from error


def _with_value(options: MountOptions, name: str, value: str) -> MountOptions:
    match name:
        case "uid":
            return replace(options, uid=_number(name, value))
        case "gid":
            return replace(options, gid=_number(name, value))
        case "umask":
            return replace(options, umask=_number(name, value, 8) & 0o777)
        case "log":
            return replace(options, log=value)
        case "disk-keyfile":
            return replace(options, disk_keyfiles=(*options.disk_keyfiles, value))
        case "seal":
            return replace(options, seal=value)
        case "heads":
            return replace(options, heads=value)
        case "journal":
            size = _size("journal", value)
            return replace(options, journal_bytes=size)
        case _:
            return _of_repository(options, name, value)


def _of_repository(options: MountOptions, name: str, value: str) -> MountOptions:
    """An option of the table; `no-take-over` and `take-over` are short for false and true."""
    if name not in BY_NAME:
        raise InvalidName(f"mount option {name}: unknown")
    if name == "cache" and SIZE.fullmatch(value):
        raise InvalidName(
            f"mount option cache={value}: is a directory; for memory write memory={value}"
        )
    given = Given(read(BY_NAME[name], value, f"mount option {name}"), f"-o {name}")
    return replace(options, repository={**options.repository, name: given})


def _flag(options: MountOptions, name: str) -> MountOptions:
    if name in IGNORED or name.startswith("x-"):
        return options
    if name in PASSED_ON:
        return replace(options, flags=options.flags | {name})
    match name:
        case "allow_other":
            return replace(options, allow_other=True)
        case "default_permissions":
            return replace(options, default_permissions=True)
        case "no-micro-vm":
            return replace(options, micro_vm=False)
        case "nonempty":
            return replace(options, nonempty=True)
        case "versions":
            return replace(options, versions=True)
        case "shadow-copy":
            return replace(options, shadow_copy=True)
        case "kernel_cache":
            return replace(options, kernel_cache=True)
        case "noxattr":
            return replace(options, xattrs=False)
        case "rw" | "writable":
            return replace(options, writable=True)
        case "ro":
            return replace(options, writable=False)
        case _:
            positive = name.removeprefix("no-")
            if positive in BY_NAME and BY_NAME[positive].kind is BOOLEAN:
                return _of_repository(options, positive, str(name == positive))
            what = "has no value" if name in BY_NAME else "unknown"
            raise InvalidName(f"mount option {name}: {what}")


def parse_options(texts: list[str]) -> MountOptions:
    """Read the values of every `-o`, each a comma-separated list; later ones win.

    Raises InvalidName naming the option.
    """
    options = MountOptions()
    for option in (part.strip() for text in texts for part in split_options(text)):
        name, equals, value = option.partition("=")
        if name.startswith("x-"):
            continue
        if equals:
            options = _with_value(options, name, value)
        elif name:
            options = _flag(options, name)
    _check_together(options)
    return options


def _check_together(options: MountOptions) -> None:
    """Raise InvalidName for what only a writable mount heeds."""
    given = {
        "seal=": options.seal != DEFAULT_SEAL,
        "heads=": options.heads is not None,
        "journal=": options.journal_bytes is not None,
        "noxattr": not options.xattrs,
    }
    for name, is_given in given.items():
        if is_given and not options.writable:
            raise InvalidName(
                f"mount option {name}: needs rw (in fstab and with mount(8): writable)"
            )


def split_options(text: str) -> list[str]:
    r"""The options of a list, quoting taken away.

    A comma in a value is written `\,` as libfuse has it, or in double quotes as mount(8) has it.
    """
    parts = [""]
    for match in PIECE.finditer(text):
        if match["comma"]:
            parts.append("")
        else:
            parts[-1] += match["escaped"] or match["quoted"] or match["plain"] or ""
    return parts
