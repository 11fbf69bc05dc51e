"""Loads a model that softlm compressed with Hugging Face transformers.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

This file stands beside the weights and needs torch and transformers alone. It opens no file and no connection of its
own: transformers reads the folder, this code only tells it which layers to expect there.

A compressed model is its base model (`base_model_type` in the section `softlm` of config.json) with other linear layers.
The section's `linears` lists each one whose stored form differs from the base's, by the name of its tensors:

    {"in", "out", "bias", "rank"}   two factors, NAME.factor_a.weight (rank, in) and NAME.factor_b.weight (out, rank)
    {"in", "out", "bias"}           one matrix NAME.weight of another shape than the base's, or with a bias that the base
                                    lacks; (out, in), or (in, out) where `transposed` is true
    {..., "part_of", "rows"}        some rows of a matrix that the base fuses, such as q, k and v; all its parts are listed

Each `bias` says whether NAME.bias is stored. So the classes below are made when a folder is loaded: a subclass of the
base's configuration and of the base's model, which then replaces those layers. Everything else is the base's own code.

config.json names no class that exists without this file, and two of its keys hold a sentence in place of a value that
transformers knows: it would otherwise open the folder as the base model, with random numbers for every layer listed
here. Loading takes the sentence out, saving puts it back.
"""

import json

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

FORMAT = 2
# What stands in config.json under these keys; the base's own values are in `base_config` of the section.
GUARDED = ("problem_type", "transformers_weights")
GUARD = (
    "these weights are softlm's factors: load them with an Auto class and trust_remote_code=True, or make a plain "
    "checkpoint with `softlm export --to dense`"
)


# Layers ---------------------------------------------------------------------------------------------------------------


class FactorLinear(nn.Module):
    """y = B (A x) + bias."""

    def __init__(self, in_features, out_features, rank, bias):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.factor_a = nn.Linear(in_features, rank, bias=False)
        self.factor_b = nn.Linear(rank, out_features, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def weight(self):
        """The product, for code that reads a layer's weight instead of calling the layer."""
        return self.factor_b.weight @ self.factor_a.weight

    def forward(self, x):
        y = self.factor_b(self.factor_a(x))
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class SplitLinear(nn.Module):
    """Linears in place of one fused matrix, their outputs arranged as the matrix has them.

    Output i of a part with rows (start, run, stride) is output start + i // run * stride + i % run of the matrix; without
    a run its outputs lie together. The matrix's bias, if there is one, counts for the parts that have none of their own.
    """

    def __init__(self, parts, bias):
        super().__init__()
        self.rows = dict(sorted(((name, part["rows"]) for name, part in parts.items()), key=lambda item: item[1][0]))
        first = 0
        for name, (start, run, stride) in self.rows.items():
            if start != first:
                raise ValueError(f"config.json: part {name} of a fused matrix starts at row {start}, not at {first}")
            first += parts[name]["out"] if run is None else run
            self.add_module(name, stored_linear(parts[name]))
        if any((run is None) != (stride in (None, 0)) or run and stride != first for _, run, stride in self.rows.values()):
            raise ValueError(f"config.json: the parts {', '.join(self.rows)} of a fused matrix leave rows out")
        self.bias = nn.Parameter(torch.zeros(sum(part["out"] for part in parts.values()))) if bias else None

    def forward(self, x):
        outputs = []
        for name, (start, run, stride) in self.rows.items():
            part = getattr(self, name)
            y = part(x)
            if self.bias is not None and part.bias is None:
                if run is None:
                    y = y + self.bias[start : start + y.shape[-1]]
                else:
                    y = y + self.bias.unflatten(0, (-1, stride))[:, start : start + run].flatten()
            outputs.append(y if run is None else y.unflatten(-1, (-1, run)))
        y = torch.cat(outputs, dim=-1)
        return y if run is None else y.flatten(-2)


class Expert(nn.Module):
    """One gated feed-forward layer among several."""

    def __init__(self, hidden, width, names, act_fn):
        super().__init__()
        self.names, self.act_fn = names, act_fn
        for name, (inputs, outputs) in zip(names, [(hidden, width), (hidden, width), (width, hidden)]):
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.act_fn(gate(x)) * up(x))


