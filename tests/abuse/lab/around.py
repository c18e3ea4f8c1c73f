"""What every row holds to: a healthy request before and after, a counter that rises by what was done, and
one line in the log for each."""

import contextlib
import time

from . import http1
from .load import BODY
from .processes import INFER
from .row import eventually

REQUESTS = "forebay_requests_total"


class Around:
    """What happened inside the block."""

    def __init__(self, reason):
        self.reason, self.ids = reason, []

    def answered(self, answer):
        """Notes an answer whose line is to be in the log."""
        if answer.request_id:
            self.ids.append(answer.request_id)


def healthy(t, proxy, when, path=INFER, address=None, seconds=5):
    """A request that nothing is wrong with."""
    try:
        answer = http1.post(address or proxy.address, path, BODY, timeout=seconds)
        return t.equal((answer.status, answer.reason), (200, "ok"), f"the probe {when}")
    except (OSError, ValueError) as error:
        return t.check(False, f"the probe {when}: {type(error).__name__}: {error}")


@contextlib.contextmanager
def around(t, proxy, reason=None, count=None, path=INFER, logged=True):
    """`count` requests end with `reason` inside the block, all of them counted, and (`logged`) each has one
    line."""
    healthy(t, proxy, "before", path)
    before = proxy.metric(REQUESTS, f'reason="{reason}"') if reason else 0
    lines_before = len(lines_with(proxy, reason)) if reason else 0
    found = Around(reason)
    yield found
    if reason and count is not None:
        rise = lambda: proxy.metric(REQUESTS, f'reason="{reason}"') - before  # noqa: E731
        eventually(lambda: rise() >= count, 5)
        t.equal(rise(), count, f"{REQUESTS}{{reason={reason}}} rose by")
        if logged:
            new = lambda: len(lines_with(proxy, reason)) - lines_before  # noqa: E731
            eventually(lambda: new() >= count, 5)
            t.equal(new(), count, f"lines with reason {reason} in the access log")
    for request_id in found.ids:
        eventually(lambda r=request_id: proxy.lines_of(r), 5)
        lines = proxy.lines_of(request_id)
        t.equal([line["reason"] for line in lines], [reason] if reason else ["ok"], f"the line of {request_id}")
    healthy(t, proxy, "after", path)


def lines_with(proxy, reason):
    return [line for line in proxy.lines() if line.get("reason") == reason]


def at_rest(t, proxy, seconds=5):
    """All that was begun has ended: nothing is in flight or queued."""

    def idle():
        status = proxy.status()
        return status["in_flight"] == 0 and all(
            not any(pool["queued"].values()) and all(e["in_flight"] == 0 for e in pool["endpoints"])
            for pool in status["pools"].values()
        )

    t.check(eventually(idle, seconds), f"still busy after {seconds} s: {proxy.status()['pools']}")


def cpu_share(process, seconds, during=None):
    """Share of one core that the process takes for so long."""
    began, before = time.monotonic(), process.cpu()
    while time.monotonic() - began < seconds:
        if during:
            during()
        else:
            time.sleep(0.05)
    return (process.cpu() - before) / (time.monotonic() - began)
