"""Every spelling of rope parameters: logits of transformers for models under models/ whose config.json is changed.

    python rope.py

With transformers 4 it writes rope.json from the spellings that this version reads, which must agree among each other;
with transformers 5 it compares what the spellings for that version give with the file.

Ids as in logits.py. A spelling is what changes in config.json, null removing a key; `major` lists the versions that read
it. Logits are those of the first 8 vocabulary entries.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from common import HERE, digits, versions, write_json

LENGTH = 60
POSITIONS = [1, 13, 30, 59]
# What the models' own configs say about the rotation, out of the way.
BARE = {"rope_scaling": None, "rope_theta": None}


def old(theta=None, **scaling):
    return {"rope_theta": theta, "rope_scaling": scaling or None}


def new(**parameters):
    return BARE | {"rope_parameters": parameters}


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1.0, 1.3, 1.9, 2.5], "long_factor": [1.5, 2.0, 5.0, 9.0]}

# case: model, spellings as (major versions, changes)
CASES = {
    "plain": ("llama-tiny-rope3", [
        ([4, 5], old(theta=700.0)),
        ([4, 5], old(theta=700.0, rope_type="default")),
        ([4, 5], old(theta=700, type="default")),
        ([4, 5], old(theta=700.0, rope_type="dynamic", factor=4.0)),
        ([5], new(rope_type="default", rope_theta=700.0)),
        ([5], new(rope_theta=700.0)),
        ([5], old(theta=None, rope_type="default", rope_theta=700.0)),
    ]),
    "default-base": ("llama-tiny-rope3", [([4, 5], old()), ([5], new(rope_type="default"))]),
    "linear": ("llama-tiny-rope3", [
        ([4, 5], old(theta=700.0, rope_type="linear", factor=2.0)),
        ([4, 5], old(theta=700.0, type="linear", factor=2)),
        ([4], old(theta=700.0, type="linear", rope_type=None, factor=2.0)),
        ([4, 5], old(theta=700.0, type="linear", rope_type="linear", factor=2.0)),
        ([5], new(rope_type="linear", rope_theta=700.0, factor=2.0)),
    ]),
    "llama3": ("llama-tiny-rope3", [
        ([4, 5], old(theta=700.0, rope_type="llama3", **LLAMA3)),
        ([5], new(rope_type="llama3", rope_theta=700.0, **LLAMA3)),
    ]),
    "yarn": ("mistral-tiny", [
        ([4, 5], old(theta=500.0, rope_type="yarn", **YARN)),
        ([4, 5], old(theta=500.0, type="yarn", beta_fast=32, beta_slow=1.0, **YARN)),
        ([4, 5], old(theta=500.0, rope_type="yarn", beta_fast=0, mscale=0.0, mscale_all_dim=2.0, truncate=True, **YARN)),
        ([4, 5], old(theta=500.0, rope_type="yarn", type=None, attention_factor=None, finetuned=True, **YARN)),
        ([5], new(rope_type="yarn", rope_theta=500.0, **YARN)),
        ([5], old(theta=500.0, rope_type="yarn", factor=4.0) | {"original_max_position_embeddings": 32}),
    ]),
    "yarn-context": ("llama-tiny-rope3", [([4, 5], old(theta=700.0, rope_type="yarn", factor=4.0, beta_fast=4.0))]),
    "yarn-original": ("llama-tiny-rope3", [
        ([4, 5], old(theta=700.0, rope_type="yarn", beta_fast=4.0, **YARN)),
    ]),
    "yarn-not-truncated": ("mistral-tiny", [
        ([4, 5], old(theta=500.0, rope_type="yarn", truncate=False, **YARN)),
        ([4, 5], old(theta=500.0, rope_type="yarn", truncate=None, **YARN)),
    ]),
    "yarn-mscale": ("mistral-tiny", [
        ([4, 5], old(theta=500.0, rope_type="yarn", mscale=0.7, mscale_all_dim=1.4, **YARN)),
    ]),
    "yarn-factor": ("mistral-tiny", [
        ([4, 5], old(theta=500.0, rope_type="yarn", mscale=0.7, mscale_all_dim=1.4, attention_factor=1.3, **YARN)),
    ]),
    "mixtral-default-base": ("mixtral-tiny", [([4, 5], old())]),
    "longrope": ("phi3-tiny-long", [
        ([4, 5], old(theta=300.0, type="longrope", **LONG)),
        ([4], old(theta=300.0, type="su", **LONG)),
        ([4], old(theta=300.0, type="yarn", **LONG)),
        ([5], old(theta=300.0, rope_type="longrope", **LONG)),
        ([5], new(rope_type="longrope", rope_theta=300.0, **LONG)),
        ([5], new(rope_type="longrope", rope_theta=300.0, original_max_position_embeddings=24, **LONG)),
    ]),
    "partial": ("phi3-tiny", [
        ([4, 5], old(theta=300.0) | {"partial_rotary_factor": 0.25}),
        ([5], new(rope_theta=300.0, partial_rotary_factor=0.25) | {"partial_rotary_factor": None}),
    ]),
    "neox": ("gpt-neox-tiny", [
        ([4, 5], {"rotary_pct": 0.5, "rotary_emb_base": 70, "rope_theta": None, "partial_rotary_factor": None}),
        ([4, 5], {"rotary_pct": 0.5, "rotary_emb_base": 70.0, "rope_theta": 70, "partial_rotary_factor": 0.5}),
        ([5], new(rope_theta=70.0, partial_rotary_factor=0.5)
         | {"rotary_pct": None, "rotary_emb_base": None, "partial_rotary_factor": None}),
    ]),
    "neox-linear": ("gpt-neox-tiny-serial", [
        ([4, 5], {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    ]),
    "gemma3": ("gemma3-tiny", [
        ([4, 5], old(theta=900.0, rope_type="linear", factor=2.0) | {"rope_local_base_freq": 40.0}),
        ([5], new(full_attention={"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
                  sliding_attention={"rope_type": "default", "rope_theta": 40.0}) | {"rope_local_base_freq": None}),
        ([5], {"rope_theta": 900.0, "rope_local_base_freq": 40.0, "rope_scaling": None,
               "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}),
    ]),
    "gemma3-default-bases": ("gemma3-tiny", [
        ([4, 5], BARE | {"rope_local_base_freq": None}),
        ([5], new(full_attention={"rope_type": "default"}) | {"rope_local_base_freq": None}),
    ]),
}


@torch.no_grad()
def logits(model, changes):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copy(HERE / "models" / model / "model.safetensors", folder)
        config = json.loads((HERE / "models" / model / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        ids = torch.tensor([[(7 + 31 * i) % loaded.config.vocab_size for i in range(LENGTH)]])
        return loaded(ids, use_cache=False).logits[0, POSITIONS, :8]


def main():
    major = int(transformers.__version__.split(".")[0])
    path = HERE / "rope.json"
    known = json.loads(path.read_text())["cases"] if major > 4 else {}
    cases = {}
    for name, (model, spellings) in CASES.items():
        found = [logits(model, changes) for versions_, changes in spellings if major in versions_]
        expected = torch.tensor(known[name]["logits"]) if known else found[0]
        for one in found:
            assert torch.allclose(one, expected, rtol=0, atol=1e-5 * expected.abs().max().item()), name
        print(name, f"{len(found)} of {len(spellings)} spellings agree", expected[-1, :3].tolist())
        cases[name] = {
            "model": model,
            "spellings": [{"major": versions_, "changes": changes} for versions_, changes in spellings],
            "logits": digits(found[0].tolist(), 9),
        }
    if not known:
        write_json("rope.json", {"schema": 1, "versions": versions(), "length": LENGTH, "positions": POSITIONS, "cases": cases})


if __name__ == "__main__":
    main()
