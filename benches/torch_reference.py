"""The work of one `softlm compress` in PyTorch, timed by stage: the other half of a speed comparison.

    python benches/torch_reference.py --threads 2
    softlm compress MODEL --method whiten --keep 0.6 --allocation uniform --calib TEXT --calib-windows 64 --window 256

Loads a Llama checkpoint, runs calibration windows through its blocks in f32, accumulates the Gram matrix of every
distinct linear input (q, k, v share one, gate and up share one), factorises every linear in f64 with the same
algorithm as softlm (eigenvectors only, on the smaller side of the weight) at uniform ranks, and saves the result as
safetensors in the checkpoint's own dtype. Written to be as fast as plain PyTorch gets without custom kernels: batched
windows, fused attention, in-place accumulation.

`--method whiten` collects every Gram matrix of a block in one pass of the dense model; `rom` those of q, k, v, then of o,
of gate and up, and of down, each behind all linears that are already compressed; `none` only evaluates.

With `--device cuda` everything but the files lies on the GPU. `--ppl TEXT` also evaluates the dense model and the
compressed one as `softlm eval` does: perplexity over windows in which the first id is given. With `--transformers` it is
transformers' own model in f32 that is evaluated, not the blocks of this script.

Prints one line of JSON: seconds per stage of the fastest of `--repeat` runs, peaks of memory, the perplexities, and the
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
    """One Llama block in f32, in steps between the inputs of its linears. Linears are dense or of two factors."""

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
        if name + ".weight" in self.w:
            return linear(x, self.w[name + ".weight"])
        return linear(linear(x, self.w[name + ".factor_a.weight"]), self.w[name + ".factor_b.weight"])

    # Each step takes the residual stream and the last site's input, and gives the stream and its own site's input.

    def attn_in(self, h, _):
        return h, self.norm(h, "input_layernorm")

    def attn_out(self, h, x):
        def split(x, count):
            return x.unflatten(-1, (count, -1)).transpose(1, 2)

        q = self.rotate(split(self.linear(x, "self_attn.q_proj"), self.heads))
        k = self.rotate(split(self.linear(x, "self_attn.k_proj"), self.kv))
        v = split(self.linear(x, "self_attn.v_proj"), self.kv)
        x = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
        return h, x.transpose(1, 2).flatten(2)

    def mlp_in(self, h, x):
        h = h + self.linear(x, "self_attn.o_proj")
        return h, self.norm(h, "post_attention_layernorm")

    def mlp_out(self, h, x):
        return h, silu(self.linear(x, "mlp.gate_proj")).mul_(self.linear(x, "mlp.up_proj"))

    def end(self, h, x):
        return h + self.linear(x, "mlp.down_proj")

    def forward(self, h, see=lambda site, x: None):
        x = None
        for site in SITES:
            h, x = getattr(self, site)(h, x)
            see(site, x)
        return self.end(h, x)


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


def own_logits(arguments, weights, config):
    """Ids to logits by the blocks above."""
    embedding = weights["model.embed_tokens.weight"].float()
    head = weights["lm_head.weight"].float() if "lm_head.weight" in weights else embedding
    norm = weights["model.norm.weight"].float()
    blocks = [Block(weights, index, config, arguments.window) for index in range(config["num_hidden_layers"])]

    def logits(rows):
        h = embedding[rows]
        for block in blocks:
            h = block.forward(h)
        return linear(rms_norm(h, h.shape[-1:], norm, config["rms_norm_eps"]), head)

    return logits


def transformers_logits(arguments, weights):
    """Ids to logits by transformers, in f32; a linear of two factors is a sequence of two linears."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device).eval()
    for name in [name.removesuffix(".factor_a.weight") for name in weights if name.endswith(".factor_a.weight")]:
        factors = [weights[f"{name}.factor_{side}.weight"].float() for side in "ab"]
        linears = [torch.nn.Linear(*factor.T.shape, bias=False, device="meta") for factor in factors]
        for linear, factor in zip(linears, factors):
            linear.weight = torch.nn.Parameter(factor)
        model.set_submodule(name, torch.nn.Sequential(*linears))
    return lambda rows: model(rows, use_cache=False).logits


def perplexity(arguments, logits_of, ids):
    """Logits of one batch at a time."""
    nll = torch.zeros((), dtype=torch.float64, device=arguments.device)
    for rows in ids.split(arguments.batch):
        logits = logits_of(rows)
        nll += cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
    return math.exp(nll.item() / ids[:, 1:].numel())


