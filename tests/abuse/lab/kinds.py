"""The ways in which a client may ask: HTTP/1 and HTTP/2, held and streamed, gRPC."""

from . import http1, http2
from .load import BODY, Asking, Clients
from .processes import INFER

# The protocols that a matrix row is tried with by default.
KINDS = {"HTTP/1": "h1", "HTTP/1, streamed path": "stream", "HTTP/2": "h2", "gRPC": "grpc"}
STREAMED = "/v1/chat/completions"


def ask_once(address, kind, headers=(), seconds=10, path=None):
    """One request on a connection of its own: `(status, reason, body)`; gRPC's status in words of HTTP where
    it went well (200), else its code."""
    headers = dict(headers)
    if kind in ("h1", "stream"):
        answer = http1.post(address, path or (INFER if kind == "h1" else STREAMED), BODY, headers, seconds)
        return answer.status, answer.reason, answer.body
    if kind in ("h2", "h2 stream"):
        path = path or (INFER if kind == "h2" else STREAMED)
        headers = {"content-length": str(len(BODY)), **headers}
        found = http2.request(address, "POST", path, headers, BODY, seconds)
        return found.status or 0, found.reason if found.status else f"reset {found.reset}", found.body
    found = http2.infer(address, seconds, headers)
    if found.grpc_status == 0:
        return 200, "ok", found.body
    return found.grpc_status if found.grpc_status is not None else -1, found.reason, found.body


def clients(address, kind, count=4, pause=0.0, headers=(), timeout=15, path=None):
    """Honest clients of one kind, each on a kept connection."""
    if kind in ("h1", "stream"):
        path = path or (INFER if kind == "h1" else STREAMED)
        return Clients(address, count, path, headers=headers, pause=pause, timeout=timeout)
    return Asking(lambda: H2Asker(address, kind, headers, timeout), count, pause, timeout)


class H2Asker:
    """Asks one stream after the other on a kept connection; opens another one after a GOAWAY, and asks
    again what the GOAWAY says was not looked at."""

    def __init__(self, address, kind, headers, timeout):
        self.address, self.kind, self.headers, self.timeout = address, kind, dict(headers), timeout
        self.client = None

    def __call__(self):
        for _ in range(5):
            if self.client is None or self.client.goaway is not None or self.client.closed:
                if self.client:
                    self.client.close()
                self.client = http2.Client(self.address, self.timeout)
            fresh = len(self.client.streams) == 0
            if self.kind == "grpc":
                number = self.client.open("POST", http2.GRPC_INFER, {**http2.GRPC, **self.headers},
                                          http2.infer_message())
            else:
                path = INFER if self.kind == "h2" else STREAMED
                stated = {"content-length": str(len(BODY)), **self.headers}
                number = self.client.open("POST", path, stated, BODY)
            found = self.client.wait([number], self.timeout)[0]
            self.client.streams.pop(number)
            if not fresh and found.status is None and (self.client.goaway is not None or found.reset == 7):
                continue
            if not found.done:
                return False, "no end"
            if self.kind == "grpc":
                return found.grpc_status == 0, f"grpc {found.grpc_status} {found.reason} reset {found.reset}"
            return found.status == 200 and found.ended, f"{found.status} {found.reason} reset {found.reset}"
        return False, "no connection lasts"
