from store.format.buffer import Buffer

def make_file(
    name: bytes,
    directory: int,
    content: Buffer,
    mode: int,
    uid: int,
    gid: int,
    mtime_s: int,
    mtime_ns: int,
    /,
) -> bool: ...
def unchanged_files(
    names: list[bytes],
    items: Buffer,
    position: int,
    question: tuple[int, int, int, bool, bool, bool],
    /,
) -> tuple[bytes, bytes, bytes]: ...
