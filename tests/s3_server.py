"""A real server that speaks S3 (moto's), its requests in a log, and a bucket in it."""

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import boto3

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2/secret", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True)
class S3Server:
    """A server on 127.0.0.1 that lets every key in, until `require_known_keys`."""

    url: str
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": self.url}

    @property
    def query(self) -> str:
        """The endpoint as part of a URI."""
        return endpoint_query(self.url)

    def client(self) -> Any:
        """Amazon's own client, to look at the store from outside."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="hunter2/secret",
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    def count(self, method: str, key: str) -> int:
        """How often an object was asked for by that method."""
        lines = re.sub(r"\x1b\[\d+m", "", self.log.read_text())
        return lines.count(f'"{method} /{key} ')

    @contextmanager
    def require_known_keys(self) -> Iterator[None]:
        """Refuse every request whose key is not of a user; there is none."""
        self._reset_auth("0")
        try:
            yield
        finally:
            self._reset_auth("inf")

    def _reset_auth(self, actions: str) -> None:
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", actions.encode(), method="POST")
        request.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server that ends with the block."""
    server = S3Server(f"http://127.0.0.1:{free_port()}", folder / "requests.log")
    port = server.url.rpartition(":")[2]
    with server.log.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", port], stdout=log, stderr=log)
    try:
        _wait_until_it_answers(server.url, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def endpoint_query(url: str) -> str:
    """An endpoint in the form in which pyarrow reads it from a URI."""
    scheme, _, host = url.partition("://")
    return f"?endpoint_override={host.replace(':', '%3A')}&scheme={scheme}"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer; exit code {process.poll()}") from None
            time.sleep(0.1)
