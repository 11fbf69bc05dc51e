"""The work of one `softlm compress` in PyTorch, timed by stage: the other half of a speed comparison.

    python benches/torch_reference.py --threads 2
    softlm compress MODEL --method whiten --keep 0.6 --allocation uniform --calib TEXT --calib-windows 64 --window 256

Loads a Llama checkpoint, runs calibration windows through its blocks in f32, accumulates the Gram matrix of every
distinct linear input (q, k, v share one, gate and up share one), factorises every linear in f64 with the same
algorithm as softlm (eigenvectors only, on the smaller side of the weight) at uniform ranks, and saves the result as
safetensors in the checkpoint's own dtype. Written to be as fast as plain PyTorch gets without custom kernels: batched
windows, fused attention, in-place accumulation.

With `--device cuda` everything but the files lies on the GPU. `--ppl TEXT` also evaluates the dense model as `softlm eval`
does: perplexity over windows in which the first id is given.

Prints one line of JSON: seconds per stage of the fastest of `--repeat` runs, peak resident memory, the perplexity, and the
mean relative output error, by which one can see that both sides did the same. Needs torch, safetensors and tokenizers.
"""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
from collections import defaultdict  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from fractions import Fraction  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch.nn.functional import cross_entropy, linear, rms_norm, scaled_dot_product_attention, silu  # noqa: E402

IMPORTS = time.perf_counter() - STARTED
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SITES = {
    "attn_in": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn_out": ["self_attn.o_proj"],
    "mlp_in": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp_out": ["mlp.down_proj"],
}


class Stages(defaultdict):
    """Seconds per stage; stages may nest, then the outer one includes the inner."""

    def __init__(self, device):
        super().__init__(float)
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    @contextmanager
    def time(self, name):
        start = time.perf_counter()
        yield
        self.wait()
        self[name] += time.perf_counter() - start


