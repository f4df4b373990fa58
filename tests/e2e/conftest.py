"""What tests of several files need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3Server
from tests.s3_site import Site, site_before
from tests.s3_vault import Vault, new_vault


@pytest.fixture(scope="module")
def site(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A bucket behind a proxy that a test may break, and sources for small backups."""
    with site_before(s3_server, tmp_path_factory.mktemp("sources")) as made:
        yield made


@pytest.fixture
def vault(site: Site, tmp_path: Path) -> Iterator[Vault]:
    """The program with a new datastore there."""
    with new_vault(site, tmp_path) as made:
        yield made
