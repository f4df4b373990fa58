"""Arbitrary trees, encoded, then decoded in any split and looked at through the accessor."""

from hypothesis import given, settings
from hypothesis import strategies as st

from store.format.pxar.decoder import Decoder
from store.format.pxar.entries import Metadata, decode_metadata, encode_metadata
from tests.unit.store.format.pxar.archives import (
    ROOTS,
    Node,
    accessed_facts,
    decoded_facts,
    encode_tree,
    expected_facts,
    metadata,
    open_archive,
    split_at,
)

PRELUDES = st.none() | st.binary(max_size=50)


@given(ROOTS, st.booleans(), st.lists(st.integers(0, 2**20), max_size=20))
def test_trees_survive_the_decoder(root: Node, split: bool, cuts: list[int]) -> None:
    archive, payload = encode_tree(root, split=split)
    assert decoded_facts(split_at(archive, cuts), payload) == expected_facts(root)


@given(ROOTS, st.booleans())
@settings(max_examples=15)
def test_trees_survive_in_single_bytes(root: Node, split: bool) -> None:
    archive, payload = encode_tree(root, split=split)
    pieces = [archive[index : index + 1] for index in range(len(archive))]
    assert decoded_facts(pieces, payload) == expected_facts(root)


@given(ROOTS, st.booleans(), PRELUDES)
def test_trees_survive_the_accessor(root: Node, split: bool, prelude: bytes | None) -> None:
    archive, payload = encode_tree(root, split=split, prelude=prelude if split else None)
    assert accessed_facts(open_archive(archive, payload)) == expected_facts(root)


@given(PRELUDES, st.lists(st.integers(0, 200), max_size=5))
def test_the_prelude_survives(prelude: bytes | None, cuts: list[int]) -> None:
    root = Node(Metadata(0o40755))
    archive, payload = encode_tree(root, split=True, prelude=prelude)
    decoder = Decoder(split_at(archive, cuts))
    assert len(list(decoder)) == 2
    accessor = open_archive(archive, payload)
    assert (
        (decoder.version, decoder.prelude) == (accessor.version, accessor.prelude) == (2, prelude)
    )


@given(metadata(0o100000))
def test_metadata_survives(value: Metadata) -> None:
    assert decode_metadata(encode_metadata(value)) == value
