"""A real server that speaks Google's storage API (gcp-storage-emulator), and buckets in it."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3_server import free_port

_PROGRAM = """\
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True).run()
"""


@dataclass(frozen=True)
class GcsServer:
    """A server on 127.0.0.1 that lets everybody in and forgets everything at its end."""

    port: int

    def uri(self, bucket: str, name: str) -> str:
        """A folder in it; `anonymous` keeps Google's library from asking the network for credentials."""
        return f"gs://anonymous@{bucket}/{name}?endpoint_override=127.0.0.1%3A{self.port}&scheme=http"

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        body = json.dumps({"name": name}).encode()
        url = f"http://127.0.0.1:{self.port}/storage/v1/b?project=test"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def gcs_server(folder: Path) -> Iterator[GcsServer]:
    """A server that ends with the block."""
    server = GcsServer(free_port())
    with (folder / "requests.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(server.port)], stdout=log, stderr=log)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{server.port}/", process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer; exit code {process.poll()}") from None
            time.sleep(0.1)
