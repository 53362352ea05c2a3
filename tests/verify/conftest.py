from __future__ import annotations

from collections.abc import Iterator

import pytest

from curate.verify import VerifierPool


@pytest.fixture(scope="session")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2) as shared:
        yield shared
