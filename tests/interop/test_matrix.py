"""Every method on every family: softlm, transformers, the plain model, the exported one and the one saved again agree."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import outputs
import protocol
import reference
from conftest import FOLDER, MAJOR, SAID, SOFTLM, auto_class, close, load, output, some_ids

TEXT = (FOLDER / "text.txt").read_text()


@torch.no_grad()
def first_output(model):
    return model(some_ids())[0]


def figure(model, said):
    """What softlm said of the output, by transformers."""
    ids, tokenizer = protocol.ids_of(said["output"], TEXT)
    sizes = outputs.WINDOW, outputs.WINDOWS
    if said["kind"] == "next":
        return protocol.next_token_nll(model, ids, *sizes)
    if said["kind"] == "masked":
        return protocol.masked_token_nll(model, ids, tokenizer, *sizes)
    base = transformers.AutoModel.from_pretrained(said["base"], dtype=torch.float32)
    return protocol.mean_cosine(model, base, ids, tokenizer, *sizes)


def test_softlm_and_transformers_agree(said, model):
    config = model.config
    if MAJOR >= 5 and config.softlm["base_model_type"] == "mamba2" and config.n_groups > 1:
        pytest.skip("transformers 5 normalises each group of Mamba 2 alone, transformers 4 and softlm all of them together")
    assert figure(model, said) == pytest.approx(said["value"], rel=1e-5)


def test_every_stored_tensor_is_loaded_and_no_other_is_missing(said):
    _, info = auto_class(said["output"]).from_pretrained(said["output"], trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info


def test_it_is_the_product_of_the_factors(said, model, tmp_path):
    plain = reference.plain_model(said["output"], tmp_path)
    if plain is None:
        # softlm's own figures stand for it.
        return
    assert close(first_output(model), first_output(plain), 1e-5)


def test_the_dense_export_is_the_same_model(said, model):
    if said["dense"] is None:
        assert said["method"] == "soco"
        return
    options = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if MAJOR >= 5 else {})
    head = auto_class(said["output"])
    dense, info = head.from_pretrained(said["dense"], dtype=torch.float32, output_loading_info=True, **options)
    assert not any(info.values()), info
    assert type(dense).__module__.startswith("transformers.")
    assert close(first_output(dense), first_output(model), 1e-5)


@pytest.mark.parametrize("name", ["llama-tiny-rope3", "qwen2-tiny", "phi3-tiny", "gpt2-tiny", "opt-tiny", "bert-tiny"])
def test_the_plain_export_is_a_smaller_model_of_the_base(name, tmp_path):
    folder = output(name, "lorap")
    outputs.run(SOFTLM, "export", folder, "--to", "plain", "--dtype", "f32", "-o", tmp_path / "plain", "-q")
    head, options = auto_class(folder), {"attn_implementation": "eager", "dtype": torch.float32}
    plain, info = head.from_pretrained(tmp_path / "plain", output_loading_info=True, **options)
    assert not any(info.values()), info
    assert type(plain).__module__.startswith("transformers.")
    assert close(first_output(plain), first_output(load(folder)), 1e-5)
    base = head.from_pretrained(SAID[f"{name}-lorap"]["base"])
    assert plain.num_parameters() < base.num_parameters()


def test_saved_again_it_keeps_its_factors(said, model, tmp_path):
    model.save_pretrained(tmp_path)
    before, after = reference.stored(said["output"]), reference.stored(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].float(), after[name]) for name in before)
    again = load(tmp_path)
    assert close(first_output(again), first_output(model), 1e-6)
    # In the model's head there is one name of a layer, whatever the file of the base had.
    linears = json.loads((tmp_path / "config.json").read_text())["softlm"]["linears"]
    assert len(linears) == len(model.config.softlm["linears"])
    # softlm reads it as well.
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if (Path(said["output"]) / file).exists():
            shutil.copyfile(Path(said["output"]) / file, tmp_path / file)
    read = outputs.evaluate(SOFTLM, tmp_path, FOLDER / "text.txt", said["base"])
    assert read == {"kind": said["kind"], "value": pytest.approx(said["value"], rel=1e-6)}
