"""Whose bucket it is."""

import json

from store.backends.s3.marker import foreign_holder, make_marker


def test_ours_has_the_shape_of_theirs() -> None:
    marker = make_marker()
    assert marker.startswith(b'{"hostname":"vaultway@')
    assert list(json.loads(marker)) == ["hostname"]
    assert foreign_holder(marker) is None


def test_a_pbs_is_named() -> None:
    assert foreign_holder(b'{"hostname":"vm"}') == "held by the PBS on 'vm'"


def test_what_is_no_marker_is_somebodys() -> None:
    for marker in (b"", b"[]", b"{}", b"\xff", b'"vaultway@"', b'{"host":1}'):
        assert "damaged" in (foreign_holder(marker) or "")
    assert foreign_holder(b'{"hostname":7}') == "held by the PBS on 7"
