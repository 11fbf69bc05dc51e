"""What transformers generates without chance: writes greedy.json.

    python greedy.py [--data FOLDER]

Each id is the most likely one after all before it, by a forward pass over the whole sequence (no cache), f32, eager
attention; an id that ends a text ends nothing here. Prompts: stories260k and demo the id that begins a text, every model
under models/ five ids (7 + 31 i) mod vocabulary. `margin` is the smallest lead of the largest logit over the next,
relative to the largest magnitude: what an implementation may be off by.
"""

import json

import torch
from transformers import AutoModelForCausalLM

from common import HERE, arguments, digits, model_folder, versions, write_json

BEGIN = {"demo": 0, "stories260k": 1}
LENGTHS = {"demo": 100, "stories260k": 200}
LENGTH = 40


def generated():
    """Models under models/ that predict the next token."""
    for folder in sorted((HERE / "models").iterdir()):
        kinds = json.loads((folder / "config.json").read_text())["architectures"]
        if kinds[0].endswith(("ForCausalLM", "LMHeadModel")):
            yield folder.name


@torch.no_grad()
def golden(name, data):
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(name, data), dtype=torch.float32, attn_implementation="eager").eval()
    prompt = [BEGIN[name]] if name in BEGIN else [(7 + 31 * i) % model.config.vocab_size for i in range(5)]
    ids, margin = list(prompt), 1.0
    for _ in range(LENGTHS.get(name, LENGTH)):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        margin = min(margin, (first - second) / logits.abs().max().item())
        ids.append(logits.argmax().item())
    return {"prompt": prompt, "ids": ids[len(prompt):], "margin": digits(margin, 3)}


def main():
    data = arguments(__doc__.splitlines()[0]).data
    result = {"schema": 1, "versions": versions(), "models": {}}
    for name in [*BEGIN, *generated()]:
        result["models"][name] = golden(name, data)
        print(name, result["models"][name]["margin"], len(set(result["models"][name]["ids"])))
    write_json("greedy.json", result, 3)


if __name__ == "__main__":
    main()
