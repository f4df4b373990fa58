"""What could not be restored today: one chunk of each archive of each snapshot is opened."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from store.datastore.archives import ChunkCache, ChunkReader, IndexedStream, SnapshotReader
from store.datastore.datastore import Datastore
from store.errors import (
    BackendError,
    FormatError,
    IntegrityError,
    InvalidName,
    KeyRequired,
    NotFound,
    StoreError,
)
from store.format.blob import decode_blob
from store.format.crypt import CryptConfig
from store.format.manifest import FileInfo, Manifest
from store.names import (
    ENCRYPTED_KEY_BLOB_NAME,
    MANIFEST_BLOB_NAME,
    Digest,
    Fingerprint,
    Namespace,
    Snapshot,
)
from store.progress import SILENT, Progress

MAX_WORKERS = 16
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class HeldKeys:
    """What somebody holds to open snapshots with.

    Attributes:
        opened: the keys.
        known: where key files are that were not opened, and why not: for messages.
        unwrap: what a master private key does with the content of `rsa-encrypted.key`, where one
            is held. Raises KeyRequired, FormatError.
    """

    opened: Mapping[Fingerprint, CryptConfig] = field(default_factory=dict)
    known: Mapping[Fingerprint, str] = field(default_factory=dict)
    unwrap: Callable[[bytes], CryptConfig] | None = None


@dataclass(frozen=True)
class Finding:
    """Something that could not be restored.

    Attributes:
        archive: the file of the snapshot; "" when it is all of them.
        exit_code: 13 for want of a key, 15 for damage, 11 or 16 where the storage refused.
        fingerprint: the key that is needed, if that is what is missing.
        key_file: where its file is, as far as known.
        has_wrapped_key: the snapshot carries its key for a master private key to open.
    """

    namespace: Namespace
    snapshot: Snapshot
    archive: str
    reason: str
    exit_code: int
    fingerprint: Fingerprint | None = None
    key_file: str | None = None
    has_wrapped_key: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What was looked at, and what was found, in order of namespace and snapshot."""

    snapshots: int
    chunks: int
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 when all opens, else that of the worst finding."""
        return max((finding.exit_code for finding in self.findings), default=0)


class _Place(NamedTuple):
    namespace: Namespace
    snapshot: Snapshot


class _Probe(NamedTuple):
    """The one chunk that is opened of an archive."""

    place: _Place
    filename: str
    reader: ChunkReader
    digest: Digest
    size: int
    offset: int

    @property
    def same(self) -> tuple[Digest, int, Fingerprint | None]:
        """Equal for probes that are one piece of work: snapshots share their first chunks."""
        return self.digest, self.size, self.reader.key.fingerprint if self.reader.key else None


class _Survey(NamedTuple):
    findings: list[Finding]
    probes: list[_Probe]


def examine(
    datastore: Datastore, namespace: Namespace, keys: HeldKeys, progress: Progress = SILENT
) -> Diagnosis:
    """Open the first chunk of every archive in a namespace and those below, with `keys`.

    Costs a manifest, the indexes and the small files of every snapshot, and the chunks that are not
    zeros, each once. Nothing is written, but for what a mirror repairs.

    Raises:
        NotFound: no such namespace.
        BackendError: the storage can't be reached; one that can and fails is a finding.
    """
    places = [
        _Place(below, snapshot)
        for below in datastore.list_namespaces(namespace)
        for group in datastore.list_groups(below)
        for snapshot in datastore.list_snapshots(below, group)
    ]
    doctor = _Doctor(datastore, keys)
    workers = min(MAX_WORKERS, datastore.backend.parallelism)
    surveys = list(_each(doctor.survey, places, workers, "snapshots", progress))
    probes = {probe.same: probe for survey in surveys for probe in survey.probes}
    results = _each(_open, list(probes.values()), workers, "chunks", progress)
    errors = dict(zip(probes, results, strict=True))
    findings = [found for survey in surveys for found in (*survey.findings, *_bad(survey, errors))]
    return Diagnosis(len(places), len(probes), tuple(findings))


def _each(
    work: Callable[[T], R], items: list[T], workers: int, unit: str, progress: Progress
) -> Iterator[R]:
    """`work` of each item, in order, on a few threads; the first error ends it."""
    progress.start(len(items), unit)
    pool = ThreadPoolExecutor(workers, "doctor")
    try:
        for result in pool.map(work, items):
            progress.advance(1)
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        progress.done()


def _open(probe: _Probe) -> StoreError | None:
    """Decode one chunk; what is wrong with it, without the name of the archive."""
    try:
        probe.reader.read(probe.digest, probe.size, probe.offset)
    except StoreError as error:
        cause = error.__cause__
        return cause if isinstance(cause, IntegrityError | FormatError) else error
    return None


def _bad(
    survey: _Survey, errors: Mapping[tuple[Digest, int, Fingerprint | None], StoreError | None]
) -> Iterator[Finding]:
    for probe in survey.probes:
        error = errors[probe.same]
        if error is not None:
            yield _finding(probe.place, probe.filename, error)


def _finding(place: _Place, filename: str, error: StoreError) -> Finding:
    """What an error means. A storage that can't be reached ends the examination: it is raised."""
    if isinstance(error, BackendError) and error.retryable:
        raise error
    is_damage = isinstance(error, IntegrityError | FormatError | InvalidName)
    code = IntegrityError.exit_code if is_damage else error.exit_code
    return Finding(*place, filename, str(error), code)


