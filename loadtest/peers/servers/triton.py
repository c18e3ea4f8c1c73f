"""ONNX Runtime with one thread behind Triton's Python backend: the ONNX backend is in no package."""

import os
import sys

# The backend's interpreter passes over it.
sys.path[:0] = os.environ["PYTHONPATH"].split(":")

import numpy  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as utils  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers = []
        for request in requests:
            inputs = {each.name(): each.as_numpy() for each in request.inputs()}
            names = [output.name for output in self.session.get_outputs()]
            results = zip(names, self.session.run(None, inputs), strict=True)
            tensors = [utils.Tensor(name, numpy.ascontiguousarray(array)) for name, array in results]
            answers.append(utils.InferenceResponse(output_tensors=tensors))
        return answers
