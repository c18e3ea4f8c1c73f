#!/usr/bin/env python3
"""What usual exporters make, served by the worker beside ONNX Runtime.

    cargo build --release --workspace
    tests/onnx/exports.sh                        the table of all exports
    tests/onnx/exports.sh --only tree svm        those with one of these in their names
    tests/onnx/exports.sh --keep FOLDER          also leaves the files in a folder

Models of scikit-learn, XGBoost and LightGBM are fitted here and exported by skl2onnx and onnxmltools as their
manuals say. Each is served, and requests of 1, 3 and 32 rows are compared with ONNX Runtime's answers, and so are
requests from several clients at once. "right" is all of them; "refused" has the reason that the worker gives,
which must name an operator or a cure.

With --against BARS the script fails if fewer are right than the file says, or if an answer is wrong.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
import numpy  # noqa: E402
import onnxruntime  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "backends/tract"))
import shapes  # noqa: E402

TOLERANCE = 1e-4
ROWS = [1, 3, 32, 1, 7]
CLIENTS = 8
TYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "object": "BYTES"}
WORDS = "the cat sat on a mat buy cheap pills now great lunch friday dogs at cafe deadline meeting".split()
COLOURS = numpy.array(["red", "green", "blue", "grey"], dtype=object)


def made():
    """Name, and a function that gives a model's bytes and a function that gives inputs of so many rows."""
    from sklearn import (
        cluster, compose, decomposition, discriminant_analysis, ensemble, feature_extraction, feature_selection,
        gaussian_process, impute, linear_model, naive_bayes, neighbors, neural_network, pipeline, preprocessing, svm,
        tree,
    )

    random = numpy.random.default_rng(3)
    x = random.normal(size=(300, 8)).astype(numpy.float32)
    target = x[:, 0] * 2 + numpy.sin(x[:, 1] * 2) + 0.1 * random.normal(size=300)
    classes = {n: numpy.digitize(target, numpy.quantile(target, numpy.arange(1, n) / n)) for n in (2, 5)}
    words = {n: numpy.array([f"class-{k}" for k in range(n)], dtype=object)[y] for n, y in classes.items()}

    def floats(rows, draw):
        return {"X": draw.normal(size=(rows, 8)).astype(numpy.float32)}

    def sk(model, y, inputs=floats, fit=x, types=None, **options):
        def export():
            from skl2onnx import to_onnx

            model.fit(fit, y) if y is not None else model.fit(fit)
            settings = {"zipmap": False} if options.pop("zipmap", None) is None else {}
            settings = {id(model): settings} if hasattr(model, "predict_proba") and settings else None
            if hasattr(model, "decision_function") and not hasattr(model, "predict_proba"):
                settings = None
            first = fit[:1] if types is None else None
            return to_onnx(model, first, initial_types=types, options=settings, target_opset=options.get("opset", 18)).SerializeToString()

        return export, inputs

    boosters = {}
    for n in (2, 5):
        y, named = classes[n], words[n]
        yield f"tree-classifier-{n}", *sk(tree.DecisionTreeClassifier(max_depth=5), y)
        yield f"forest-classifier-{n}", *sk(ensemble.RandomForestClassifier(30, max_depth=6), y)
        yield f"forest-classifier-{n}-text", *sk(ensemble.RandomForestClassifier(10, max_depth=6), named)
        yield f"extra-trees-classifier-{n}", *sk(ensemble.ExtraTreesClassifier(20, max_depth=6), y)
        yield f"boosting-classifier-{n}", *sk(ensemble.GradientBoostingClassifier(n_estimators=15), y)
        yield f"hist-boosting-classifier-{n}", *sk(ensemble.HistGradientBoostingClassifier(max_iter=15), y)
        yield f"ada-classifier-{n}", *sk(ensemble.AdaBoostClassifier(n_estimators=5), y)
        yield f"bagging-classifier-{n}", *sk(ensemble.BaggingClassifier(n_estimators=4), y)
        yield f"logistic-{n}", *sk(linear_model.LogisticRegression(), y)
        yield f"logistic-{n}-zipmap", *sk(linear_model.LogisticRegression(), y, zipmap=True)
        yield f"logistic-{n}-text", *sk(linear_model.LogisticRegression(), named)
        yield f"sgd-{n}", *sk(linear_model.SGDClassifier(loss="log_loss"), y)
        yield f"svc-{n}", *sk(svm.SVC(), y)
        yield f"svc-{n}-probability", *sk(svm.SVC(probability=True), y)
        yield f"linear-svc-{n}", *sk(svm.LinearSVC(), y)
        yield f"neighbours-classifier-{n}", *sk(neighbors.KNeighborsClassifier(3), y)
        yield f"perceptron-classifier-{n}", *sk(neural_network.MLPClassifier((16,), max_iter=50), y)
        yield f"gaussian-bayes-{n}", *sk(naive_bayes.GaussianNB(), y)
        yield f"discriminant-{n}", *sk(discriminant_analysis.LinearDiscriminantAnalysis(), y)
        yield f"scaled-forest-{n}", *sk(pipeline.make_pipeline(preprocessing.StandardScaler(), ensemble.RandomForestClassifier(10, max_depth=5)), y)
        yield f"voting-{n}", *sk(ensemble.VotingClassifier([("a", linear_model.LogisticRegression()), ("b", tree.DecisionTreeClassifier(max_depth=4))], voting="soft", flatten_transform=False), y)
        yield f"calibrated-{n}", *calibrated(sk, y)
        yield f"xgboost-classifier-{n}", *boosted(x, y, "xgboost", floats, True)
        yield f"lightgbm-classifier-{n}", *boosted(x, y, "lightgbm", floats, True)
    yield "tree-regressor", *sk(tree.DecisionTreeRegressor(max_depth=6), target)
    yield "forest-regressor", *sk(ensemble.RandomForestRegressor(30, max_depth=7), target)
    yield "forest-regressor-2", *sk(ensemble.RandomForestRegressor(10, max_depth=5), numpy.stack([target, -target], 1))
    yield "boosting-regressor", *sk(ensemble.GradientBoostingRegressor(n_estimators=20), target)
    yield "hist-boosting-regressor", *sk(ensemble.HistGradientBoostingRegressor(max_iter=20), target)
    yield "linear-regressor", *sk(linear_model.LinearRegression(), target)
    yield "ridge-2", *sk(linear_model.Ridge(), numpy.stack([target, -target], 1))
    yield "svr", *sk(svm.SVR(), target)
    yield "neighbours-regressor", *sk(neighbors.KNeighborsRegressor(3), target)
    yield "perceptron-regressor", *sk(neural_network.MLPRegressor(hidden_layer_sizes=(16, 8), max_iter=50), target)
    yield "gaussian-process", *sk(gaussian_process.GaussianProcessRegressor(), target)
    yield "xgboost-regressor", *boosted(x, target, "xgboost", floats, False)
    yield "lightgbm-regressor", *boosted(x, target, "lightgbm", floats, False)
    yield "isolation-forest", *sk(ensemble.IsolationForest(n_estimators=10), None)
    yield "one-class-svm", *sk(svm.OneClassSVM(), None)
    yield "k-means", *sk(cluster.KMeans(4, n_init=1), None)
    yield "pca", *sk(decomposition.PCA(3), None)
    yield "scalers", *sk(pipeline.make_pipeline(preprocessing.MinMaxScaler(), preprocessing.RobustScaler(), preprocessing.Normalizer()), None)
    yield "binarizer", *sk(preprocessing.Binarizer(threshold=0.2), None)
    yield "polynomial", *sk(pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()), target)
    yield "discretizer", *sk(pipeline.make_pipeline(preprocessing.KBinsDiscretizer(4, encode="ordinal"), linear_model.Ridge()), target)
    yield "selected", *sk(pipeline.make_pipeline(feature_selection.SelectKBest(k=4), linear_model.LogisticRegression()), classes[2])
    holes = x.copy()
    holes[random.random(x.shape) < 0.1] = numpy.nan
    yield "imputed", *sk(pipeline.make_pipeline(impute.SimpleImputer(), linear_model.LogisticRegression()), classes[2], fit=holes)
    yield "columns", *columns(target)
    yield "columns-forest", *columns(target, forest=True)
    yield "ordinal-text", *ordinal()
    integers = random.integers(0, 6, (200, 4)).astype(numpy.int64)
    whole = lambda rows, draw: {"X": draw.integers(0, 6, (rows, 4)).astype(numpy.int64)}  # noqa: E731
    yield "one-hot-integers", *sk(pipeline.make_pipeline(preprocessing.OneHotEncoder(handle_unknown="ignore"), linear_model.LogisticRegression()), integers.sum(1) > 10, whole, integers)
    counts = numpy.abs(x)
    positive = lambda rows, draw: {"X": numpy.abs(draw.normal(size=(rows, 8))).astype(numpy.float32)}  # noqa: E731
    yield "multinomial-bayes", *sk(naive_bayes.MultinomialNB(), classes[5], positive, counts)
    for name, vectorizer in (
        ("counts", feature_extraction.text.CountVectorizer()),
        ("tfidf", feature_extraction.text.TfidfVectorizer(token_pattern="[a-zA-Z0-9_]+")),
        ("tfidf-pairs", feature_extraction.text.TfidfVectorizer(token_pattern="[a-zA-Z0-9_]+", ngram_range=(1, 2))),
    ):
        yield f"text-{name}", *texts(vectorizer)
    wide = x.astype(numpy.float64)
    doubles = lambda rows, draw: {"X": draw.normal(size=(rows, 8))}  # noqa: E731
    yield "forest-regressor-double", *sk(ensemble.RandomForestRegressor(10, max_depth=5), target, doubles, wide)
    yield "boosting-regressor-double", *sk(ensemble.GradientBoostingRegressor(n_estimators=10), target, doubles, wide)
    yield "logistic-double", *sk(linear_model.LogisticRegression(), classes[2], doubles, wide)
    del boosters


