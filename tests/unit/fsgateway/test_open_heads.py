"""When the heads of a mount become snapshots."""

from pathlib import Path

from fsgateway.writing.open_heads import OpenHeads
from store.heads.heads import Heads
from store.heads.sealing.policy import SealPolicy
from tests.fakes.datastores import GROUP, ROOT, local_datastore

HOUR_S = 3600.0


def test_an_empty_head_is_left_alone(tmp_path: Path) -> None:
    """All its archives were removed: there is nothing to seal, and no warning again and again."""
    now = [0.0]
    datastore = local_datastore(tmp_path / "vault")
    heads = OpenHeads(
        Heads(datastore, tmp_path / "heads"), SealPolicy.parse("idle:300"), lambda: now[0]
    )
    mounted = heads.get(ROOT, GROUP)
    mounted.head.create_tree("root.pxar")
    mounted.remove("root.pxar")
    assert mounted.head.dirty_bytes
    for _ in range(2):
        mounted.idle_s()
        now[0] += HOUR_S
        heads.seal_idle()
    mounted.head.create_tree("root.pxar")
    mounted.idle_s()
    now[0] += HOUR_S
    heads.seal_idle()
    heads.close()
    assert len(datastore.list_snapshots(ROOT, GROUP)) == 1
