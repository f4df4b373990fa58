from store.format.buffer import Buffer

def find_cut(
    table: Buffer, data: Buffer, start: int, end: int, mask: int, threshold: int, /
) -> int: ...
