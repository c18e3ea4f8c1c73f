#!/usr/bin/env python3
"""Operators of classical models, with attributes drawn at random, beside ONNX Runtime.

Each node is a graph of its own with some sets of inputs: usual values, ties, what is no number, empty
batches, and, where the operator has any, inputs that it can't take, which have to be refused as a mistake of the
caller. What ONNX Runtime does not build or run is no case.

    tests/onnx/classical.py --seconds 60 --seed 7
"""

import argparse
import pathlib
import random
import sys
import tempfile
import time

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper

import cases

ML = "ai.onnx.ml"
FEATURES = 4
TRANSFORMS = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]
MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
VALUES = [-1.5, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]
NAMES = ["", "a", "b", "Cat", "dog", "ÄÖ", "x y"]


class Drawn:
    """A node, and sets of inputs for it."""

    def __init__(self, node, sets, outputs, version, weights=None, domain=ML):
        self.node, self.sets, self.outputs, self.version, self.domain = node, sets, outputs, version, domain
        self.weights = weights or {}

    def model(self):
        first = self.sets[0]

        def value(name, array):
            kind = TensorProto.STRING if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype)
            return helper.make_tensor_value_info(name, kind, [f"{name}{axis}" for axis in range(array.ndim)])

        graph = helper.make_graph(
            [self.node], "g", [value(*pair) for pair in first.items()],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in self.outputs],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, self.version), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def write(self, folder):
        model = self.model()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        results = []
        for inputs in self.sets:
            try:
                results.append(session.run(None, inputs))
            except Exception:  # noqa: BLE001: what it does not take is a mistake
                results.append(None)
        if results[0] is None:
            raise ValueError("the usual inputs are none")
        for output, result in zip(model.graph.output, results[0]):
            dims = output.type.tensor_type.shape
            dims.ClearField("dim")
            for axis in range(result.ndim):
                dims.dim.add().dim_param = f"{output.name}{axis}"
        cases.write(folder, model, [(list(i.values()), r) for i, r in zip(self.sets, results)])


def matrix(rng, kind=numpy.float32, rows=3, holes=False):
    values = numpy.array([[rng.choice(VALUES) for _ in range(FEATURES)] for _ in range(rows)])
    if holes and kind in (numpy.float32, numpy.float64):
        values[rng.randrange(rows), rng.randrange(FEATURES)] = numpy.nan
    return values.reshape(rows, FEATURES).astype(kind)


def inputs(rng, kind=numpy.float32):
    return [{"x": matrix(rng, kind)}, {"x": matrix(rng, kind, 9)}, {"x": matrix(rng, kind, 2, holes=True)}]


def labels(rng, count, ints):
    if rng.random() < 0.3:
        return {"classlabels_strings": [f"k{n}" for n in range(count)]}, TensorProto.STRING
    # Of two classes that both have votes, ONNX Runtime takes the numbers 0 and 1 for the labels.
    start = rng.choice([0, 0, 1, -3]) if count > 2 else 0
    return {ints: [start + n for n in range(count)]}, TensorProto.INT64


def grow(rng, tree, nodes, votes, depth, ids, modes, weigh):
    place = len(nodes)
    nodes.append(None)
    if depth == 0 or rng.random() < 0.2:
        nodes[place] = (tree, place - nodes_before(nodes, tree), 0, "LEAF", 0.0, 0, 0, 0)
        chosen = ids if rng.random() < 0.5 and len(ids) > 1 else [rng.choice(ids)]
        votes += [(tree, nodes[place][1], target, weigh()) for target in chosen]
        return nodes[place][1]
    own = place - nodes_before(nodes, tree)
    yes = grow(rng, tree, nodes, votes, depth - 1, ids, modes, weigh)
    no = grow(rng, tree, nodes, votes, depth - 1, ids, modes, weigh)
    nodes[place] = (tree, own, rng.randrange(FEATURES), rng.choice(modes), rng.choice(VALUES), yes, no, rng.randrange(2))
    return own


