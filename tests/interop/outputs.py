"""Compresses the tiny checkpoints and asks softlm what it makes of the outputs.

    python outputs.py SOFTLM FOLDER

FOLDER gets base/NAME, out/NAME-METHOD, dense/NAME-METHOD (exported), text.txt and said.json: for every output its path, the
base's, the method, and softlm's own figures, which the tests compare transformers with. Where there is a folder of trained
models and texts, given by SOFTLM_SHARED_DATA or found as shared/data beside the repository, trained/NAME and trained.json
are the same of a few of those.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bases
from narrow import narrow

# The last is no method: factors made into smaller dense linears, by narrow.py.
METHODS = ["svd", "awsvd", "lorap", "rom", "whiten", "soft", "soco", "narrow"]
WINDOW, WINDOWS = 32, 4


def run(softlm, *words):
    """Standard output of a command that must go well."""
    done = subprocess.run([softlm, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"softlm {' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def evaluate(softlm, folder, text, against):
    """NLL per token, masked or not, or the cosine to the base's states for a model that predicts no tokens."""
    options = ["--ppl", text, "--window", WINDOW, "--max-windows", WINDOWS, "--against", against, "--threads", 1]
    said = json.loads(run(softlm, "eval", folder, *options, "--json", "-q"))
    if said["perplexity"]:
        return {"kind": "masked" if said["perplexity"][0].get("masked") else "next", "value": said["perplexity"][0]["nll"]}
    return {"kind": "states", "value": said["fidelity"][0]["cosine"]}


def compress(softlm, base, method, output, text, *more):
    learning = ["--steps", 4, "--batch", 2] if method in ("soft", "soco") else []
    calibration = ["--calib", text, "--calib-windows", 8, "--window", WINDOW, "--ppl", "none"]
    options = [*calibration, *learning, "--dtype", "f32", "--threads", 1, "--keep", 0.6, *more]
    run(softlm, "compress", base, "--method", method, "-o", output, *options, "-q")


def make(softlm, folder, name, method):
    base, output, dense = folder / "base" / name, folder / "out" / f"{name}-{method}", folder / "dense" / f"{name}-{method}"
    text = folder / "text.txt"
    compress(softlm, base, "svd" if method == "narrow" else method, output, text)
    if method == "narrow":
        narrow(output)
    said = {"base": str(base), "output": str(output), "method": method, "dense": None}
    said |= evaluate(softlm, output, text, base)
    # A bias that a learned method adds has no place in some families.
    done = subprocess.run([softlm, "export", output, "--to", "dense", "--dtype", "f32", "-o", dense, "-q"], capture_output=True, text=True)
    if done.returncode == 0:
        said["dense"] = str(dense)
    elif method != "soco" or "no config.json of the family" not in done.stderr:
        raise SystemExit(f"softlm export {output}: exit {done.returncode}\n{done.stderr}")
    if said["kind"] == "next":
        options = ["--prompt", "w3 w17 w80 w5", "--max-tokens", 12, "--threads", 1]
        said["generated"] = json.loads(run(softlm, "generate", output, *options, "--json", "-q"))
    return output.name, said


# Trained models: method and keep, and what is asked of the output.
TRAINED = {
    "llama-wiki-7m": ("lorap", 0.7, "ppl"), "gpt2-wiki-9m": ("svd", 0.7, "ppl"), "mamba-wiki-6m": ("svd", 0.8, "ppl"),
    "all-MiniLM-L6-v2": ("svd", 0.8, "stsb"), "minilm-sst2": ("svd", 0.8, "sst2"),
}


def trained(softlm, folder, data):
    """Compresses them and has softlm measure them on part of a text or task."""
    texts = {"ppl": "wikitext2-raw/test.txt", "stsb": "stsb/sts-test.csv", "sst2": "sst2/dev.tsv"}
    lines = {"ppl": 400, "stsb": 200, "sst2": 200}
    for kind, path in texts.items():
        part = (data / "text" / path).read_text().splitlines(keepends=True)[: lines[kind]]
        (folder / f"{kind}.txt").write_text("".join(part))

    def make_one(name):
        method, keep, kind = TRAINED[name]
        output, dense, text = folder / "trained" / name, folder / "trained" / f"{name}-dense", folder / f"{kind}.txt"
        options = ["--keep", keep, "--calib", "sample", "--calib-windows", 8, "--window", 64, "--ppl", "none", "--threads", 1]
        run(softlm, "compress", data / "models" / name, "--method", method, "-o", output, *options, "-q")
        asked = ["--ppl", text, "--window", 128, "--max-windows", 12] if kind == "ppl" else ["--glue", f"{kind}={text}"]
        said = json.loads(run(softlm, "eval", output, *asked, "--threads", 1, "--json", "-q"))
        value = said["perplexity"][0]["ppl"] if kind == "ppl" else said["glue"][0]["value"]
        run(softlm, "export", output, "--to", "dense", "-o", dense, "-q")
        return name, {"output": str(output), "kind": kind, "text": str(text), "value": value, "dense": str(dense)}

    with ThreadPoolExecutor(2) as pool:
        said = dict(pool.map(make_one, TRAINED))
    (folder / "trained.json").write_text(json.dumps(said, indent=1))
    print(f"{len(said)} outputs of trained models")


def main(softlm, folder):
    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("base", "out", "dense"):
        (folder / part).mkdir(parents=True)
    (folder / "text.txt").write_text(bases.text(6000, seed=1))
    for name in bases.FAMILIES + bases.OTHERS:
        bases.make(name, folder / "base" / name)
    jobs = [(name, method) for name in bases.FAMILIES for method in METHODS]
    jobs += [(name, method) for name in bases.OTHERS for method in ("lorap", "soco")]
    with ThreadPoolExecutor(2) as pool:
        said = dict(pool.map(lambda job: make(softlm, folder, *job), jobs))
    (folder / "said.json").write_text(json.dumps(said, indent=1))
    print(f"{len(said)} outputs of {len(bases.FAMILIES + bases.OTHERS)} checkpoints")
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    data = Path(os.environ.get("SOFTLM_SHARED_DATA", beside))
    if data.is_dir():
        trained(softlm, folder, data)
    else:
        print(f"skipped: trained models, there is no folder {data}")


if __name__ == "__main__":
    main(*sys.argv[1:])
