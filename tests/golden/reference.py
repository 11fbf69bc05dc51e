"""An independent Llama in plain torch, by default in f64 throughout, and compression of its linears.

Everything here is written for being read and checked, not for speed. W is (m, n), y = W x, G = sum x x^T over all
calibration tokens (uncentred, unscaled). A factorised linear is used as the product W' = B A in the forward pass.
"""

import json
import math
from fractions import Fraction

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, silu

# Role: (tensor name in the block, the site where its input is seen). The groups are ROM's order of work.
LINEARS = {
    "attn.q": ("self_attn.q_proj", "attn_in"),
    "attn.k": ("self_attn.k_proj", "attn_in"),
    "attn.v": ("self_attn.v_proj", "attn_in"),
    "attn.o": ("self_attn.o_proj", "attn_out"),
    "mlp.gate": ("mlp.gate_proj", "mlp_in"),
    "mlp.up": ("mlp.up_proj", "mlp_in"),
    "mlp.down": ("mlp.down_proj", "mlp_out"),
}
GROUPS = [["attn.q", "attn.k", "attn.v"], ["attn.o"], ["mlp.gate", "mlp.up"], ["mlp.down"]]
METHODS = ["svd", "awsvd", "whiten", "rom", "lorap"]
ROWS_AT_ONCE = 16  # bounds the attention matrices in memory; it cannot change a result by more than rounding


