"""Whether the processor runs the guest itself (KVM), or QEMU emulates one (TCG).

TCG works everywhere and is the default: there are machines whose /dev/kvm opens and then hangs the
guest for good, virtual ones most of all. `VAULTWAY_ACCEL=kvm` takes KVM and nothing else; `auto`
tries it, gives a guest KVM_TRIAL_S to boot, and goes back to TCG for the rest of the process.
"""

import logging
import os

from store.errors import InvalidName

log = logging.getLogger(__name__)

VARIABLE = "VAULTWAY_ACCEL"
TCG, KVM, AUTO = "tcg", "kvm", "auto"
DEVICE = "/dev/kvm"
# Emulated, on a busy machine, with a long journal to replay; a boot takes 3 s on an idle one.
BOOT_TIMEOUT_S = 120.0
KVM_TRIAL_S = 15.0


class Accelerator:
    """What the guests of one process run on.

    Args:
        wanted: `tcg`, `kvm` or `auto`; what the environment says if not given.

    Raises InvalidName: none of them.
    """

    def __init__(self, wanted: str | None = None) -> None:
        wanted = os.environ.get(VARIABLE, TCG) if wanted is None else wanted
        if wanted not in (TCG, KVM, AUTO):
            raise InvalidName(f"{VARIABLE} is {wanted!r}: it may be tcg, kvm or auto")
        self._on_trial = wanted == AUTO and os.access(DEVICE, os.R_OK | os.W_OK)
        self.name = KVM if wanted == KVM or self._on_trial else TCG

    @property
    def boot_timeout_s(self) -> float:
        """How long a guest may take to have its disk mounted."""
        return KVM_TRIAL_S if self._on_trial else BOOT_TIMEOUT_S

    def works(self) -> None:
        """A guest has booted."""
        self._on_trial = False

    def failed(self) -> bool:
        """A guest has not booted; whether another try may help, for it runs on something else."""
        if not self._on_trial:
            return False
        log.info("KVM does not boot a guest here; micro-VMs are emulated from now on")
        self._on_trial, self.name = False, TCG
        return True
