"""AutoTokenizer gives an output the base's tokenizer, with tokenizer_config.json as the base has it."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

import bases
from conftest import FOLDER, SAID, output

TEXT = (FOLDER / "text.txt").read_text()[:600]
# The checkpoints that have tokenizers of their families.
REAL = ["gpt2-tiny", "bert-tiny", "distilbert-tiny"]
LINES = [TEXT, "Ein  Satz,\twith spaces…", " 12 w3", "[MASK] <|endoftext|> film"]


@pytest.mark.parametrize("name", bases.FAMILIES + bases.OTHERS)
def test_the_bases_ids(name):
    said = SAID[f"{name}-lorap"]
    # Numbered words are nothing for the families' own classes, which transformers 5 takes for some whatever the file says.
    numbered = '"w95"' in (Path(said["base"]) / "tokenizer.json").read_text() if name != "gpt2-tiny" else False
    theirs = (transformers.PreTrainedTokenizerFast if numbered else transformers.AutoTokenizer).from_pretrained(said["base"])
    ours = transformers.AutoTokenizer.from_pretrained(said["output"], trust_remote_code=True)
    assert [ours(line)["input_ids"] for line in LINES] == [theirs(line)["input_ids"] for line in LINES]


@pytest.mark.parametrize("name", REAL)
def test_without_a_class_in_tokenizer_config(name, tmp_path):
    """Then the family of the base decides, as it does for the base."""
    said = SAID[f"{name}-lorap"]
    for source, place in ((said["base"], tmp_path / "base"), (said["output"], tmp_path / "out")):
        shutil.copytree(source, place)
        (place / "tokenizer_config.json").unlink(missing_ok=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(ours) is type(theirs)
    assert [ours(line)["input_ids"] for line in LINES] == [theirs(line)["input_ids"] for line in LINES]


def test_saved_with_the_model(tmp_path):
    folder = output("bert-tiny", "svd")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert again(LINES)["input_ids"] == tokenizer(LINES)["input_ids"]
