"""Runs the commands of README and docs/ as a reader would, page by page, in a copy of the repository.

An HTML comment before a block, which the rendered page does not show, says how the block is run:

    <!-- run -->                    to the end; it must exit with 0
    <!-- run, status 0 or 1 -->     the same, with another exit status
    <!-- run as X -->               the same, after the lines of `<!-- X ... -->`, which the page does not show
    <!-- start until "TEXT" -->     in the background, until its output has TEXT; each line is a command
    <!-- run, then prints -->       the same, and the block after it is a part of what it prints
    <!-- prints -->                 the block is part of the output of the block before: these lines, in this order
    <!-- prints, numbers vary -->   the same, where every number matches every other
    <!-- file NAME -->              the block becomes this file
    <!-- not run -->                the block stands in .ci/not_run.txt, with the reason

and a comment without a block:

    <!-- hidden COMMANDS -->        runs commands, in one line or several, that the page leaves to the reader
    <!-- hidden start until "TEXT"
    COMMAND -->                     starts one
    <!-- finish -->                 waits for the command that was started last, which must exit with 0
    <!-- stop -->                   stops what was started; so does the end of a page

A block of kind `text` whose first line begins with `$ ` is a command with its output. Blocks of kinds `sh` and
`python`, and such transcripts, must have a comment. Stand-ins replace the programs that a check can't use: `cargo
run` starts a program that is built already, `sudo apt-get install` installs nothing, and `pgrep` sees only
processes of this check.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

# A shell starts its background commands with SIGINT ignored, all that they start inherits that, and no program could
# be stopped by it. A handler of this process is the default in those that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOKEN = re.compile(
    r"(?:^|(?<= ))<!-- (?P<comment>(?:(?!-->).)*?) ?-->$|^```(?P<kind>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
OURS = re.compile(r"(run|start|prints|file|not run|hidden|finish|stop)\b")
LIST = ".ci/not_run.txt"
# Seconds for one command; debug builds on a busy machine are slow.
LIMIT = 180
PORTS = (8001, 8002, 8080, 9090)
PROGRAMS = ("forebay", "forebay-worker", "forebay-load")
STAND_INS = {
    "cargo": """case "$*" in
"run --release") exec forebay ;;
"build --locked --workspace --bins --profile release") ;;
*) echo "no stand-in for cargo $*" >&2; exit 1 ;;
esac""",
    "sudo": 'case "$*" in "apt-get install "* | "apt-get update") ;; *) echo "no stand-in for sudo $*" >&2; exit 1 ;; esac',
    "pgrep": """/usr/bin/pgrep "$@" | while read -r pid; do
    if grep -qsz "^FOREBAY_PAGES=$FOREBAY_PAGES$" "/proc/$pid/environ"; then echo "$pid"; fi
