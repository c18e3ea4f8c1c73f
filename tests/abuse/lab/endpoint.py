"""Endpoints that behave as a row says: a function gets each request and its connection."""

import socket
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Request:
    """A request as it stood on the wire."""

    def __init__(self, method, path, headers, body, raw):
        self.method, self.path, self.headers, self.body, self.raw = method, path, headers, body, raw
        self.at = time.monotonic()

    @property
    def id(self):
        return self.headers.get("x-request-id")


class Endpoint:
    """An HTTP/1 endpoint. `answer(request, socket, endpoint)` writes what it likes and returns whether the
    connection is kept; `probe` likewise for probes, which are answered well without it."""

    def __init__(self, t, answer=None, probe=None, port=0, host="127.0.0.1"):
        self.answer = answer or (lambda request, s, _: s.sendall(OK) or True)
        self.probe = probe
        self.requests, self.connections, self.abandoned = [], 0, 0
        self.probes = 0
        self.strays = []
        self.lock = threading.Lock()
        # While it is not set, connections wait in the kernel.
        self.accepts = threading.Event()
        self.accepts.set()
        self.listener = socket.create_server((host, port), backlog=4096)
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.open = set()
        self.closing = False
        t.stack.callback(self.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """Refuses and resets from now on."""
        self.closing = True
        self.accepts.set()
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        for s in list(self.open):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def paths(self):
        return [request.path for request in self.requests]

    def overflow(self):
        """From now on it accepts nothing, and its kernel has no place for a further connection: it drops what
        asks for one. Returns the connections that fill it."""
        self.accepts.clear()
        self.listener.listen(0)
        # The call that waits already takes one more.
        before, filling = self.connections, [socket.create_connection(self.listener.getsockname())]
        while self.connections == before:
            time.sleep(0.01)
        while True:
            s = socket.socket()
            filling.append(s)
            s.settimeout(0.2)
            try:
                s.connect(self.listener.getsockname())
            except TimeoutError:
                return filling

    def _accept(self):
        while not self.closing:
            self.accepts.wait()
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self.open.add(s)
            threading.Thread(target=self._serve, args=(s,), daemon=True).start()

    def _serve(self, s):
        ahead = b""
        try:
            while True:
                request, ahead = read_request(s, ahead)
                if request is None:
                    return
                if request.path.startswith(("/v2/health", "/metrics")) and request.method == "GET":
                    self.probes += 1
                    keep = self.probe(request, s, self) if self.probe else (s.sendall(OK) or True)
                else:
                    with self.lock:
                        self.requests.append(request)
                    keep = self.answer(request, s, self)
                if not keep:
                    return
        except OSError:
            self.abandoned += 1
        except ValueError as error:
            # Bytes that are no request: where a second terminator of chunks stands, for example.
            self.strays.append(str(error))
        finally:
            self.open.discard(s)
            s.close()


def read_request(s, ahead):
    """One request and what came after it; `None` at the end."""
    while b"\r\n\r\n" not in ahead:
        data = s.recv(65536)
        if not data:
            if ahead:
                raise ValueError(f"the end within a head: {ahead[:80]!r}")
            return None, b""
        ahead += data
    top, _, rest = ahead.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3:
        raise ValueError(f"expected a request line, found {lines[0][:80]!r}")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body, raw = b"", top + b"\r\n\r\n"
    if "chunked" in headers.get("transfer-encoding", ""):
        body, used, rest = _chunks(s, rest)
        raw += used
    else:
        length = int(headers.get("content-length", 0))
        while len(rest) < length:
            data = s.recv(65536)
            if not data:
                raise OSError("the end within a body")
            rest += data
        body, rest = rest[:length], rest[length:]
        raw += body[:4096]
    return Request(parts[0], parts[1], headers, body, raw), rest


def _chunks(s, rest):
    body, used = b"", b""

    def line():
        nonlocal rest
        while b"\r\n" not in rest:
            data = s.recv(65536)
            if not data:
                raise OSError("the end within a body")
            rest += data
        found, _, rest = rest.partition(b"\r\n")
        return found

    while True:
        top = line()
        size = int(top.split(b";")[0], 16)
        used += top + b"\r\n"
        while len(rest) < size + 2 and size:
            data = s.recv(65536)
            if not data:
                raise OSError("the end within a body")
            rest += data
        if size == 0:
            while line():
                pass
            return body, used + b"\r\n", rest
        body, rest = body + rest[:size], rest[size + 2 :]


def reply(body=b"{}", status="200 OK", headers=""):
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def sleeping(seconds, body=b"{}"):
    """Answers after a while, if anybody is still there."""

    def answer(request, s, endpoint):
        if gone_within(s, seconds):
            endpoint.abandoned += 1
            return False
        s.sendall(reply(body))
        return True

    return answer


def gone_within(s, seconds):
    """Waits; whether the other side closed meanwhile."""
    s.settimeout(seconds)
    try:
        return s.recv(1, socket.MSG_PEEK) == b"" or time.sleep(seconds) or False
    except (TimeoutError, BlockingIOError):
        return False
    except OSError:
        return True
    finally:
        s.settimeout(None)


class H2Endpoint:
    """An HTTP/2 endpoint. `answer(headers, body)` gives `(headers, body, trailers)`, or `None` for silence;
    it is called when a stream has ended, on a thread of its own. Probes (HTTP/1 as well) are answered."""

    def __init__(self, t, answer=None, headers_at_once=False, host="127.0.0.1"):
        self.answer = answer or grpc_ok
        self.headers_at_once = headers_at_once
        self.requests, self.pings, self.resets, self.connections = [], [], [], 0
        self.listener = socket.create_server((host, 0), backlog=4096)
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.open = set()
        t.stack.callback(self.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        for s in list(self.open):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _accept(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            self.open.add(s)
            threading.Thread(target=self._serve, args=(s,), daemon=True).start()

    def _serve(self, s):
        try:
            first = s.recv(65536, socket.MSG_PEEK)
            if not first.startswith(b"PRI"):
                while read_request(s, b"")[0]:
                    s.sendall(OK)
                return
            self._frames(s)
        except (OSError, ValueError, h2.exceptions.ProtocolError):
            pass
        finally:
            self.open.discard(s)
            s.close()

    def _frames(self, s):
        self.connections += 1
        connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False)
        )
        lock, heads, bodies = threading.Lock(), {}, {}
        with lock:
            connection.initiate_connection()
            s.sendall(connection.data_to_send())
        while data := s.recv(65536):
            with lock:
                events = connection.receive_data(data)
                for event in events:
                    self._event(event, connection, s, lock, heads, bodies)
                s.sendall(connection.data_to_send())

    def _event(self, event, connection, s, lock, heads, bodies):
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            heads[number], bodies[number] = dict(event.headers), b""
            if self.headers_at_once:
                connection.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
        elif isinstance(event, h2.events.DataReceived):
            bodies[number] += event.data
            connection.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.PingReceived):
            self.pings.append(time.monotonic())
        elif isinstance(event, h2.events.StreamReset):
            self.resets.append(number)
        if isinstance(event, h2.events.StreamEnded):
            head = heads[number]
            self.requests.append(head)
            work = (number, head, bodies.pop(number), connection, s, lock)
            threading.Thread(target=self._respond, args=work, daemon=True).start()

    def _respond(self, number, head, body, connection, s, lock):
        if "health" in head.get(":path", "").lower():
            said = ([(":status", "200")], b"{}", None)
        else:
            said = self.answer(head, body)
        if said is None:
            return
        headers, data, trailers = said
        try:
            with lock:
                if not self.headers_at_once:
                    connection.send_headers(number, headers, end_stream=not data and trailers is None)
                if data:
                    connection.send_data(number, data, end_stream=trailers is None)
                if trailers is not None:
                    connection.send_headers(number, trailers, end_stream=True)
                s.sendall(connection.data_to_send())
        except (OSError, h2.exceptions.ProtocolError, KeyError):
            pass


def grpc_ok(head, body):
    """An empty message, well ended."""
    return ([(":status", "200"), ("content-type", "application/grpc")], b"\0\0\0\0\0", [("grpc-status", "0")])
