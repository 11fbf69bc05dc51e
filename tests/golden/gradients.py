"""Gradients and AdamW steps of torch: writes gradients.json.

    python gradients.py

Two of the linears of block 0 (attn.q and mlp.down) are replaced by factors, W = B A, with
A_ij = 0.3 cos(1 + 0.7 i + 1.3 j) and B_ij = 0.3 sin(1 + 1.1 i + 0.9 j), rank 3. Teacher is the model itself. Everything is
f64. Ids are those of logits.json; the last position of a row has no next token and does not count:

    loss = mean over positions of  T² KL(softmax(u/T) || softmax(z/T)) + 0.5 (-log softmax(z)[next]),   T = 2

For every parameter of the two blocks, named as softlm names it and in (out, in) layout, the norm of its gradient g and
the probe sum g_i cos(1 + i), i counting elements row by row; likewise for what enters block 0 (`input`).

`adamw` holds two tensors after each of 5 steps of torch.optim.AdamW (f64): x_i = cos(1 + i) (12 elements, lr 0.01, weight
decay 0.1), y_i = sin(2 + i) (5 elements, lr 0.003, weight decay 0); gradients at step s are sin(1 + 3 s + i) and, for y,
none at step 2 and otherwise 0.01 cos(s + 2 i).
"""

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from common import arguments, digits, model_folder, versions, write_json
from logits import MODELS, inputs

RANK = 3
TEMPERATURE = 2.0
LIKELIHOOD = 0.5
FACTORISED = ["0.attn.q", "0.mlp.down"]
NAMES = ["llama-tiny-rope3", "llama-tiny-bias", "gpt2-tiny"]
LLAMA = {
    "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
}
GPT2 = {"attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj", "attn_norm": "ln_1", "mlp_norm": "ln_2"}


def grid(rows, cols, f):
    i, j = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(cols, dtype=torch.float64)[None]
    return f(i, j)


def leaves(model, gpt2):
    """Every parameter of every block as softlm names it: dense weights (out, in)."""
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    found, table = {}, GPT2 if gpt2 else LLAMA
    for block in range(model.config.num_hidden_layers):
        prefix = f"transformer.h.{block}." if gpt2 else f"model.layers.{block}."
        for ours, theirs in table.items():
            for part in ("weight", "bias"):
                if (p := state.get(f"{prefix}{theirs}.{part}")) is not None:
                    conv = gpt2 and p.ndim == 2
                    found[f"{block}.{ours}.{part}"] = p.T.contiguous() if conv else p
        if gpt2:
            for part, key in ((f"{prefix}attn.c_attn.weight", "weight"), (f"{prefix}attn.c_attn.bias", "bias")):
                pieces = state[part].T if key == "weight" else state[part]
                for ours, piece in zip(("q", "k", "v"), pieces.chunk(3, 0)):
                    found[f"{block}.attn.{ours}.{key}"] = piece.contiguous()
    for name in FACTORISED:
        out, width = found.pop(f"{name}.weight").shape
        found[f"{name}.factor_a"] = grid(RANK, width, lambda i, j: 0.3 * torch.cos(1 + 0.7 * i + 1.3 * j))
        found[f"{name}.factor_b"] = grid(out, RANK, lambda i, j: 0.3 * torch.sin(1 + 1.1 * i + 0.9 * j))
    return {name: p.requires_grad_() for name, p in found.items()}


def assembled(model, parameters, gpt2):
    """The same as transformers names it."""
    dense = dict(parameters)
    for name in FACTORISED:
        dense[f"{name}.weight"] = dense.pop(f"{name}.factor_b") @ dense.pop(f"{name}.factor_a")
    state, table = {}, GPT2 if gpt2 else LLAMA
    for block in range(model.config.num_hidden_layers):
        prefix = f"transformer.h.{block}." if gpt2 else f"model.layers.{block}."
        for ours, theirs in table.items():
            for part in ("weight", "bias"):
                if (p := dense.get(f"{block}.{ours}.{part}")) is not None:
                    state[f"{prefix}{theirs}.{part}"] = p.T if gpt2 and p.ndim == 2 else p
        if gpt2:
            for part in ("weight", "bias"):
                whole = torch.cat([dense[f"{block}.attn.{ours}.{part}"] for ours in "qkv"])
                state[f"{prefix}attn.c_attn.{part}"] = whole.T if part == "weight" else whole
    return state


def probe(g):
    flat = g.flatten()
    return [g.norm().item(), (flat * torch.cos(1 + torch.arange(flat.numel(), dtype=torch.float64))).sum().item()]


def golden(name, data):
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(name, data), dtype=torch.float64, attn_implementation="eager").eval()
    gpt2 = model.config.model_type == "gpt2"
    ids = torch.tensor(inputs(model.config.vocab_size, MODELS[name][0]))
    parameters = leaves(model, gpt2)
    entered = {}
    blocks = model.transformer.h if gpt2 else model.model.layers

    def keep(module, args):
        entered["x"] = args[0].detach().requires_grad_()
        return (entered["x"], *args[1:])

    with torch.no_grad():
        teacher = model(ids).logits[:, :-1]
    blocks[0].register_forward_pre_hook(keep)
    logits = functional_call(model, assembled(model, parameters, gpt2), (ids,)).logits[:, :-1]
    p = torch.log_softmax(teacher / TEMPERATURE, -1)
    q = torch.log_softmax(logits / TEMPERATURE, -1)
    kl = TEMPERATURE ** 2 * (p.exp() * (p - q)).sum(-1).mean()
    nll = -torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).mean()
    loss = kl + LIKELIHOOD * nll
    loss.backward()
    gradients = {key: probe(leaf.grad) for key, leaf in sorted(parameters.items())}
    return {"kl": kl.item(), "nll": nll.item(), "input": probe(entered["x"].grad), "gradients": gradients}


def adamw():
    x = torch.cos(1 + torch.arange(12, dtype=torch.float64)).requires_grad_()
    y = torch.sin(2 + torch.arange(5, dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.AdamW([
        {"params": [x], "lr": 0.01, "weight_decay": 0.1}, {"params": [y], "lr": 0.003, "weight_decay": 0.0}])
    states = []
    for s in range(5):
        x.grad = torch.sin(1 + 3 * s + torch.arange(12, dtype=torch.float64))
        y.grad = None if s == 2 else 0.01 * torch.cos(s + 2 * torch.arange(5, dtype=torch.float64))
        optimiser.step()
        states.append([x.tolist(), y.tolist()])
    return states


def main():
    data = arguments(__doc__.splitlines()[0]).data
    result = {"schema": 1, "versions": versions(), "models": {name: golden(name, data) for name in NAMES}}
    result["adamw"] = adamw()
    for name, found in result["models"].items():
        print(name, found["kl"], found["nll"], len(found["gradients"]))
    write_json("gradients.json", digits(result, 10))


if __name__ == "__main__":
    main()
