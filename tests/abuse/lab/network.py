"""A network that loses and delays packets, which a row makes for itself and takes with it when it ends.

The row's process moves to a network namespace of its own, with a loopback and one TUN device. What is sent to
`FAR` leaves through the device and comes back to `NEAR` from there, source and destination exchanged (which
leaves every checksum right), after its delay, or not at all. So a connection to `FAR` reaches whatever listens at
`NEAR`, over real TCP with its retransmissions, and neither root nor the kernel's own queues are needed: a user
namespace does where there is no root.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import threading
import time

NEAR, FAR, MASK = "10.9.0.1", "10.9.0.2", "255.255.255.0"

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCSIFADDR, SIOCSIFNETMASK, SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8916, 0x891C, 0x8913, 0x8914, 0x1


class Network:
    """From now on the row and all that it starts are in a network of their own. `loss` is the share of packets
    that get lost in each direction, `delay` what each takes in one direction, in seconds. To be made before
    anything that has threads or sockets."""

    def __init__(self, t, loss, delay, seed):
        self.loss, self.delay, self.random = loss, delay, random.Random(seed)
        self.passed = self.lost = 0
        try:
            _leave()
            self.device = _device()
        except OSError as error:
            t.skip(f"no network namespace with a TUN device can be made here: {error}")
        threading.Thread(target=self._carry, daemon=True).start()

    @staticmethod
    def beyond(address):
        """Where something that listens at `NEAR` is reached over the network."""
        return f"{FAR}:{address.rsplit(':', 1)[1]}"

    def _carry(self):
        waiting = []
        while True:
            due = max(0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([self.device], [], [], due)
            if ready:
                packet = os.read(self.device, 65536)
                if self.random.random() < self.loss:
                    self.lost += 1
                elif packet[0] >> 4 == 4:
                    self.passed += 1
                    turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                    heapq.heappush(waiting, (time.monotonic() + self.delay, self.passed, turned))
            while waiting and waiting[0][0] <= time.monotonic():
                os.write(self.device, heapq.heappop(waiting)[2])


def _leave():
    """Moves this process to a network namespace of its own, as root or as a user who becomes one in there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0:
        return
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _device():
    """A TUN device that is up, beside a loopback that is."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"lossy", IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for request, address in ((SIOCSIFADDR, NEAR), (SIOCSIFNETMASK, MASK)):
            fcntl.ioctl(s, request, struct.pack("16sHH4s8x", b"lossy", socket.AF_INET, 0, socket.inet_aton(address)))
        for name in (b"lossy", b"lo"):
            flags = struct.unpack("16sH", fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))[:18])[1]
            fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | IFF_UP))
    return device
