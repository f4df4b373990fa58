"""Which keys a command uses: those of its options, or the default ones.

Without --keyfile the repository's key counts (`keyfile` of its configuration), or else the
user's default key, where there is one: PBS's own place,
$XDG_CONFIG_HOME/proxmox-backup/encryption-key.json (usually below ~/.config), and
master-public.pem beside it.

Source: proxmox-backup pbs-client/src/tools/key_source.rs
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.cli.key_files import (
    DEFAULT_KEY_NAME,
    DEFAULT_MASTER_KEY_NAME,
    KEY_FILE_SIZE,
    find_default,
    read_key_text,
)
from store.cli.password import get_password
from store.cli.repository import configured_keyfile
from store.errors import FormatError, IntegrityError, InvalidName, KeyRequired, WrongKey

if TYPE_CHECKING:
    import argparse

    from store.format.crypt import CryptConfig
    from store.format.keys import KeyFile
    from store.format.manifest import CryptMode

log = logging.getLogger(__name__)

PASSWORD_VARIABLE = "PBS_ENCRYPTION_PASSWORD"  # noqa: S105 - a name


@dataclass(frozen=True)
class BackupKeys:
    """What a backup encrypts, signs and wraps with. `key` is None exactly when `mode` is none."""

    mode: "CryptMode"
    key: "CryptConfig | None" = None
    key_file: "KeyFile | None" = None
    master_public_key: bytes | None = None


@dataclass(frozen=True)
class KeyText:
    """A key file as it was read, and from where: for messages."""

    source: str
    text: bytes


def load_key(args: "argparse.Namespace") -> "CryptConfig | None":
    """Return the key to read with; None when there is none, or with --crypt-mode none.

    A default key that can't be opened for want of a passphrase is left alone with a warning: what
    is to be read may not need it. One named with --keyfile or --keyfd must open.

    Raises:
        NotFound, PermissionDenied: the key file can't be read.   FormatError: it is not one.
        KeyRequired, WrongKey: no passphrase, or another one.
        InvalidName: --keyfile, --keyfd and --crypt-mode none exclude each other.
    """
    found, default = _find_key(args)
    if found is None:
        return None
    try:
        return _unlock(found)[1]
    except WrongKey:
        raise
    except KeyRequired as error:
        if not default:
            raise
        log.warning("reading without the default key: %s", error)
        return None


def load_backup_keys(args: "argparse.Namespace") -> BackupKeys:
    """Return what to write with: encrypted if there is a key and no other --crypt-mode.

    Raises what `load_key` does, and KeyRequired when a mode or a master key asks for a key that
    is not there.
    """
    from store.format.manifest import CryptMode

    master_path = args.master_pubkey_file
    if args.crypt_mode == "none" and master_path is not None:
        raise InvalidName("--master-pubkey-file and --crypt-mode none exclude each other")
    found, _ = _find_key(args)
    if found is None:
        if args.crypt_mode in {"encrypt", "sign-only"}:
            raise KeyRequired(
                f"--crypt-mode {args.crypt_mode} without --keyfile, and no default key"
            )
        if master_path is not None:
            raise KeyRequired("--master-pubkey-file without --keyfile, and no default key")
        return BackupKeys(CryptMode.NONE)
    mode = CryptMode(args.crypt_mode or "encrypt")
    key_file, key = _unlock(found)
    if mode is not CryptMode.ENCRYPT and master_path is None:
        return BackupKeys(mode, key, key_file)
    path = Path(master_path) if master_path is not None else find_default(DEFAULT_MASTER_KEY_NAME)
    return BackupKeys(mode, key, key_file, None if path is None else _read_master_key(path))


def _read_master_key(path: Path) -> bytes:
    """Return a checked master public key, for a backup must not fail of it at its end."""
    from store.format.keys import load_master_public_key

    pem = read_key_text(path)
    try:
        load_master_public_key(pem)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    return pem


def _find_key(args: "argparse.Namespace") -> tuple[KeyText | None, bool]:
    """The key file and whether it is the default one."""
    if args.keyfile is not None and args.keyfd is not None:
        raise InvalidName("--keyfile and --keyfd exclude each other")
    explicit = args.keyfile is not None or args.keyfd is not None
    if args.crypt_mode == "none":
        if explicit:
            raise InvalidName("--keyfile/--keyfd and --crypt-mode none exclude each other")
        return None, False
    if args.keyfd is not None:
        return KeyText(f"--keyfd {args.keyfd}", _read_descriptor(args.keyfd)), False
    path = Path(args.keyfile) if explicit else configured_keyfile(args)
    if path is not None:
        return KeyText(str(path), read_key_text(path)), False
    path = find_default(DEFAULT_KEY_NAME)
    if path is None:
        return None, False
    log.info("using the default key %s", path)
    return KeyText(str(path), read_key_text(path)), True


def _read_descriptor(descriptor: int) -> bytes:
    try:
        with open(descriptor, "rb") as file:
            return file.read(KEY_FILE_SIZE)
    except (OSError, TypeError, ValueError) as error:  # the last two: no number of a descriptor
        reason = getattr(error, "strerror", None) or error
        raise InvalidName(f"--keyfd {descriptor}: {reason}") from error


def _unlock(found: KeyText) -> "tuple[KeyFile, CryptConfig]":
    from store.format.keys import KeyFile

    try:
        key_file = KeyFile.decode(found.text)
        return key_file, unlock(key_file)
    except (FormatError, IntegrityError, KeyRequired) as error:
        raise type(error)(f"{found.source}: {error}") from error


def unlock(key_file: "KeyFile", prompt: str = "Encryption key passphrase") -> "CryptConfig":
    """Open a key file, with the passphrase from the environment or the terminal if it needs one."""
    if key_file.kdf is None:
        return key_file.unlock()
    if key_file.hint:
        prompt = f"{prompt} (hint: {key_file.hint})"
    return key_file.unlock(get_password(PASSWORD_VARIABLE, prompt))