class Block:
    """One Llama block in f32 that hands every linear input to `see`."""

    def __init__(self, weights, index, config, length):
        prefix = f"model.layers.{index}."
        self.w = {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
        device = self.w["input_layernorm.weight"].device
        self.heads, self.kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.eps = config["rms_norm_eps"]
        half = config["head_dim"] // 2
        speed = config["rope_theta"] ** (-torch.arange(half, dtype=torch.float32, device=device) / half)
        angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * speed
        self.cos, self.sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def norm(self, x, name):
        return rms_norm(x, x.shape[-1:], self.w[name + ".weight"], self.eps)

    def linear(self, x, name):
        return linear(x, self.w[name + ".weight"])

    def forward(self, h, see):
        def split(x, count):
            return x.unflatten(-1, (count, -1)).transpose(1, 2)

        x = self.norm(h, "input_layernorm")
        see("attn_in", x)
        q = self.rotate(split(self.linear(x, "self_attn.q_proj"), self.heads))
        k = self.rotate(split(self.linear(x, "self_attn.k_proj"), self.kv))
        v = split(self.linear(x, "self_attn.v_proj"), self.kv)
        x = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
        x = x.transpose(1, 2).flatten(2)
        see("attn_out", x)
        h = h + self.linear(x, "self_attn.o_proj")
        x = self.norm(h, "post_attention_layernorm")
        see("mlp_in", x)
        x = silu(self.linear(x, "mlp.gate_proj")).mul_(self.linear(x, "mlp.up_proj"))
        see("mlp_out", x)
        return h + self.linear(x, "mlp.down_proj")


def factorise(w, gram, rank, stages):
    """B (m, r), A (r, n) minimising ||(W - B A) X||, and the relative squared error. No inverse is needed."""
    m, n = w.shape
    if m <= n:
        with stages.time("evd"):
            values, vectors = torch.linalg.eigh(w @ gram @ w.T)
        b = vectors[:, m - rank :]
    else:
        with stages.time("evd"):
            values, vectors = torch.linalg.eigh(gram)
        s = vectors * values.clamp(min=0).sqrt()
        ws = w @ s
        with stages.time("evd"):
            values, vectors = torch.linalg.eigh(ws.T @ ws)
        b = ws @ vectors[:, n - rank :] / values[n - rank :].sqrt()
    return b, b.T @ w, (values[: len(values) - rank].sum() / values.sum()).item()


def read_ids(arguments, text, windows):
    """The first windows of a text, (windows, window)."""
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ids = tokenizer.encode(text.read_bytes().decode("utf-8"), add_special_tokens=False).ids
    count = windows * arguments.window
    if len(ids) < count:
        raise SystemExit(f"{text} has {len(ids)} tokens, {count} needed")
    return torch.tensor(ids[:count], device=arguments.device).view(-1, arguments.window)


def perplexity(arguments, weights, config, ids):
    """That of the dense model; logits of one batch at a time."""
    embedding = weights["model.embed_tokens.weight"].float()
    head = weights["lm_head.weight"].float() if "lm_head.weight" in weights else embedding
    norm = weights["model.norm.weight"].float()
    blocks = [Block(weights, index, config, arguments.window) for index in range(config["num_hidden_layers"])]
    nll = torch.zeros((), dtype=torch.float64, device=arguments.device)
    for rows in ids.split(arguments.batch):
        h = embedding[rows]
        for block in blocks:
            h = block.forward(h, lambda site, x: None)
        logits = linear(rms_norm(h, h.shape[-1:], norm, config["rms_norm_eps"]), head)
        nll += cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
    return math.exp(nll.item() / ids[:, 1:].numel())


def job(arguments, out):
    stages, errors, ppl = Stages(arguments.device), [], None
    gram_dtype = {"f32": torch.float32, "f64": torch.float64}[arguments.gram]
    with stages.time("total"):
        with stages.time("load"):
            config = json.loads((arguments.model / "config.json").read_text())
            config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
            weights = {}
            for file in sorted(arguments.model.glob("*.safetensors")):
                weights |= load_file(file, device=str(arguments.device))
        with stages.time("tokenise"):
            ids = read_ids(arguments, arguments.text, arguments.windows)
        h = weights["model.embed_tokens.weight"].float()[ids]
        compressed = dict(weights)
        for index in range(config["num_hidden_layers"]):
            with stages.time("calibrate"):
                block = Block(weights, index, config, arguments.window)
                grams = {}

                def see(site, x):
                    with stages.time("gram"):
                        x = x.flatten(0, 1).to(gram_dtype)
                        if site not in grams:
                            grams[site] = torch.zeros(x.shape[1], x.shape[1], dtype=gram_dtype, device=x.device)
                        grams[site].addmm_(x.T, x)

                h = torch.cat([block.forward(rows, see) for rows in h.split(arguments.batch)])
            with stages.time("factorise"):
                for site, names in SITES.items():
                    for name in names:
                        name = f"model.layers.{index}.{name}"
                        dense = compressed.pop(name + ".weight")
                        m, n = dense.shape
                        rank = math.floor(Fraction(arguments.keep) * m * n / (m + n))
                        b, a, error = factorise(dense.double(), grams[site].double(), rank, stages)
                        compressed[name + ".factor_a.weight"] = a.to(dense.dtype).contiguous()
                        compressed[name + ".factor_b.weight"] = b.to(dense.dtype).contiguous()
                        errors.append(error)
        with stages.time("save"):
            save_file(compressed, out / "model.safetensors", metadata={"format": "pt"})
    stages["forward"] = stages["calibrate"] - stages["gram"]
    if arguments.ppl:
        ids = read_ids(arguments, arguments.ppl, arguments.max_windows)
        with stages.time("evaluate"):
            ppl = perplexity(arguments, weights, config, ids)
    return {name: round(seconds, 4) for name, seconds in stages.items()}, sum(errors) / len(errors), ppl


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DATA / "models" / "llama-wiki-7m", help="checkpoint folder")
    parser.add_argument("--text", type=Path, default=DATA / "text" / "shakespeare" / "input.txt", help="UTF-8 text")
    parser.add_argument("--keep", default="0.6", help="fraction of the linears' parameters kept (default: 0.6)")
    parser.add_argument("--windows", type=int, default=64, help="calibration windows (default: 64)")
    parser.add_argument("--window", type=int, default=256, help="ids per window (default: 256)")
    parser.add_argument("--batch", type=int, default=8, help="windows per forward pass (default: 8)")
    parser.add_argument("--gram", choices=["f32", "f64"], default="f64", help="Gram accumulation (default: f64)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--tf32", action="store_true", help="f32 products on the GPU's tf32 units")
    parser.add_argument("--ppl", type=Path, help="UTF-8 text to evaluate the dense model on, after all else")
    parser.add_argument("--max-windows", type=int, default=40, help="windows of --ppl (default: 40)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeat", type=int, default=1, help="runs, of which the fastest counts (default: 1)")
    parser.add_argument("--out", type=Path, help="folder for the result (default: a temporary one)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        out = arguments.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        runs = [job(arguments, out) for _ in range(arguments.repeat)]
    stages, error, ppl = min(runs, key=lambda run: run[0]["total"])
    print(json.dumps({
        "torch": torch.__version__.split("+")[0],
        "model": arguments.model.name,
        "tokens": arguments.windows * arguments.window,
        "keep": arguments.keep,
        "gram": arguments.gram,
        "threads": arguments.threads,
        "seconds": {"import": round(IMPORTS, 4)} | stages,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "device": torch.cuda.get_device_name() if arguments.device.type == "cuda" else "cpu",
        "tf32": arguments.tf32,
        "perplexity": ppl,
        "mean_relative_error": error,
    }))


if __name__ == "__main__":
    main()
