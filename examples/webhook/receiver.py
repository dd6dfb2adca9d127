"""A web hook's other side: takes a POST, does its work once per Idempotency-Key, and says so.

``python3 receiver.py [PORT]``; needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Answers what it made of a report. The first call of all is told to come again."""

    done: dict[str, dict[str, object]] = {}  # noqa: RUF012 - one for all requests: each has an object of its own
    """What came of each run; a real one keeps this as long as its work, in the same transaction."""
    is_ready = False

    def do_POST(self) -> None:
        """Do the work of a run once, however often it is asked for."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        run = self.headers.get("Idempotency-Key", "")
        if not Receiver.is_ready:
            Receiver.is_ready = True
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "still warming up"}, {"Retry-After": "1"})
            return
        again = run in self.done
        answer = self.done.setdefault(run, {"received": json.loads(body), "number": len(self.done) + 1})
        self._answer(HTTPStatus.OK, {**answer, "again": again}, {})

    def _answer(self, status: HTTPStatus, content: dict[str, object], headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"listening on http://127.0.0.1:{port}", flush=True)
        server.serve_forever()
