"""Whatever the network and the server do: success after retries or one clear error, and never a
wrong byte.

A small scenario over Retry(S3) and a proxy that breaks one request of it, any of them, in every
way; and runs with faults at random. Afterwards the proxy is clean and all that was acknowledged has
to be there. `--all` tries everything, every run a sample.
"""

import random
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import pytest

from store.backends.s3.backend import S3Backend
from store.backends.s3.http import client as s3_client
from store.backends.s3.http.access import Access
from store.datastore.datastore import Datastore
from store.errors import BackendError, OutOfSpace, PermissionDenied, StoreError
from store.names import Snapshot
from tests.s3_proxy import FAULTS, Fault, Request
from tests.s3_site import DAY, GROUP, ROOT, Plan, Site, retried, snapshot

pytestmark = [
    pytest.mark.needs("s3"),
    pytest.mark.expect_warnings,  # what could not be removed, what took long
    pytest.mark.timeout(3600),
]

LASTING: dict[str, tuple[type[StoreError], ...]] = {
    "403": (PermissionDenied,),
    "skew": (BackendError, PermissionDenied),  # the answer to a HEAD has no body that says why
    "full": (OutOfSpace,),
}
"""The others pass; expired credentials are renewed, once."""
PASSING = tuple(sorted(FAULTS.keys() - LASTING.keys() - {"expired"}))
MATRIX_SAMPLE = 22
SEEDS, SEEDS_IN_EVERY_RUN = 500, 25


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hints of anybody else's; and boto3 looks for credentials once: it takes half of a run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "hints"))
    monkeypatch.setattr(
        s3_client, "Access", lambda config: access_to(replace(config, datastore="any"))
    )
    return tmp_path


access_to = lru_cache(maxsize=8)(Access)


class Run:
    """The scenario in a datastore of its own: what was acknowledged, and what came of it."""

    unsure: Snapshot | None = None
    error: StoreError | None = None

    def __init__(self, site: Site, scratch: Path, plan: Plan) -> None:
        self.site, self.scratch = site, scratch
        self.backend = retried(S3Backend(site.config()))
        self.acknowledged: list[Snapshot] = []
        before = len(site.proxy.requests)
        site.break_requests(plan)
        try:
            self.play()
        except StoreError as error:
            self.error = error
        finally:
            site.heal()
        self.requests = site.proxy.requests[before:]

    def play(self) -> None:
        self.backend.create()
        store = Datastore("test", self.backend)
        for day in (1, 2):
            self.unsure = snapshot(day)
            self.site.back_up(store, day)
            self.acknowledged.append(snapshot(day))
            self.unsure = None
        assert store.list_groups() == [GROUP]
        for found in store.list_snapshots(ROOT, GROUP):
            self.site.check_restore(store, found, found.time // DAY, self.scratch)
        self.unsure = snapshot(1)
        self.acknowledged.remove(snapshot(1))
        store.forget_snapshot(ROOT, snapshot(1))
        self.unsure = None

    def check(self) -> None:
        """All that was acknowledged is there and right, nothing half is, nothing is in the way."""
        assert "\n" not in str(self.error)
        if not any(self.backend.walk("")):
            self.backend.create()
        store = Datastore("test", self.backend)
        listed = store.list_snapshots(ROOT, GROUP)
        assert self.error is not None or self.unsure is None
        assert {*listed} - {self.unsure} == {*self.acknowledged}
        listed.append(self.site.back_up(store, day=3, time=9))
        for found in listed:
            day = found.time // DAY
            self.site.check_restore(store, found, 3 if day == 9 else day, self.scratch)
        below = {found.name.partition("/")[0] for found in self.backend.walk(GROUP.path(ROOT))}
        assert below == {"owner", *(found.path(ROOT).split("/")[-1] for found in listed)}
        self.backend.close()

    @property
    def end(self) -> str:
        """How it ended, in a word."""
        return type(self.error).__name__ if self.error else "success"


def run_and_check(site: Site, scratch: Path, plan: Plan) -> Run:
    run = Run(site, scratch, plan)
    run.check()
    return run


@pytest.fixture(scope="module")
def scenario_length(site: Site, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many requests the scenario makes when nothing fails."""
    run = run_and_check(site, tmp_path_factory.mktemp("scenario"), lambda *_: None)
    assert run.error is None
    return len(run.requests)


def check_fault(site: Site, scratch: Path, number: int, kind: str) -> str:
    """One run with one fault; how it ended."""
    run = run_and_check(site, scratch, lambda n, _: FAULTS[kind] if n == number else None)
    what = (kind, number, run.requests[number], run.error)
    assert run.error is None or isinstance(run.error, LASTING.get(kind, ())), what
    return run.end


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_at_every_request(
    site: Site, scratch: Path, scenario_length: int, kind: str
) -> None:
    ends = Counter(check_fault(site, scratch, n, kind) for n in range(scenario_length))
    print(kind, scenario_length, dict(ends))


def test_a_sample_of_faults(site: Site, scratch: Path, scenario_length: int) -> None:
    every = list(product(range(scenario_length), FAULTS))
    for number, kind in random.Random("sample").sample(every, MATRIX_SAMPLE):
        check_fault(site, scratch, number, kind)


def random_faults(seed: int) -> Plan:
    """At every hundredth request to every tenth; with every other seed only those that pass."""
    kinds = PASSING if seed % 2 else tuple(FAULTS)

    def plan(number: int, _: Request) -> Fault | None:
        rng = random.Random(f"{seed} {number}")
        return FAULTS[rng.choice(kinds)] if rng.random() < 0.01 + seed % 10 / 100 else None

    return plan


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(SEEDS_IN_EVERY_RUN), id="some"),
        pytest.param(range(SEEDS_IN_EVERY_RUN, SEEDS), id="all", marks=pytest.mark.slow),
    ],
)
def test_random_faults(site: Site, scratch: Path, seeds: range) -> None:
    ends: Counter[str] = Counter()
    for seed in seeds:
        run = run_and_check(site, scratch, random_faults(seed))
        assert run.error is None or seed % 2 == 0, (seed, run.error)
        ends[run.end] += 1
    assert 0 < ends["success"] < len(seeds)
    print(dict(ends))
