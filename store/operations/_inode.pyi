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