def calibrated(sk, y):
    from sklearn import calibration, linear_model

    return sk(calibration.CalibratedClassifierCV(linear_model.LogisticRegression(), cv=2), y)


def boosted(x, y, package, inputs, is_classifier):
    def export():
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        if package == "xgboost":
            import xgboost

            model = (xgboost.XGBClassifier if is_classifier else xgboost.XGBRegressor)(n_estimators=20, max_depth=4)
            convert, options = onnxmltools.convert_xgboost, {}
        else:
            import lightgbm

            model = (lightgbm.LGBMClassifier if is_classifier else lightgbm.LGBMRegressor)(n_estimators=20, verbose=-1)
            convert, options = onnxmltools.convert_lightgbm, {"zipmap": False} if is_classifier else {}
        model.fit(x, y)
        return convert(model, initial_types=[("X", FloatTensorType([None, x.shape[1]]))], target_opset=15, **options).SerializeToString()

    return export, inputs


def frame(rows, draw):
    return {
        "size": draw.normal(size=(rows, 1)).astype(numpy.float32),
        "age": draw.integers(0, 9, (rows, 1)).astype(numpy.int64),
        "colour": draw.choice(COLOURS, (rows, 1)),
    }


def columns(_, forest=False):
    """A table of numbers, integers and texts, as most pipelines have."""

    def export():
        import pandas
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
        from sklearn import compose, ensemble, linear_model, pipeline, preprocessing

        draw = numpy.random.default_rng(5)
        table = {name: column[:, 0] for name, column in frame(200, draw).items()}
        table = pandas.DataFrame(table)
        y = (table["size"] + (table["colour"] == "red") > 0.3).astype(int)
        prepared = compose.ColumnTransformer([
            ("scaled", preprocessing.StandardScaler(), ["size", "age"]),
            ("named", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["colour"]),
        ])
        last = ensemble.RandomForestClassifier(10, max_depth=4) if forest else linear_model.LogisticRegression()
        model = pipeline.Pipeline([("prepared", prepared), ("last", last)]).fit(table, y)
        types = [("size", FloatTensorType([None, 1])), ("age", Int64TensorType([None, 1])), ("colour", StringTensorType([None, 1]))]
        return to_onnx(model, initial_types=types, options={id(model): {"zipmap": False}}, target_opset=18).SerializeToString()

    return export, frame


