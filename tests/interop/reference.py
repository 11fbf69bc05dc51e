"""The base's own class with every stored linear multiplied out in f64: what an output must compute, without its code."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

import conftest


def stored(folder):
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def plain_model(folder, scratch):
    """What is gone of heads and channels is zero here. None where no plain model has such sizes."""
    config = json.loads((Path(folder) / "config.json").read_text())
    section = config["softlm"]
    tensors = {name: tensor.double() for name, tensor in stored(folder).items()}
    transposed = section["base_model_type"] == "gpt2"
    biases, fused = {}, {}

    before = section.get("base_config", {})
    own = {"softlm", "auto_map", "model_type", "architectures", "problem_type", "transformers_weights"}
    plain = {key: value for key, value in config.items() if key not in own}
    base_class = CONFIG_MAPPING[section["base_model_type"]]
    plain_config = base_class(**plain, problem_type=before.get("problem_type"))
    plain_config.dtype = None
    auto = conftest.auto_class(folder)
    with torch.device("meta"):
        skeleton = auto.from_config(plain_config)
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}

    def put(name, weight):
        tensors[f"{name}.weight"] = weight.T if transposed else weight

    def place(entry, side, count):
        """Where the outputs or inputs of a linear lie in the base's."""
        if f"{side}_heads" not in entry:
            return torch.arange(count)
        heads, dim = entry[f"{side}_heads"]
        first = dim * torch.arange(heads)[:, None]
        return (first + torch.arange(count // heads)).flatten()

    def take(name, entry, inputs):
        if "rank" in entry:
            weight = tensors.pop(f"{name}.factor_b.weight") @ tensors.pop(f"{name}.factor_a.weight")
        else:
            weight = tensors.pop(f"{name}.weight")
            weight = weight.T if entry.get("transposed") else weight
        whole = torch.zeros(len(weight), inputs).double()
        whole[:, place(entry, "in", weight.shape[1])] = weight
        return whole

    def shape_of(name):
        """(out, in) of a layer of the base; that of an expert's is not known where transformers keeps all in one."""
        shape = shapes.get(f"{name}.weight")
        return shape[::-1] if transposed and shape is not None else shape

    for name, entry in section["linears"].items():
        if "part_of" in entry:
            fused.setdefault(entry["part_of"], []).append((name, entry))
            continue
        out, inputs = shape_of(name) or (entry["out"], entry["in"])
        weight = torch.zeros(out, inputs).double()
        rows = place(entry, "out", entry["out"])
        weight[rows] = take(name, entry, inputs)
        put(name, weight)
        if entry["bias"]:
            biases[name] = torch.zeros(out).double()
            biases[name][rows] = tensors[f"{name}.bias"]
            tensors[f"{name}.bias"] = biases[name]
    for matrix, parts in fused.items():
        # A part may be narrower than the base's: under a narrower config its rows follow those of the part before.
        total, first = shape_of(matrix)[0], 0
        follow = total == sum(entry["out"] for _, entry in parts)
        weight, bias = torch.zeros(total, parts[0][1]["in"]).double(), tensors.get(f"{matrix}.bias", torch.zeros(total).double())
        for name, entry in sorted(parts, key=lambda part: part[1]["rows"][0]):
            start, run, stride = entry["rows"]
            i = place(entry, "out", entry["out"])
            rows = (first if follow else start) + i if run is None else start + i // run * stride + i % run
            first += entry["out"]
            weight[rows] = take(name, entry, weight.shape[1])
            if f"{name}.bias" in tensors:
                if "out_heads" in entry:
                    all_rows = torch.arange(math.prod(entry["out_heads"]))
                    bias[start + all_rows if run is None else start + all_rows // run * stride + all_rows % run] = 0
                bias[rows] = tensors.pop(f"{name}.bias")
        put(matrix, weight)
        tensors[f"{matrix}.bias"] = biases[matrix] = bias

    # A bias that the family does not have is added behind the layer.
    lacking = {name: bias for name, bias in biases.items() if f"{name}.bias" not in shapes}
    lacking = {name: bias for name, bias in lacking.items() if bias.any()}
    for name in biases:
        if f"{name}.bias" not in shapes:
            tensors.pop(f"{name}.bias", None)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, scratch / "model.safetensors", {"format": "pt"})
    plain_config.save_pretrained(scratch)
    options = {"attn_implementation": "eager"}
    options |= {"experts_implementation": "eager"} if conftest.MAJOR >= 5 else {}
    try:
        model, info = auto.from_pretrained(scratch, dtype=torch.float32, output_loading_info=True, **options)
    except RuntimeError as error:
        if "mismatch" in str(error):
            return None
        raise
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    modules = dict(model.named_modules())
    if any(name not in modules for name in lacking):
        return None
    for name, bias in lacking.items():
        modules[name].register_forward_hook(lambda _module, _x, y, bias=bias.float(): y + bias)
    return model.eval()