class Compressor:
    """Factorises the linears of one block after the other."""

    def __init__(self, arguments, weights, stages):
        self.arguments, self.stages, self.weights = arguments, stages, dict(weights)
        self.dtype = {"f32": torch.float32, "f64": torch.float64}[arguments.gram]
        self.errors = []

    def add(self, grams, site, x):
        with self.stages.time("gram"):
            x = x.flatten(0, 1).to(self.dtype)
            if site not in grams:
                grams[site] = torch.zeros(x.shape[1], x.shape[1], dtype=self.dtype, device=x.device)
            grams[site].addmm_(x.T, x)

    def factorise(self, index, site, gram):
        """The factors of a site's linears as they are stored, by name within the block."""
        factors = {}
        with self.stages.time("factorise"):
            for name in SITES[site]:
                dense = self.weights.pop(f"model.layers.{index}.{name}.weight")
                m, n = dense.shape
                rank = math.floor(Fraction(self.arguments.keep) * m * n / (m + n))
                b, a, error = factorise(dense.double(), gram.double(), rank, self.stages)
                for side, factor in [("a", a), ("b", b)]:
                    factors[f"{name}.factor_{side}.weight"] = factor.to(dense.dtype).contiguous()
                self.errors.append(error)
        self.weights |= {f"model.layers.{index}.{name}": factor for name, factor in factors.items()}
        return factors

    def whiten(self, index, block, batches):
        grams = {}
        with self.stages.time("calibrate"):
            batches = [block.forward(h, lambda site, x: self.add(grams, site, x)) for h in batches]
        for site in SITES:
            self.factorise(index, site, grams.pop(site))
        return batches

    def rom(self, index, block, batches):
        states = [(h, None) for h in batches]
        for site in SITES:
            grams = {}
            with self.stages.time("calibrate"):
                for i, state in enumerate(states):
                    states[i] = getattr(block, site)(*state)
                    self.add(grams, site, states[i][1])
            factors = self.factorise(index, site, grams[site])
            block.w |= {name: factor.float() for name, factor in factors.items()}
            for name in SITES[site]:
                del block.w[name + ".weight"]
        with self.stages.time("calibrate"):
            return [block.end(*state) for state in states]


def job(arguments, out):
    stages = Stages(arguments.device)
    results = {"perplexity": None, "perplexity_after": None, "mean_relative_error": None}
    models = {}
    with stages.time("total"):
        with stages.time("load"):
            config = json.loads((arguments.model / "config.json").read_text())
            config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
            weights = {}
            for file in sorted(arguments.model.glob("*.safetensors")):
                weights |= load_file(file, device=str(arguments.device))
        models["perplexity"] = weights
        if arguments.method != "none":
            with stages.time("tokenise"):
                ids = read_ids(arguments, arguments.text, arguments.windows)
            batches = list(weights["model.embed_tokens.weight"].float()[ids].split(arguments.batch))
            compressor = Compressor(arguments, weights, stages)
            for index in range(config["num_hidden_layers"]):
                with stages.time("calibrate"):
                    block = Block(weights, index, config, arguments.window)
                batches = getattr(compressor, arguments.method)(index, block, batches)
            with stages.time("save"):
                save_file(compressor.weights, out / "model.safetensors", metadata={"format": "pt"})
            results["mean_relative_error"] = sum(compressor.errors) / len(compressor.errors)
            models["perplexity_after"] = compressor.weights
    stages["forward"] = stages["calibrate"] - stages["gram"]
    if arguments.ppl:
        ids = read_ids(arguments, arguments.ppl, arguments.max_windows)
        for name, weights in models.items():
            if arguments.transformers:
                logits = transformers_logits(arguments, weights)
            else:
                logits = own_logits(arguments, weights, config)
            with stages.time("evaluate" if name == "perplexity" else "evaluate_after"):
                results[name] = perplexity(arguments, logits, ids)
    return {name: round(seconds, 4) for name, seconds in stages.items()}, results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DATA / "models" / "llama-wiki-7m", help="checkpoint folder")
    parser.add_argument("--text", type=Path, default=DATA / "text" / "shakespeare" / "input.txt", help="UTF-8 text")
    parser.add_argument("--method", choices=["whiten", "rom", "none"], default="whiten", help="default: whiten")
    parser.add_argument("--keep", default="0.6", help="fraction of the linears' parameters kept (default: 0.6)")
    parser.add_argument("--windows", type=int, default=64, help="calibration windows (default: 64)")
    parser.add_argument("--window", type=int, default=256, help="ids per window (default: 256)")
    parser.add_argument("--batch", type=int, default=8, help="windows per forward pass (default: 8)")
    parser.add_argument("--gram", choices=["f32", "f64"], default="f64", help="Gram accumulation (default: f64)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--tf32", action="store_true", help="f32 products on the GPU's tf32 units")
    parser.add_argument("--ppl", type=Path, help="UTF-8 text to evaluate on, before and after")
    parser.add_argument("--transformers", action="store_true", help="evaluate transformers' own model in f32")
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
    stages, results = min(runs, key=lambda run: run[0]["total"])
    cuda = arguments.device.type == "cuda"
    print(json.dumps({
        "torch": torch.__version__.split("+")[0],
        "model": arguments.model.name,
        "method": arguments.method,
        "tokens": arguments.windows * arguments.window,
        "keep": arguments.keep,
        "gram": arguments.gram,
        "threads": arguments.threads,
        "seconds": {"import": round(IMPORTS, 4)} | stages,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_device_mib": round(torch.cuda.max_memory_reserved() / 2**20, 1) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "tf32": arguments.tf32,
        "evaluated_by": "transformers" if arguments.transformers else "torch",
    } | results))


if __name__ == "__main__":
    main()