def ordinal():
    def export():
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import StringTensorType
        from sklearn import pipeline, preprocessing, tree

        draw = numpy.random.default_rng(5)
        table = draw.choice(COLOURS, (200, 2))
        y = (table[:, 0] == "red") | (table[:, 1] == "blue")
        model = pipeline.make_pipeline(preprocessing.OrdinalEncoder(), tree.DecisionTreeClassifier()).fit(table, y.astype(int))
        return to_onnx(model, initial_types=[("X", StringTensorType([None, 2]))], options={id(model): {"zipmap": False}}, target_opset=18).SerializeToString()

    return export, lambda rows, draw: {"X": draw.choice(COLOURS, (rows, 2))}


def sentences(rows, draw):
    text = lambda: " ".join(draw.choice(WORDS, draw.integers(1, 8)))  # noqa: E731
    return {"text": numpy.array([[text()] for _ in range(rows)], dtype=object)}


def texts(vectorizer):
    def export():
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import StringTensorType
        from sklearn import linear_model, pipeline

        draw = numpy.random.default_rng(5)
        lines = sentences(200, draw)["text"][:, 0]
        y = numpy.array(["cheap" in line or "cat" in line for line in lines]).astype(int)
        model = pipeline.make_pipeline(vectorizer, linear_model.LogisticRegression()).fit(lines, y)
        return to_onnx(model, initial_types=[("text", StringTensorType([None, 1]))], options={id(model): {"zipmap": False}}, target_opset=18).SerializeToString()

    return export, sentences


def encode(value):
    data = value.ravel().tolist()
    return {"shape": list(value.shape), "datatype": TYPES[str(value.dtype)], "data": data}


def decode(output):
    data, kind = output["data"], {"FP32": numpy.float32, "FP64": numpy.float64, "BYTES": object}.get(output["datatype"], numpy.int64)
    return numpy.array(data, dtype=kind).reshape(output["shape"])


