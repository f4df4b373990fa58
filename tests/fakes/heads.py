"""What tests do to a head that is open."""

from store.heads.head import OpenHead
from store.heads.moving.run import move_early


def move_all(head: OpenHead) -> int:
    """Move what its journal has to the datastore, as if its budget were used up."""
    budget, head.journal.budget_bytes = head.journal.budget_bytes, 0
    try:
        return move_early(head, lambda: None)
    finally:
        head.journal.budget_bytes = budget
