"""Configuration files: what holds, in which order, and how each mistake is named."""

from pathlib import Path

import botocore
import pytest

from store.datastore.xdg import cache_home
from store.errors import InvalidName, NotFound, PermissionDenied, StoreError
from store.repositories import configuration as module
from store.repositories import configuration_file
from store.repositories.configuration import Configuration, load_configuration, read_configuration
from store.repositories.options import Given, environment_layer
from store.repositories.repository_url import parse_url

PROD = """\
[defaults]
connections = 32
memory = "128M"

[repository.prod]
url = "s3://backups/vault"
endpoint = "https://s3.example.com"
memory = "64M"
mirrors = ["second", "/srv/copy"]

[repository.second]
url = "s3://copies/vault"
region = "nl"
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYSTEM_FILE", tmp_path / "etc/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VAULTWAY_CONFIG", raising=False)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    return tmp_path / "home/vaultway/config.toml"


@pytest.fixture
def system_file(tmp_path: Path) -> Path:
    return tmp_path / "etc/config.toml"


def load(tmp_path: Path, text: str, mode: int = 0o600) -> Configuration:
    return load_configuration(str(write(tmp_path / "config.toml", text, mode)))


def test_a_repository_with_its_mirrors(tmp_path: Path) -> None:
    found = load(tmp_path, PROD)
    settings = found.settings(found.choose("prod"))
    assert (settings.url, settings.name) == ("s3://backups/vault", "prod")
    assert (settings.endpoint, settings.connections) == ("https://s3.example.com", 32)
    assert settings.memory_bytes == 64 << 20
    second, copy = settings.mirrors
    assert (second.name, second.region, second.endpoint) == ("second", "nl", None)
    assert (copy.url, copy.name, copy.connections) == ("/srv/copy", None, 16)


def test_defaults_hold_for_places_without_a_name(tmp_path: Path) -> None:
    found = load(tmp_path, PROD)
    bucket = found.settings(found.choose("s3://other/x"))
    assert (bucket.connections, bucket.memory_bytes) == (32, 128 << 20)
    local = found.settings(found.choose("/srv/vault"))
    assert (local.connections, local.memory_bytes) == (16, 128 << 20)


def test_precedence(tmp_path: Path) -> None:
    found = load(tmp_path, PROD)
    flags = {"region": Given("flag", "--region")}
    mount = {"region": Given("mount", "-o region"), "connections": Given(1, "-o connections")}
    variables = environment_layer(
        {"VAULTWAY_CONNECTIONS": "2", "VAULTWAY_ENDPOINT": "http://x", "VAULTWAY_REGION": ""}
    )
    chosen = found.choose("prod", flags, mount, variables)
    values = {name: given.value for name, given in chosen.options.items()}
    assert values["region"] == "flag"
    assert values["connections"] == 1
    assert values["endpoint"] == "http://x"
    assert values["memory"] == 64 << 20
    assert chosen.options["memory"].origin == f"{tmp_path}/config.toml line 8"
    assert found.settings(chosen).mirrors[0].endpoint is None, "a mirror has its own"


def test_a_stronger_secret_takes_the_place_of_all_forms(tmp_path: Path) -> None:
    text = '[repository.a]\nurl = "s3://bucket/a"\naccess-key = "a"\nsecret-key = "weak"\n'
    found = load(tmp_path, text)
    flags = {"secret-key-cmd": Given("pass a", "--secret-key-cmd")}
    settings = found.settings(found.choose("a", flags))
    assert (settings.secret_key, settings.secret_key_cmd) == (None, "pass a")
    settings = found.settings(found.choose("a", {"profile": Given("p", "--profile")}))
    assert (settings.profile, settings.access_key, settings.secret_key) == ("p", None, None)
    assert "weak" not in repr(found.settings(found.choose("a")))


def test_the_users_repositories_replace_the_systems(user_file: Path, system_file: Path) -> None:
    write(system_file, '[defaults]\nconnections = 1\nburst = 1\n[repository.a]\nurl = "/system"\n'
          'memory = "2G"\n[repository.b]\nurl = "/b"\n')  # fmt: skip
    write(user_file, '[defaults]\nburst = 2\n[repository.a]\nurl = "/user"\n')
    found = load_configuration()
    assert found.choose("a").url.value == "/user"
    assert "memory" not in found.choose("a").options
    assert found.choose("b").url.value == "/b"
    assert {n: g.value for n, g in found.defaults.items()} == {"connections": 1, "burst": 2}


def test_one_named_file_alone(
    tmp_path: Path, user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(user_file, '[repository.mine]\nurl = "/mine"\n')
    other = write(tmp_path / "other.toml", '[repository.other]\nurl = "/other"\n')
    assert list(load_configuration(str(other)).repositories) == ["other"]
    monkeypatch.setenv("VAULTWAY_CONFIG", str(other))
    assert list(load_configuration().repositories) == ["other"]
    assert list(load_configuration(str(user_file)).repositories) == ["mine"]
    monkeypatch.setenv("VAULTWAY_CONFIG", "/dev/null")
    assert not load_configuration().repositories
    with pytest.raises(NotFound, match="/nowhere"):
        load_configuration("/nowhere")


def test_no_file_at_all(tmp_path: Path) -> None:
    found = load_configuration()
    with pytest.raises(NotFound, match=f"'prod' is not configured; name it in {tmp_path}/home"):
        found.choose("prod")
    with pytest.raises(InvalidName, match="servers are not supported yet"):
        found.choose("root@pam@host:store")


def test_a_system_file_that_is_not_ours_to_read(
    system_file: Path, user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have root's secrets: others do without it, and are told when they miss a name."""
    read = configuration_file.read_configuration_file

    def refuse(path: Path) -> object:
        if path in refused:
            raise PermissionDenied(f"configuration {path}: Permission denied")
        return read(path)

    refused = [write(system_file, "")]
    monkeypatch.setattr(configuration_file, "read_configuration_file", refuse)
    write(user_file, '[repository.a]\nurl = "/a"\n')
    found = load_configuration()
    with pytest.raises(NotFound, match=rf"configured: a \(not readable for you: {system_file}\)"):
        found.choose("prod")
    refused.append(user_file)
    with pytest.raises(PermissionDenied):
        load_configuration()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[defaults]\n\nendpiont = 'x'", 3,
         "unknown key 'endpiont' in [defaults]; did you mean 'endpoint'?"),
        ("[repository.prod]\nurl='/a'\ncache_size='1G'", 3,
         "unknown key 'cache_size' in repository 'prod'; did you mean 'cache-size'?"),
        ("[repositories.a]\nurl='/a'", 1, "unknown key 'repositories'; did you mean 'repository'?"),
        ("[repository.a]\nurl = '/a'\nmemory = 'lots'", 3, "memory 'lots': write it as 256M or 2G"),
        ("[repository.a]\nurl = 's3://bucket/a'\npath-style = 'yes'", 3,
         "path-style 'yes': write it as true or false"),
        ("[repository.a]\nurl = 's3://bucket/a'\nconnections = '4'", 3,
         "connections '4': write it as 16"),
        ("[repository.a]\nurl = 's3://bucket/a'\nca-file = 'certs.pem'", 3,
         "ca-file 'certs.pem': write an absolute path"),
        ("repository.a.url = 7", 1, "url 7: write it as"),
        ("[repository.a]\nurl = 'srv/vault'", 2, "url 'srv/vault': write it as"),
        ("[repository.a]\nurl = 's3://bucket'", 2, "write it as s3://bucket/datastore"),
        ("[repository.a]\nmemory = '1G'", 1, "repository 'a' has no url"),
        ("[repository]\nurl = '/a'", 2, "'url' stands outside a table: write [repository.NAME]"),
        ("repository = 1", 1, "'repository' is a table"),
        ("x = 1\n[repository.'a b']\nurl='/a'", 1, "unknown key 'x'"),
        ("[repository.'a b']\nurl='/a'", 1, "repository name 'a b'"),
        ("[repository.mount]\nurl='/a'", 1, "repository name 'mount': take another"),
        ("[defaults]\nmirrors = ['a']", 2, "mirrors belong to one repository"),
        ("[defaults]\nurl = '/a'", 2, "unknown key 'url' in [defaults]"),
        ("[repository.a]\nurl = '/a'\nendpoint = 'https://x'", 3, "endpoint is for s3://… only"),
        ("[repository.a]\nurl = '/a'\nmirrors = [\n'b']", 3,
         "mirror b: repository 'b' is not configured; configured: a"),
        ("[repository.a]\nurl='/a'\nmirrors=['b']\n[repository.b]\nurl='/b'\nmirrors=['a']", 3,
         "mirror b: has mirrors itself, a loop or a chain"),
        ("[repository.a]\nurl='/a'\nmirrors=['a']", 3, "mirror a: is the repository itself"),
        ("[repository.a]\nurl='s3://bucket/a'\nprofile='p'\naccess-key='x'", 3,
         "profile and access-key exclude each other"),
        ("[repository.a]\nurl = 1 2", 2, "Expected newline or end of document"),
        ("[repository.a]\nurl = '''", 2, "Unterminated string|Expected"),
        ("[a]\n[a]", 2, "Cannot declare"),
        ("x = " + "[" * 5000, None, "nested too deeply"),
        ("x = '\udcff'", 1, "not UTF-8"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(
    tmp_path: Path, text: str, line: int | None, message: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError) as caught:
        load_configuration(str(file))
    start = f"{file} line {line}: " if line else f"{file}: "
    assert str(caught.value).startswith(start), caught.value
    assert any(part in str(caught.value) for part in message.split("|")), caught.value
    assert caught.value.exit_code in {2, 10}


def test_all_mistakes_are_found(tmp_path: Path) -> None:
    text = "[repository.a]\nurl = 1\nburst = 'x'\n[repository.b]\nbad = 1\n"
    problems = read_configuration(str(write(tmp_path / "c.toml", text))).problems
    lines = [int(str(problem).partition(" line ")[2].partition(":")[0]) for problem in problems]
    assert sorted(lines) == [2, 3, 4, 5]


def test_a_key_and_no_secret(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidName, match="line 3: access-key without secret-key; give both or neither"
    ):
        load(tmp_path, '[repository.a]\nurl = "s3://bucket/a"\naccess-key = "x"\n')


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secrets_are_for_the_owner_alone(tmp_path: Path, mode: int) -> None:
    text = '[repository.a]\nurl = "s3://bucket/a"\naccess-key = "x"\nsecret-key = "canary"\n'
    load(tmp_path, text, 0o600)
    with pytest.raises(PermissionDenied, match=r"line 4: secret-key .* run chmod 600 /") as caught:
        load(tmp_path, text, mode)
    assert "canary" not in str(caught.value)
    assert len(read_configuration(str(tmp_path / "config.toml")).problems) == 1, "the key is there"
    load(tmp_path, text.replace('secret-key = "canary"', 'secret-key-file = "/x"'), mode)


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    text = '[repository.a]\nurl = "s3://bucket/a"\naccess-key = "x"\nsecret-key = "can\\u0001ary"\n'
    with pytest.raises(InvalidName, match="line 4: secret-key: has control characters"):
        load(tmp_path, text)


def test_files_that_are_missing(tmp_path: Path) -> None:
    text = (
        '[repository.a]\nurl = "/a"\nmirrors = ["b"]\n'
        f'[repository.b]\nurl = "s3://bucket/b"\nca-file = "{tmp_path}/ca.pem"\nkeyfile = "/none"\n'
    )
    found = load(tmp_path, text)
    chosen = found.choose("a")
    with pytest.raises(NotFound, match=r"config.toml line 6: ca-file /.*ca.pem: No such file"):
        found.check_files(chosen)
    (tmp_path / "ca.pem").touch()
    with pytest.raises(InvalidName, match=r"line 6: ca-file /.*ca.pem: has no certificates"):
        found.check_files(chosen, "ca-file")
    (tmp_path / "ca.pem").write_bytes(Path(botocore.__file__).with_name("cacert.pem").read_bytes())
    found.check_files(chosen, "ca-file")
    with pytest.raises(NotFound, match=r"config.toml line 7: keyfile /none"):
        found.check_files(chosen)


def test_cache_directories(tmp_path: Path) -> None:
    found = load(tmp_path, '[defaults]\ncache-size = "1G"\n[repository.a]\nurl = "/a"\n')
    settings = found.settings(found.choose("a"))
    assert settings.cache_directory == cache_home() / "chunks" == tmp_path / "cache/vaultway/chunks"
    none = found.settings(found.choose("a", {"cache-size": Given(0, "--cache-size")}))
    assert none.cache_directory is None
    there = found.settings(found.choose("a", {"cache": Given(Path("/fast"), "--cache")}))
    assert there.cache_directory == Path("/fast")
    assert load_configuration().settings(found.choose("/b")).cache_directory is not None


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_url("./a") == f"{tmp_path}/a"
    assert parse_url("a/b") == f"{tmp_path}/a/b"
    assert parse_url("file:///srv/a") == "/srv/a"
    assert parse_url("s3://bucket/store/") == "s3://bucket/store"
    for wrong in (
        "",
        "file://relative",
        "s3://bucket",
        "s3://B/x",
        "ftp://x/y",
        "host:store",
        "store",
    ):
        with pytest.raises(InvalidName):
            parse_url(wrong)
