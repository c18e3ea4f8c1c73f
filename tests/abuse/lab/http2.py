"""HTTP/2 by hand: honest streams through PyPI's h2, and single frames for what it would never send."""

import struct
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack

from . import http1

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values):
    """A SETTINGS frame; the names are those of the RFC in lower case."""
    ids = {"header_table_size": 1, "enable_push": 2, "max_concurrent_streams": 3, "initial_window_size": 4,
           "max_frame_size": 5, "max_header_list_size": 6}
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", ids[k], v) for k, v in values.items()))


def fields(method, path, headers=(), authority="x"):
    pairs = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)]
    return pairs + list(headers.items() if isinstance(headers, dict) else headers)


def block(method, path, headers=()):
    """A header block that any decoder state can read."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(fields(method, path, headers), huffman=False)


def grpc_message(payload=b""):
    return b"\0" + struct.pack(">I", len(payload)) + payload


def infer_message(model=b"synthetic", padding=0):
    """A ModelInfer request with a name, and a raw tensor of so many bytes."""
    message = b"\x0a" + bytes([len(model)]) + model
    if padding:
        size = padding
        length = b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        message += b"\x3a" + length + bytes([size]) + bytes(padding)
    return grpc_message(message)


GRPC = {"content-type": "application/grpc", "te": "trailers"}
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC_LIVE = "/inference.GRPCInferenceService/ServerLive"
GRPC_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Stream:
    """What came on one stream."""

    def __init__(self):
        self.headers, self.trailers, self.body = {}, {}, b""
        self.ended, self.reset, self.began = False, None, time.monotonic()
        self.seconds = None

    @property
    def done(self):
        return self.ended or self.reset is not None

    @property
    def status(self):
        return int(self.headers[":status"]) if ":status" in self.headers else None

    @property
    def reason(self):
        return self.headers.get("x-forebay-reason") or self.trailers.get("x-forebay-reason", "ok")

    @property
    def grpc_status(self):
        found = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if found is None else int(found)

    def __repr__(self):
        return f"{self.status} {self.reason} grpc={self.grpc_status} reset={self.reset} {len(self.body)} bytes"


class Client:
    """A connection with streams. `grants` says whether windows are opened again as bytes come."""

    def __init__(self, address, timeout=10, grants=True, first=None, receive_buffer=None):
        self.socket = http1.connect(address, timeout, receive_buffer)
        self.grants = grants
        self._start(first)

    @classmethod
    def over(cls, connected):
        """On a socket that is there, such as one with TLS."""
        self = cls.__new__(cls)
        self.socket, self.grants = connected, True
        self._start(None)
        return self

    def _start(self, first):
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
            normalize_outbound_headers=False, validate_inbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.streams, self.goaway, self.closed, self.pongs = {}, None, False, 0
        self.ahead, self.last_stream = b"", None
        if first:
            self.h2.local_settings.update(first)
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    close = __exit__

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.send(data)

    def send(self, data):
        """Raw bytes, which may not be taken any more."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.closed = True

    def open(self, method, path, headers=(), body=None, end=True):
        """Begins a stream; returns its number."""
        number = self.h2.get_next_available_stream_id()
        self.streams[number] = Stream()
        self.h2.send_headers(number, fields(method, path, headers), end_stream=end and body is None)
        if body is not None:
            self.write(number, body, end)
        self.flush()
        return number

    def write(self, number, body, end=False):
        """Sends as much as the windows allow, and waits for more of them."""
        rest = memoryview(body)
        while rest and not self.closed:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if room <= 0:
                self.pump(0.05)
                if self.streams[number].done:
                    return
                continue
            self.h2.send_data(number, bytes(rest[:room]), end_stream=end and len(rest) <= room)
            rest = rest[room:]
            self.flush()
        if end and not body:
            self.h2.send_data(number, b"", end_stream=True)
            self.flush()

    def pump(self, seconds):
        """Takes what comes, once; waits for it no longer than this."""
        self.socket.settimeout(max(seconds, 0.001))
        try:
            data = self.socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            for stream in self.streams.values():
                if not stream.done:
                    stream.reset = "closed"
            return
        try:
            events = self.h2.receive_data(self._without_goaway(data))
        except h2.exceptions.ProtocolError:
            # Frames by hand may have gone on where this library thinks all has ended.
            self.closed = True
            return
        for event in events:
            self._event(event)
        self.socket.settimeout(5)
        self.flush()

    def _without_goaway(self, data):
        """Whole frames, less the GOAWAY: the library takes nothing more after one, although the streams that
        are open go on."""
        self.ahead += data
        kept = b""
        while len(self.ahead) >= 9:
            end = 9 + int.from_bytes(self.ahead[:3], "big")
            if len(self.ahead) < end:
                break
            one, self.ahead = self.ahead[:end], self.ahead[end:]
            if one[3] == GOAWAY:
                self.last_stream, self.goaway = struct.unpack(">II", one[9:17])
            else:
                kept += one
        for number, stream in self.streams.items():
            if self.last_stream is not None and number > self.last_stream and not stream.done:
                # REFUSED_STREAM: the server says that it has not looked at it.
                stream.reset = 7
        return kept

    def _event(self, event):
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.ResponseReceived) and stream:
            stream.headers = dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived) and stream:
            stream.trailers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            if stream:
                stream.body += event.data
            if self.grants and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded) and stream:
            stream.ended, stream.seconds = True, time.monotonic() - stream.began
        elif isinstance(event, h2.events.StreamReset) and stream:
            stream.reset = event.error_code
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1

    def wait(self, numbers=None, seconds=10):
        """Until these streams are done; gives them in order."""
        numbers = list(self.streams) if numbers is None else numbers
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.closed:
            if all(self.streams[n].done for n in numbers):
                break
            self.pump(end - time.monotonic())
        return [self.streams[n] for n in numbers]

    def request(self, method, path, headers=(), body=None, seconds=10):
        return self.wait([self.open(method, path, headers, body)], seconds)[0]


