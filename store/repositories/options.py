"""The options of a repository, in one table, and what the sources of their values add up to.

An option has one name. It is a key in the configuration file (`cache-size = "64G"`), a flag of
the commands (`--cache-size 64G`), a mount option (`-o cache-size=64G`) and a variable
(`VAULTWAY_CACHE_SIZE=64G`). Cheap to import: every command does.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from store.backends.s3_settings import S3_SCHEME, S3Settings
from store.datastore.memory import DEFAULT_MEMORY
from store.errors import InvalidName
from store.repositories import option_kinds as kinds

NOTHING_SAID = S3Settings()
DEFAULT_CACHE_BYTES = 10 << 30
DEFAULT_RETRY_FOR_S = 300.0  # in a bucket; a directory answers or does not
DEFAULT_OPEN_FOR_S = 30.0  # until it has answered once: the endpoint may be a wrong one


class Option(NamedTuple):
    """One thing to say of a repository.

    Attributes:
        field: where it is kept in RepositorySettings.
        is_secret: shown to nobody, and only in files that nobody else can read.
        is_s3: means something for a bucket only.
        excludes: options that say the same in another way.
        default: for help and `config show`; None where there is none.
    """

    name: str
    field: str
    kind: kinds.Kind
    help: str
    is_secret: bool = False
    is_s3: bool = False
    excludes: frozenset[str] = frozenset()
    default: Any = None

    def applies_to(self, url: str) -> bool:
        """Whether it means something for a repository there."""
        return url.startswith(S3_SCHEME) or not self.is_s3

    @property
    def summary(self) -> str:
        """One line of help."""
        if self.default is None:
            return self.help
        return f"{self.help} (default: {self.kind.format(self.default)})"

    @property
    def variable(self) -> str:
        """The environment variable."""
        if self.name == "ns":
            return "PBS_NAMESPACE"
        return f"VAULTWAY_{self.name.upper().replace('-', '_')}"


def _s3(name: str, kind: kinds.Kind, text: str, field: str = "", **options: Any) -> Option:  # noqa: ANN401
    field = field or name.replace("-", "_")
    default = getattr(NOTHING_SAID, field, None)
    return Option(name, field, kind, text, is_s3=True, default=default, **options)


def _secret(name: str, kind: kinds.Kind, text: str, *, is_secret: bool = False) -> Option:
    """One of the forms of the secret key: any of them stands for all."""
    return _s3(name, kind, text, is_secret=is_secret, excludes=SECRET_FORMS - {name} | {"profile"})


SECRET_SOURCES = frozenset(("secret-key-file", "secret-key-cmd"))
SECRET_FORMS = SECRET_SOURCES | {"secret-key"}
OPTIONS = (
    _s3("endpoint", kinds.ENDPOINT, "S3 server (default: AWS)"),
    _s3("region", kinds.TEXT, "region of the bucket"),
    _s3("path-style", kinds.BOOLEAN, "the bucket in the path, not in the host name"),
    _s3("ca-file", kinds.FILE, "certificates to trust instead of the system's"),
    _s3("fingerprint", kinds.FINGERPRINT, "trust the certificate with this SHA-256"),
    _s3("access-key", kinds.TEXT, "S3 access key id", excludes=frozenset(("profile",))),
    _secret(
        "secret-key", kinds.TEXT, "S3 secret key, visible in `ps` if given here", is_secret=True
    ),
    _secret(
        "secret-key-file",
        kinds.FILE,
        "a file for you alone (or root's, 0444) whose first line it is",
    ),
    _secret("secret-key-cmd", kinds.COMMAND, "a command that prints it"),
    _s3("session-token", kinds.TEXT, "of temporary keys", is_secret=True),
    _s3(
        "profile",
        kinds.TEXT,
        "keys and region from ~/.aws/config",
        excludes=SECRET_FORMS | {"access-key"},
    ),
    _s3("conditional-put", kinds.BOOLEAN, "the server honours If-None-Match"),
    _s3("take-over", kinds.BOOLEAN, "write although a PBS uses the bucket"),
    _s3("connections", kinds.POSITIVE, "requests at once"),
    _s3("connect-timeout", kinds.TIMEOUT, "to connect", "connect_timeout_s"),
    _s3("read-timeout", kinds.TIMEOUT, "for a piece of an answer", "read_timeout_s"),
    Option(
        "retry-for",
        "retry_for_s",
        kinds.DURATION,
        "repeat what fails, so long (default: 5m on S3, 30s to open it)",
    ),
    Option("rate-in", "read_bytes_s", kinds.SIZE, "read at most so much a second"),
    Option("rate-out", "write_bytes_s", kinds.SIZE, "write at most so much a second"),
    Option("burst", "burst_bytes", kinds.SIZE, "that much at once in spite of rates"),
    Option("requests", "requests_s", kinds.NUMBER, "requests a second, at most"),
    Option("cache", "cache", kinds.DIRECTORY, "keep chunks on this fast disk"),
    Option("cache-size", "cache_bytes", kinds.SIZE, "at most so much of them (10G; 0: no cache)"),
    Option("mirrors", "mirrors", kinds.LIST, "other sites with the same datastore"),
    Option("memory", "memory_bytes", kinds.MEMORY, "memory for chunks", default=DEFAULT_MEMORY),
    Option("keyfile", "keyfile", kinds.FILE, "encryption key, made with `key create`"),
    Option("ns", "namespace", kinds.NAMESPACE, "namespace, for example prod/web"),
)
BY_NAME = {option.name: option for option in OPTIONS}


class Given(NamedTuple):
    """A value, and who gave it.

    `origin` begins messages: `--endpoint`, `/etc/vaultway/config.toml line 12`. `is_general`: it
    was said of all repositories, and means nothing for some.
    """

    value: Any
    origin: str
    is_general: bool = False


Layer = Mapping[str, Given]
"""What one source gives, by the options' names."""


