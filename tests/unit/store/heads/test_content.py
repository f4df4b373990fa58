"""What a head remembers of a file or image."""

from store.heads.extents import REGION
from store.heads.head import OpenHead


def test_reading_fills_no_memory(head: OpenHead) -> None:
    """Neither what was never written, nor what was and is in the rows, stays for being read."""
    image = head.create_image("disk.img", 5000 * REGION)
    for number in range(0, 400, 2):
        image.write(number * REGION, b"x")
    head.journal.commit()
    written = list(image.extents(0, image.size))
    assert [start for start, _, is_zero in written if not is_zero] == [
        number * REGION for number in range(0, 400, 2)
    ]
    assert len(image.content.regions) < 100
    image.write(5, b"y")
    assert image.read(0, 8) == b"x\0\0\0\0y\0\0"
    assert image.read(398 * REGION, 1) == b"x"
