"""The registry of rows, and what a row is given to say what it found."""

import contextlib
import functools
import pathlib
import shutil
import tempfile
import time

ROWS = []


class Row:
    """One line of the suite: a fault in one form."""

    def __init__(self, number, form, name, function, quick, alone, idle, limit):
        self.id = f"{number}.{form}" if form else number
        if any(other.id == self.id for other in ROWS):
            raise ValueError(f"two rows are called {self.id}: give one of them a word")
        self.number, self.name, self.function = number, name, function
        self.quick, self.alone, self.idle, self.limit = quick, alone, idle, limit
        self.doc = " ".join((function.__doc__ or "").split())

    def order(self):
        """Numbers first, then the points with a letter."""
        digits = "".join(c for c in self.number if c.isdigit())
        return (self.number[0].isalpha(), int(digits or 0), self.id)


def row(number, name, forms=None, word="", quick=True, alone=False, idle=False, limit=60):
    """Registers a row. `forms` maps a word to the arguments of one variant, each a line of its own. `word`
    tells it from other rows of the same number.
    `quick`: a loaded machine with two cores can decide it, within seconds. `alone`: no other row may run
    beside it, since it measures time or processor time. `idle`: it waits for a timeout of the proxy nearly all of
    its time, so it runs beside the others without taking the place of one. `limit`: seconds after which it has failed."""

    def register(function):
        variants = {"": ()} if forms is None else forms
        for form, arguments in variants.items():
            if not isinstance(arguments, tuple):
                arguments = (arguments,)
            bound = functools.partial(function, form=arguments) if form else function
            if form:
                bound.__doc__ = function.__doc__
            title = f"{name}: {form}" if form else name
            called = " ".join(filter(None, (word, form)))
            ROWS.append(Row(str(number), called, title, bound, quick, alone, idle, limit))
        return function

    return register


def later(number, name, needs):
    """A row of the matrix that waits for a feature."""

    def skip(t):
        t.skip(f"needs {needs}")

    skip.__doc__ = f"Waits for {needs}."
    ROWS.append(Row(str(number), "", name, skip, True, False, False, 5))


class Skipped(Exception):
    """This machine can't run the row."""


class Failed(Exception):
    """The row can't go on."""


class Test:
    """Handed to each row: collects what it starts, measures and finds wrong."""

    def __init__(self, full):
        self.full = full
        self.figures, self.faults = [], []
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="forebay-abuse-"))
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def enter(self, manager):
        """Enters a context that lasts as long as the row."""
        return self.stack.enter_context(manager)

    def figure(self, text):
        """A measured figure for the row's line."""
        self.figures.append(text)

    def check(self, condition, text):
        """Notes a fault and goes on."""
        if not condition:
            self.faults.append(text)
        return bool(condition)

    def equal(self, found, expected, what):
        """Notes a fault if both differ."""
        return self.check(found == expected, f"{what}: expected {expected!r}, found {found!r}")

    def require(self, condition, text):
        """Ends the row if the rest makes no sense."""
        if not condition:
            raise Failed(text)

    def skip(self, reason):
        """Ends the row without a verdict."""
        raise Skipped(reason)

    def eventually(self, what, condition, seconds=10, pause=0.02):
        """Waits until `condition` gives something true, and returns it; ends the row otherwise."""
        found = eventually(condition, seconds, pause)
        self.require(found, f"waited {seconds} s in vain for {what}")
        return found


def eventually(condition, seconds=10, pause=0.02):
    """What `condition` gives as soon as that is true; its last value otherwise."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found or time.monotonic() > end:
            return found
        time.sleep(pause)