class Experts(nn.Module):
    """Experts with linears of their own, where transformers 5 keeps all of a block's in two three-dimensional tensors."""

    def __init__(self, fused, names):
        super().__init__()
        count, hidden, width = fused.down_proj.shape
        for index in range(count):
            self.add_module(str(index), Expert(hidden, width, names, fused.act_fn))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for index in top_k_index.unique().tolist():
            token, choice = torch.where(top_k_index == index)
            y = getattr(self, str(index))(hidden_states[token]) * top_k_weights[token, choice, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out


def stored_linear(entry):
    """An empty layer of the form that an entry of `linears` describes."""
    inputs, outputs, bias = entry["in"], entry["out"], entry["bias"]
    if "rank" in entry:
        return FactorLinear(inputs, outputs, entry["rank"], bias)
    return Conv1D(outputs, inputs) if entry.get("transposed") else nn.Linear(inputs, outputs, bias=bias)


# Expert names of the families whose experts transformers 5 fuses, and what it calls the layer that has them.
EXPERTS = {
    "mixtral": (("w1", "w3", "w2"), "block_sparse_moe"),
    "qwen2_moe": (("gate_proj", "up_proj", "down_proj"), "mlp"),
    "qwen3_moe": (("gate_proj", "up_proj", "down_proj"), "mlp"),
}


def separate_experts(model, base_model_type):
    """Gives every expert its own linears, under the names that checkpoints have."""
    names, layer_name = EXPERTS.get(base_model_type, (None, None))
    for layer in [module for module in model.modules() if names and hasattr(module, "mlp")]:
        experts = getattr(layer.mlp, "experts", None)
        if not isinstance(getattr(experts, "down_proj", None), nn.Parameter):
            continue
        layer.mlp.experts = Experts(experts, names)
        if layer_name != "mlp":
            # The layer's own code says `self.mlp`, its tensors have the other name.
            moe = layer.mlp
            del layer.mlp
            layer.add_module(layer_name, moe)
            layer.__dict__["mlp"] = moe


def replace_linears(model, linears):
    """Puts layers of the stored form in place of those listed. Returns the list under the model's own names, which have
    the name of the base model in front where it has a head, whether or not the tensors were stored so."""
    prefix = f"{model.base_model_prefix}."

    def own_name(name):
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            parent, _, leaf = candidate.rpartition(".")
            try:
                if isinstance(getattr(model.get_submodule(parent), leaf, None), nn.Module):
                    return candidate
            except AttributeError:
                pass
        raise ValueError(f"config.json lists {name} under `softlm`, but {type(model).__name__} has no such layer")

    def replace(name, layer):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)

    own, parts = {}, {}
    for name, entry in linears.items():
        if "part_of" in entry:
            matrix = own_name(entry["part_of"])
            part = name.removeprefix(entry["part_of"] + ".")
            parts.setdefault(matrix, {})[part] = own[f"{matrix}.{part}"] = {**entry, "part_of": matrix}
        else:
            own[own_name(name)] = entry
    for name, entry in own.items():
        if "part_of" not in entry:
            replace(name, stored_linear(entry))
    for matrix, entries in parts.items():
        replace(matrix, SplitLinear(entries, bias=model.get_submodule(matrix).bias is not None))
    return own


# Configuration --------------------------------------------------------------------------------------------------------


class StoredConfig:
    """What every configuration made here has in front of its base's class."""

    model_type = "softlm"
    _auto_class = "AutoConfig"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        section = config_dict["softlm"]
        before = section.get("base_config") or {}
        config_dict = {**config_dict, **{key: before.get(key) for key in GUARDED}}
        if not config_dict.get("tokenizer_class"):
            # What AutoTokenizer takes for the base where the tokenizer's own files do not say.
            known = TOKENIZER_MAPPING_NAMES.get(section["base_model_type"])
            known = known if isinstance(known, tuple) else (known,)
            config_dict["tokenizer_class"] = next(filter(None, known), None)
        return super().from_dict(config_dict, **kwargs)

    def to_json_string(self, use_diff=True):
        config_dict = json.loads(super().to_json_string(use_diff=use_diff))
        before = {**(self.softlm.get("base_config") or {}), **{key: config_dict.get(key) for key in GUARDED}}
        config_dict["softlm"] = {**self.softlm, "base_config": before}
        config_dict.update((key, GUARD) for key in GUARDED)
        # The file is saved beside the weights, wherever this code was loaded from.
        config_dict["auto_map"] = {key: name.rpartition("--")[2] for key, name in self.auto_map.items()}
        return json.dumps(config_dict, indent=2, sort_keys=True) + "\n"

    def __reduce__(self):
        return new_config, (self.softlm["base_model_type"],), self.__dict__