def nodes_before(nodes, tree):
    return next((place for place, node in enumerate(nodes) if node is None or node[0] == tree), 0) if tree == 0 else STARTS[tree]


STARTS = {}


def forest(rng, ids, weigh):
    nodes, votes = [], []
    modes = MODES if rng.random() < 0.4 else [rng.choice(MODES[:4])]
    for tree in range(rng.choice([1, 2, 5, 9, 17])):
        STARTS[tree] = len(nodes)
        grow(rng, tree, nodes, votes, rng.randrange(6), ids, modes, weigh)
    columns = list(zip(*nodes))
    attributes = dict(zip(["nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values", "nodes_truenodeids", "nodes_falsenodeids", "nodes_missing_value_tracks_true"], map(list, columns)))
    if rng.random() < 0.5:
        del attributes["nodes_missing_value_tracks_true"]
    return attributes, list(zip(*votes))


def tree_classifier(rng):
    classes = rng.choice([2, 2, 2, 3, 5])
    ids = list(range(classes))
    if classes == 2 and rng.random() < 0.6:
        ids = [rng.choice([0, 0, 1])]
    positive = rng.random() < 0.5
    attributes, votes = forest(rng, ids, lambda: rng.choice([0.125, 0.25, 0.5]) if positive else rng.choice([-0.5, 0.25, 0.125, -0.25]))
    named, kind = labels(rng, classes, "classlabels_int64s")
    names = ["class_treeids", "class_nodeids", "class_ids", "class_weights"]
    if rng.random() < 0.4:
        # One base value for two classes that both have votes leaves a score of ONNX Runtime's unset.
        count = rng.choice([2, 1]) if len(ids) == 1 else classes
        attributes["base_values"] = [rng.choice([0.25, -0.5, 0.5]) for _ in range(count)]
    transform = rng.choice(TRANSFORMS[:4])
    node = helper.make_node("TreeEnsembleClassifier", ["x"], ["y", "z"], domain=ML, post_transform=transform, **attributes, **named, **dict(zip(names, map(list, votes))))
    kind_of = rng.choice([numpy.float32] * 4 + [numpy.int64, numpy.float64])
    return Drawn(node, inputs(rng, kind_of), [("y", kind), ("z", TensorProto.FLOAT)], 1)


def tree_regressor(rng):
    targets = rng.choice([1, 1, 2, 3])
    attributes, votes = forest(rng, list(range(targets)), lambda: rng.choice(VALUES))
    names = ["target_treeids", "target_nodeids", "target_ids", "target_weights"]
    attributes |= dict(zip(names, map(list, votes)))
    if rng.random() < 0.4:
        attributes["base_values"] = [rng.choice(VALUES) for _ in range(targets)]
    attributes["aggregate_function"] = rng.choice(["SUM", "SUM", "AVERAGE", "MIN", "MAX"])
    attributes["n_targets"] = targets
    attributes["post_transform"] = rng.choice(TRANSFORMS[:3])
    kind, version = numpy.float32, 1
    if rng.random() < 0.3:
        kind, version = numpy.float64, 3
        for name in ("nodes_values", "target_weights", "base_values"):
            if name in attributes:
                values = attributes.pop(name)
                attributes[f"{name}_as_tensor"] = helper.make_tensor(name, TensorProto.DOUBLE, [len(values)], values)
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain=ML, **attributes)
    return Drawn(node, inputs(rng, kind), [("y", TensorProto.FLOAT)], version)


