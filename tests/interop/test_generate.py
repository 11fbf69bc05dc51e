"""generate(): with cache as without, and as softlm writes; pipelines; batches with padding."""

import pytest
import torch
import transformers

import bases
from conftest import MAJOR, SAID, load, output

DECODERS = [name for name in bases.FAMILIES if "bert" not in name]
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("method", ["lorap", "soco", "narrow"])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_with_and_without_cache_are_softlms(name, method):
    said = SAID[f"{name}-{method}"]
    ids = torch.tensor([said["generated"]["prompt_ids"]])

    def write(model, cached):
        return model.generate(ids, use_cache=cached, **GREEDY)[0, ids.shape[1] :].tolist()

    if MAJOR >= 5 and name == "mamba2-tiny":
        base = transformers.AutoModelForCausalLM.from_pretrained(said["base"], dtype=torch.float32)
        if write(base, True) != write(base, False):
            pytest.skip("transformers 5's own Mamba 2 forgets the limits of the time steps when it has a cache")
    model = load(said["output"])
    written = {cached: write(model, cached) for cached in (True, False)}
    assert written[True] == written[False]
    theirs = said["generated"]["ids"]
    assert written[True][: len(theirs)] == theirs


@pytest.mark.parametrize("name", ["llama-tiny-rope3", "gpt2-tiny", "mixtral-tiny"])
def test_the_text_generation_pipeline(name):
    said = SAID[f"{name}-whiten"]
    write = transformers.pipeline("text-generation", model=said["output"], trust_remote_code=True, dtype=torch.float32)
    prompt = said["generated"]["prompt"]
    # Ids instead of text: a pipeline cleans spaces up.
    written = write(prompt, return_tensors=True, **GREEDY)[0]["generated_token_ids"]
    expected = said["generated"]["prompt_ids"] + said["generated"]["ids"]
    assert list(written)[: len(expected)] == expected


@pytest.mark.parametrize("name", ["llama-tiny-rope3", "gpt2-tiny", "gemma3-tiny", "phi3-tiny"])
def test_rows_of_different_lengths(name):
    model = load(output(name, "lorap"))
    short, long = torch.tensor([[7, 8, 9]]), torch.tensor([[5, 6, 7, 8, 9, 10]])
    padded = torch.cat([torch.tensor([[0, 0, 0]]), short], 1)
    mask = torch.cat([torch.tensor([[0, 0, 0]]), torch.ones_like(short)], 1)
    both = model.generate(torch.cat([padded, long]), attention_mask=torch.cat([mask, torch.ones_like(long)]), **GREEDY)
    assert both[1].tolist() == model.generate(long, **GREEDY)[0].tolist()
    assert both[0, 3:].tolist() == model.generate(short, **GREEDY)[0].tolist()


def test_beams():
    model = load(output("qwen2-tiny", "lorap"))
    ids = torch.tensor([[5, 6, 7]])
    with_cache, without = (model.generate(ids, num_beams=3, use_cache=cached, **GREEDY).tolist() for cached in (True, False))
    assert with_cache == without
