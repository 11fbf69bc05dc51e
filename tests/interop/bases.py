"""The tiny checkpoints of all families as complete model folders: those that have no tokenizer get one of numbered words."""

import json
import random
import shutil
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WORDS = [f"w{i}" for i in range(96)]

# One of each family, and what else there is: heads, biases, checkpoints of the model without its head.
FAMILIES = [
    "bert-tiny", "distilbert-tiny", "gemma2-tiny", "gemma3-tiny", "gpt-neox-tiny", "gpt2-tiny", "llama-tiny-rope3", "mamba-tiny",
    "mamba2-tiny", "mistral-tiny", "mixtral-tiny", "opt-tiny", "phi3-tiny", "qwen2-moe-tiny", "qwen2-tiny", "qwen3-moe-tiny",
    "qwen3-tiny",
]
OTHERS = sorted({path.parent.name for path in GOLDEN.glob("*/*/config.json")} - set(FAMILIES))


def make(name, folder):
    """Copies one and completes it."""
    source = next(path.parent for path in GOLDEN.glob(f"*/{name}/config.json"))
    shutil.copytree(source, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "w0"}
        parts = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
        parts |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
        (folder / "tokenizer.json").write_text(json.dumps(parts))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def text(words, seed):
    """Random words: numbered ones for the decoders, short ones for the encoders, whose pieces are letters."""
    draw = random.Random(seed)
    short = ["the", "and", "good", "bad", "film", "not", "she", "was", "a", "b", "oak", "fed", "ending", "lately", "12", "7"]
    lines = [" ".join(draw.choice(WORDS if line % 2 else short) for _ in range(20)) for line in range(words // 20)]
    return "\n".join(lines) + "\n"
