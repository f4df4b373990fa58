"""Reads ahead of who lists directories in the order an archive has them in, as `find` does."""

from store.datastore.streams import IndexedStream

# A file's content may fill the chunk between two directories.
STEP = 2


class Walk:
    """How far one archive was listed. For the event loop."""

    def __init__(self, stream: IndexedStream, ahead: int) -> None:
        """`stream`: where the archive's directories are; `ahead`: how many chunks to load ahead."""
        self._stream, self._ahead = stream, ahead
        self._number = -1
        self._start = self._end = 0

    def reached(self, offset: int) -> None:
        """The directory at `offset` is listed now.

        After a chunk that follows the one before it, those behind it are loaded in the background.
        """
        if self._start <= offset < self._end or not 0 <= offset < self._stream.size:
            return
        index = self._stream.index
        number = index.position(offset)
        goes_on = self._number >= 0 and 0 < number - self._number <= STEP
        self._number = number
        self._start, self._end = index.range(number)
        if goes_on:
            for ahead in range(number + 1, min(number + 1 + self._ahead, len(index))):
                self._stream.prefetch(index.range(ahead)[0])
