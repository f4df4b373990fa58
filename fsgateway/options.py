"""The `-o` options of a mount: read, checked, and turned into what libfuse takes."""

import re
from dataclasses import dataclass, field, replace

from store.errors import InvalidName

KIB = 1024
DEFAULT_CACHE = 256 * KIB * KIB
MIN_CACHE = 32 * KIB * KIB
SIZE = re.compile(r"(\d+)([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
UNITS = {"": 1, "k": KIB, "m": KIB**2, "g": KIB**3, "t": KIB**4}

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
        "relatime",
        "atime",
        "async",
        "ro",
    )
)
PASSED_ON = frozenset(("noatime", "nodiratime", "dev", "nodev", "suid", "nosuid", "exec", "noexec"))


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the mount looks and what it may use.

    cache: bytes of decoded chunks kept in memory. uid, gid: show every file as theirs. umask: bits
    taken off every mode. keyfile, namespace, log: as the options of `vaultway mount`, for fstab
    lines. flags: passed on to libfuse.
    """

    allow_other: bool = False
    default_permissions: bool = False
    cache: int = DEFAULT_CACHE
    uid: int | None = None
    gid: int | None = None
    umask: int = 0
    keyfile: str | None = None
    namespace: str | None = None
    log: str | None = None
    flags: frozenset[str] = field(default_factory=frozenset)

    @property
    def enforces_permissions(self) -> bool:
        """Other users may come in only where modes, owners and ACLs protect."""
        return self.default_permissions or self.allow_other

    def for_fuse(self, repository: str) -> set[str]:
        """The options for `pyfuse3.init`.

        Never max_read=: it breaks the mount, as pyfuse3 does not announce it.
        """
        name = (
            repository.encode("ascii", "replace").decode().replace("\\", "\\\\").replace(",", "\\,")
        )
        options = {"ro", f"fsname={name}", "subtype=vaultway", *self.flags}
        if self.allow_other:
            options.add("allow_other")
        if self.enforces_permissions:
            options.add("default_permissions")
        return options


def parse_size(text: str) -> int:
    """Read `256M`, `1GiB`, `4096` into bytes (units of 1024). Raises InvalidName."""
    match = SIZE.fullmatch(text)
    if not match:
        raise InvalidName(f"size {text!r}: write it as 256M or 2G")
    return int(match[1]) * UNITS[match[2].lower()]


def _number(name: str, value: str, base: int = 10) -> int:
    try:
        number = int(value, base)
    except ValueError as error:
        raise InvalidName(f"mount option {name}={value}: not a number") from error
    if not 0 <= number < 2**32 - 1:
        raise InvalidName(f"mount option {name}={value}: out of range")
    return number


def _with_value(options: MountOptions, name: str, value: str) -> MountOptions:
    match name:
        case "cache":
            size = parse_size(value)
            if size < MIN_CACHE:
                raise InvalidName(
                    f"mount option cache={value}: at least {MIN_CACHE // KIB**2}M, two chunks"
                )
            return replace(options, cache=size)
        case "uid":
            return replace(options, uid=_number(name, value))
        case "gid":
            return replace(options, gid=_number(name, value))
        case "umask":
            return replace(options, umask=_number(name, value, 8) & 0o777)
        case "keyfile":
            return replace(options, keyfile=value)
        case "ns":
            return replace(options, namespace=value)
        case "log":
            return replace(options, log=value)
        case _:
            raise InvalidName(f"mount option {name}={value}: unknown")


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
        case "rw":
            raise InvalidName("mount option rw: this version mounts read-only; use ro")
        case _:
            raise InvalidName(f"mount option {name}: unknown")


def parse_options(texts: list[str]) -> MountOptions:
    """Read the values of every `-o`, each a comma-separated list; later ones win.

    Raises InvalidName naming the option.
    """
    options = MountOptions()
    for option in (part.strip() for text in texts for part in text.split(",")):
        name, equals, value = option.partition("=")
        if name.startswith("x-"):
            continue
        if equals:
            options = _with_value(options, name, value)
        elif name:
            options = _flag(options, name)
    return options
