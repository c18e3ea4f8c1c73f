#!/usr/bin/env python3
"""Write examples/*.json and examples/*.expected.json of each bundled model.

The requests are Open Inference Protocol bodies with realistic inputs, prepared as the models' own
packages prepare them; the expected responses come from ONNX Runtime on the same (rounded) numbers.
Needs: pip install numpy==2.* onnxruntime==1.* pillow==12.*
"""

import json
import math
import pathlib

import numpy
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

HERE = pathlib.Path(__file__).parent
DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


def write(model, name, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(HERE / model / "1" / "model.onnx", options)
    outputs = session.run(None, inputs)
    request = {"id": name, "inputs": [tensor(n, a) for n, a in inputs.items()]}
    names = [output.name for output in session.get_outputs()]
    response = {
        "model_name": model,
        "model_version": "1",
        "id": name,
        "outputs": [tensor(n, a) for n, a in zip(names, outputs)],
    }
    folder = HERE / model / "examples"
    for suffix, message in ((".json", request), (".expected.json", response)):
        (folder / (name + suffix)).write_text(json.dumps(message) + "\n")
    for output in response["outputs"]:
        print(model, name, output["name"], output["shape"], describe(model, output["data"]))


def tensor(name, array):
    # Shortest digits that give the same FP32 again.
    data = [float(str(x)) if array.dtype == numpy.float32 else int(x) for x in array.ravel()]
    data = [int(x) if x == int(x) else x for x in data]
    shape = list(array.shape)
    return {"name": name, "datatype": DATATYPES[str(array.dtype)], "shape": shape, "data": data}


def describe(model, data):
    labels = HERE / model / "labels.txt"
    best = max(range(len(data)), key=data.__getitem__)
    if labels.exists() and len(data) > 1:
        return f"{labels.read_text().splitlines()[best]} {data[best]:.3f}"
    return f"{data[0]:.3f}"


def magika(content):
    """1,024 bytes from either end of the stripped content, padded with 256."""
    size, block, padding = 1024, 4096, 256
    first = list(content[:block].lstrip()[:size])
    last = list(content[-block:].rstrip()[-size:])
    tokens = first + [padding] * (size - len(first)) + [padding] * (size - len(last)) + last
    return {"bytes": numpy.array([tokens], numpy.int32)}


def silero(samples):
    """64 samples of context and 512 new ones at 16 kHz; the state of a first chunk is zero."""
    samples = numpy.round(samples, 5).astype(numpy.float32).reshape(1, 576)
    return {"input": samples, "state": numpy.zeros((2, 1, 128), numpy.float32)}


def vowel():
    """A voice-like sound: harmonics of a gliding 120 Hz, shaped by the formants of an 'a'."""
    rate, formants = 16000, ((730, 90), (1090, 110), (2440, 170))
    total = numpy.zeros(576)
    for n in range(576):
        t = n / rate
        phase = 2 * math.pi * (120 * t + 150 * t * t)
        for harmonic in range(1, 30):
            frequency = harmonic * (120 + 300 * t)
            gain = sum(1 / (1 + ((frequency - f) / width) ** 2) for f, width in formants)
            total[n] += gain * math.sin(harmonic * phase)
    return 0.4 * total / numpy.abs(total).max()


def ppocr(text, upside_down):
    """A line of black text on white, 48 high, at most 192 wide, scaled to -1..1, BGR, padded with 0."""
    font = ImageFont.load_default(size=34)
    width = int(font.getlength(text)) + 16
    image = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(image).text((8, 3), text, fill="black", font=font)
    if upside_down:
        image = image.rotate(180)
    image = image.resize((min(width, 192), 48))
    pixels = numpy.asarray(image, numpy.float32)[:, :, ::-1].transpose(2, 0, 1)
    padded = numpy.zeros((1, 3, 48, 192), numpy.float32)
    padded[0, :, :, : image.width] = numpy.round(pixels / 255 * 2 - 1, 2)
    return {"x": padded}


if __name__ == "__main__":
    for name in ("python.py", "shell.sh"):
        content = (HERE / "magika" / "examples" / name).read_bytes()
        write("magika", name.split(".")[0], magika(content))
    write("silero-vad", "speech", silero(vowel()))
    write("silero-vad", "silence", silero(numpy.random.default_rng(1).normal(0, 1e-3, 576)))
    write("ppocr-cls", "upright", ppocr("Forebay 42", False))
    write("ppocr-cls", "upside-down", ppocr("Forebay 42", True))
