"""What an S3 server can do: the same objects put and got by bare connections that do nothing else.

usage: python -m scripts.benchmark.s3_raw put|get ENDPOINT BUCKET CONNECTIONS CHUNKS
CHUNKS is the `.chunks` directory of a datastore; prints seconds. Keys from AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY. The client is the cheapest there is (http.client, unsigned bodies), so this
is the server's limit, not a client's.
"""

import datetime
import hashlib
import hmac
import http.client
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

REGION = "us-east-1"
UNSIGNED = "UNSIGNED-PAYLOAD"
SIGNED = "host;x-amz-content-sha256;x-amz-date"


def sign(method: str, host: str, target: str) -> dict[str, str]:
    """AWS Signature Version 4, of the headers alone."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    key = b"AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    for part in (now[:8], REGION, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    request = (
        f"{method}\n{target}\n\nhost:{host}\nx-amz-content-sha256:{UNSIGNED}\nx-amz-date:{now}\n\n"
        f"{SIGNED}\n{UNSIGNED}"
    )
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    who = os.environ["AWS_ACCESS_KEY_ID"]
    return {
        "Host": host,
        "x-amz-date": now,
        "x-amz-content-sha256": UNSIGNED,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={who}/{scope}, "
        f"SignedHeaders={SIGNED}, Signature={signature}",
    }


def send(connection: http.client.HTTPConnection, method: str, target: str, body: bytes) -> int:
    """One request; returns the size of the answer's body."""
    host = f"{connection.host}:{connection.port}"
    connection.request(method, target, body=body or None, headers=sign(method, host, target))
    with connection.getresponse() as answer:
        data = answer.read()
        if answer.status != 200:
            sys.exit(f"{method} {target}: {answer.status} {data[:200]!r}")
    return len(data)


def in_threads(count: int, work: Callable[[Iterator[int]], None], jobs: int) -> float:
    """Run `work` over the numbers of the jobs in threads; returns seconds."""
    numbers, lock = iter(range(jobs)), threading.Lock()

    def take() -> Iterator[int]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    threads = [threading.Thread(target=work, args=(take(),)) for _ in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def main() -> None:
    method, endpoint, bucket, connections, chunks = sys.argv[1:]
    paths = sorted(path for path in Path(chunks).rglob("*") if path.is_file())
    bodies = [path.read_bytes() for path in paths] if method == "put" else []
    where = urlparse(endpoint)
    assert where.hostname

    def work(numbers: Iterator[int]) -> None:
        connection = http.client.HTTPConnection(str(where.hostname), where.port, blocksize=1 << 20)
        for number in numbers:
            target = f"/{bucket}/raw/{paths[number].name}"
            if method == "put":
                send(connection, "PUT", target, bodies[number])
            else:
                send(connection, "GET", target, b"")
        connection.close()

    print(in_threads(int(connections), work, len(paths)))


if __name__ == "__main__":
    main()
