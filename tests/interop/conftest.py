"""What the tests share. run.sh sets SOFTLM, the program, and SOFTLM_INTEROP, the folder that outputs.py filled."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
import transformers

SOFTLM = os.environ["SOFTLM"]
FOLDER = Path(os.environ["SOFTLM_INTEROP"])
SAID = json.loads((FOLDER / "said.json").read_text())
MAJOR = int(transformers.__version__.split(".")[0])

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


def section(folder):
    return json.loads((Path(folder) / "config.json").read_text())["softlm"]


def auto_class(folder):
    """The Auto class for the head that the base has."""
    architecture = (section(folder)["base_architectures"] or [""])[0]
    ends = {
        "LMHeadModel": "AutoModelForCausalLM", "ForCausalLM": "AutoModelForCausalLM", "ForMaskedLM": "AutoModelForMaskedLM",
        "ForSequenceClassification": "AutoModelForSequenceClassification",
    }
    return getattr(transformers, next((auto for end, auto in ends.items() if architecture.endswith(end)), "AutoModel"))


def load(folder, **options):
    options = {"dtype": torch.float32, "trust_remote_code": True} | options
    # The attention that transformers takes by default leaves out Gemma 2's cap on the scores.
    options |= {"attn_implementation": "eager"} if section(folder)["base_model_type"] == "gemma2" else {}
    return auto_class(folder).from_pretrained(folder, **options).eval()


def output(name, method):
    return SAID[f"{name}-{method}"]["output"]


def close(ours, theirs, tolerance):
    """Whether two tensors agree, relative to the largest number."""
    return (ours.double() - theirs.double()).abs().max() <= tolerance * theirs.double().abs().max()


@pytest.fixture(scope="module", params=list(SAID))
def said(request):
    """What is known of an output; each in turn."""
    return SAID[request.param]


@pytest.fixture(scope="module")
def model(said):
    return load(said["output"])


@functools.cache
def some_ids(length=40, rows=2):
    return torch.randint(5, 96, (rows, length), generator=torch.Generator().manual_seed(7))