class Llama:
    """Weights stay in f64; the forward pass runs in `dtype`."""

    def __init__(self, folder, dtype=torch.float64):
        self.config = json.loads((folder / "config.json").read_text())
        self.dtype = dtype
        self.weights = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.weights |= {name: tensor.double() for name, tensor in load_file(file).items()}
        assert not self.config.get("rope_scaling") and not self.config.get("attention_bias")
        assert self.config["tie_word_embeddings"]
        self.blocks = self.config["num_hidden_layers"]
        self.names = [f"{block}.{role}" for block in range(self.blocks) for role in LINEARS]
        self.dense = {name: self.linear(name) for name in self.names}

    def key(self, name):
        block, role = name.split(".", 1)
        return f"model.layers.{block}.{LINEARS[role][0]}.weight"

    def linear(self, name):
        return self.weights[self.key(name)]

    def set_linear(self, name, weight):
        self.weights[self.key(name)] = weight

    def reset(self):
        for name, weight in self.dense.items():
            self.set_linear(name, weight)

    def get(self, name):
        return self.weights[name].to(self.dtype)

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * self.get(name)

    def rotate(self, x):
        """Rotary embedding, first half of a head paired with the second; x is (rows, heads, length, head_dim)."""
        half = x.shape[-1] // 2
        speed = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * speed
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def embed(self, ids):
        return self.get("model.embed_tokens.weight")[ids]

    def block(self, index, h, tap=None):
        """One block on h (rows, length, hidden); `tap(site, x)` sees every activation that enters a linear."""
        return torch.cat([self.block_rows(index, rows, tap) for rows in h.split(ROWS_AT_ONCE)])

    def block_rows(self, index, h, tap):
        rows, length, _ = h.shape
        heads, kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        layer = f"model.layers.{index}."

        def apply(role, x):
            return x @ self.linear(f"{index}.{role}").to(self.dtype).T

        def see(site, x):
            if tap:
                tap(site, x)

        def split(x, count):
            return x.view(rows, length, count, -1).transpose(1, 2)

        x = self.norm(h, layer + "input_layernorm.weight")
        see("attn_in", x)
        q = self.rotate(split(apply("attn.q", x), heads))
        k = self.rotate(split(apply("attn.k", x), kv)).repeat_interleave(heads // kv, 1)
        v = split(apply("attn.v", x), kv).repeat_interleave(heads // kv, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = (scores.masked_fill(future, -math.inf).softmax(-1) @ v).transpose(1, 2).reshape(rows, length, -1)
        see("attn_out", x)
        h = h + apply("attn.o", x)
        x = self.norm(h, layer + "post_attention_layernorm.weight")
        see("mlp_in", x)
        x = silu(apply("mlp.gate", x)) * apply("mlp.up", x)
        see("mlp_out", x)
        return h + apply("mlp.down", x)

    def logits(self, h):
        return self.norm(h, "model.norm.weight") @ self.get("model.embed_tokens.weight").T

    def nll(self, ids):
        """Mean negative log-likelihood in nats per target: every row is independent, its first id is no target."""
        total = 0.0
        for rows in ids.split(ROWS_AT_ONCE):
            h = self.embed(rows)
            for index in range(self.blocks):
                h = self.block(index, h)
            logits = self.logits(h[:, :-1]).double()
            total += cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
        return total / (ids.shape[0] * (ids.shape[1] - 1))

    def grams(self, index, h):
        """G per site of one block, summed in f64 whatever the forward pass runs in, and the block's output."""
        sums = {}

        def tap(site, x):
            x = x.flatten(0, 1).double()
            sums[site] = sums.get(site, 0) + x.T @ x

        return sums, self.block(index, h, tap)


def uniform_rank(keep, m, n):
    """floor(keep m n / (m + n)); `keep` is a string, so that 0.8 is eight tenths."""
    return math.floor(Fraction(keep) * m * n / (m + n))


def awsvd_scale(gram):
    """d_j = sqrt(G_jj), at least 1e-4 of the mean d."""
    d = gram.diagonal().clamp(min=0).sqrt()
    return d.clamp(min=1e-4 * d.mean().item())


def root(gram):
    """S with G = S S^T from the eigenvectors."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


def components(method, w, gram):
    """All components, best first: B (m, k), A (k, n) and the squared singular values that order them."""
    if method == "rom":  # principal components of the outputs: eigenvectors of W G W^T
        values, u = torch.linalg.eigh(w @ gram @ w.T)
        u = u.flip(1)
        return u, u.T @ w, values.flip(0).clamp(min=0)
    if method == "whiten":  # the same optimum from the inputs: left singular vectors of W S
        u, s, _ = torch.linalg.svd(w @ root(gram), full_matrices=False)
        return u, u.T @ w, s**2
    d = awsvd_scale(gram) if method == "awsvd" else torch.ones(w.shape[1], dtype=w.dtype)
    u, s, vt = torch.linalg.svd(w * d, full_matrices=False)
    return u * s, vt / d, s**2


def relative_error(w, cut, gram):
    """||(W - W') X||^2 / ||W X||^2."""
    d = w - cut
    return (((d @ gram) * d).sum() / ((w @ gram) * w).sum()).item()


def lorap_attention(keep, shapes, rho=3):
    """Ranks of q, k, v, o, None for dense: fractions of the break-even rank, so that any head layout is covered."""
    keep, rho = Fraction(keep), Fraction(rho)
    size = {role: m * n for role, (m, n) in shapes.items()}
    qk, vo = size["attn.q"] + size["attn.k"], size["attn.v"] + size["attn.o"]
    f_vo = min(Fraction(1), 2 * rho * keep / (1 + rho))
    f_qk = min(Fraction(1), 2 * keep / (1 + rho) if f_vo < 1 else (keep * (qk + vo) - vo) / qk)
    share = {"attn.q": f_qk, "attn.k": f_qk, "attn.v": f_vo, "attn.o": f_vo}
    return {
        role: None if share[role] == 1 else math.floor(share[role] * m * n / (m + n)) for role, (m, n) in shapes.items()
    }


def lorap_channels(keep, gate, up, down, mlp_in, mlp_out, floor=Fraction(1, 100)):
    """Feed-forward channels that stay, ascending: the unimportant 1 % is kept, the next 1 - keep goes."""
    x, xd = mlp_in.diagonal().sqrt(), mlp_out.diagonal().sqrt()
    score = (up.abs() * x).norm(dim=1) + (gate.abs() * x).norm(dim=1) + (down.abs() * xd).norm(dim=0)
    order = score.argsort(stable=True)
    width = len(order)
    start, end = int(width * floor), int((1 - Fraction(keep) + floor) * width)
    return sorted(torch.cat([order[:start], order[end:]]).tolist())


def compress(model, method, keep, ids, ranks=None, inputs=None):
    """Compresses every linear of `model` in place and says how.

    `ranks` {name: rank or None for dense} replaces the uniform ranks. `inputs` says which activations the statistics
    see; by default what the method's paper does: svd and whiten "dense" (one pass over the original model), awsvd and
    lorap "blocks" (the dense block behind compressed earlier blocks), rom "sequential" (inside the block too).

    Returns {name: {rank, gram, ...}}; the entries of a lorap block's feed-forward part hold `channels` instead.
    """
    inputs = inputs or {"svd": "dense", "whiten": "dense", "rom": "sequential"}.get(method, "blocks")
    model.reset()
    report = {}
    h = model.embed(ids)

    def factorise(name, gram):
        w = model.dense[name]
        rank = ranks[name] if ranks else uniform_rank(keep, *w.shape)
        entry = {"rank": rank, "gram": gram}
        if rank is not None:
            b, a, energy = components(method, w, gram)
            model.set_linear(name, b[:, :rank] @ a[:rank])
            entry |= {"b": b[:, :rank], "energy": energy}
        report[name] = entry

    def lorap(index, sums):
        names = {role: f"{index}.{role}" for role in LINEARS}
        dense = {role: model.dense[name] for role, name in names.items()}
        attention = lorap_attention(keep, {role: dense[role].shape for role in GROUPS[0] + GROUPS[1]})
        for role, rank in attention.items():
            gram = sums[LINEARS[role][1]]
            entry = {"rank": rank, "gram": gram}
            if rank is not None:
                b, a, energy = components("awsvd", dense[role], gram)
                model.set_linear(names[role], b[:, :rank] @ a[:rank])
                entry |= {"b": b[:, :rank], "energy": energy}
            report[names[role]] = entry
        left = lorap_channels(keep, *(dense[r] for r in ("mlp.gate", "mlp.up", "mlp.down")),
                              sums["mlp_in"], sums["mlp_out"])
        for role in ("mlp.gate", "mlp.up", "mlp.down"):
            w = dense[role]
            model.set_linear(names[role], w[:, left] if role == "mlp.down" else w[left])
            report[names[role]] = {"channels": left}

    for index in range(model.blocks):
        if inputs == "sequential":
            for group in GROUPS:
                sums, _ = model.grams(index, h)
                for role in group:
                    factorise(f"{index}.{role}", sums[LINEARS[role][1]])
            h = model.block(index, h)
            continue
        sums, dense_output = model.grams(index, h)
        if method == "lorap":
            lorap(index, sums)
        else:
            for role, (_, site) in LINEARS.items():
                factorise(f"{index}.{role}", sums[site])
        h = dense_output if inputs == "dense" else model.block(index, h)
    return report


def windows(folder, text, first, last, window=256):
    """Token windows first..last of a text: no special tokens, no overlap."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert len(ids) >= last * window, f"{len(ids)} tokens, {last * window} needed"
    return torch.tensor(ids[first * window : last * window]).view(-1, window)


def self_check():
    """Published ranks and hand-calculated errors; `python reference.py` runs it."""
    square = {role: (4096, 4096) for role in GROUPS[0] + GROUPS[1]}
    assert [uniform_rank(b, 4096, 4096) for b in ("0.60", "0.46", "0.33")] == [1228, 942, 675]
    assert [uniform_rank(b, 11008, 4096) for b in ("0.60", "0.46", "0.33")] == [1791, 1373, 985]
    assert list(lorap_attention("0.8", square).values()) == [1228, 1228, None, None]
    assert list(lorap_attention("0.5", square).values()) == [512, 512, 1536, 1536]
    one, wide = torch.ones(11008, 2), torch.ones(2, 11008)
    left = [len(lorap_channels(keep, one, one, wide, torch.eye(2), torch.eye(11008))) for keep in ("0.8", "0.5")]
    assert left == [8807, 5504]

    def error(method, w, gram):
        w, gram = torch.tensor(w).double(), torch.tensor(gram).double()
        b, a, _ = components(method, w, gram)
        return round(relative_error(w, b[:, :1] @ a[:1], gram) * ((w @ gram) * w).sum().item(), 6)

    cases = [
        ([[2, 0], [0, 1]], [[2, 1], [1, 2]], [2, 2, 1.394449, 1.394449]),
        ([[2, 0], [0, 1]], [[1, 0], [0, 9]], [9, 4, 4, 4]),
        ([[1, -1], [1, 0]], [[2, -1], [-1, 1]], [0.145898, 0.225769, 0.145898, 0.145898]),
    ]
    for w, gram, expected in cases:
        assert [error(method, w, gram) for method in ("svd", "awsvd", "whiten", "rom")] == expected, (w, gram)


if __name__ == "__main__":
    self_check()
    print("ok")
