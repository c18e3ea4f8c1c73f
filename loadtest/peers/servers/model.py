"""ONNX Runtime with one thread behind MLServer, as its documentation has custom runtimes."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload):
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        names = [output.name for output in self.session.get_outputs()]
        results = zip(names, self.session.run(None, inputs), strict=True)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in results]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)
