"""How QEMU is called: with nothing but a processor, a disk and a serial port."""

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 192
# Translated code, of an emulated processor.
CODE_MIB = 64

# tsc, timer: no calibration against clocks that a busy host keeps late. mitigations: the guest has
# no secrets. lsm: no policies are loaded. panic, reboot: a panic ends QEMU at once.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 oops=panic reboot=t tsc=reliable no_timer_check "
    "mitigations=off random.trust_cpu=on lsm=none audit=0 8250.nr_uarts=1"
)
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def qemu_command(accelerator: str, port: int, disk: int, kernel: int, first_root: int) -> list[str]:
    """The command line.

    Args:
        accelerator: `tcg` or `kvm`.
        port: descriptor of the socket that the agent's serial port is.
        disk: descriptor of a connection to an NBD server; the guest may write to what it serves.
        kernel: descriptor of the kernel's image.
        first_root: descriptor of the guest's first files, a cpio archive.
    """
    accel = f"tcg,tb-size={CODE_MIB}" if accelerator == "tcg" else accelerator
    return [
        # Not the machine "microvm": its clock is not found on a busy host (note 0020).
        QEMU, "-machine", "pc,usb=off,vmport=off,hpet=on", "-accel", accel, "-cpu", "max",
        "-m", f"{MEMORY_MIB}M", "-smp", "1", "-nodefaults", "-no-user-config", "-sandbox", _SANDBOX,
        "-display", "none", "-no-reboot", "-serial", "stdio", "-nic", "none",
        "-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{first_root}",
        "-append", KERNEL_ARGUMENTS,
        "-chardev", f"socket,id=port,fd={port}", "-device", "virtio-serial-pci,max_ports=2",
        "-device", "virtserialport,chardev=port",
        "-blockdev", f"driver=nbd,node-name=disk,server.type=fd,server.str={disk}",
        "-device", "virtio-blk-pci,drive=disk",
    ]  # fmt: skip
