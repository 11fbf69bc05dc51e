"""Whether a model is too sure of itself: its perplexity on texts when all logits are divided by a temperature.

    python benches/temperature.py --model FOLDER --text FILE [FILE ...]

First 100 windows of 256 tokens of each text, 255 targets each, stride 256, no BOS, f32. Needs torch and transformers.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW, WINDOWS = 256, 100
TEMPERATURES = (0.9, 1.0, 1.05, 1.1, 1.15, 1.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
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
