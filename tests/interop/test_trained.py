"""Trained models, compressed: the perplexity or score that softlm measures is the one that transformers gives."""

import csv
import json

import pytest
import scipy.stats
import torch
import transformers

import protocol
from conftest import FOLDER, load

KNOWN = FOLDER / "trained.json"
if not KNOWN.exists():
    pytest.skip("there are no trained models", allow_module_level=True)
TRAINED = json.loads(KNOWN.read_text())
WRITERS = [name for name, said in TRAINED.items() if said["kind"] == "ppl"]


def perplexity(model, said):
    ids, _ = protocol.ids_of(said["output"], open(said["text"], encoding="utf-8").read())
    return torch.tensor(protocol.next_token_nll(model, ids, 128, 12)).exp().item()


@pytest.mark.parametrize("name", WRITERS)
def test_perplexity(name):
    said = TRAINED[name]
    assert perplexity(load(said["output"]), said) == pytest.approx(said["value"], rel=2e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_perplexity_of_the_dense_export(name):
    said = TRAINED[name]
    dense = transformers.AutoModelForCausalLM.from_pretrained(said["dense"], dtype=torch.float32).eval()
    # The product is rounded to the type of the base's weights.
    assert perplexity(dense, said) == pytest.approx(said["value"], rel=5e-3)


def test_sentence_embeddings():
    """sentence-transformers opens the output as it does the base, with its pooling and its limits."""
    from sentence_transformers import SentenceTransformer

    said = TRAINED["all-MiniLM-L6-v2"]
    model = SentenceTransformer(said["output"], trust_remote_code=True, device="cpu")
    with open(said["text"], encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    first, second = (model.encode([row[i] for row in rows], convert_to_tensor=True).double() for i in (5, 6))
    cosines = torch.nn.functional.cosine_similarity(first, second)
    score = scipy.stats.spearmanr(cosines.numpy(), [float(row[4]) for row in rows]).statistic
    assert score == pytest.approx(said["value"], abs=1e-5)


def test_sentence_embeddings_need_the_code():
    from sentence_transformers import SentenceTransformer

    with pytest.raises((ValueError, OSError), match="trust_remote_code"):
        SentenceTransformer(TRAINED["all-MiniLM-L6-v2"]["output"], device="cpu")


def test_sentence_embeddings_saved_again(tmp_path):
    from sentence_transformers import SentenceTransformer

    options = {"trust_remote_code": True, "device": "cpu"}
    model = SentenceTransformer(TRAINED["all-MiniLM-L6-v2"]["output"], **options)
    model.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), **options)
    texts = ["A girl is styling her hair.", "A plane takes off"]
    assert torch.allclose(model.encode(texts, convert_to_tensor=True), again.encode(texts, convert_to_tensor=True), atol=1e-6)


def test_classification():
    said = TRAINED["minilm-sst2"]
    classify = transformers.pipeline("text-classification", model=said["output"], trust_remote_code=True, dtype=torch.float32)
    with open(said["text"], encoding="utf-8") as file:
        texts, labels = zip(*(line.rstrip("\n").split("\t") for line in list(file)[1:]))
    numbers = classify.model.config.label2id
    answers = [numbers[answer["label"]] for answer in classify(list(texts), truncation=True)]
    right = sum(answer == int(label) for answer, label in zip(answers, labels))
    assert right / len(labels) == pytest.approx(said["value"], abs=1e-9)
