"""All of a disk: partitions, logical volumes, and what is on each; as JSON for the parent."""

import json
from typing import Any

from store.disks.journals import unclean
from store.disks.parsers.blocks import CachedBlocks, Slice
from store.disks.parsers.files import BadFile
from store.disks.parsers.lvm import Physical, logical_volumes, physical
from store.disks.parsers.probe import probe
from store.disks.parsers.tables import Partition, partitions

MAX_PARTS = 1024


class Layout:
    """Reads the tables of one disk."""

    def __init__(self, blocks: CachedBlocks) -> None:
        self._blocks = blocks

    def answer(self) -> bytes:
        """A list of parts; of each number, segments, kind, label, volume, unclean, problem.

        volume: `VG-LV` of a logical volume; unclean: why its journal has to be replayed first;
        problem: why it cannot be read.
        """
        found = partitions(self._blocks) or [Partition(1, 0, self._blocks.size)]
        parts = [self._part(part.number, [(part.start, part.size)]) for part in found]
        parts += self._volumes(found, parts)
        return json.dumps(parts[:MAX_PARTS]).encode()

    def _part(self, number: int, segments: list[tuple[int, int]], **more: str) -> dict[str, Any]:
        view = Slice(self._blocks, segments)
        kind, label = probe(view)
        return {
            "number": number,
            "segments": segments,
            "kind": kind,
            "label": label.decode("utf-8", "replace"),
            "unclean": unclean(kind, view.pread) if kind else "",
            "volume": "",
            "problem": "",
        } | more

    def _volumes(self, found: list[Partition], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        volumes: list[Physical] = []
        for index, (partition, part) in enumerate(zip(found, parts, strict=True)):
            if part["kind"] != "lvm2-pv":
                continue
            view = Slice(self._blocks, [(partition.start, partition.size)])
            try:
                volume = physical(view, index)
            except BadFile as error:
                part["problem"] = str(error)
                continue
            volumes += [volume] if volume else []
        return self._numbered(found, volumes)

    def _numbered(self, found: list[Partition], volumes: list[Physical]) -> list[dict[str, Any]]:
        number, parts = max(part.number for part in found), []
        for volume in logical_volumes(volumes):
            number += 1
            name = f"{volume.group}-{volume.name}"
            segments = [
                (found[piece.part].start + piece.start, piece.size)
                for piece in volume.pieces
                if piece.start + piece.size <= found[piece.part].size
            ]
            problem = volume.problem
            if len(segments) < len(volume.pieces):
                segments, problem = [], "LVM volume past the end of its partition"
            if segments:
                parts.append(self._part(number, segments, volume=name))
            else:
                parts.append(_nothing(number, name, problem or "LVM volume without extents"))
        return parts


def _nothing(number: int, name: str, problem: str) -> dict[str, Any]:
    return {
        "number": number, "segments": [], "kind": None, "label": "", "unclean": "",
        "volume": name, "problem": problem,
    }  # fmt: skip