class Repository(NamedTuple):
    """A repository, and what is said of it.

    `name` is None for one without; the `url`'s value is what `parse_url` returns.
    """

    name: str | None
    url: Given
    options: Layer


def label(name: str, given: Given) -> str:
    """The option as who gave it wrote it: `--ca-file`, `/etc/x.toml line 3: ca-file`."""
    is_named = given.origin.endswith((name, BY_NAME[name].variable))
    return given.origin if is_named else f"{given.origin}: {name}"


def merge(*layers: Layer) -> dict[str, Given]:
    """What holds, of layers in order of their strength, the strongest first."""
    merged: dict[str, Given] = {}
    for layer in layers:
        stronger = frozenset(merged)
        merged |= {
            name: given
            for name, given in layer.items()
            if name not in stronger and not BY_NAME[name].excludes & stronger
        }
    return merged


def default_of(option: Option, url: str, given: Layer) -> Any:  # noqa: ANN401 - what the kind has
    """What holds for a repository that says nothing of the option; None where nothing does."""
    if option.name == "retry-for":
        return DEFAULT_RETRY_FOR_S if url.startswith(S3_SCHEME) else 0.0
    if option.name == "cache-size":
        return DEFAULT_CACHE_BYTES if "cache" in given else 0
    return option.default if option.applies_to(url) else None


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """The options that variables give. Raises InvalidName."""
    layer = {}
    for option in OPTIONS:
        text = environment.get(option.variable)
        if text or (text is not None and option.kind.is_empty_allowed):
            origin = f"${option.variable}"
            layer[option.name] = Given(read(option, text, origin), origin, is_general=True)
    return layer


def read(option: Option, text: str, origin: str) -> Any:  # noqa: ANN401 - what the kind has
    """The value of `text`. Raises InvalidName, beginning with `origin`, without a secret."""
    try:
        return option.kind.read(text)
    except ValueError as error:
        shown = "" if option.is_secret or not text else f" {text!r}"
        raise InvalidName(f"{origin}{shown}: {error}") from error
