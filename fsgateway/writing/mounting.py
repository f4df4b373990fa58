"""What a mount with `-o rw` needs before it begins."""

from typing import TYPE_CHECKING

from fsgateway import extra_handlers
from fsgateway.options import MountOptions
from fsgateway.seeking import Seeker
from fsgateway.view import View
from fsgateway.writing.files import FIRST_HANDLE
from fsgateway.writing.nodes import CurrentDirectories
from fsgateway.writing.open_heads import OpenHeads, SealPolicy
from fsgateway.writing.operations import WritableOperations
from store.errors import BackendError
from store.heads.heads import DEFAULT_BUDGET, Heads

if TYPE_CHECKING:
    from fsgateway._fuse_extra import Request

FUSE_CAP_ATOMIC_O_TRUNC = 1 << 3
FUSE_CAP_DONT_MASK = 1 << 6
FUSE_CAP_SPLICE_READ = 1 << 9
FUSE_CAP_HANDLE_KILLPRIV = 1 << 20


def open_heads(options: MountOptions, view: View) -> OpenHeads:
    """The heads of what is mounted; none is opened yet, the mount shows them from now on.

    Raises:
        BackendError: there is no C module for libfuse.   InvalidName: seal=.
    """
    # The umask is ours to apply (a default ACL goes before it); setuid bits are the kernel's, also
    # when O_TRUNC takes them away.
    refused = FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_SPLICE_READ
    if not extra_handlers.set_capabilities(FUSE_CAP_DONT_MASK, refused):
        raise BackendError(
            "mount option rw: fsgateway._fuse_extra is missing or does not fit; run scripts/setup"
        )
    policy = SealPolicy.parse(options.seal)
    heads = Heads(
        view.datastore,
        options.heads,
        key=view.key,
        cache=view.cache,
        budget_bytes=options.journal_bytes or DEFAULT_BUDGET,
    )
    found = OpenHeads(heads, policy)
    view.writable = CurrentDirectories(found)
    return found


def add_handlers(operations: WritableOperations, seeker: Seeker) -> None:
    """The handlers that pyfuse3 does not have."""

    def lseek(request: "Request", inode: int, handle: int, offset: int, whence: int) -> None:
        answer = seeker.lseek if handle < FIRST_HANDLE else operations.lseek
        answer(request, inode, handle, offset, whence)

    extra_handlers.set_handler("lseek", lseek)
    extra_handlers.set_handler("fallocate", operations.fallocate)
