"""Embeddings of sentence-transformers: writes sentences.json.

    python sentences.py

The encoder is encoders/bert-tiny-bare; each case puts other modules behind it. `files` are those beside it, weights (f32) under
`tensors`. Embeddings are of TEXTS, each alone, in f32.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import sentence_transformers
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from common import HERE, arguments, digits, versions, write_json

TEXTS = ["the film was good", "it is BAD, and not good", "she", "he was in the end of it"]
HIDDEN = 24
MODES = {
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "sqrt": "pooling_mode_mean_sqrt_len_tokens", "weighted": "pooling_mode_weightedmean_tokens", "last": "pooling_mode_lasttoken",
}


def pooling(*modes):
    flags = {key: name in modes for name, key in MODES.items()}
    return {"1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, **flags}}


def module(place, kind):
    path = "" if kind == "Transformer" else f"{place}_{kind}"
    return {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}


def modules(*kinds):
    return {"modules.json": [module(place, kind) for place, kind in enumerate(("Transformer", "Pooling", *kinds))]}


def dense(place, width, out, activation, bias=True, **more):
    settings = {"in_features": width, "out_features": out, "bias": bias, "activation_function": activation} | more
    return {f"{place}_Dense/config.json": settings}


def weights(seed, width, out, bias=True, residual=False):
    torch.manual_seed(seed)
    tensors = {"linear.weight": torch.randn(out, width) * 0.3}
    if bias:
        tensors["linear.bias"] = torch.randn(out) * 0.5
    if residual:
        tensors["residual.weight"] = torch.randn(out, width) * 0.2
    return tensors


ACTIVATION = "torch.nn.modules.activation."
CASES = {name: (modules() | pooling(name), {}) for name in MODES}
CASES |= {
    "three at once": (modules() | pooling("last", "mean", "cls"), {}),
    "named mode": (modules() | {"1_Pooling/config.json": {"embedding_dimension": HIDDEN, "pooling_mode": ["mean", "max"]}}, {}),
    "normalize": (modules("Normalize") | pooling("mean"), {}),
    "dense": (modules("Dense") | pooling("mean") | dense(2, HIDDEN, 5, ACTIVATION + "Tanh"), {2: weights(1, HIDDEN, 5)}),
    "two dense": (
        modules("Dense", "Dense", "Normalize") | pooling("cls", "max") | dense(2, 2 * HIDDEN, 6, ACTIVATION + "GELU", False)
        | dense(3, 6, 4, "torch.nn.modules.linear.Identity"),
        {2: weights(2, 2 * HIDDEN, 6, False), 3: weights(3, 6, 4)},
    ),
    "residual": (
        modules("Dense") | pooling("mean") | dense(2, HIDDEN, 5, ACTIVATION + "ReLU", use_residual=True),
        {2: weights(4, HIDDEN, 5, residual=True)},
    ),
    "lower case": (modules() | pooling("mean") | {"sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True},
                                                  "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False}}, {}),
    "prompt": (modules() | pooling("mean") | {"config_sentence_transformers.json": {
        "prompts": {"query": "the end of it "}, "default_prompt_name": "query", "similarity_fn_name": "dot"}}, {}),
}


def measure(files, tensors):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "model"
        shutil.copytree(HERE / "encoders" / "bert-tiny-bare", folder)
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content))
        for place, content in tensors.items():
            save_file(content, folder / f"{place}_Dense" / "model.safetensors")
        model = SentenceTransformer(str(folder), device="cpu")
        embeddings = [model.encode(text).tolist() for text in TEXTS]
        similarity = model.similarity(embeddings[0], embeddings[1]).item()
    return {"embeddings": embeddings, "similarity": similarity}


def main():
    arguments(__doc__.splitlines()[0])
    cases = {}
    for name, (files, tensors) in CASES.items():
        listed = {str(place): {key: t.tolist() for key, t in content.items()} for place, content in tensors.items()}
        cases[name] = {"files": files, "tensors": listed} | measure(files, tensors)
    found = versions() | {"sentence_transformers": sentence_transformers.__version__}
    write_json("sentences.json", digits({"schema": 1, "versions": found, "texts": TEXTS, "cases": cases}, 9))


if __name__ == "__main__":
    main()
