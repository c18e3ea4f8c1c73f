"""HTTP/1 by hand: honest requests, and raw bytes."""

import json
import select
import socket
import time


def split(address):
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def connect(address, timeout=10, receive_buffer=None):
    """A connection without delays; a small `receive_buffer` makes a client that takes little."""
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    s.settimeout(timeout)
    s.connect(split(address))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


class Answer:
    """A response; `headers` has lower-case names."""

    def __init__(self, status, headers, body, seconds):
        self.status, self.headers, self.body, self.seconds = status, headers, body, seconds

    @property
    def reason(self):
        return self.headers.get("x-forebay-reason", "ok")

    @property
    def request_id(self):
        return self.headers.get("x-request-id")

    @property
    def text(self):
        return self.body.decode(errors="replace")

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.reason}"


def head(method, path, headers=(), host="x"):
    pairs = dict(headers)
    lines = [f"{method} {path} HTTP/1.1"]
    if "host" not in pairs:
        lines.append(f"host: {host}")
    lines += [f"{name}: {value}" for name, value in pairs.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Connection:
    """A kept connection."""

    def __init__(self, address, timeout=10):
        self.address = address
        self.socket = connect(address, timeout)
        self.ahead = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def is_closed(self):
        """Whether the other side closed it meanwhile: any client looks before it uses a kept connection again."""
        # A socket with a timeout would wait for it, whatever the flags say.
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        try:
            return bool(poll.poll(0)) and self.socket.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def request(self, method, path, headers=(), body=None):
        pairs = dict(headers)
        if body is not None and "content-length" not in pairs:
            pairs["content-length"] = len(body)
        started = time.monotonic()
        self.socket.sendall(head(method, path, pairs, self.address) + (body or b""))
        return self.answer(started, method)

    def more(self):
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed before the answer was complete")
        self.ahead += data

    def answer(self, started=None, method="GET"):
        """Reads one response."""
        started = started or time.monotonic()
        while True:
            while b"\r\n\r\n" not in self.ahead:
                self.more()
            text, self.ahead = self.ahead.split(b"\r\n\r\n", 1)
            lines = text.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status >= 200:
                break
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = self._body(status, headers, method)
        return Answer(status, headers, body, time.monotonic() - started)

    def _body(self, status, headers, method):
        if method == "HEAD" or status in (204, 304):
            return b""
        if "chunked" in headers.get("transfer-encoding", ""):
            return self._chunks()
        if "content-length" in headers:
            return self._take(int(headers["content-length"]))
        try:
            while True:
                self.more()
        except ConnectionError:
            body, self.ahead = self.ahead, b""
            return body

    def _take(self, length):
        while len(self.ahead) < length:
            self.more()
        body, self.ahead = self.ahead[:length], self.ahead[length:]
        return body

    def _line(self):
        while b"\r\n" not in self.ahead:
            self.more()
        line, self.ahead = self.ahead.split(b"\r\n", 1)
        return line

    def _chunks(self):
        body = b""
        while True:
            size = int(self._line().split(b";")[0], 16)
            if size == 0:
                while self._line():
                    pass
                return body
            body += self._take(size)
            self._line()


def request(address, method, path, headers=(), body=None, timeout=10):
    """One request on a connection of its own."""
    with Connection(address, timeout) as connection:
        return connection.request(method, path, {"connection": "close", **dict(headers)}, body)


def get(address, path, headers=(), timeout=10):
    return request(address, "GET", path, headers, timeout=timeout)


def post(address, path, body=b"{}", headers=(), timeout=10):
    return request(address, "POST", path, headers, body, timeout)


def raw(address, data, seconds=5):
    """Sends bytes; gives all that comes until the end or for `seconds`, and whether it was closed."""
    with connect(address, seconds) as s:
        try:
            s.sendall(data)
        except OSError:
            pass
        return drain(s, seconds)


def drain(s, seconds):
    """All that comes within `seconds`, and whether the other side closed."""
    found, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        s.settimeout(left)
        try:
            data = s.recv(65536)
        except (TimeoutError, BlockingIOError):
            break
        except OSError:
            return found, True
        if not data:
            return found, True
        found += data
    return found, False


def answers(data):
    """Status codes of the responses in raw bytes, as a client would tell them apart."""
    found, rest = [], data
    while rest.startswith(b"HTTP/1."):
        top, _, rest = rest.partition(b"\r\n\r\n")
        found.append(int(top.split(b" ")[1]))
        length = 0
        for line in top.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        rest = rest[length:]
    return found


def reason_of(data):
    """The reason in the first head of raw bytes."""
    for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(b"x-forebay-reason:"):
            return line.split(b":", 1)[1].strip().decode()
    return None
