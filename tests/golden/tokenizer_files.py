"""What transformers makes of tokenizer files: writes tokenizers.json.

    python tokenizer_files.py

Each case is a folder: `base` has the vocabulary (`gpt2`: vocab.json and merges.txt of gpt2-tiny, `words`: the vocab.txt of
bert-tiny, `pieces`, `gemma-pieces`, `unigram-pieces`: a tokenizer.model of SentencePiece, hexadecimal under `models`; `json`:
the tokenizer.json that GPT2Tokenizer makes of `gpt2`), `model_type` goes into its config.json, `files` are written beside it.
A file `tokenizer.json` in `files` holds changes of the base's. For every text:

    ids       without special tokens
    framed    with those that the tokenizer adds by itself
    decoded   the text of `framed`, special tokens included

Needs sentencepiece and protobuf.
"""

import copy
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from common import HERE, arguments, versions, write_json

TEXTS = [
    "The cat is not there.",
    "It's 12345 e\u0301 DON'T  stop\n\n of thé 漢字!",
    "  two spaces , and <|im_start|>Hi<s>there <mask> [PAD] x</s>",
    "<|endoftext|>the end ? <think> <|im_end|>",
    "",
]
BERT_TEXTS = ["The Film was GOOD, not bad!", "É the café 漢it 字", "it [MASK] is <x>he</x> 's", ""]
COMMON = ["▁t", "he", "▁the", "in", "▁a", "er", "is", "▁is", "re", "▁n", "▁no", "▁not", "ere", "▁there", "▁c", "at", "▁cat", "▁▁", "of", "▁of"]
LETTERS = "▁etaoinshrdlucmfwypvbgkqjxz.,'!?T1234"


def pieces(names, model_type, user=()):
    """A tokenizer.model with these first pieces, all bytes, pieces of several letters, and letters."""
    proto = sentencepiece_model_pb2.ModelProto()

    def add(text, score, kind):
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = text, score, kind

    for name in names:
        add(name, 0.0, 2 if name == "<unk>" else 3)
    for text in user:
        add(text, 0.0, 4)
    for byte in range(256):
        add(f"<0x{byte:02X}>", 0.0, 6)
    for rank, text in enumerate(COMMON):
        add(text, -float(rank) if model_type == 2 else -2.0 - 0.1 * rank, 1)
    for rank, letter in enumerate(LETTERS):
        add(letter, -float(len(COMMON) + rank) if model_type == 2 else -8.0 - 0.1 * rank, 1)
    trainer = proto.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.unk_piece = model_type, True, "<unk>"
    trainer.vocab_size = len(proto.pieces)
    trainer.unk_id = names.index("<unk>")
    trainer.bos_id, trainer.eos_id = [names.index(n) for n in (("<s>", "</s>") if "<s>" in names else ("<bos>", "<eos>"))]
    trainer.pad_id = names.index("<pad>") if "<pad>" in names else -1
    proto.normalizer_spec.name, proto.normalizer_spec.add_dummy_prefix = "identity", True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


MODELS = {
    "pieces": pieces(["<unk>", "<s>", "</s>"], 2),
    "gemma-pieces": pieces(["<pad>", "<eos>", "<bos>", "<unk>"], 2, ["<start_of_turn>", "\n\n"]),
    "unigram-pieces": pieces(["<unk>", "<s>", "</s>"], 1),
}


