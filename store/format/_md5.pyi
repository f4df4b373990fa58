from collections.abc import Sequence

from store.format.buffer import Buffer

def md5_many(buffers: Sequence[Buffer], /) -> list[bytes]: ...