def request(address, method, path, headers=(), body=None, seconds=10):
    """One request on a connection of its own."""
    with Client(address) as client:
        return client.request(method, path, headers, body, seconds)


def infer(address, seconds=10, headers=(), message=None):
    """One inference over gRPC."""
    pairs = {**GRPC, **dict(headers)}
    return request(address, "POST", GRPC_INFER, pairs, message or infer_message(), seconds)


class Raw:
    """A connection on which frames are written by hand; what comes is only split into frames."""

    def __init__(self, address, timeout=10, first=None):
        self.socket = http1.connect(address, timeout)
        self.ahead, self.closed = b"", False
        self.send(PREFACE + (first if first is not None else settings()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    close = __exit__

    def send(self, data):
        """Whether it was taken."""
        try:
            self.socket.sendall(data)
            return True
        except OSError:
            return False

    def frames(self, seconds, until=None):
        """The frames `(kind, flags, stream, payload)` that come within this time, up to one of the kinds
        `until` or the end of the connection."""
        found, end = [], time.monotonic() + seconds
        while True:
            while len(self.ahead) >= 9:
                length = int.from_bytes(self.ahead[:3], "big")
                if len(self.ahead) < 9 + length:
                    break
                kind, flags, stream = struct.unpack(">BBI", self.ahead[3:9])
                found.append((kind, flags, stream & 0x7FFFFFFF, self.ahead[9 : 9 + length]))
                self.ahead = self.ahead[9 + length :]
                if until and kind in until:
                    return found
            left = end - time.monotonic()
            if self.closed or left <= 0:
                return found
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except (TimeoutError, BlockingIOError):
                return found
            except OSError:
                data = b""
            self.closed = not data
            self.ahead += data


def statuses(frames):
    """`{stream: status}` of the heads among frames; one decoder, since the table is the connection's."""
    decoder, found = hpack.Decoder(), {}
    for kind, _, stream, payload in frames:
        if kind == HEADERS:
            pairs = dict(decoder.decode(payload))
            if ":status" in pairs:
                found[stream] = (int(pairs[":status"]), pairs.get("x-forebay-reason"))
    return found


def error_of(frames):
    """The code of the first GOAWAY."""
    for kind, _, _, payload in frames:
        if kind == GOAWAY:
            return struct.unpack(">I", payload[4:8])[0]
    return None
