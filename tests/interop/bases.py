"""The tiny checkpoints as complete model folders: those that have no tokenizer get one of numbered words."""

import json
import random
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
WORDS = [f"w{i}" for i in range(96)]


def names():
    """Of all of them, sorted."""
    return sorted(folder.name for place in ("models", "encoders") for folder in (GOLDEN / place).iterdir() if folder.is_dir())


def make(name, folder):
    """Copies one and completes it."""
    source = next(GOLDEN / place / name for place in ("models", "encoders") if (GOLDEN / place / name).is_dir())
    folder.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    has_tokenizer = any((folder / file).exists() for file in ("tokenizer.json", "vocab.json", "vocab.txt"))
    if not has_tokenizer:
        vocabulary = {word: index for index, word in enumerate(WORDS)}
        tokenizer = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def text(words=6000, seed=1):
    """Random words that every one of these tokenizers can read."""
    draw = random.Random(seed)
    lines = (" ".join(draw.choice(WORDS) for _ in range(40)) for _ in range(words // 40))
    return "\n".join(lines) + "\n"
