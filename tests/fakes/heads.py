"""What tests do to a head that is open."""

import threading

from store.heads.head import OpenHead
from store.heads.moving.run import move_early

MIB = 1 << 20


def move_all(head: OpenHead) -> int:
    """Move what its journal has to the datastore, as if its budget were used up."""
    budget, head.journal.budget_bytes = head.journal.budget_bytes, 0
    try:
        return move_early(head, lambda: None)
    finally:
        head.journal.budget_bytes = budget


def write_past_the_budget(head: OpenHead) -> None:
    """24 MiB into a head that has room for 3, from two threads: nobody fails, and all is there."""
    image = head.create_image("disk.img", 16 * MIB)
    tree = head.create_tree("root.pxar")
    file = tree.create(tree.root, b"f", 0o644, 0, 0).number

    def write_image() -> None:
        for number in range(16):
            image.write(number * MIB, bytes([number + 1]) * MIB)

    thread = threading.Thread(target=write_image)
    thread.start()
    for number in range(8):
        tree.write(file, number * MIB, bytes([number + 1]) * MIB)
    thread.join()
    assert head.journal.segments.total_bytes <= 4 * MIB
    for number in range(16):
        assert image.read(number * MIB, MIB) == bytes([number + 1]) * MIB
    assert tree.read(file, 7 * MIB, MIB) == bytes([8]) * MIB
