"""A proxy before a real server that does what it is asked, and loses the first answer of each kind on its way back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

_OWN_HEADERS = {"connection", "content-encoding", "content-length", "transfer-encoding"}


@contextmanager
def losing_answers(url: str) -> Iterator[tuple[str, list[str]]]:
    """Address of the proxy, and the calls that created something whose first answer it has lost so far."""
    lost: list[str] = []
    lock = threading.Lock()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            answer = requests.request(self.command, f"{url}{self.path}", data=body, headers=headers, timeout=60)
            with lock:
                lose = self.command in ("POST", "PUT") and _creates(self.path) and self.path not in lost
                if lose:
                    lost.append(self.path)
            content = b"" if lose else answer.content
            self.send_response(503 if lose else answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _OWN_HEADERS:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing: the test says what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", lost
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _creates(path: str) -> bool:
    """Whether a call makes something that would be there twice if it were simply repeated."""
    return path.endswith(("/logged-models", "registered-models/create", "model-versions/create", "alias"))
