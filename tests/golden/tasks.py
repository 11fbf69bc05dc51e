"""`soft` trained by torch on encoders: writes tasks.json and encoders/bert-tiny-score.

    python tasks.py

bert-tiny-score is a BertForSequenceClassification with one output, f16. As in learned.py every linear of the blocks becomes
U diag(g sigma) V^T with g = tanh(50 (sigma - alpha)) above alpha and 0 elsewhere, and 0.1 sum_l exp(-alpha_l) is added to
the loss; 12 steps of AdamW at 0.15 times cosine from 1 to 0.1. Without dropout the mean losses are

    labels   bert-tiny-classes, the padded batch of encoders.json: cross-entropy of LABELS
    scores   bert-tiny-score, the same batch: squared error of SCORES
    classes  bert-tiny-classes, two windows of 20 tokens without padding: KL of the classes to the original's
    states   bert-tiny-bare, the same windows: 1 - cosine to the original's final state, per token

For each the loss before each step without the pressure, and alpha of every linear after it.
"""

import math

import torch
from torch.func import functional_call
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from common import HERE, arguments, digits, versions, write_json
from encoders import LENGTHS
from learned import STEPS, Linear, factor
from models import BERT, randomise, save, wordpiece

LABELS = [2, 0, 1, 1]
SCORES = [0.3, 2.0, -1.0, 4.0]
LR = 0.15
ROLES = {
    "attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense", "mlp.up": "intermediate.dense", "mlp.down": "output.dense",
}


def padded():
    width = max(LENGTHS)
    fill = lambda row: row + [0] * (width - len(row))
    return {
        "input_ids": torch.tensor([fill([(7 + 31 * i + 17 * r * i) % 96 for i in range(n)]) for r, n in enumerate(LENGTHS)]),
        "attention_mask": torch.tensor([fill([1] * n) for n in LENGTHS]),
        "token_type_ids": torch.tensor([fill([int(i > n // 2) for i in range(n)]) for n in LENGTHS]),
    }


def windows():
    return {"input_ids": torch.tensor([[(7 + 31 * i + 17 * r * i) % 96 for i in range(20)] for r in range(2)])}


def train(kind, folder, prefix, inputs, loss_of):
    model = kind.from_pretrained(HERE / "encoders" / folder, dtype=torch.float64, attn_implementation="eager").eval()
    state = dict(model.named_parameters())
    theirs = {f"{block}.{role}": f"{prefix}encoder.layer.{block}.{name}.weight"
              for block in range(model.config.num_hidden_layers) for role, name in ROLES.items()}
    linears = {name: Linear(state[weight].detach(), "soft") for name, weight in theirs.items()}
    controls = [linear.control for linear in linears.values()]
    optimiser = torch.optim.AdamW(controls, lr=LR, betas=(0.9, 0.99), weight_decay=0.0)
    with torch.no_grad():
        original = model(**inputs)
    losses, states = [], []
    for step in range(STEPS):
        weights, pressure = {}, 0.0
        for name, linear in linears.items():
            alpha = linear.control
            gate = torch.where(linear.sigma > alpha, torch.tanh(50.0 * (linear.sigma - alpha)), 0.0)
            pressure = pressure + 0.1 * torch.exp(-alpha).sum()
            weights[theirs[name]] = linear.weight(gate)
        loss = loss_of(functional_call(model, weights, (), inputs), original)
        losses.append(loss.item())
        optimiser.zero_grad()
        (loss + pressure).backward()
        norm = math.sqrt(sum((c.grad ** 2).sum().item() for c in controls))
        for c in controls:
            c.grad *= min(1.0, 1.0 / (norm + 1e-6))
        for group in optimiser.param_groups:
            group["lr"] = LR * factor(step)
        optimiser.step()
        states.append({name: linear.control.item() for name, linear in linears.items()})
    return {"loss": losses, "alpha": states}


def cross_entropy(found, _):
    return torch.nn.functional.cross_entropy(found.logits, torch.tensor(LABELS))


def squared_error(found, _):
    return ((found.logits[:, 0] - torch.tensor(SCORES, dtype=torch.float64)) ** 2).mean()


def divergence(found, original):
    p, q = torch.log_softmax(original.logits, -1), torch.log_softmax(found.logits, -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def turned(found, original):
    return (1 - torch.cosine_similarity(found.last_hidden_state, original.last_hidden_state, dim=-1)).mean()


def main():
    arguments(__doc__.splitlines()[0])
    score = BertForSequenceClassification(BertConfig(**BERT, num_labels=1))
    wordpiece(save(randomise(score, 67, 0.3), "bert-tiny-score", torch.float16, "encoders"))
    classifier = AutoModelForSequenceClassification
    result = {
        "schema": 1, "versions": versions(),
        "labels": train(classifier, "bert-tiny-classes", "bert.", padded(), cross_entropy),
        "scores": train(classifier, "bert-tiny-score", "bert.", padded(), squared_error),
        "classes": train(classifier, "bert-tiny-classes", "bert.", windows(), divergence),
        "states": train(AutoModel, "bert-tiny-bare", "", windows(), turned),
    }
    for name in ("labels", "scores", "classes", "states"):
        print(name, result[name]["loss"])
    write_json("tasks.json", digits(result, 10))


if __name__ == "__main__":
    main()
