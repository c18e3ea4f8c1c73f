#!/usr/bin/env python3
"""Random graphs, run by the engine beside ONNX Runtime: none may be answered otherwise.

    graphs.py --seconds 60 --seed 7      until so much time has passed
    graphs.py --count 2000 --seed 7      so many graphs
    graphs.py --keep DIR                 where graphs that differ are kept, shrunk

Convolutional nets, encoders, recurrent nets and element-wise graphs, with strides, pads, expands,
slices and reductions on every axis, most with an open batch, some with other open sizes. ONNX Runtime
runs them without its own rewrites. Graphs whose outputs move when the inputs are rounded tell nothing
and are left out. Each has several data sets of different rows; where the engine takes the rows to be
independent it also runs all of them as one batch.
"""

import argparse
import collections
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

import cases
import kinds
import layers
import live
import odd
import steps
from live import ROWS, session_of_untyped

F32 = numpy.float32
OPSET = 17
# How far outputs may move for a change of the inputs of a millionth.
STEADY = 1e-4
# Outputs beyond this, or none at all, come of values that nothing is left of.
TOO_LARGE = 1e6
ROUND = 60
SMALLEST = 40
FLAGS = ["--batch", "32", "--quantized"]


class Skip(Exception):
    """The graph tells nothing."""


def session(model):
    try:
        return live.session(model)
    except Exception as error:  # noqa: BLE001: whatever it does not take is no graph for us
        raise Skip(str(error)) from error


def answers(running, names, inputs):
    try:
        with numpy.errstate(all="ignore"):
            return running.run(None, dict(zip(names, inputs)))
    except Exception as error:  # noqa: BLE001
        raise Skip(str(error)) from error


def moved(a, b):
    if a.shape != b.shape:
        return numpy.inf
    if a.dtype.kind != "f":
        return 0.0 if (a == b).all() else numpy.inf
    with numpy.errstate(all="ignore"):
        same = (a == b) | (numpy.isnan(a) & numpy.isnan(b))
        off = numpy.where(same, 0.0, numpy.abs(a - b) / numpy.maximum(1.0, numpy.abs(b)))
    return float(numpy.nan_to_num(off, nan=numpy.inf).max(initial=0.0))


class Case:
    """A model with inputs of several numbers of rows."""

    def __init__(self, nodes, weights, inputs, outputs, is_open, is_loose=False, opset=OPSET, fixed=()):
        self.nodes, self.weights, self.inputs = nodes, weights, inputs
        self.outputs, self.is_open, self.is_loose = outputs, is_open, is_loose
        # The version of the operator set, and inputs whose rows are always as many.
        self.opset, self.fixed = opset, fixed

    def with_nodes(self, nodes, outputs):
        return Case(nodes, self.weights, self.inputs, outputs, self.is_open, self.is_loose, self.opset, self.fixed)

    def model(self):
        def value(name, array):
            shape = [
                size if name in self.fixed else "n" if place == 0 and self.is_open else f"{name}_{place}" if self.is_loose else size
                for place, size in enumerate(array.shape)
            ]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            return helper.make_tensor_value_info(name, kind, shape)

        first = self.inputs[0]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value(name, array) for name, array in first.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = live.opsets(self.opset)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 21 else 10)
        try:
            running = session_of_untyped(model)
        except Exception as error:  # noqa: BLE001
            raise Skip(str(error)) from error
        results = answers(running, list(first), list(first.values()))
        for output, result in zip(model.graph.output, results):
            shape = list(result.shape)
            if self.is_open and shape:
                shape[0] = "n" if shape[0] == next(iter(first.values())).shape[0] else "m"
            if self.is_loose:
                shape = [f"{output.name}_{place}" if place else size for place, size in enumerate(shape)]
            kind = helper.np_dtype_to_tensor_dtype(result.dtype)
            output.type.CopyFrom(helper.make_tensor_type_proto(kind, shape))
        return model

    def write(self, folder):
        model = self.model()
        running, rounded = session(model), session(with_rounded_weights(model))
        data_sets = []
        for number, inputs in enumerate(self.inputs):
            arrays = list(inputs.values())
            try:
                right = answers(running, list(inputs), arrays)
            except Skip:
                # Not every other size fits.
                if self.is_loose and number == len(self.inputs) - 1 > 0:
                    break
                raise
            nudged = [
                array * (1 + (1e-3 if array.dtype == numpy.float16 else 1e-6) * numpy.sign(array)).astype(array.dtype)
                if array.dtype.kind == "f"
                else array
                for array in arrays
            ]
            if any(result.dtype.kind == "f" and not (numpy.abs(result) < TOO_LARGE).all() for result in right):
                raise Skip("large values")
            for other, given in ((running, nudged), (rounded, arrays)):
                near = answers(other, list(inputs), given)
                if any(moved(a, b) > STEADY for a, b in zip(near, right)):
                    raise Skip("not steady")
            data_sets.append((arrays, right))
        cases.write(folder, model, data_sets)


