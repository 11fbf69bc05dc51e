"""How the methods rank at uniform ranks: writes table.json.

    python table.py [--data FOLDER]

Whole pass in f64. 64 calibration windows and 100 evaluation windows of 256 ids, both from the start of their token
stream; no BOS, no special tokens, 255 targets per window; rank floor(keep m n / (m + n)) for every linear; embedding,
norms and head untouched. svd, awsvd and whiten take G from one pass over the dense model. `rom` is the same optimum as
whiten, but sequential: each group of linears sees the inputs behind everything compressed before it. `rom-blocks` sees
only earlier blocks compressed, `awsvd-blocks` is awsvd on those inputs. `global-1` and `global-rel` are whiten with
ranks from one threshold on w σ² / (m + n) over all linears (w = 1, and w = 1 / ||W X||²), a linear being dense where
its rank reaches break-even.
"""

import json
import math
import time
from fractions import Fraction

import torch

from common import arguments, digits, model_folder, versions, write_json
from reference import LINEARS, Llama, components, compress, windows

KEEPS = ["0.8", "0.6", "0.4"]
STORIES = ("tinystories/niklas_tinystories.txt", "tinystories/tiny.utf8")
CELLS = {
    "demo": ("mix/train.jsonl", "wikitext2-raw/test.txt"),
    "tinystories-656k": STORIES,
    "stories260k": STORIES,
}
# name in the table: (method, inputs)
RUNS = {
    "svd": ("svd", "dense"),
    "awsvd": ("awsvd", "dense"),
    "whiten": ("whiten", "dense"),
    "rom": ("rom", "sequential"),
    "rom-blocks": ("rom", "blocks"),
    "awsvd-blocks": ("awsvd", "blocks"),
}


def read(path):
    """A text verbatim; the first 400,000 characters of a JSONL file's texts joined by blank lines."""
    text = path.read_bytes().decode("utf-8")
    if path.suffix == ".jsonl":
        text = "\n\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())[:400_000]
    return text


def global_ranks(model, keep, grams, weigh):
    """Ranks by one threshold: components in order of w σ² / (m + n) until the next one would break the budget."""
    total = sum(w.numel() for w in model.dense.values())
    offers = []
    for name, w in model.dense.items():
        _, _, energy = components("whiten", w, grams[name])
        scale = 1 / energy.sum().item() if weigh == "rel" else 1.0
        price = sum(w.shape)
        offers += [(scale * e / price, name, i) for i, e in enumerate(energy.tolist())]
    offers.sort(key=lambda offer: (-offer[0], offer[1], offer[2]))
    ranks = dict.fromkeys(model.dense, 0)
    spent, budget = 0, math.floor(Fraction(keep) * total)
    for _, name, _ in offers:
        m, n = model.dense[name].shape
        old = ranks[name]
        if old is None:
            continue
        new = old + 1
        cost = min(new * (m + n), m * n) - old * (m + n)
        if spent + cost > budget:
            break
        spent += cost
        ranks[name] = None if new * (m + n) >= m * n else new
    return {name: rank if rank is None else max(rank, 1) for name, rank in ranks.items()}, spent / total


def main():
    data = arguments(__doc__.splitlines()[0]).data
    protocol = " ".join(__doc__.split("\n\n")[2].split())
    result = {"schema": 1, "versions": versions(), "protocol": protocol, "models": {}}
    for name, (calibration, evaluation) in CELLS.items():
        folder = model_folder(name, data)
        model = Llama(folder)
        seen = windows(folder, read(data / "text" / calibration), 0, 64)
        test = windows(folder, read(data / "text" / evaluation), 0, 100)
        entry = {"calibration": calibration, "evaluation": evaluation}
        result["models"][name] = entry | {"dense": math.exp(model.nll(test)), "keep": {}}
        print(name, "dense", result["models"][name]["dense"], flush=True)
        grams, h = {}, model.embed(seen)
        for index in range(model.blocks):
            sums, h = model.grams(index, h)
            grams |= {f"{index}.{role}": sums[site] for role, (_, site) in LINEARS.items()}
        for keep in KEEPS:
            row = result["models"][name]["keep"][keep] = {}
            for run, (method, inputs) in RUNS.items():
                started = time.time()
                compress(model, method, keep, seen, inputs=inputs)
                row[run] = math.exp(model.nll(test))
                print(f"{name} {keep} {run} {row[run]:.4f} ({time.time() - started:.0f} s)", flush=True)
            for weigh in ("1", "rel"):
                ranks, kept = global_ranks(model, keep, grams, weigh)
                compress(model, "whiten", keep, seen, ranks=ranks)
                row[f"global-{weigh}"] = math.exp(model.nll(test))
                print(f"{name} {keep} global-{weigh} {row[f'global-{weigh}']:.4f} kept {kept:.5f}", flush=True)
            model.reset()
            write_json("table.json", digits(result, 8))


if __name__ == "__main__":
    with torch.no_grad():
        main()