def tree_ensemble(rng):
    kind = rng.choice([numpy.float32, numpy.float64])
    element = helper.np_dtype_to_tensor_dtype(numpy.dtype(kind))
    targets = rng.choice([1, 2])
    branches, leaves, members, roots = [], [], [], []

    def grow_one(depth):
        if depth == 0 or rng.random() < 0.2:
            leaves.append((rng.randrange(targets), rng.choice(VALUES)))
            return len(leaves) - 1, 1
        place = len(branches)
        branches.append(None)
        mode = rng.randrange(7)
        if mode == 6:
            members.append([rng.choice(VALUES) for _ in range(2)])
        yes, yes_leaf = grow_one(depth - 1)
        no, no_leaf = grow_one(depth - 1)
        branches[place] = (rng.randrange(FEATURES), mode, rng.choice(VALUES), yes, yes_leaf, no, no_leaf, rng.randrange(2))
        return place, 0

    for _ in range(rng.choice([1, 3, 9])):
        place, is_leaf = grow_one(rng.randrange(1, 5))
        while is_leaf:
            place, is_leaf = grow_one(3)
        roots.append(place)
    columns = list(map(list, zip(*branches)))
    numbers = lambda name, values: helper.make_tensor(name, element, [len(values)], values)  # noqa: E731
    attributes = dict(
        nodes_featureids=columns[0], nodes_modes=helper.make_tensor("modes", TensorProto.UINT8, [len(branches)], columns[1]),
        nodes_splits=numbers("splits", columns[2]), nodes_truenodeids=columns[3], nodes_trueleafs=columns[4],
        nodes_falsenodeids=columns[5], nodes_falseleafs=columns[6], tree_roots=roots, n_targets=targets,
        leaf_targetids=[leaf[0] for leaf in leaves], leaf_weights=numbers("weights", [leaf[1] for leaf in leaves]),
        aggregate_function=rng.choice([0, 1, 1, 2, 3]), post_transform=0,
    )
    if rng.random() < 0.5:
        attributes["nodes_missing_value_tracks_true"] = columns[7]
    # Sets stand in the order of the nodes that ask for them.
    if members:
        flat = []
        for one in members:
            flat += [*one, float("nan")]
        attributes["membership_values"] = numbers("members", flat[:-1])
    node = helper.make_node("TreeEnsemble", ["x"], ["y"], domain=ML, **attributes)
    return Drawn(node, inputs(rng, kind), [("y", element)], 5)


def linear(rng):
    targets = rng.choice([1, 2, 3])
    coefficients = [rng.choice(VALUES) for _ in range(targets * FEATURES)]
    intercepts = [rng.choice(VALUES) for _ in range(targets)]
    transform = rng.choice(TRANSFORMS[:4])
    if rng.random() < 0.3:
        node = helper.make_node("LinearRegressor", ["x"], ["y"], domain=ML, coefficients=coefficients, intercepts=intercepts, targets=targets, post_transform=transform)
        return Drawn(node, inputs(rng), [("y", TensorProto.FLOAT)], 1)
    named, kind = labels(rng, max(targets, 2), "classlabels_ints")
    node = helper.make_node("LinearClassifier", ["x"], ["y", "z"], domain=ML, coefficients=coefficients, intercepts=intercepts, post_transform=transform, multi_class=int(targets > 2), **named)
    return Drawn(node, inputs(rng, rng.choice([numpy.float32, numpy.float64, numpy.int64]))[:2], [("y", kind), ("z", TensorProto.FLOAT)], 1)


def vectors(rng):
    kernel = rng.choice(["LINEAR", "POLY", "RBF", "SIGMOID"])
    settings = dict(kernel_type=kernel, kernel_params=[rng.choice([0.1, 0.5]), rng.choice([0.0, 1.0]), 2.0])
    weights = lambda count: [rng.choice([-1.0, -0.5, 0.4, 1.0]) for _ in range(count)]  # noqa: E731
    if rng.random() < 0.3:
        count = rng.choice([0, 3])
        node = helper.make_node(
            "SVMRegressor", ["x"], ["y"], domain=ML, n_supports=count, coefficients=weights(count or FEATURES), rho=[0.3],
            one_class=rng.randrange(2), support_vectors=weights(count * FEATURES) or [0.0], **settings,
        )
        return Drawn(node, inputs(rng)[:2], [("y", TensorProto.FLOAT)], 1)
    classes = rng.choice([2, 2, 3, 4])
    per = [rng.randrange(1, 4) for _ in range(classes)]
    named, kind = labels(rng, classes, "classlabels_ints")
    pairs = classes * (classes - 1) // 2
    if rng.random() < 0.4:
        settings |= dict(prob_a=[-0.5] * pairs, prob_b=[0.1] * pairs)
    node = helper.make_node(
        "SVMClassifier", ["x"], ["y", "z"], domain=ML, vectors_per_class=per, support_vectors=weights(sum(per) * FEATURES),
        coefficients=weights(sum(per) * (classes - 1)), rho=weights(pairs), post_transform=rng.choice(TRANSFORMS[:3]), **named, **settings,
    )
    return Drawn(node, inputs(rng)[:2], [("y", kind), ("z", TensorProto.FLOAT)], 1)