def with_rounded_weights(model):
    """Integers can't be changed by as little as rounding does; what they meet can."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for weight in other.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array((array * F32(1 + 1e-6)).astype(F32), weight.name))
    return other


def make(seed):
    rng = random.Random(seed)
    graph = kinds.Graph(rng)
    kind = rng.choice(kinds.KINDS)
    kind(graph)
    names = list(graph.inputs)
    is_open = rng.random() < 0.75
    sets = [graph.inputs]
    for rows in (1, 1, 3) if is_open else (1, 1):
        values = numpy.random.default_rng(rng.randrange(1 << 32))
        sets.append({name: again(graph.inputs[name], values, is_open, rows) for name in names})
    is_loose = rng.random() < 0.3
    if is_loose:
        # Other sizes than those that the graph was made with.
        sizes = {name: [size + rng.choice([0, 0, 1, 2]) for size in graph.inputs[name].shape[1:]] for name in names}
        sets.append({name: again(numpy.empty((1, *sizes[name]), numpy.float32), values, True, 2 if is_open else graph.inputs[name].shape[0]) for name in names})
    outputs = [graph.last] + [graph.other] * (graph.other is not None and graph.other != graph.last)
    return kind.__name__, Case(graph.nodes, graph.weights, sets, outputs, is_open, is_loose)


def make_wide(seed, is_odd):
    """Any steps, one after another, in any version of the operator set."""
    rng = random.Random(seed)
    graph = live.Live(rng)
    rank = rng.choice([2, 3, 3, 4, 4, 5])
    sizes = [rng.choice([1, 2, 3, 4, 5, 6]) for _ in range(rank - 1)]
    graph.source((ROWS, *sizes), odd.of_type(rng) if is_odd and rng.random() < 0.3 else normal)
    if rng.random() < 0.4:
        is_fixed = rng.random() < 0.1
        other = [rng.choice([1, size, size]) for size in sizes]
        graph.source((1 if is_fixed else ROWS, *other), normal, is_fixed)
    # Sums of small integers wrap, which is a fault where the engine is built for tests.
    made = [odd.widened(graph, name) for name in graph.inputs] if is_odd else list(graph.inputs)
    families = [steps.ELEMENTWISE, steps.MOVING, layers.LAYERS, layers.SHAPES]
    families = rng.sample(families, rng.randint(2, 4)) + [layers.RARE] * (rng.random() < 0.25)
    if is_odd:
        families = [odd.ODD, odd.ODD, *families[:2]]
    wanted, tries = rng.randint(1, 10), 0
    while len(made) - len(graph.inputs) < wanted and tries < 40:
        tries += 1
        step, x = rng.choice(rng.choice(families)), rng.choice(made[-3:])
        known = len(graph.nodes)
        try:
            y = step(graph, x)
            made.append(odd.widened(graph, y) if is_odd else y)
        except (ValueError, IndexError, ZeroDivisionError):
            del graph.nodes[known:]
    if not graph.nodes:
        raise ValueError("no step fits")
    others = rng.sample(made[:-1], min(len(made) - 1, rng.choice([0, 0, 1, 2])))
    outputs = [made[-1], *[name for name in others if name not in graph.inputs and name != made[-1]]]
    nodes = used(graph.nodes, outputs)
    outputs = list(dict.fromkeys(outputs))
    if is_odd and rng.random() < 0.15:
        # An output that is an input, or is stored.
        read = [name for node in nodes for name in node.input if name in graph.inputs or name in graph.weights]
        outputs.append(rng.choice(read))
    return rng, graph, nodes, list(dict.fromkeys(outputs))


def normal(shape, random):
    return (random.normal(size=shape) * random.choice([0.1, 1.0, 1.0, 3.0])).astype(numpy.float32)


def wide(seed, is_odd=False):
    rng, graph, nodes, outputs = make_wide(seed, is_odd)
    read = {name for node in nodes for name in node.input} | {name for node in nodes for name in captured(node)}
    names = [name for name in graph.inputs if name in read]
    if not names or outputs[0] in graph.inputs:
        raise ValueError("nothing is read")
    is_open = rng.random() < 0.75
    values = numpy.random.default_rng(rng.randrange(1 << 32))
    sets = [{name: graph.inputs[name] for name in names}]

    def filled(rows, sizes):
        def shape(name):
            first, *rest = graph.inputs[name].shape
            first = rows if is_open and name not in graph.fixed else first
            return (first, *[size + sizes.get(place, 0) for place, size in enumerate(rest)])

        return {name: graph.fills[name](shape(name), values) for name in names}

    for rows in (1, 1, 3):
        sets.append(filled(rows, {}))
    is_loose = rng.random() < 0.3
    if is_loose:
        sets.append(filled(2, {place: rng.choice([0, 0, 1, 2]) for place in range(5)}))
    weights = {name: graph.weights[name] for name in graph.weights if name in read}
    return "odd" if is_odd else "wide", Case(nodes, weights, sets, outputs, is_open, is_loose, graph.opset, graph.fixed)


def captured(node):
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [name for graph in graphs for inner in graph.node for name in inner.input]


def again(array, values, is_open, rows):
    shape = (rows, *array.shape[1:]) if is_open else array.shape
    scale = values.choice([0.1, 1.0, 1.0, 3.0])
    return (values.normal(size=shape) * scale).astype(array.dtype)


def verdict(case, scratch):
    folder = scratch / "shrunk"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        case.write(folder)
    except (Skip, ValueError):
        return "skip", ""
    return cases.run([folder], *FLAGS)[folder]


def shrink(case, scratch, wrong):
    """Ends the graph at earlier values, and takes nodes out, for as long as it goes on to differ."""
    best, tries = case, 0
    is_smaller = True
    while is_smaller and tries < SMALLEST:
        is_smaller = False
        for node in best.nodes:
            tries += 1
            smaller = best.with_nodes(used(best.nodes, [node.output[0]]), [node.output[0]])
            if len(smaller.nodes) < len(best.nodes) and verdict(smaller, scratch)[0] == wrong:
                best, is_smaller = smaller, True
                break
        if is_smaller:
            continue
        for place, node in enumerate(best.nodes):
            if not node.input or node.output[0] in best.outputs:
                continue
            tries += 1
            rest = [renamed(other, node.output[0], node.input[0]) for i, other in enumerate(best.nodes) if i != place]
            smaller = best.with_nodes(used(rest, best.outputs), best.outputs)
            if verdict(smaller, scratch)[0] == wrong:
                best, is_smaller = smaller, True
                break
    names = {name for node in best.nodes for name in [*node.input, *captured(node)]}
    best.weights = {name: array for name, array in best.weights.items() if name in names}
    return best


def used(nodes, outputs):
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input) | set(captured(node))
    return kept[::-1]


def renamed(node, old, new):
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for place, name in enumerate(copy.input):
        if name == old:
            copy.input[place] = new
    return copy


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=1e9)
    arguments.add_argument("--count", type=int, default=1 << 62)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--kinds", choices=["usual", "wide", "odd", "all"], default="all")
    arguments.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("wrong-graphs"))
    options = arguments.parse_args()
    print(f"seed {options.seed}", flush=True)
    started, seed, wrong = time.monotonic(), options.seed * 1_000_000, 0
    verdicts, refusals, by_kind = (collections.Counter() for _ in range(3))
    while verdicts.total() < options.count and time.monotonic() - started < options.seconds:
        with tempfile.TemporaryDirectory() as scratch:
            scratch, made = pathlib.Path(scratch), {}
            while len(made) < min(ROUND, options.count - verdicts.total()):
                seed += 1
                wanted = ("usual", "wide", "odd")[seed % 3] if options.kinds == "all" else options.kinds
                try:
                    kind, case = make(seed) if wanted == "usual" else wide(seed, wanted == "odd")
                    folder = scratch / str(seed)
                    case.write(folder)
                    made[folder] = (kind, case)
                except (Skip, ValueError):
                    shutil.rmtree(scratch / str(seed), ignore_errors=True)
                    by_kind["left out"] += 1
            for folder, (found, why) in cases.run(list(made), *FLAGS).items():
                kind, case = made[folder]
                verdicts[found] += 1
                by_kind[kind] += 1
                if found == "refused":
                    refusals[re.sub(r'"[^"]*"|\d+', "_", why)[-130:]] += 1
                    # Right, or a fault that the comparison at load has kept from being served.
                    if "to differ" in why:
                        print(f"refused: seed {folder.name} ({kind}): {why[-200:]}", flush=True)
                if found not in ("wrong", "failed", "died"):
                    continue
                wrong += 1
                print(f"{found}: seed {folder.name} ({kind}): {why[:200]}", flush=True)
                if wrong <= 20:
                    small = shrink(case, scratch, found)
                    kept = options.keep / folder.name
                    shutil.rmtree(kept, ignore_errors=True)
                    small.write(kept)
                    print(f"  kept in {kept}:", flush=True)
                    for node in small.nodes:
                        print("   ", onnx.printer.to_text(node)[:160].replace("\n", " "))
    print(f"{verdicts.total()} graphs: {dict(verdicts)}, {dict(by_kind)}")
    for why, count in refusals.most_common(20):
        print(f"  refused {count}: {why}")
    if wrong:
        sys.exit(f"{wrong} of {verdicts.total()} graphs differ")


if __name__ == "__main__":
    main()
