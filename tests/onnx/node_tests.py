#!/usr/bin/env python3
"""Runs the node tests that the package onnx carries: none may be answered wrongly.

What does not load is listed with its reason in not_loaded.txt. The list may only shrink: a test on it
that passes fails this script, and so does one that is not on it and does not load.
"""

import argparse
import collections
import pathlib
import shutil
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
from onnx.backend.test.case.node import collect_testcases  # noqa: E402

import cases  # noqa: E402

LIST = pathlib.Path(__file__).with_name("not_loaded.txt")
# Prefixes of the reason.
PREFIXES = [
    "warm-up failed (give inputs a warm_up shape if these do not fit): ",
    "the model can't run with these input shapes: ",
    "the engine can't compile the graph: ",
    "the engine failed: ",
]
HEAD = "# Node tests of onnx that do not load, each with its reason. This list may only shrink.\n"


def collect(folder):
    """Writes those with tensors of the protocol's datatypes only."""
    written, others = [], 0
    for case in collect_testcases(None):
        graph = case.model.graph
        if not all(map(cases.is_plain, [*graph.input, *graph.output])):
            others += 1
            continue
        here = folder / case.name
        try:
            cases.write(here, case.model, case.data_sets)
            written.append(here)
        except (TypeError, ValueError):
            # An optional value, or a list, in the place of a tensor.
            shutil.rmtree(here, ignore_errors=True)
            others += 1
    return written, others


def reason(why):
    for prefix in PREFIXES:
        why = why.removeprefix(prefix)
    return why.replace("\t", " ")[:100].strip()


def listed():
    lines = LIST.read_text().splitlines() if LIST.exists() else []
    return dict(line.split("\t", 1) for line in lines if line and not line.startswith("#"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--update", action="store_true", help="write the list again")
    update = arguments.parse_args().update
    with tempfile.TemporaryDirectory() as scratch:
        written, others = collect(pathlib.Path(scratch))
        found = cases.run(written, "--limit", "30")
    known, problems = listed(), []
    missing = {}
    for folder, (verdict, why) in found.items():
        name = folder.name
        if verdict == "ok":
            if name in known:
                problems.append(f"{name} passes: take it off the list")
        elif verdict in ("refused", "failed"):
            missing[name] = reason(why)
            if name not in known:
                problems.append(f"{name} {verdict}: {why[:300]}")
        else:
            problems.append(f"{name} {verdict}: {why[:300]}")
    counts = collections.Counter(verdict for verdict, _ in found.values())
    print(f"{len(found)} node tests: {dict(counts)}; {others} without plain tensors")
    if update:
        if known and not set(missing) <= set(known):
            sys.exit("expected the list to shrink")
        lines = [f"{name}\t{why}\n" for name, why in sorted(missing.items())]
        LIST.write_text(HEAD + "".join(lines))
    elif problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
