"""What the golden scripts share: the command line, where the data folder is, and how their files are written."""

import argparse
import json
from pathlib import Path

import numpy
import torch
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
DEMO = HERE.parents[1] / "src" / "demo"
DATA = HERE.parents[2] / "shared" / "data"


def arguments(description):
    """Parses `--data` and `--threads` and applies the latter."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/ and text/ (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    return given


def model_folder(name, data):
    """The demo model lies in the repository, the generated ones beside this file, all others in the data folder."""
    if name == "demo":
        return DEMO
    generated = HERE / "models" / name
    return generated if generated.exists() else data / "models" / name


def versions():
    import platform

    import safetensors
    import tokenizers
    import transformers

    modules = [torch, transformers, tokenizers, safetensors, numpy]
    return {"python": platform.python_version()} | {m.__name__: m.__version__.split("+")[0] for m in modules}


def digits(value, n):
    """Rounds every float of a nested structure to n significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{n}g}")
    if isinstance(value, dict):
        return {k: digits(v, n) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [digits(v, n) for v in value]
    return value


def write_json(name, value, depth=4):
    """JSON with line breaks down to `depth` levels, so that differences between two versions can be read."""

    def render(item, level):
        inner = item.values() if isinstance(item, dict) else item
        nested = isinstance(item, (dict, list)) and any(isinstance(i, (dict, list)) for i in inner)
        if level == depth or not nested:
            return json.dumps(item, ensure_ascii=False, separators=(",", ":"))
        pad, end = " " * (level + 1), " " * level
        if isinstance(item, dict):
            rows = [f"{pad}{json.dumps(k, ensure_ascii=False)}: {render(v, level + 1)}" for k, v in item.items()]
            return "{\n" + ",\n".join(rows) + f"\n{end}}}"
        return "[\n" + ",\n".join(pad + render(v, level + 1) for v in item) + f"\n{end}]"

    (HERE / name).write_text(render(value, 0) + "\n", encoding="utf-8")


def write_tensors(name, tensors):
    """A safetensors file of plain numpy arrays; keys sorted, so that the file is reproducible."""
    path = HERE / name
    save_file({key: numpy.ascontiguousarray(tensors[key]) for key in sorted(tensors)}, path)
    path.chmod(0o644)
