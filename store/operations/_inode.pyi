from store.format.buffer import Buffer

def small_files(
    items: Buffer,
    payload: Buffer | None,
    start: int,
    limit: int,
    target: tuple[int, int, int, int],
    /,
) -> tuple[int, int, int]: ...
def unchanged_files(
    names: list[bytes],
    items: Buffer,
    position: int,
    question: tuple[int, int, int, bool, bool, bool],
    /,
) -> tuple[bytes, bytes, bytes]: ...
