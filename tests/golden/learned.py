"""The learned methods trained by torch: writes learned.json.

    python learned.py

Every linear of llama-tiny-bias is W = U diag(sigma) V^T (torch.linalg.svd, f64) and becomes U diag(g sigma) V^T. Teacher is
the model itself; both rows of logits.json's ids are one batch; the last position of a row has no next token:

    soft:  g = tanh(50 (sigma - alpha)) above alpha, 0 elsewhere       loss = KL + 0.1 sum_l exp(-alpha_l)
    soco:  g = s = 2 sigmoid(theta)                                     loss = KL + 0.5 (ratio - 0.3) while ratio > 0.3
           in the last phase g = s z, z = 1[s > 0.5] with the gradient of s, and + 0.2 mean of s over s <= 0.5

ratio's gradient on every s is (m + n) / (sum of m n). 12 steps of AdamW (betas 0.9 and 0.99, no decay), gradients scaled
down to norm 1 over all controls, learning rate 0.15 (soft) and 0.4 (soco) times cosine from 1 to 0.1. soco's phases begin
at steps 0, 6 and 9. For each step the KL before it, and alpha or theta of every linear after it.
"""

import math

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from common import arguments, digits, model_folder, versions, write_json
from gradients import LLAMA
from logits import MODELS, inputs

NAME = "llama-tiny-bias"
STEPS = 12
SHARPNESS = 50.0
KEEP = 0.3
CUT = 0.5
ROLES = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"]


class Linear:
    def __init__(self, weight, method):
        self.u, self.sigma, self.vt = torch.linalg.svd(weight, full_matrices=False)
        self.out, self.width = weight.shape
        self.control = torch.zeros(1 if method == "soft" else len(self.sigma), dtype=torch.float64, requires_grad=True)

    def weight(self, gate):
        return (self.u * (gate * self.sigma)) @ self.vt


def factor(step):
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def train(method, lr, data):
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(NAME, data), dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.tensor(inputs(model.config.vocab_size, MODELS[NAME][0]))
    with torch.no_grad():
        teacher = torch.log_softmax(model(ids).logits[:, :-1], -1)
    state = dict(model.named_parameters())
    names = [f"{block}.{role}" for block in range(model.config.num_hidden_layers) for role in ROLES]
    theirs = {name: f"model.layers.{name.split('.', 1)[0]}.{LLAMA[name.split('.', 1)[1]]}.weight" for name in names}
    linears = {name: Linear(state[theirs[name]].detach(), method) for name in names}
    total = sum(linear.out * linear.width for linear in linears.values())
    controls = [linear.control for linear in linears.values()]
    optimiser = torch.optim.AdamW(controls, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    losses, states = [], []
    for step in range(STEPS):
        last = method == "soco" and step >= 9
        pressure, weights, small = 0.0, {}, []
        for name, linear in linears.items():
            if method == "soft":
                alpha = linear.control
                gate = torch.where(linear.sigma > alpha, torch.tanh(SHARPNESS * (linear.sigma - alpha)), 0.0)
                pressure = pressure + 0.1 * torch.exp(-alpha).sum()
            else:
                s = 2 * torch.sigmoid(linear.control)
                z = (s > CUT).double().detach()
                gate = s * (z + s - s.detach()) if last else s
                linear.kept = int(z.sum())
                pressure = pressure + 0.5 * (linear.out + linear.width) / total * s.sum()
                small += [s[i] for i in range(len(s)) if s[i] <= CUT]
            weights[theirs[name]] = linear.weight(gate)
        if method == "soco":
            cost = [min(l.kept * (l.out + l.width), l.out * l.width) for l in linears.values()]
            if sum(cost) / total <= KEEP:
                pressure = 0.0 * pressure
            if last and small:
                pressure = pressure + 0.2 * torch.stack(small).mean()
        q = torch.log_softmax(functional_call(model, weights, (ids,)).logits[:, :-1], -1)
        kl = (teacher.exp() * (teacher - q)).sum(-1).mean()
        losses.append(kl.item())
        optimiser.zero_grad()
        (kl + pressure).backward()
        norm = math.sqrt(sum((c.grad ** 2).sum().item() for c in controls))
        scale = min(1.0, 1.0 / (norm + 1e-6))
        for c in controls:
            c.grad *= scale
        for group in optimiser.param_groups:
            group["lr"] = lr * factor(step)
        optimiser.step()
        states.append({name: linear.control.tolist() for name, linear in linears.items()})
    return {"kl": losses, "controls": states}


def main():
    data = arguments(__doc__.splitlines()[0]).data
    result = {"schema": 1, "versions": versions(), "soft": train("soft", 0.15, data), "soco": train("soco", 0.4, data)}
    for method in ("soft", "soco"):
        print(method, result[method]["kl"], result[method]["controls"][-1]["0.attn.q"][:4])
    write_json("learned.json", digits(result, 10))


if __name__ == "__main__":
    main()
