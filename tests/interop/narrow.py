"""Makes of a factorised output one whose linears are dense and smaller, other sizes in every block.

What a method chooses with care is chosen here by number: feed-forward layers lose their last channels, the values of every
head their last dimensions. Queries and keys stay factors.
"""

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

ROLES = {
    "q": r"(q_proj|query|q_lin|\.q)$", "k": r"(k_proj|key|k_lin|\.k)$", "v": r"(v_proj|value|v_lin|\.v)$",
    "o": r"(o_proj|self_attn\.out_proj|attention\.output\.dense|out_lin|attn\.c_proj|attention\.dense)$",
    "up": r"(gate_proj|up_proj|fc1|c_fc|intermediate\.dense|lin1|h_to_4h|w1|w3|\.gate|\.up)$",
    "down": r"(down_proj|fc2|mlp\.c_proj|(?<!attention\.)output\.dense|lin2|4h_to_h|w2)$",
}


def heads_of(config):
    first = lambda *keys: next((config[key] for key in keys if config.get(key)), None)
    heads = first("num_attention_heads", "n_head", "n_heads")
    head_dim = first("head_dim") or first("hidden_size", "n_embd", "dim") // heads
    return heads, first("num_key_value_heads") or heads, head_dim


def narrow(folder):
    """Changes the output in `folder`, of which every linear is a pair of factors or as in the base."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    section, tensors = config["softlm"], load_file(folder / "model.safetensors")
    family = section["base_model_type"]
    if family.startswith("mamba"):
        return
    heads, kv_heads, d = heads_of(config)

    for name, entry in section["linears"].items():
        role = next(role for role, pattern in ROLES.items() if re.search(pattern, name))
        block = int(re.search(r"\.(\d+)\.", name)[1])
        count = heads if role == "o" else kv_heads
        base = entry["out"], entry["in"]
        if role == "v" or role == "o":
            width = [d // 2, 1, d - 1][block % 3]
            places = [head * d + i for head in range(count) for i in range(width)]
        elif role == "up" or role == "down":
            places = list(range((entry["out"] if role == "up" else entry["in"]) - 1 - block))
        else:
            continue
        outputs, inputs = (range(base[0]), places) if role in ("o", "down") else (places, range(base[1]))
        if f"{name}.factor_a.weight" in tensors:
            product = tensors.pop(f"{name}.factor_b.weight").double() @ tensors.pop(f"{name}.factor_a.weight").double()
        else:
            product = tensors.pop(f"{name}.weight").double()
        weight = product[list(outputs)][:, list(inputs)].float()
        entry.pop("rank", None)
        if family == "gpt2" and "part_of" not in entry:
            entry["transposed"], weight = True, weight.T
        tensors[f"{name}.weight"] = weight.contiguous()
        entry["out"], entry["in"] = len(outputs), len(inputs)
        if role == "v":
            entry["out_heads"] = [count, d]
        elif role == "o":
            entry["in_heads"] = [count, d]
        if len(outputs) < base[0]:
            own, matrix = f"{name}.bias", f"{entry.get('part_of')}.bias"
            if own in tensors:
                tensors[own] = tensors[own][places].contiguous()
            elif matrix in tensors:
                start, run, stride = entry["rows"]
                rows = [start + i if run is None else start + i // run * stride + i % run for i in places]
                tensors[own], entry["bias"] = tensors[matrix][rows].contiguous(), True

    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # It has the hashes of what was there before.
    (folder / "report.json").unlink()
