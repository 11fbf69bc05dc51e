"""Logits of transformers in f32 for every model a test can run: writes logits.json.

    python logits.py [--data FOLDER]

Input ids of row r at position i: (7 + 31 i + 17 r i) mod vocabulary. Weights stored in f16 or bf16 are upcast to f32.
For each model: `rows` x `length` ids, and at each of `positions` the logits of the first and the last 64 vocabulary
entries, and over the whole vocabulary their sum, the sum of their absolute values and the largest absolute value.
For gpt2-tiny also the token ids of a few texts, from transformers' own pure Python tokenizer.
"""

import torch
from transformers import AutoModelForCausalLM, GPT2Tokenizer

from common import arguments, digits, model_folder, versions, write_json

# model: (length of a row, positions whose logits are kept)
MODELS = {
    "demo": (48, [0, 1, 13, 30, 47]),
    "stories260k": (48, [0, 1, 13, 30, 47]),
    "tinystories-656k": (48, [0, 1, 13, 30, 47]),
    "poem-zh-750k": (48, [0, 1, 13, 30, 47]),
    "llama-wiki-7m": (48, [0, 1, 13, 30, 47]),
    "gpt2-tiny": (60, [0, 1, 13, 30, 47, 59]),
    "llama-tiny-rope3": (80, [0, 1, 13, 31, 32, 47, 63, 79]),
    "llama-tiny-bias": (48, [0, 1, 13, 30, 47]),
    "mistral-tiny": (80, [0, 1, 7, 8, 15, 31, 79]),
    "qwen2-tiny": (60, [0, 1, 11, 12, 30, 59]),
    "qwen3-tiny": (60, [0, 1, 13, 30, 59]),
    "gemma2-tiny": (60, [0, 1, 9, 10, 30, 59]),
    "gemma3-tiny": (60, [0, 1, 9, 10, 30, 59]),
    "phi3-tiny": (60, [0, 1, 13, 14, 30, 59]),
    "phi3-tiny-short": (60, [0, 1, 13, 30, 59]),
    "phi3-tiny-long": (60, [0, 1, 13, 30, 59]),
    "gpt-neox-tiny": (60, [0, 1, 13, 30, 59]),
    "gpt-neox-tiny-serial": (60, [0, 1, 13, 30, 59]),
    "opt-tiny": (60, [0, 1, 13, 30, 59]),
    "mamba-tiny": (80, [0, 1, 3, 4, 30, 79]),
    "mamba-tiny-16": (60, [0, 1, 3, 30, 59]),
    "mamba2-tiny": (80, [0, 1, 3, 15, 16, 31, 32, 79]),
    "mixtral-tiny": (60, [0, 1, 13, 30, 59]),
    "qwen2-moe-tiny": (60, [0, 1, 13, 30, 59]),
    "qwen3-moe-tiny": (60, [0, 1, 13, 30, 59]),
}
ROWS = 2
ENDS = 64
TEXTS = [
    "The cat and the dog would be in the rain.",
    "It's 1905: they've  said   \"no\" -- I'll wait.",
    "café naïve, Ünïcödé, 你好, 🙂!",
    "two\nlines\n\n\tand a tab ",
    " leading space<|endoftext|>after",
]


def inputs(vocabulary, length):
    return [[(7 + 31 * i + 17 * row * i) % vocabulary for i in range(length)] for row in range(ROWS)]


@torch.no_grad()
def golden(folder, length, positions):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = inputs(model.config.vocab_size, length)
    kept = model(torch.tensor(ids)).logits[:, positions]
    wide = kept.double()
    return {
        "vocabulary": model.config.vocab_size,
        "ids": ids,
        "positions": positions,
        "first": digits(kept[..., :ENDS].tolist(), 9),
        "last": digits(kept[..., -ENDS:].tolist(), 9),
        "sum": digits(wide.sum(-1).tolist(), 12),
        "abs_sum": digits(wide.abs().sum(-1).tolist(), 12),
        "abs_max": digits(wide.abs().amax(-1).tolist(), 9),
    }


def main():
    data = arguments(__doc__.splitlines()[0]).data
    result = {"schema": 1, "versions": versions(), "models": {}}
    for name, (length, positions) in MODELS.items():
        result["models"][name] = golden(model_folder(name, data), length, positions)
        print(name, result["models"][name]["abs_max"][0])
    folder = model_folder("gpt2-tiny", data)
    tokenizer = GPT2Tokenizer(folder / "vocab.json", folder / "merges.txt")
    result["gpt2_tokens"] = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    write_json("logits.json", result)


if __name__ == "__main__":
    main()
