"""Whether a model is too sure of itself: its perplexity on texts when all logits are divided by a temperature.

    python benches/temperature.py --model FOLDER --text FILE [FILE ...]

First 100 windows of 256 tokens of each text, 255 targets each, stride 256, no BOS, f32. FOLDER is a Llama checkpoint or
what softlm made of one, channels of feed-forward layers not pruned. Needs torch, safetensors and transformers.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

WINDOW, WINDOWS = 256, 100
TEMPERATURES = (0.9, 1.0, 1.05, 1.1, 1.15, 1.2)


def load(folder):
    """The model in f32, factors multiplied out."""
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= {name: tensor.float() for name, tensor in load_file(path).items()}
    for name in [name for name in stored if name.endswith(".factor_a.weight")]:
        linear = name.removesuffix(".factor_a.weight")
        a, b = stored.pop(name), stored.pop(f"{linear}.factor_b.weight")
        stored[f"{linear}.weight"] = (b.double() @ a.double()).float()
    config = AutoConfig.from_pretrained(folder)
    # Deviations are stored as biases of linears that had none.
    for part, key in (("o_proj", "attention_bias"), ("down_proj", "mlp_bias")):
        if any(name.endswith(f"{part}.bias") for name in stored):
            setattr(config, key, True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unknown = model.load_state_dict(stored, strict=False)
    model.tie_weights()
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    if unknown or not set(missing) <= tied:
        raise SystemExit(f"{folder} is no such model: missing {missing}, unknown {unknown}")
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    given = parser.parse_args()
    model = load(given.model)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    for path in given.text:
        ids = tokenizer(path.read_text(encoding="utf8"), add_special_tokens=False)["input_ids"]
        windows = torch.tensor(ids[: WINDOW * WINDOWS]).view(-1, WINDOW)
        with torch.no_grad():
            logits = torch.cat([model(some).logits[:, :-1].flatten(0, 1) for some in windows.split(10)])
        targets = windows[:, 1:].flatten()
        found = [f"{t:g}: {cross_entropy(logits / t, targets).exp().item():.1f}" for t in TEMPERATURES]
        print(path.name, *found, sep="  ")


if __name__ == "__main__":
    main()
