"""`vaultway microvm`: what disks are shown with that need a kernel of their own."""

from typing import TYPE_CHECKING, Any

from store.cli.options import add_command, add_noun
from store.cli.output import say

if TYPE_CHECKING:
    import argparse

NOTES = """\
A disk that was copied while its machine ran must be repaired by Linux before its files are shown.
That happens in a small virtual machine, without network, made of QEMU, a kernel of Debian's and a
program of ours. An installed kernel is used if there is one; else the package
linux-image-cloud-amd64 is downloaded and unpacked, and not installed.

needs: qemu-system-x86, gcc, libc6-dev; 110 MB below ~/.cache/vaultway (root: /var/cache/vaultway)
environment: VAULTWAY_ACCEL=tcg|kvm|auto   tcg (default) works everywhere; kvm is faster
"""


def add_commands(subparsers: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Declare the commands."""
    noun = add_noun(subparsers, "microvm", "Get ready to show disks of running machines.", NOTES)
    add_command(
        noun,
        "prepare",
        prepare,
        "Compile the micro-VM's program and have a kernel for it; once.",
        "vaultway microvm prepare",
        NOTES,
    )


def prepare(_args: "argparse.Namespace") -> None:
    """Have all that a micro-VM needs, and say what that is."""
    from store.disks.microvm.appliance import prepare as prepare_appliance

    appliance = prepare_appliance()
    say(f"kernel {appliance.kernel.version} ({appliance.kernel.image}), agent {appliance.agent}")
