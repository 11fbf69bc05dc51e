"""The training step of `soft` as one writes it in PyTorch: prints seconds per step and the peak of memory as JSON.

    python training_reference.py --model FOLDER --text FILE --window 256 --batch 8 --steps 10 --threads 2

Every linear of the blocks is B diag(g) A with g = tanh(s (sigma - alpha)) above alpha; alpha, rho, B and A are trained by
AdamW on KL(original || student) of `batch` windows, the graph of the whole model at once. The original runs in the same step.
"""

import argparse
import json
import resource
import time

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().requires_grad_(False)
    text = open(options.text, encoding="utf-8").read()[:2_000_000]
    ids = AutoTokenizer.from_pretrained(options.model)(text, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // options.window * options.window]).view(-1, options.window)

    linears = {}
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.dim() == 2:
            u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
            root = sigma.sqrt()
            alpha = torch.zeros(1)
            parts = [alpha, torch.ones_like(sigma), u * root, root[:, None] * vt]
            linears[name] = (sigma, [part.requires_grad_() for part in parts])
    parameters = [part for _, parts in linears.values() for part in parts]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)

    def step(number):
        rows = windows[torch.arange(options.batch) + number * options.batch]
        with torch.no_grad():
            teacher = torch.log_softmax(model(rows, use_cache=False).logits[:, :-1], -1)
        weights, pressure = {}, 0.0
        for name, (sigma, (alpha, rho, b, a)) in linears.items():
            scaled = sigma * rho
            gate = torch.where(scaled > alpha, torch.tanh(50.0 * (scaled - alpha)), 0.0)
            weights[name] = (b * (rho * gate)) @ a
            pressure = pressure + 0.1 * torch.exp(-alpha).sum()
        logits = functional_call(model, weights, (rows,), {"use_cache": False}).logits[:, :-1]
        loss = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), teacher, log_target=True, reduction="sum")
        optimiser.zero_grad()
        (loss / teacher[..., 0].numel() + pressure).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    step(0)
    started = time.perf_counter()
    for number in range(1, options.steps + 1):
        step(number)
    seconds = (time.perf_counter() - started) / options.steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"torch": torch.__version__, "seconds_per_step": seconds, "peak_rss_mib": peak}))


if __name__ == "__main__":
    main()