done""",
}


class Wrong(Exception):
    """A page that does not do what it says."""


def is_runnable(kind, text):
    return kind in ("sh", "python") or (kind == "text" and text.startswith("$ "))


def steps(text):
    """(line number, comment or None, kind or None, block or None) of each comment for this check, and each block."""
    waiting = None
    for found in TOKEN.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        comment, kind = found["comment"], found["kind"]
        if kind:
            yield line, waiting, kind, found["text"]
            _, then, prints = (waiting or "").partition("then ")
            waiting = prints if then else None
        elif OURS.match(comment):
            if comment.split()[0] in ("hidden", "finish", "stop"):
                yield line, comment, None, None
            else:
                waiting = comment
        elif "\n" in comment:
            # Named lines for "run as".
            yield line, comment, None, None


def not_run(root):
    """The blocks that are not run: (page, first line) -> reason."""
    found = {}
    for line in (root / LIST).read_text().splitlines():
        if line and not line.startswith("#"):
            page, first, reason = line.split(" | ")
            found[page, first] = reason
    return found


def check(root, pages):
    """Every runnable block has a comment, and the list of those that are not run is exact."""
    wrong, listed = [], not_run(root)
    for page in pages:
        name = str(page.relative_to(root))
        for line, comment, kind, text in steps(page.read_text()):
            if kind is None or not is_runnable(kind, text):
                continue
            first = text.split("\n", 1)[0]
            if comment is None:
                wrong.append(f"{name}:{line}: a block of commands without a comment that says how it is run")
            elif comment == "not run" and listed.pop((name, first), None) is None:
                wrong.append(f"{name}:{line}: a block that is not run must stand in {LIST}: {first}")
    wrong.extend(f"{LIST}: no such block: {page}: {first}" for page, first in listed)
    return wrong


class Session:
    """One page: its commands share a directory and the processes that were started."""

    def __init__(self, root, programs, python, folder):
        self.folder, self.started, self.output = folder / "forebay", [], ""
        self.named = {}
        copied = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, check=True)
        for name in copied.stdout.decode().split("\0"):
            if name and (root / name).is_file():
                place = self.folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, place)
        bin_ = folder / "bin"
        bin_.mkdir()
        (self.folder / "target").mkdir(parents=True)
        (self.folder / "target/release").symlink_to(bin_)
        for program in PROGRAMS:
            if program != "forebay-load":
                (bin_ / program).symlink_to(programs / program)
        # Status 3 says that this machine is too busy for figures to be quoted, which is not the page's fault.
        load = f'{shlex.quote(str(programs / "forebay-load"))} "$@" || {{ status=$?; [ $status = 3 ] || exit $status; }}'
        for name, text in {**STAND_INS, "forebay-load": load}.items():
            (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
            (bin_ / name).chmod(0o755)
        path = f"{bin_}:{python.parent}:{os.environ['PATH']}" if python else f"{bin_}:{os.environ['PATH']}"
        # No proxy of the environment stands between a client and the loopback.
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        self.environment = {**kept, "PATH": path, "NO_COLOR": "1", "HOME": str(folder), "FOREBAY_PAGES": uuid.uuid4().hex}

    def command(self, kind, text):
        return ["python3", "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]

    def run(self, kind, text, statuses=(0,)):
        with tempfile.TemporaryFile() as out:
            ended = subprocess.run(
                self.command(kind, text), cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, timeout=LIMIT,
            )
            out.seek(0)
            self.output = out.read().decode(errors="replace")
        if ended.returncode not in statuses:
            raise Wrong(f"exit status {ended.returncode}, expected {statuses}:\n{self.output}\n{self.logs()}")

    def start(self, text, until):
        for line in filter(None, (line.split("#")[0].strip() for line in text.replace("\\\n", " ").splitlines())):
            log = tempfile.NamedTemporaryFile(dir=self.folder.parent, suffix=".log", delete=False)
            process = subprocess.Popen(
                self.command("sh", line if "sudo" in line else f"exec {line}"), cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=usual_signals,
            )
            if "sudo" in line:
                process.wait(LIMIT)
                continue
            self.started.append((line, process, log))
            self.wait(process, log, until)
        self.output = self.read(log)

    def wait(self, process, log, until):
        limit = time.monotonic() + LIMIT
        while until and until not in self.read(log):
            if process.poll() is not None or time.monotonic() > limit:
                raise Wrong(f"expected {until!r} in the output, found:\n{self.read(log)}")
            time.sleep(0.1)

    def read(self, log):
        return pathlib.Path(log.name).read_text(errors="replace")

    def logs(self):
        return "\n".join(f"--- {line}\n{self.read(log)[-3000:]}" for line, _, log in self.started)

    def finish(self):
        line, process, log = self.started.pop()
        status = process.wait(LIMIT)
        self.output = self.read(log)
        if status != 0:
            raise Wrong(f"{line}: exit status {status}:\n{self.output}")

    def stop(self):
        """Ends what was started as Ctrl-C would, last first; each must drain and exit with 0."""
        while self.started:
            line, process, log = self.started.pop()
            ended = process.poll() is not None
            if not ended:
                process.send_signal(signal.SIGINT)
            try:
                status = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Wrong(f"{line}: still runs a minute after SIGINT:\n{self.read(log)}") from None
            if ended or status != 0:
                raise Wrong(f"{line}: ended with {status}{' by itself' if ended else ''}:\n{self.read(log)}")

    def kill(self):
        for _, process, _ in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def prints(self, text, vary):
        def plain(line):
            line = " ".join(line.split())
            return re.sub(r"\d+(?:\.\d+)?", "0", line) if vary else line

        lines = iter([plain(line) for line in self.output.splitlines()])
        for expected in filter(None, map(plain, text.splitlines())):
            if expected != "..." and expected not in lines:
                raise Wrong(f"expected the line {expected!r}, found:\n{self.output}")

    def step(self, comment, kind, text):
        word = re.match(r"\w+", comment)[0]
        if kind == "text" and text.startswith("$ ") and word == "run":
            command, expected = re.fullmatch(r"\$ ((?:[^\n]*\\\n)*[^\n]*)\n(.*)", text, re.DOTALL).groups()
            self.run("sh", command, self.statuses(comment))
            self.prints(expected, "numbers vary" in comment)
        elif word == "run":
            before = re.match(r"run as (\w+)", comment)
            self.run(kind, (self.named[before[1]] if before else "") + text, self.statuses(comment))
        elif word == "start":
            until = re.search(r'until "([^"]*)"', comment)
            self.start(text, until and until[1])
        elif word == "prints":
            self.prints(text, "numbers vary" in comment)
        elif word == "file":
            place = self.folder / comment.split()[1]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        elif word == "hidden" and comment.startswith("hidden start"):
            options, _, command = comment.partition("\n")
            self.start(command, re.search(r'until "([^"]*)"', options)[1])
        elif word == "hidden":
            self.run("sh", comment.removeprefix("hidden"))
        elif word == "finish":
            self.finish()
        elif word == "stop":
            self.stop()
        elif "\n" in comment:
            name, _, lines = comment.partition("\n")
            self.named[name] = f"{lines}\n"

    def statuses(self, comment):
        stated = re.search(r"status ([\d or]+)", comment)
        return tuple(int(number) for number in stated[1].split(" or ")) if stated else (0,)


def usual_signals():
    """In the child: a shell's background job ignores SIGINT, and its children with it, but Ctrl-C stops programs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def run_page(root, page, programs, python):
    name = page.relative_to(root)
    taken = [port for port in PORTS if not free(port)]
    if taken:
        raise SystemExit(f"{name}: the pages use the ports {taken}, and another program listens there")
    with tempfile.TemporaryDirectory(prefix="forebay-pages-") as folder:
        session = Session(root, programs, python, pathlib.Path(folder))
        line = 0
        try:
            for line, comment, kind, text in steps(page.read_text()):
                if comment is not None and comment != "not run":
                    session.step(comment, kind, text)
            line = "end"
            session.stop()
        except (Wrong, subprocess.TimeoutExpired) as error:
            print(f"{name}:{line}: {error}", file=sys.stderr)
            return False
        finally:
            session.kill()
    return True


def run(root, pages, programs, python):
    """Runs all pages that have something to run; ends the program with 1 if one fails."""
    good = True
    for page in pages:
        count = sum(comment is not None and comment != "not run" for _, comment, _, _ in steps(page.read_text()))
        if count:
            begun = time.monotonic()
            ok = run_page(root, page, programs, python)
            good = good and ok
            print(f"{page.relative_to(root)}: {'ran' if ok else 'FAILED'}, {count} steps, {time.monotonic() - begun:.0f} s", flush=True)
    if not good:
        sys.exit(1)