def feature(rng):
    kind = rng.choice([numpy.float32, numpy.float64, numpy.int64])
    given = inputs(rng, kind)
    op = rng.choice(["Scaler", "Normalizer", "Binarizer", "Imputer", "ArrayFeatureExtractor", "FeatureVectorizer"])
    many = lambda: [rng.choice(VALUES) for _ in range(rng.choice([1, FEATURES]))]  # noqa: E731
    output = [("y", TensorProto.FLOAT)]
    if op == "Scaler":
        node = helper.make_node(op, ["x"], ["y"], domain=ML, offset=many(), scale=many())
    elif op == "Normalizer":
        given = given[:2]
        node = helper.make_node(op, ["x"], ["y"], domain=ML, norm=rng.choice(["MAX", "L1", "L2"]))
    elif op == "Binarizer":
        node, given = helper.make_node(op, ["x"], ["y"], domain=ML, threshold=0.25), inputs(rng)
    elif op == "Imputer":
        kind = rng.choice([numpy.float32, numpy.int64])
        given = inputs(rng, kind)
        if kind == numpy.int64:
            node = helper.make_node(op, ["x"], ["y"], domain=ML, imputed_value_int64s=[7], replaced_value_int64=0)
        else:
            node = helper.make_node(op, ["x"], ["y"], domain=ML, imputed_value_floats=many(), replaced_value_float=rng.choice([float("nan"), 0.5]))
        output = [("y", helper.np_dtype_to_tensor_dtype(numpy.dtype(kind)))]
    elif op == "ArrayFeatureExtractor":
        places = lambda values: {"i": numpy.array(values, numpy.int64)}  # noqa: E731
        given = [{"x": matrix(rng, kind)} | places(p) for p in ([0, 2], [3, 3], [FEATURES, 0], [-1, 0])]
        node = helper.make_node(op, ["x", "i"], ["y"], domain=ML)
        output = [("y", helper.np_dtype_to_tensor_dtype(numpy.dtype(kind)))]
    else:
        given = [{"x": matrix(rng), "i": matrix(rng, numpy.float32)} for _ in range(2)]
        node = helper.make_node(op, ["x", "i"], ["y"], domain=ML, inputdimensions=[FEATURES, rng.choice([2, FEATURES])])
    return Drawn(node, given, output, 1)


def keyed(rng):
    kinds = {"strings": (object, TensorProto.STRING, NAMES), "int64s": (numpy.int64, TensorProto.INT64, [-3, 0, 4, 2**40, 7]), "floats": (numpy.float32, TensorProto.FLOAT, [0.0, 1.5, float("nan"), -2.0])}
    draw = lambda values, kind: numpy.array([[rng.choice(values) for _ in range(3)] for _ in range(2)], dtype=kind)  # noqa: E731
    if rng.random() < 0.3:
        classes = NAMES[1:5]
        settings = dict(cats_strings=classes) if rng.random() < 0.5 else dict(cats_int64s=[0, 4, 7])
        kind, values = (object, NAMES) if "cats_strings" in settings else (rng.choice([numpy.int64, numpy.float32]), [0, 4, 7, 9])
        known = classes if kind is object else [0, 4, 7]
        node = helper.make_node("OneHotEncoder", ["x"], ["y"], domain=ML, zeros=rng.randrange(2), **settings)
        return Drawn(node, [{"x": draw(known, kind)}, {"x": draw(values, kind)}, {"x": draw(values, kind)}], [("y", TensorProto.FLOAT)], 1)
    if rng.random() < 0.2:
        of_text = rng.random() < 0.5
        kind, values = (object, NAMES) if of_text else (numpy.int64, [0, 1, 2, 9])
        node = helper.make_node("CategoryMapper", ["x"], ["y"], domain=ML, cats_strings=NAMES[1:4], cats_int64s=[0, 1, 2])
        return Drawn(node, [{"x": draw(values, kind)}] * 2, [("y", TensorProto.INT64 if of_text else TensorProto.STRING)], 1)
    source, target = rng.choice(list(kinds)), rng.choice(list(kinds))
    keys, values = kinds[source][2][:4], kinds[target][2][:4]
    node = helper.make_node("LabelEncoder", ["x"], ["y"], domain=ML, **{f"keys_{source}": keys, f"values_{target}": [values[n % len(values)] for n in range(len(keys))]})
    asked = kinds[source][2]
    return Drawn(node, [{"x": draw(asked, kinds[source][0])} for _ in range(3)], [("y", kinds[target][1])], rng.choice([2, 4]))


