"""What the checks have in common: counting them, the bundled models, and how close is equal.

How close is equal: the engine behind the proxy and ONNX Runtime compute the same FP32 graphs but add
up in another order, so results differ by rounding: 2^-24 of a value's size at each of some thousand
additions, partly cancelled. TOLERANCE states for each model the largest absolute difference, on
outputs of the size of 1, with the largest that was seen in 12 runs (about 600 inputs, seeds 1 to 12)
beside it. The margin of five is for other processors, which add up in other orders. A wrong kernel, a
swapped row or a state that leaks into the next request shows at 1e-2 and more.
"""

import json
import sys
import traceback

import numpy
import onnxruntime
from fleet import MODELS
from tritonclient.utils import InferenceServerException

TOLERANCE = {
    # A softmax over 214 types, which are near a tie on noise, where it is steepest. Seen: 1.4e-6.
    "magika": 2e-5,
    # A softmax over two classes after some fifty convolutions. Seen: 3.8e-6.
    "ppocr-cls": 2e-5,
    # A probability, and a recurrent state of the size of 1 that sums up the past. Seen: 3.1e-6.
    "silero-vad": 2e-5,
}
# Seconds that the client waits for an answer.
PATIENCE = 30.0


class Checks:
    """Runs checks and counts them; a check is a function that raises if something is wrong."""

    def __init__(self):
        self.passed = self.failed = 0

    def run(self, name, check, *arguments):
        try:
            note = check(*arguments)
        except Exception:  # a failed check must not hide the others
            self.failed += 1
            print(f"FAIL  {name}")
            traceback.print_exc(file=sys.stdout)
        else:
            self.passed += 1
            print(f"ok    {name}" + (f": {note}" if note else ""), flush=True)


class Model:
    """A bundled model: ONNX Runtime's session on its file, and its example requests."""

    def __init__(self, name):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = MODELS / name / "1" / "model.onnx"
        providers = ["CPUExecutionProvider"]
        self.name = name
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.examples = {
            file.stem: arrays(json.loads(file.read_text()))
            for file in sorted((MODELS / name / "examples").glob("*.json"))
            if not file.name.endswith(".expected.json")
        }
        self.batches = all(isinstance(i.shape[0], str | None) for i in self.session.get_inputs())

    def expected(self, inputs):
        """What ONNX Runtime answers."""
        return dict(zip(self.outputs, self.session.run(None, inputs), strict=True))

    def random_inputs(self, rng, rows):
        """Noise of the form of an example: any byte or pad for integers, -1 to 1 for numbers."""
        example = next(iter(self.examples.values()))
        noise = {}
        for name, array in example.items():
            shape = (rows, *array.shape[1:]) if self.batches else array.shape
            if array.dtype == numpy.int32:
                noise[name] = rng.integers(0, 257, shape, numpy.int32)
            else:
                noise[name] = rng.uniform(-1, 1, shape).astype(numpy.float32)
        return noise


def arrays(request):
    """The tensors of a JSON request."""
    types = {"FP32": numpy.float32, "INT32": numpy.int32}
    return {
        tensor["name"]: numpy.array(tensor["data"], types[tensor["datatype"]]).reshape(tensor["shape"])
        for tensor in request["inputs"]
    }


def compare(model, inputs, found):
    """Raises unless `found` is what ONNX Runtime answers; returns the largest difference."""
    largest = 0.0
    for name, expected in model.expected(inputs).items():
        actual = found[name]
        assert actual is not None, f"no output {name}"
        assert actual.dtype == expected.dtype, f"expected {expected.dtype}, found {actual.dtype}"
        assert actual.shape == expected.shape, f"expected {expected.shape}, found {actual.shape}"
        largest = max(largest, float(numpy.abs(actual - expected).max()))
    tolerance = TOLERANCE[model.name]
    # Written so that NaN fails.
    assert largest <= tolerance, f"expected a difference of at most {tolerance}, found {largest}"
    return largest


def differs(largest):
    return f"differs by {largest:.1e}"


def refused(call, status, *words):
    """`call` must be refused with `status`, in words that name each of `words`."""
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == str(status), f"expected {status}, found {error}"
        missing = [word for word in words if word not in error.message()]
        assert not missing, f"expected {missing} to be named, found {error.message()!r}"
        return error.message()
    raise AssertionError("expected a refusal, found an answer")