class _Doctor:
    """Surveys snapshots. Thread-safe: two threads may unwrap one key at once."""

    def __init__(self, datastore: Datastore, keys: HeldKeys) -> None:
        self._datastore, self._keys = datastore, keys
        self._unwrapped: dict[Fingerprint, CryptConfig] = {}
        self._cache = ChunkCache(0)  # no chunk is asked for twice

    def survey(self, place: _Place) -> _Survey:
        """Look at a snapshot's manifest, indexes and small files, and choose its chunks."""
        survey = _Survey([], [])
        try:
            manifest = self._datastore.read_manifest(*place)
            reader = SnapshotReader(
                self._datastore, *place, self._key(place, manifest), self._cache
            )
            for info in reader.manifest.files:
                self._look(place, reader, info, survey)
        except NotFound:
            return _Survey([], [])  # removed meanwhile
        except KeyRequired:
            survey.findings.append(self._without_key(place, manifest))
        except StoreError as error:
            survey.findings.append(_finding(place, MANIFEST_BLOB_NAME, error))
        return survey

    def _look(self, place: _Place, reader: SnapshotReader, info: FileInfo, survey: _Survey) -> None:
        try:
            if info.filename.endswith(".blob"):
                reader.read_blob(info.filename.removesuffix(".blob"))
            else:
                stream = reader.open_stream(info.filename)
                survey.probes.append(_first_chunk(place, info.filename, stream))
        except (KeyRequired, NotFound):
            raise
        except StoreError as error:
            survey.findings.append(_finding(place, info.filename, error))

    def _key(self, place: _Place, manifest: Manifest) -> CryptConfig | None:
        """The key a snapshot names, if it is held, itself or in the snapshot for a master key.

        One that names none (they are old) is tried with the first.
        """
        wanted = manifest.key_fingerprint
        if wanted is None:
            return next(iter(self._keys.opened.values()), None)
        held = self._keys.opened.get(wanted) or self._unwrapped.get(wanted)
        if held is not None or self._keys.unwrap is None or not _has_wrapped_key(manifest):
            return held
        try:
            key = self._keys.unwrap(self._wrapped_key(place))
        except (KeyRequired, FormatError, IntegrityError, NotFound):
            return None
        if key.fingerprint != wanted:
            return None
        return self._unwrapped.setdefault(wanted, key)

    def _wrapped_key(self, place: _Place) -> bytes:
        return decode_blob(self._datastore.read_file(*place, ENCRYPTED_KEY_BLOB_NAME))

    def _without_key(self, place: _Place, manifest: Manifest) -> Finding:
        wanted = manifest.key_fingerprint
        known = self._keys.known.get(wanted) if wanted else None
        parts = [
            f"needs the key {wanted.short if wanted else '(it does not say which)'}",
            f"its key file is {known}" if known else "no key file of it is known here",
        ]
        wrapped = _has_wrapped_key(manifest) and self._explain_wrapped(place, parts)
        code = KeyRequired.exit_code
        return Finding(*place, "", "; ".join(parts), code, wanted, known, wrapped)

    def _explain_wrapped(self, place: _Place, parts: list[str]) -> bool:
        """Say whether a master key could help. False when what it would open is damaged."""
        try:
            self._wrapped_key(place)
        except (IntegrityError, FormatError, NotFound) as error:
            parts.append(f"its rsa-encrypted.key can't be read: {error}")
            return False
        if self._keys.unwrap is None:
            parts.append(
                "the private master key gets it out of rsa-encrypted.key (import-with-master-key)"
            )
        else:
            parts.append("its rsa-encrypted.key is for another master key")
        return True


def _has_wrapped_key(manifest: Manifest) -> bool:
    return any(info.filename == ENCRYPTED_KEY_BLOB_NAME for info in manifest.files)


def _first_chunk(place: _Place, filename: str, stream: IndexedStream) -> _Probe:
    """The first chunk that is not all zeros, or the first of all: images begin with holes."""
    positions: Iterable[int] = range(len(stream.index))
    position = next((number for number in positions if not stream.is_zero(number)), 0)
    start, end = stream.index.range(position)
    digest = stream.index.digest(position)
    return _Probe(place, filename, stream.reader, digest, end - start, start)