def token(content, **flags):
    base = {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return base | flags


def config(name=None, **more):
    return ({"tokenizer_class": name} if name else {}) | more


ADDED = {"<|im_start|>": 302, "[PAD]": 303}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
END = "<|endoftext|>"

CASES = {
    # Vocabulary alone.
    "gpt2": ("gpt2", "gpt2", {}),
    "gpt2, added tokens": ("gpt2", "gpt2", {"tokenizer_config.json": config("GPT2Tokenizer"), "added_tokens.json": ADDED}),
    "gpt2, prefix": ("gpt2", "gpt2", {"tokenizer_config.json": config("GPT2Tokenizer", add_prefix_space=True)}),
    "gpt2, bos": ("gpt2", "gpt2", {"tokenizer_config.json": config("GPT2Tokenizer", add_bos_token=True)}),
    "opt by its model": ("gpt2", "opt", {}),
    "codegen": ("gpt2", "gpt2", {"tokenizer_config.json": config("CodeGenTokenizer")}),
    "gpt2, special tokens map": ("gpt2", "gpt2", {
        "tokenizer_config.json": config("GPT2TokenizerFast"),
        "special_tokens_map.json": {"mask_token": token("<mask>", lstrip=True), "additional_special_tokens": ["<s>", "</s>"]},
    }),
    "gpt2, split": ("gpt2", "gpt2", {"tokenizer_config.json": config("GPT2Tokenizer", split_special_tokens=True), "added_tokens.json": ADDED}),
    "qwen2": ("gpt2", "qwen2", {"tokenizer_config.json": config("Qwen2Tokenizer")}),
    "qwen3 by its model": ("gpt2", "qwen3", {}),
    "qwen2, decoder": ("gpt2", "qwen2", {
        "tokenizer_config.json": config("Qwen2Tokenizer", added_tokens_decoder={
            "303": token("<think>", special=False, normalized=True), "302": token("<|im_end|>"),
        }, pad_token=END),
        "special_tokens_map.json": {"additional_special_tokens": ["<mask>"]},
        "added_tokens.json": {"<s>": 304},
    }),
    "qwen2, map": ("gpt2", "qwen2", {
        "tokenizer_config.json": config("Qwen2Tokenizer"),
        "special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "[PAD]"},
        "added_tokens.json": {"<|im_end|>": 303, "<|im_start|>": 302},
    }),
    "bert": ("words", "bert", {"tokenizer_config.json": config("BertTokenizer")}),
    "bert by its model": ("words", "bert", {}),
    "bert, cased": ("words", "bert", {"tokenizer_config.json": config("BertTokenizer", do_lower_case=False)}),
    "bert, words as they are": ("words", "bert", {"tokenizer_config.json": config("BertTokenizer", do_basic_tokenize=False)}),
    "distilbert": ("words", "distilbert", {
        "tokenizer_config.json": config("DistilBertTokenizer", strip_accents=False, tokenize_chinese_chars=False),
        "added_tokens.json": {"<x>": 96, "</x>": 97},
    }),
    "llama": ("pieces", "llama", {"tokenizer_config.json": config("LlamaTokenizer")}),
    "llama by its model": ("pieces", "mistral", {}),
    "llama, new": ("pieces", "llama", {"tokenizer_config.json": config("LlamaTokenizer", legacy=False, add_eos_token=True)}),
    "llama, no prefix": ("pieces", "llama", {"tokenizer_config.json": config("LlamaTokenizerFast", add_prefix_space=False, add_bos_token=False)}),
    "llama, new, no prefix": ("pieces", "llama", {"tokenizer_config.json": config("LlamaTokenizer", legacy=False, add_prefix_space=False)}),
    "llama, added": ("pieces", "llama", {
        "tokenizer_config.json": config("LlamaTokenizer", pad_token="[PAD]"), "added_tokens.json": {"[PAD]": 316},
    }),
    "llama, unigram": ("unigram-pieces", "llama", {"tokenizer_config.json": config("LlamaTokenizer")}),
    "gemma": ("gemma-pieces", "gemma2", {"tokenizer_config.json": config("GemmaTokenizer", bos_token="<bos>", eos_token="<eos>")}),
    # With a tokenizer.json.
    "json": ("json", "gpt2", {"tokenizer_config.json": config("PreTrainedTokenizerFast")}),
    "json, prefix taken away": ("json", "gpt2", {"tokenizer.json": {"pre_tokenizer": BYTES}, "tokenizer_config.json": config("PreTrainedTokenizerFast")}),
    "json, prefix given": ("json", "gpt2", {"tokenizer_config.json": config("GPT2Tokenizer", add_prefix_space=True)}),
    "json, llama": ("json", "llama", {"tokenizer_config.json": config("LlamaTokenizer", bos_token=END, eos_token=END)}),
    "json, llama, eos": ("json", "llama", {"tokenizer_config.json": config("LlamaTokenizer", bos_token=END, eos_token=END, add_bos_token=False, add_eos_token=True)}),
    "json, gpt-neox": ("json", "gpt_neox", {"tokenizer_config.json": config("GPTNeoXTokenizer", add_bos_token=True)}),
    "json, gemma": ("json", "gemma2", {"tokenizer_config.json": config("GemmaTokenizer", bos_token=END, eos_token=END, unk_token=END, pad_token=END)}),
    "json, added tokens": ("json", "gpt2", {"tokenizer_config.json": config("GPT2Tokenizer"), "added_tokens.json": ADDED}),
    "json, decoder": ("json", "gpt2", {"tokenizer_config.json": config("PreTrainedTokenizerFast", added_tokens_decoder={
        "301": token(END, rstrip=True), "302": token("<think>", lstrip=True, rstrip=True),
    }, additional_special_tokens=["</s>"])}),
    "json, named again": ("json", "gpt2", {
        "tokenizer.json": {"added_tokens": [{"id": 301} | token(END, rstrip=True), {"id": 302} | token("<think>", lstrip=True)]},
        "tokenizer_config.json": config("GPT2Tokenizer", eos_token=END), "added_tokens.json": {END: 301, "<think>": 302, "<s>": 303},
    }),
    "json, clean": ("json", "gpt2", {"tokenizer_config.json": config("PreTrainedTokenizerFast", clean_up_tokenization_spaces=True)}),
    "json, bert, cased": ("words-json", "bert", {"tokenizer_config.json": config("BertTokenizer", do_lower_case=False)}),
    "json, bert, accents": ("words-json", "bert", {"tokenizer_config.json": config("BertTokenizerFast", strip_accents=False, tokenize_chinese_chars=False)}),
    "json, bert, cased in the file": ("words-json", "bert", {
        "tokenizer.json": {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False}},
        "tokenizer_config.json": config("BertTokenizer"),
    }),
    "json, plain, cased": ("words-json", "bert", {"tokenizer_config.json": config("PreTrainedTokenizerFast", do_lower_case=False)}),
}