def counted(rng):
    """n-grams, of numbers or texts."""
    of_text = rng.random() < 0.5
    pool = [1, 2, 3, 1, 2, 2, 3, 1, 1, 1, 2, 3, 2, 1, 2]
    names = {1: "a", 2: "b", 3: "c", 4: "d"}
    least = rng.randrange(1, 4)
    settings = dict(mode=rng.choice(["TF", "IDF", "TFIDF"]), min_gram_length=least, max_gram_length=rng.randrange(least, 4), max_skip_count=rng.randrange(3), ngram_counts=[0, 3, 9], ngram_indexes=rng.sample(range(8), 8), weights=[0.5 * n for n in range(8)])
    settings |= {"pool_strings": [names[n] for n in pool]} if of_text else {"pool_int64s": pool}
    shape = rng.choice([(12,), (3, 8), (1, 5), (2, 1)])
    token = lambda: rng.randrange(1, 5)  # noqa: E731
    count = int(numpy.prod(shape))
    draw = lambda: numpy.array([names[token()] if of_text else token() for _ in range(count)], dtype=object if of_text else numpy.int64).reshape(shape)  # noqa: E731
    return Drawn(helper.make_node("TfIdfVectorizer", ["x"], ["y"], **settings), [{"x": draw()} for _ in range(3)], [("y", TensorProto.FLOAT)], 1)


KINDS = [tree_classifier, tree_classifier, tree_regressor, tree_ensemble, linear, vectors, feature, keyed, counted]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=30)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--keep", type=pathlib.Path, help="a folder for what is answered wrongly")
    options = arguments.parse_args()
    rng, ends, problems, counts = random.Random(options.seed), time.monotonic() + options.seconds, [], {}
    while time.monotonic() < ends:
        with tempfile.TemporaryDirectory() as scratch:
            written, drawn = [], {}
            for place in range(100):
                make = rng.choice(KINDS)
                folder = pathlib.Path(scratch) / f"{make.__name__}.{place}"
                try:
                    case = make(rng)
                    case.write(folder)
                except Exception as error:  # noqa: BLE001: what ONNX Runtime does not build is no case
                    counts["none"] = counts.get("none", 0) + 1
                    counts.setdefault(f"none: {make.__name__}: {str(error)[:60]}", 0)
                    continue
                written.append(folder)
                drawn[folder] = case
            for folder, (verdict, why) in cases.run(written, "--batch", "8").items():
                counts[verdict] = counts.get(verdict, 0) + 1
                if verdict != "ok":
                    node = drawn[folder].node
                    told = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("post_transform", "base_values", "class_ids", "aggregate_function", "mode", "kernel_type", "zeros")}
                    problems.append(f"{node.op_type} {verdict}: {why[:400]} {str(told)[:200]}")
                    if options.keep:
                        import shutil

                        shutil.copytree(folder, options.keep / f"{len(problems)}-{node.op_type}", dirs_exist_ok=True)
    print({name: count for name, count in counts.items() if not name.startswith("none: ")})
    if problems:
        sys.exit("\n".join(problems[:25]))


if __name__ == "__main__":
    main()
