"""A digest over lists that come in pieces is the digest of the lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from curate.warehouse.identity import digest, digest_listed

ANY = st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(
    first=ANY,
    pieces=st.lists(st.lists(st.text() | st.integers())),
    last=st.dictionaries(st.text(), ANY),
)
def test_pieces_of_a_list_are_the_list(
    first: object, pieces: list[list[object]], last: dict[str, object]
) -> None:
    whole = [item for piece in pieces for item in piece]
    assert digest_listed([first, iter(pieces), last]) == digest([first, whole, last])
