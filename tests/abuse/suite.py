"""Runs the rows: each in a process of its own, with a time limit, and says what came of it."""

import argparse
import importlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from lab import row as rows_module  # noqa: E402

# Rows that fail today: `--quick`, which gates changes, says so instead of running them.
OPEN = HERE / "open.txt"
# Rows that only wait, beside each other for each job: their processes do next to nothing.
IDLE_PER_JOB = 2
TOPICS = sorted(path.stem for path in (HERE / "rows").glob("*.py") if path.stem != "__init__")


def main():
    options = arguments()
    folder = os.environ.get("FOREBAY_BIN", HERE.parents[1] / "target" / options.profile)
    os.environ["FOREBAY_BIN"] = str(pathlib.Path(folder).resolve())
    for topic in TOPICS:
        importlib.import_module(f"rows.{topic}")
    chosen = sorted((row for row in rows_module.ROWS if wanted(row, options)), key=rows_module.Row.order)
    if options.list:
        for row in chosen:
            print(f"{row.id:24} {row.name}\n{'':24}   {row.doc}")
        return 0
    if not (pathlib.Path(os.environ["FOREBAY_BIN"]) / "forebay").exists():
        print(f"expected built programs in {os.environ['FOREBAY_BIN']}: run cargo build --workspace first")
        return 2
    results = []
    if options.quick and not options.only:
        known = open_rows()
        results = [left_out(row) for row in chosen if row.id in known]
        chosen = [row for row in chosen if row.id not in known]
    results += run(chosen, options)
    if options.quick:
        results = again(results, options)
    counts = [sum(1 for result in results if result["verdict"] == v) for v in ("ok", "FAILED", "skipped")]
    print("{} passed, {} failed, {} skipped".format(*counts), flush=True)
    return 1 if counts[1] else 0


def again(results, options):
    """Tries rows that failed once more, with no company: beside others on two cores, a row of milliseconds
    can fail without a fault. A row that fails twice has failed, and both tries are printed."""
    failed = [result["row"] for result in results if result["verdict"] == "FAILED"]
    if not failed:
        return results
    print(f"once more, alone: {', '.join(row.id for row in failed)}")
    second = [one for row in failed for one in run([row], options)]
    return [result for result in results if result["verdict"] != "FAILED"] + second


def arguments():
    parser = argparse.ArgumentParser(prog="tests/abuse/run.sh")
    parser.add_argument("--only", help="numbers of rows, such as 19,24,P4 or 19.header")
    parser.add_argument("--quick", action="store_true", help="only what a loaded machine can decide")
    parser.add_argument("--full", action="store_true", help="with the long loads")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--jobs", type=int, default=4, help="rows beside each other (default 4)")
    parser.add_argument("--profile", default="debug", help="folder of target/ with the programs")
    return parser.parse_args()


def wanted(row, options):
    def names(only):
        return only in (row.number, row.id) or ("." in only and row.id.startswith(only))

    if options.only and not any(map(names, options.only.split(","))):
        return False
    return row.quick or not options.quick or bool(options.only)


def open_rows():
    """The rows of open.txt, one a line, with comments behind `#`."""
    lines = (line.split("#")[0].strip() for line in OPEN.read_text().splitlines())
    return {line for line in lines if line}


def left_out(row):
    print(f"{row.id:22} {row.name}: -  skipped (open: {OPEN.name} has it)")
    return {"verdict": "skipped"}


def begun(waiting, running, jobs):
    """The rows that are begun now: up to `jobs` at once, and as many again and more of those that only wait."""
    for idle, places in ((True, IDLE_PER_JOB * jobs), (False, jobs)):
        free = places - sum(row.idle == idle for row in running)
        yield from [row for row in waiting if row.idle == idle][: max(free, 0)]


def run(chosen, options):
    """Those that may have company first, beside each other; then the others, one after the other."""
    results = []
    together = [row for row in chosen if not row.alone]
    # The longest first, so that none is waited for at the end.
    together.sort(key=lambda row: -row.limit)
    running = {}
    while together or running:
        for row in begun(together, [job.row for job in running.values()], options.jobs):
            together.remove(row)
            job = Job(row, options.full)
            running[job.pid] = job
        time.sleep(0.02)
        for pid, job in list(running.items()):
            if job.over():
                results.append(job.report())
                del running[pid]
    for row in chosen:
        if row.alone:
            job = Job(row, options.full)
            while not job.over():
                time.sleep(0.02)
            results.append(job.report())
    return results


class Job:
    """A row in a child process, which leads a process group with all that the row starts."""

    def __init__(self, row, full):
        self.row, self.began, self.late = row, time.monotonic(), False
        self.result = tempfile.NamedTemporaryFile(prefix="forebay-abuse-", suffix=".json")
        self.log = tempfile.NamedTemporaryFile(prefix="forebay-abuse-", suffix=".log")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            child(row, full, self.result.name, self.log.fileno())

    def over(self):
        done, _ = os.waitpid(self.pid, os.WNOHANG)
        self.late = not done and time.monotonic() - self.began > self.row.limit
        if self.late:
            # First itself, so that it can end what it started.
            self._signal(os.kill, signal.SIGTERM)
            end = time.monotonic() + 5
            while not done and time.monotonic() < end:
                time.sleep(0.05)
                done, _ = os.waitpid(self.pid, os.WNOHANG)
        if done or self.late:
            self._signal(os.killpg, signal.SIGKILL)
            if not done:
                os.waitpid(self.pid, 0)
            return True
        return False

    def _signal(self, how, number):
        try:
            how(self.pid, number)
        except ProcessLookupError:
            pass

    def report(self):
        seconds = time.monotonic() - self.began
        text = pathlib.Path(self.result.name).read_text()
        if text and not self.late:
            result = json.loads(text)
        else:
            words = f"not done within {self.row.limit} s" if self.late else "the row's process ended"
            result = {"verdict": "FAILED", "figures": [], "faults": [words]}
        self.log.seek(0)
        trouble = self.log.read().decode(errors="replace").strip()
        verdict = result["verdict"]
        if verdict == "skipped":
            verdict = f"skipped ({result['faults'][0]})"
        figures = ", ".join(result["figures"])
        print(f"{self.row.id:22} {self.row.name}: {figures or '-'} [{seconds:.1f} s]  {verdict}")
        if result["verdict"] == "FAILED":
            for fault in result["faults"]:
                print(f"{'':22}   {fault}")
            if trouble:
                print("\n".join(f"{'':22}   | {line}" for line in trouble.splitlines()[-12:]))
        sys.stdout.flush()
        result["row"] = self.row
        return result


def child(row, full, path, log):
    """Runs the row and leaves its result in a file; never returns."""
    os.setpgid(0, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    t = rows_module.Test(full)
    verdict = "FAILED"
    try:
        with t.stack:
            row.function(t)
        verdict = "FAILED" if t.faults else "ok"
    except rows_module.Skipped as reason:
        verdict, t.faults = "skipped", [str(reason)]
    except rows_module.Failed as reason:
        t.faults.append(str(reason))
    except SystemExit:
        t.faults.append("ended by its time limit")
    except BaseException as error:
        t.faults.append(f"{type(error).__name__}: {error}")
        traceback.print_exc()
    result = {"verdict": verdict, "figures": t.figures, "faults": t.faults}
    pathlib.Path(path).write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


sys.exit(main())
