"""A checkpoint of a Llama configuration's shapes: random weights whose singular values fall as 1/sqrt(k), in bf16.

    python benches/synthetic.py CONFIG.json FOLDER [--blocks N]

Good for times and memory, not for perplexities. The tokenizer beside the configuration is copied. Needs torch and safetensors.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file


def weight(rows, columns, generator, device):
    """Entries of about the size of a trained model's, 1 / sqrt(columns)."""
    inner = min(rows, columns)
    left, right = (torch.randn(shape, generator=generator, device=device) for shape in [(rows, inner), (inner, columns)])
    product = (left * torch.arange(1, inner + 1, device=device).rsqrt()) @ right
    return (product / (product.std() * columns**0.5)).bfloat16()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, help="blocks (default: the configuration's)")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text())
    blocks = arguments.blocks or config["num_hidden_layers"]
    config |= {"num_hidden_layers": blocks, "dtype": "bfloat16"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norm = torch.ones(hidden, dtype=torch.bfloat16)
    tensors = {"model.norm.weight": norm}
    heads = ["model.embed_tokens"] + ([] if config["tie_word_embeddings"] else ["lm_head"])
    for name in heads:
        tensors[name + ".weight"] = weight(config["vocab_size"], hidden, generator, device)
    for block in range(blocks):
        prefix = f"model.layers.{block}."
        for name in ["input_layernorm", "post_attention_layernorm"]:
            tensors[f"{prefix}{name}.weight"] = norm.clone()
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = weight(*shape, generator, device)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, arguments.folder / "model.safetensors")
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in arguments.config.parent.glob("tokenizer*.json"):
        shutil.copy(file, arguments.folder)


if __name__ == "__main__":
    main()