class SoftlmConfig(PretrainedConfig):
    """Opens config.json as a configuration of the base's class that knows the stored form."""

    model_type = "softlm"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        section = config_dict.get("softlm") or {}
        if section.get("format") != FORMAT:
            raise ValueError(
                f"config.json has softlm's format {section.get('format')}, this modeling_softlm.py reads {FORMAT}: take "
                "the file from the softlm that wrote the weights, or write them again"
            )
        return config_class(section["base_model_type"]).from_dict(config_dict, **kwargs)


def config_class(base_model_type):
    """The configuration of a compressed model of a family."""
    if base_model_type not in made:
        if base_model_type not in CONFIG_MAPPING:
            raise ValueError(f"this transformers does not know the base's model type {base_model_type}")
        base = CONFIG_MAPPING[base_model_type]
        members = {"__module__": __name__, "__doc__": base.__doc__, "base_config_class": base}
        made[base_model_type] = type("SoftlmConfig", (StoredConfig, base), members)
    return made[base_model_type]


def new_config(base_model_type):
    """An empty configuration, for `copy` and `pickle` to fill."""
    cls = config_class(base_model_type)
    return cls.__new__(cls)


# The classes made so far: configurations by model type, models by head and model type.
made = {}


# Models ---------------------------------------------------------------------------------------------------------------


class StoredModel:
    """What every model made here has in front of its base's class."""

    def post_init(self):
        # The last step of the base's construction: what is replaced now is initialised, tied and loaded like the rest.
        section = self.config.softlm
        separate_experts(self, section["base_model_type"])
        self.config.softlm = {**section, "linears": replace_linears(self, section["linears"])}
        super().post_init()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        # A new head may be missing, it is trained later; a layer that was compressed may not.
        linears = model.config.softlm["linears"]
        stored = {f"{name}.{part}" for name in linears for part in ("weight", "factor_a.weight", "factor_b.weight", "bias")}
        if missing := sorted(stored.intersection(info["missing_keys"])):
            raise ValueError(f"the weight files lack {len(missing)} tensors that config.json lists, such as {missing[0]}")
        return (model, info) if output_loading_info else model

    def __reduce__(self):
        return new_model, (self.head.__name__, self.config.softlm["base_model_type"]), self.__dict__


class Head:
    """Stands for the compressed models of all families that have the same head; `auto_map` names these classes."""

    auto_class = None
    models = None

    @classmethod
    def of(cls, config):
        """The class for a configuration."""
        if not isinstance(config, StoredConfig):
            raise ValueError(f"{cls.__name__} needs the folder's own configuration, not a {type(config).__name__}")
        key = cls.__name__, config.softlm["base_model_type"]
        if key not in made:
            if config.base_config_class not in cls.models:
                raise ValueError(f"{key[1]} has no model for {cls.auto_class}")
            base = cls.models[config.base_config_class]
            members = {"__module__": __name__, "__doc__": base.__doc__, "config_class": type(config)}
            members.update(_auto_class=cls.auto_class, head=cls)
            made[key] = type(cls.__name__, (StoredModel, base), members)
        return made[key]

    @classmethod
    def from_pretrained(cls, name_or_path, *args, config=None, **kwargs):
        if config is None:
            places = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            config = SoftlmConfig.from_pretrained(name_or_path, **{key: kwargs[key] for key in places if key in kwargs})
        return cls.of(config).from_pretrained(name_or_path, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config, **kwargs):
        return cls.of(config)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class=None):
        """Every class made here has its Auto class already."""


class SoftlmModel(Head):
    auto_class, models = "AutoModel", MODEL_MAPPING


class SoftlmForCausalLM(Head):
    auto_class, models = "AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING


class SoftlmForMaskedLM(Head):
    auto_class, models = "AutoModelForMaskedLM", MODEL_FOR_MASKED_LM_MAPPING


class SoftlmForSequenceClassification(Head):
    auto_class, models = "AutoModelForSequenceClassification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


class SoftlmForTokenClassification(Head):
    auto_class, models = "AutoModelForTokenClassification", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING


class SoftlmForQuestionAnswering(Head):
    auto_class, models = "AutoModelForQuestionAnswering", MODEL_FOR_QUESTION_ANSWERING_MAPPING


HEADS = {head.__name__: head for head in Head.__subclasses__()}


def new_model(head, base_model_type):
    """An empty model, for `copy` and `pickle` to fill."""
    config = new_config(base_model_type)
    config.softlm = {"base_model_type": base_model_type}
    cls = HEADS[head].of(config)
    return cls.__new__(cls)
