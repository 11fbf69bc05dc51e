"""The f64 reference of every closed-form method: writes methods.json and methods.safetensors.

    python methods.py [--data FOLDER]

Calibration: the first 16 windows of 256 ids of a public domain text (shakespeare/input.txt), evaluation: its windows
40..56. The ids are stored, so that a test needs neither the text nor the tokenizer. Ranks are uniform,
floor(keep m n / (m + n)); lorap uses its paper's rule. What is stored, and in which shapes, is said in README.md.

`unit` needs no forward pass at all: inputs from a formula, weights of demo's block 1.
"""

import torch

from common import arguments, digits, model_folder, versions, write_json, write_tensors
from reference import LINEARS, METHODS, Llama, components, compress, relative_error, uniform_rank, windows

MODELS = ["demo", "tinystories-656k"]
KEEPS = ["0.8", "0.5"]
PROBED_BLOCK = 1  # whose rom factors are stored up to sign
UNIT_TOKENS = 500


def probe(n):
    """z_j = cos(1 + j)."""
    return torch.cos(1 + torch.arange(n, dtype=torch.float64))


def output_probe(m):
    """z2_i = cos(2 + i)."""
    return torch.cos(2 + torch.arange(m, dtype=torch.float64))


def unit_inputs(tokens, n):
    """X (tokens, n): x_tj = sin(1 + 0.7 t^2 + 1.3 j + 0.37 t j) / (1 + j / 8), plus 0.5 in every seventh channel."""
    t, j = torch.arange(tokens, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    return torch.sin(1 + 0.7 * t**2 + 1.3 * j + 0.37 * t * j) / (1 + j / 8) + 0.5 * (j % 7 == 0)


def gap(energy, rank):
    """(σ_r² - σ_{r+1}²) / σ_r²: how well the rank-r subspace is determined. Its sensitivity is about 1 / gap."""
    return ((energy[rank - 1] - energy[rank]) / energy[rank - 1]).item() if rank < len(energy) else 1.0


def run(model, method, keep, calibration, evaluation):
    report = compress(model, method, keep, calibration)
    values, tensors = {"nll": model.nll(evaluation), "ranks": {}, "error": {}, "gap": {}, "kept_channels": {}}, {}
    for name, entry in report.items():
        if "channels" in entry:
            values["kept_channels"][name.split(".")[0]] = entry["channels"]
            continue
        values["ranks"][name] = entry["rank"]
        cut = model.linear(name)
        if entry["rank"] is None:
            continue
        values["error"][name] = relative_error(model.dense[name], cut, entry["gram"])
        values["gap"][name] = gap(entry["energy"], entry["rank"])
        tensors[name] = cut @ probe(cut.shape[1])
        if method == "rom" and name.startswith(f"{PROBED_BLOCK}."):
            tensors[f"{name}.components"] = (entry["b"].T @ output_probe(cut.shape[0])).abs()
            tensors[f"{name}.energy"] = entry["energy"]
    model.reset()
    return {k: v for k, v in values.items() if v}, tensors


def whole_models(data):
    result, tensors = {}, {}
    for name in MODELS:
        folder = model_folder(name, data)
        text = (data / "text" / "shakespeare" / "input.txt").read_bytes().decode("utf-8")
        calibration, evaluation = windows(folder, text, 0, 16), windows(folder, text, 40, 56)
        model, rough = Llama(folder), Llama(folder, torch.float32)
        entry = result[name] = {
            "linears": {linear: list(w.shape) for linear, w in model.dense.items()},
            "dense_nll": model.nll(evaluation),
            "dense_nll_f32": rough.nll(evaluation),
            "runs": {},
        }
        tensors[f"{name}/calibration"] = calibration.int().numpy()
        tensors[f"{name}/evaluation"] = evaluation.int().numpy()
        for method in METHODS:
            for keep in KEEPS:
                values, probes = run(model, method, keep, calibration, evaluation)
                other, rough_probes = run(rough, method, keep, calibration, evaluation)
                values["nll_f32"] = other["nll"]
                deviation = {
                    linear: ((rough_probes[linear] - probes[linear]).norm() / probes[linear].norm()).item()
                    for linear in values["ranks"]
                    if linear in probes
                }
                values["probe_deviation_f32"] = digits(deviation, 2)
                assert other.get("kept_channels") == values.get("kept_channels")
                entry["runs"][f"{method}@{keep}"] = values
                tensors |= {f"{name}/{method}@{keep}/{key}": t.numpy() for key, t in probes.items()}
                worst = max(deviation.values())
                print(f"{name} {method}@{keep} nll {values['nll']:.8f} f32 {other['nll']:.8f} probes {worst:.1e}",
                      flush=True)
    return result, tensors


def unit(data):
    result, tensors = {}, {}
    model = Llama(model_folder("demo", data))
    for role in ("attn.q", "attn.k", "mlp.gate", "mlp.down"):
        name = f"{PROBED_BLOCK}.{role}"
        w = model.dense[name]
        m, n = w.shape
        x = unit_inputs(UNIT_TOKENS, n)
        gram, rank = x.T @ x, uniform_rank("0.5", m, n)
        entry = result[name] = {"shape": [m, n], "rank": rank, "tokens": UNIT_TOKENS, "gram_trace": gram.trace().item(),
                                "gram_last": gram[-1, -1].item(), "methods": {}}
        for method in ("svd", "awsvd", "whiten"):
            b, a, energy = components(method, w, gram)
            cut = b[:, :rank] @ a[:rank]
            entry["methods"][method] = {"error": relative_error(w, cut, gram), "gap": gap(energy, rank)}
            tensors[f"unit/{method}/{name}"] = (cut @ probe(n)).numpy()
            tensors[f"unit/{method}/{name}.energy"] = energy.numpy()
            if method == "whiten":  # rom has another route to the same optimum
                b, a, _ = components("rom", w, gram)
                assert (b[:, :rank] @ a[:rank] - cut).norm() < 1e-9 * cut.norm(), name
    return result, tensors


def main():
    data = arguments(__doc__.splitlines()[0]).data
    models, tensors = whole_models(data)
    linears, more = unit(data)
    result = {"schema": 1, "versions": versions(), "models": models, "unit": linears}
    write_json("methods.json", digits(result, 13), depth=8)
    write_tensors("methods.safetensors", tensors | more)


if __name__ == "__main__":
    with torch.no_grad():
        main()
