"""Moving: content of a head goes to the datastore before a seal, so that its journal has room.

run        move_early: the oldest segments' content into chunks, pinned, and the head says so
choice     what of the head that is, and how it is put into chunks
pins       the snapshot that names them, so that no garbage collection takes them
mover      a head's thread for it
"""

from store.heads.moving.mover import Mover
from store.heads.moving.pins import Pins

__all__ = ["Mover", "Pins"]
