"""What a mount says of `current/`, before anybody looks into it."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from fsgateway.attributes import CHANGING_S
from fsgateway.writing.nodes import CurrentNode
from tests.fakes.datastores import GROUP, ROOT

if TYPE_CHECKING:
    from fsgateway.view import View
    from fsgateway.writing.open_heads import OpenHeads


def test_the_kernel_keeps_the_way_to_a_head_for_a_second() -> None:
    """Else each call with a whole path asks for it, in a thread; and no head is opened for it."""
    view, heads = cast("View", SimpleNamespace(started_ns=5)), cast("OpenHeads", None)
    facts = CurrentNode(view, ("host", "a", "current"), heads, ROOT, GROUP).facts()
    assert (facts.timeout_s, facts.mtime_ns) == (CHANGING_S, 5)
