"""Without trust_remote_code an output is refused in every way that people try, with an error that says what to do."""

import json
import os
import pty
import subprocess
import sys

import pytest
import torch
import transformers

import bases
from conftest import MAJOR, auto_class, output, section

pytestmark = pytest.mark.parametrize("folder", [output(name, "svd") for name in bases.FAMILIES])
WAYS = ["trust_remote_code", "custom code"]


def plain_classes(folder):
    """transformers' own classes for the base: its model with the head, and without."""
    config = transformers.CONFIG_MAPPING[section(folder)["base_model_type"]]
    yield auto_class(folder)._model_mapping[config]
    yield transformers.MODEL_MAPPING[config]


def test_auto_classes(folder):
    for auto in (transformers.AutoModel, auto_class(folder), transformers.AutoConfig):
        with pytest.raises(ValueError, match="trust_remote_code"):
            auto.from_pretrained(folder)
        with pytest.raises(ValueError, match="trust_remote_code"):
            auto.from_pretrained(folder, trust_remote_code=False)


def test_the_classes_of_the_base(folder):
    for plain in plain_classes(folder):
        for options in ({}, {"dtype": torch.float32}, {"device_map": "cpu"}, {"ignore_mismatched_sizes": True}):
            with pytest.raises(ValueError, match="softlm's factors.*trust_remote_code=True.*softlm export"):
                plain.from_pretrained(folder, **options)


def test_the_configuration_of_the_base(folder):
    # transformers 5 makes one; it refuses the weights.
    config = transformers.CONFIG_MAPPING[section(folder)["base_model_type"]]
    if MAJOR >= 5:
        made = config.from_pretrained(folder)
        for plain in plain_classes(folder):
            with pytest.raises(ValueError, match="softlm's factors"):
                plain.from_pretrained(folder, config=made)
    else:
        with pytest.raises(ValueError, match="softlm's factors"):
            config.from_pretrained(folder)


def test_pipelines(folder):
    task = "fill-mask" if "bert" in section(folder)["base_model_type"] else "text-generation"
    with pytest.raises((ValueError, OSError), match="trust_remote_code"):
        transformers.pipeline(task, model=folder)


def test_a_saved_folder_is_refused_as_well(folder, tmp_path):
    auto_class(folder).from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "softlm" and config["architectures"][0].startswith("Softlm")
    test_auto_classes(str(tmp_path))
    test_the_classes_of_the_base(str(tmp_path))


def test_on_a_terminal_it_asks_and_gives_up(folder):
    """transformers asks whether to run the code, and takes silence for no. Its wait is cut short here."""
    if not folder.endswith("llama-tiny-rope3-svd"):
        return
    code = (
        "import transformers.dynamic_module_utils as d; d.TIME_OUT_REMOTE_CODE = 2\n"
        f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({folder!r})"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, timeout=300)
    os.close(ours), os.close(theirs)
    assert done.returncode == 1 and b"trust_remote_code=True" in done.stderr