def ask(port, name, inputs):
    body = json.dumps({"inputs": [{"name": key, **encode(value)} for key, value in inputs.items()]})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", f"/v2/models/{name}/infer", body)
        response = connection.getresponse()
        text = response.read().decode()
    if response.status != 200:
        raise ValueError(f"{response.status} {text[:200]}")
    return {output["name"]: decode(output) for output in json.loads(text)["outputs"]}


def table(value):
    """What a `ZipMap` makes, as the tensor that it is given."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return numpy.array([list(row.values()) for row in value], dtype=numpy.float32)
    return numpy.asarray(value)


def difference(found, right):
    for name, value in right.items():
        value, answer = table(value), found.get(name)
        if answer is None or answer.shape != value.shape:
            return f"{name}: shape {None if answer is None else answer.shape} for {value.shape}"
        if value.dtype.kind == "f":
            with numpy.errstate(all="ignore"):
                off = numpy.abs(answer - value) / numpy.maximum(1, numpy.abs(value))
            if not ((off <= TOLERANCE) | (answer == value)).all():
                return f"{name}: off by {numpy.nanmax(off):.2g}"
        elif not (answer == value).all():
            return f"{name}: {answer.ravel()[:4]} for {value.ravel()[:4]}"
    return None


class Export:
    def __init__(self, name, onnx, inputs):
        self.name, self.inputs = name, inputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def right(self, inputs):
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs)))

    def drawn(self, rows, draw):
        names = [value.name for value in self.session.get_inputs()]
        inputs = self.inputs(rows, draw)
        return dict(zip(names, inputs.values())) if len(names) == 1 else inputs

    def check(self, port):
        draw = numpy.random.default_rng(11)
        asked = [self.drawn(rows, draw) for rows in ROWS]
        rights = [self.right(inputs) for inputs in asked]
        for inputs, right in zip(asked, rights):
            if why := difference(ask(port, self.name, inputs), right):
                return why
        many = [self.drawn(1 + place % 3, draw) for place in range(3 * CLIENTS)]
        rights = [self.right(inputs) for inputs in many]
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(lambda inputs: ask(port, self.name, inputs), many))
        whys = [difference(*pair) for pair in zip(found, rights)]
        return next((f"beside others: {why}" for why in whys if why), None)


def index(worker):
    entries = json.loads(worker.ask("POST", "/v2/repository/index", b"{}")[1])
    return {entry["name"]: (entry.get("state"), entry.get("reason", "")) for entry in entries}


def wait_for(worker, names):
    while True:
        states = index(worker)
        under_way = ("", "waiting", "loading")
        if all(states.get(name, ("", ""))[0] == "READY" or not states.get(name, ("", ""))[1].startswith(under_way[1:]) and states.get(name, ("", ""))[1] for name in names):
            return states
        time.sleep(0.2)


def exported(only, keep):
    for name, export, inputs in made():
        if only and not any(part in name for part in only):
            continue
        try:
            onnx = export()
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}.onnx").write_bytes(onnx)
            yield Export(name, onnx, inputs), onnx
        except Exception as error:  # noqa: BLE001: an exporter that can't is none
            print(f"{name:34} not exported: {str(error)[:100]!r}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--worker", default=str(ROOT / "target/release/forebay-worker"))
    arguments.add_argument("--only", nargs="*", default=[])
    arguments.add_argument("--keep", type=pathlib.Path)
    arguments.add_argument("--least", type=float, default=0.0, help="share of exports that must be right")
    options = arguments.parse_args()
    counts = {"right": 0, "refused": 0, "wrong": 0}
    with tempfile.TemporaryDirectory() as scratch:
        repository, exports = pathlib.Path(scratch) / "models", []
        for export, onnx in exported(options.only, options.keep):
            version = repository / export.name / "1"
            version.mkdir(parents=True)
            (version / "model.onnx").write_bytes(onnx)
            (version.parent / "model.toml").write_text("allow_non_finite = true\n")
            exports.append(export)
        with contextlib.closing(shapes.Worker(options.worker, repository)) as worker:
            states = wait_for(worker, [export.name for export in exports])
            for export in exports:
                state, reason = states[export.name]
                if state != "READY":
                    verdict, why = "refused", reason
                else:
                    try:
                        why = export.check(worker.connection.port) or ""
                    except Exception as error:  # noqa: BLE001: no answer is no right one
                        why = str(error)
                    verdict = "wrong" if why else "right"
                counts[verdict] += 1
                print(f"{export.name:34} {verdict:8} {why[:150]}", flush=True)
    total = sum(counts.values())
    print(f"{counts['right']} of {total} exports are right, {counts['refused']} refused, {counts['wrong']} wrong")
    if counts["wrong"] or counts["right"] < options.least * total:
        sys.exit(1)


if __name__ == "__main__":
    main()
