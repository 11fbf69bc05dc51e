"""A training step as one writes it in PyTorch: prints seconds per step and the peaks of memory as JSON.

    python training_reference.py --mode soft --model FOLDER --text FILE --window 256 --batch 8 --steps 10 --threads 2
    python training_reference.py --mode heal --keep 0.8 --model FOLDER --text FILE --window 512 --batch 4 --device cuda

The dense model is the teacher and runs in the same step; the loss is KL(teacher || student) of `batch` windows, the graph
of the whole model at once, the optimiser AdamW. The student is the same model with other linears in its blocks:

soft  B diag(g) A with g = tanh(s (sigma - alpha)) above alpha; alpha, rho, B and A are trained.
heal  B A of uniform rank from the SVD, as two thin linears; B and A are trained.
"""

import argparse
import copy
import json
import math
import resource
import time
from fractions import Fraction

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer


def block_weights(model):
    """Names and weights of the blocks' linears."""
    return [(name, weight) for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]


def soft(model, options):
    """What is trained, and a function to the student's logits and the gates' pressure."""
    linears = {}
    for name, weight in block_weights(model):
        u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
        root = sigma.sqrt()
        alpha = torch.zeros(1, device=weight.device)
        parts = [alpha, torch.ones_like(sigma), u * root, root[:, None] * vt]
        linears[name] = (sigma, [part.requires_grad_() for part in parts])

    def student(rows):
        weights, pressure = {}, 0.0
        for name, (sigma, (alpha, rho, b, a)) in linears.items():
            scaled = sigma * rho
            gate = torch.where(scaled > alpha, torch.tanh(50.0 * (scaled - alpha)), 0.0)
            weights[name] = (b * (rho * gate)) @ a
            pressure = pressure + 0.1 * torch.exp(-alpha).sum()
        return functional_call(model, weights, (rows,), {"use_cache": False}).logits, pressure

    return [part for _, parts in linears.values() for part in parts], student


def heal(model, options):
    """As `soft`, without gates: the linears are modules of two factors."""
    dense = dict(block_weights(model))
    # What is not factorised stays the teacher's.
    shared = {id(weight): weight for weight in model.parameters() if not any(weight is x for x in dense.values())}
    thin, factors = copy.deepcopy(model, shared), []
    for name, weight in dense.items():
        m, n = weight.shape
        rank = math.floor(Fraction(options.keep) * m * n / (m + n))
        u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
        root = sigma[:rank].sqrt()
        pair = []
        for factor in [root[:, None] * vt[:rank], u[:, :rank] * root]:
            linear = torch.nn.Linear(*factor.T.shape, bias=False, device="meta")
            linear.weight = torch.nn.Parameter(factor.contiguous())
            pair.append(linear)
        thin.set_submodule(name.removesuffix(".weight"), torch.nn.Sequential(*pair))
        factors += [linear.weight for linear in pair]
    return factors, lambda rows: (thin(rows, use_cache=False).logits, 0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["soft", "heal"], default="soft", help="default: soft")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--keep", default="0.8", help="heal: fraction of the linears' parameters (default: 0.8)")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--tf32", action="store_true", help="f32 products on the GPU's tf32 units")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.manual_seed(0)
    cuda = options.device.type == "cuda"
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device)
    model.eval().requires_grad_(False)
    text = open(options.text, encoding="utf-8").read()[:2_000_000]
    ids = AutoTokenizer.from_pretrained(options.model)(text, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // options.window * options.window], device=options.device)
    windows = windows.view(-1, options.window)
    parameters, student = {"soft": soft, "heal": heal}[options.mode](model, options)
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []

    def step(number):
        rows = windows[(torch.arange(options.batch) + number * options.batch) % len(windows)]
        with torch.no_grad():
            teacher = torch.log_softmax(model(rows, use_cache=False).logits[:, :-1], -1)
        logits, pressure = student(rows)
        loss = torch.nn.functional.kl_div(
            torch.log_softmax(logits[:, :-1], -1), teacher, log_target=True, reduction="sum"
        )
        loss = loss / teacher[..., 0].numel()
        optimiser.zero_grad()
        (loss + pressure).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.detach())

    step(0)
    wait = torch.cuda.synchronize if cuda else lambda: None
    wait()
    started = time.perf_counter()
    for number in range(1, options.steps + 1):
        step(number)
    wait()
    seconds = (time.perf_counter() - started) / options.steps
    print(json.dumps({
        "torch": torch.__version__,
        "mode": options.mode,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "tf32": options.tf32,
        "seconds_per_step": seconds,
        "first_loss": losses[0].item(),
        "last_loss": losses[-1].item(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_mib": torch.cuda.max_memory_reserved() / 2**20 if cuda else None,
    }))


if __name__ == "__main__":
    main()
