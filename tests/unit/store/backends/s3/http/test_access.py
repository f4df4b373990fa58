"""Where a bucket is and who we are: what is found without boto3 is what boto3 finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from store.backends.s3.config import S3Config
from store.backends.s3.http import access
from store.backends.s3.http.access import Access, given_credentials, given_endpoint

KEYS = {"access_key": "AK", "secret_key": "SK"}


@pytest.fixture(autouse=True)
def no_aws_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def through_boto3(config: S3Config, monkeypatch: pytest.MonkeyPatch) -> Access:
    with monkeypatch.context() as patch:
        patch.setattr(access, "given_credentials", lambda _config: None)
        return Access(config)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:8333", "https://s3.example.com", "https://h:443"]
)
@pytest.mark.parametrize("path_style", [True, False])
@pytest.mark.parametrize("region", [None, "eu-central-1"])
def test_a_full_configuration_needs_no_boto3(
    endpoint: str, path_style: bool, region: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = S3Config(
        "bucket", "store", endpoint=endpoint, path_style=path_style, region=region, **KEYS
    )
    found, wanted = Access(config), through_boto3(config, monkeypatch)
    assert given_endpoint(config) is not None
    assert found.credentials() == wanted.credentials()
    if path_style or "127.0.0.1" not in endpoint:  # boto3 makes no host name below an address
        assert found.endpoint == wanted.endpoint


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = S3Config("bucket", "store", endpoint="http://127.0.0.1:1", path_style=True)
    for name, value in zip(access.KEY_VARIABLES, ("AK", "SK", "token"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    found, wanted = Access(config), through_boto3(config, monkeypatch)
    assert found.credentials() == wanted.credentials() == ("AK", "SK", "token")
    assert found.endpoint == wanted.endpoint


@pytest.mark.parametrize("ours", [None, Path("/etc/ours.pem")])
def test_certificates_of_the_environment(
    ours: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a machine names its CAs for all AWS tools, as behind a proxy that opens TLS."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/all.pem")
    config = S3Config(
        "bucket", "store", endpoint="https://h:1", path_style=True, ca_file=ours, **KEYS
    )
    found, wanted = Access(config), through_boto3(config, monkeypatch)
    assert given_endpoint(config) is not None
    assert found.endpoint == wanted.endpoint
    assert found.endpoint.ca_file == str(ours or "/etc/all.pem")


def test_what_a_profile_may_change_is_left_to_boto3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = S3Config("bucket", "store", endpoint="http://127.0.0.1:1", path_style=True, **KEYS)
    assert given_endpoint(whole) is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    assert given_credentials(S3Config("bucket", "store")) is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    assert given_credentials(S3Config("bucket", "store")) is not None
    assert given_credentials(S3Config("bucket", "store", profile="other")) is None
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert given_credentials(S3Config("bucket", "store")) is None
    assert given_endpoint(S3Config("bucket", "store")) is None
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[default]\nregion = eu-south-1\n")
    assert given_endpoint(whole) is None


def test_boto3_is_not_loaded() -> None:
    code = (
        "import sys; from store.backends.s3.backend import S3Backend;"
        "from store.backends.s3.config import S3Config;"
        "S3Backend(S3Config('bucket', 'store', endpoint='http://127.0.0.1:1', path_style=True,"
        " access_key='a', secret_key='b'));"
        "assert not {'boto3', 'botocore'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
