"""Encoders with padding and token types: writes encoders/ and encoders.json.

    python encoders.py

The checkpoints, beside bert-tiny and distilbert-tiny of models.py (which have masked-token heads):

bert-tiny-bare          BertModel, f32: names without the `bert.` prefix, with a pooler that no classifier uses
bert-tiny-classes       BertForSequenceClassification of 3 classes, f16
distilbert-tiny-bare    DistilBertModel, f16: names without prefix
distilbert-tiny-classes DistilBertForSequenceClassification of 2 classes, f32

For each a batch of sequences of several lengths with their token types, padded with id 0 and masked, and in f32, eager
attention: the final hidden states at all real positions, and the head's logits, at the positions `at` of each sequence (of
classes: of each sequence; absent without a head). `tokens`: what transformers' tokenizer makes of texts and pairs, cut to
a length. `pseudo`: the mean negative log-likelihood of masked-token models over windows (framed by ids 2 and 3) when each
token between is masked alone.
"""

import torch
from transformers import (
    AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig,
    BertForSequenceClassification, BertModel, DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel,
)

from common import HERE, arguments, digits, versions, write_json
from models import BERT, DISTILBERT, randomise, save, wordpiece

LENGTHS = [20, 13, 1, 33]
AT = [0, 5, 12]
TEXTS = [
    ("The film was not bad.", None, 64),
    ("It is good, and it was good in the end!", None, 8),
    ("They laughed.", "She ran 42 miles to the sea; he did not.", 64),
    ("He said it was a good film in the end, and bad in the middle.", "Not so.", 24),
    ("Not so.", "He said it was a good film in the end, and bad in the middle.", 24),
    ("", None, 16),
]


def checkpoints():
    def write(model, seed, name, dtype):
        wordpiece(save(randomise(model, seed, 0.3), name, dtype, "encoders"))

    write(BertModel(BertConfig(**BERT)), 47, "bert-tiny-bare", torch.float32)
    write(BertForSequenceClassification(BertConfig(**BERT, num_labels=3)), 53, "bert-tiny-classes", torch.float16)
    write(DistilBertModel(DistilBertConfig(**DISTILBERT)), 59, "distilbert-tiny-bare", torch.float16)
    model = DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT, num_labels=2))
    write(model, 61, "distilbert-tiny-classes", torch.float32)


@torch.no_grad()
def golden(folder, kind):
    def load(kind):
        return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    width = max(LENGTHS)
    rows = [[(7 + 31 * i + 17 * r * i) % 96 for i in range(length)] for r, length in enumerate(LENGTHS)]
    types = [[int(i > length // 2) for i in range(length)] for length in LENGTHS]
    pad = [[0] * (width - length) for length in LENGTHS]
    inputs = {
        "input_ids": torch.tensor([row + more for row, more in zip(rows, pad)]),
        "attention_mask": torch.tensor([[1] * len(row) + more for row, more in zip(rows, pad)]),
    }
    if not folder.name.startswith("distil"):
        inputs["token_type_ids"] = torch.tensor([row + more for row, more in zip(types, pad)])
    states = load(AutoModel)(**inputs).last_hidden_state
    result = {"ids": rows, "types": types, "at": AT}
    result["states"] = [states[r, :length].tolist() for r, length in enumerate(LENGTHS)]
    if kind is AutoModelForMaskedLM:
        logits = load(kind)(**inputs).logits
        result["logits"] = [logits[r, [p for p in AT if p < length]].tolist() for r, length in enumerate(LENGTHS)]
    elif kind is not None:
        result["logits"] = load(kind)(**inputs).logits.tolist()
    return digits(result, 9)


@torch.no_grad()
def pseudo(folder):
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    windows = [[2] + [(5 + 29 * i + 13 * w * i) % 96 for i in range(14)] + [3] for w in range(3)]
    losses = []
    for window in windows:
        for at in range(1, len(window) - 1):
            ids = torch.tensor([window])
            ids[0, at] = 4
            losses.append(-torch.log_softmax(model(input_ids=ids).logits[0, at].double(), -1)[window[at]].item())
    return {"windows": windows, "targets": len(losses), "nll": sum(losses) / len(losses)}


def main():
    arguments(__doc__.splitlines()[0])
    checkpoints()
    models = {
        "models/bert-tiny": AutoModelForMaskedLM,
        "models/distilbert-tiny": AutoModelForMaskedLM,
        "encoders/bert-tiny-bare": None,
        "encoders/bert-tiny-classes": AutoModelForSequenceClassification,
        "encoders/distilbert-tiny-bare": None,
        "encoders/distilbert-tiny-classes": AutoModelForSequenceClassification,
    }
    result = {"schema": 1, "versions": versions()}
    result["models"] = {name: golden(HERE / name, kind) for name, kind in models.items()}
    result["pseudo"] = {name: digits(pseudo(HERE / name), 10) for name, kind in models.items()
                        if kind is AutoModelForMaskedLM}
    tokenizer = AutoTokenizer.from_pretrained(HERE / "models/bert-tiny")
    result["tokens"] = []
    for first, second, limit in TEXTS:
        found = tokenizer(first, second, truncation=True, max_length=limit)
        result["tokens"].append({"first": first, "second": second, "max_length": limit, "ids": found["input_ids"],
                                 "types": found["token_type_ids"]})
    write_json("encoders.json", result)


if __name__ == "__main__":
    main()