def base(kind):
    """The files of a base."""
    gpt2 = HERE / "models" / "gpt2-tiny"
    words = HERE / "models" / "bert-tiny" / "tokenizer.json"
    if kind == "gpt2":
        return {name: (gpt2 / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    if kind == "json":
        tokenizer = AutoTokenizer.from_pretrained(gpt2)
        return {"tokenizer.json": tokenizer.backend_tokenizer.to_str().encode()}
    if kind == "words-json":
        return {"tokenizer.json": words.read_bytes()}
    if kind == "words":
        vocabulary = json.loads(words.read_text())["model"]["vocab"]
        return {"vocab.txt": "".join(f"{piece}\n" for piece in vocabulary).encode()}
    return {"tokenizer.model": MODELS[kind]}


def measure(kind, model_type, files, texts):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, content in base(kind).items():
            (folder / name).write_bytes(content)
        for name, content in files.items():
            if name == "tokenizer.json":
                content = json.loads((folder / name).read_text()) | content
            (folder / name).write_text(json.dumps(content))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        framed = tokenizer(text)["input_ids"]
        rows.append({
            "text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"], "framed": framed,
            "decoded": tokenizer.decode(framed),
        })
    return rows


def main():
    arguments(__doc__.splitlines()[0])
    transformers.logging.set_verbosity_error()
    cases = {}
    for name, (kind, model_type, files) in CASES.items():
        rows = measure(kind, model_type, copy.deepcopy(files), BERT_TEXTS if kind.startswith("words") else TEXTS)
        cases[name] = {"base": kind, "model_type": model_type, "files": files, "texts": rows}
    made = base("json")["tokenizer.json"].decode()
    models = {name: content.hex() for name, content in MODELS.items()}
    write_json("tokenizers.json", {"schema": 1, "versions": versions(), "models": models, "json": json.loads(made), "cases": cases})


if __name__ == "__main__":
    main()
