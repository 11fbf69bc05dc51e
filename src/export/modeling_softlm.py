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
    {..., "out_heads"}              so many heads with fewer outputs each than the base has, which is the second number;
                                    "in_heads" says the same of inputs

Each `bias` says whether NAME.bias is stored. So the classes below are made when a folder is loaded: a subclass of the
base's configuration and of the base's model, which then replaces those layers. Everything else is the base's own code.

config.json names no class that exists without this file, and two of its keys hold a sentence in place of a value that
transformers knows: it would otherwise open the folder as the base model, with random numbers for every layer listed
here. Loading takes the sentence out, saving puts it back.
"""

import json
import math

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
    PreTrainedModel,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

try:
    from transformers import conversion_mapping
except ImportError:  # transformers 4 names layers as checkpoints do
    conversion_mapping = None

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


class PerHead(nn.Module):
    """A linear whose heads have fewer dimensions than the base's: what leaves it lies where the base has it, with zeros
    between, what enters it is taken from there. So the base's own attention computes with it.

    The dimensions that are left are the first of each head. It is no nn.Linear: programs that put linears of their own in
    the place of those leave it alone.
    """

    def __init__(self, linear, entry):
        super().__init__()
        self.kind, self.nf = type(linear), entry["out"]
        self.bias = None
        for part, value in [*linear.named_parameters(recurse=False), *linear.named_children()]:
            setattr(self, part, value)
        self.out_heads, self.in_heads = entry.get("out_heads"), entry.get("in_heads")
        self.left = entry["out"] // self.out_heads[0] if self.out_heads else entry["in"] // self.in_heads[0]

    def forward(self, x):
        if self.in_heads:
            x = x.unflatten(-1, tuple(self.in_heads))[..., : self.left].flatten(-2)
        y = self.kind.forward(self, x)
        if not self.out_heads:
            return y
        heads, dim = self.out_heads
        return nn.functional.pad(y.unflatten(-1, (heads, self.left)), (0, dim - self.left)).flatten(-2)


class SplitLinear(nn.Module):
    """Linears in place of one fused matrix, their outputs arranged as the matrix has them.

    Output i of a part with rows (start, run, stride) is output start + i // run * stride + i % run of the matrix; without
    a run its outputs lie together. The matrix's bias, if there is one, counts for the parts that have none of their own.
    """

    def __init__(self, parts, bias):
        super().__init__()
        # By their first rows: a part may be narrower than the base's, so that the others' rows have moved.
        parts = dict(sorted(parts.items(), key=lambda part: part[1]["rows"][0]))
        for name, entry in parts.items():
            self.add_module(name, stored_linear(entry))
        self.names = list(parts)
        self.sizes = [math.prod(entry.get("out_heads", [entry["out"]])) for entry in parts.values()]
        runs = [entry["rows"][1] for entry in parts.values()]
        self.runs = None if runs[0] is None else runs
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes))) if bias else None

    def forward(self, x):
        parts = [getattr(self, name) for name in self.names]
        outputs = [part(x) for part in parts]
        if self.bias is not None:
            biases = [None if part.bias is not None else bias for part, bias in zip(parts, self.split(self.bias))]
            outputs = [y if bias is None else y + bias for y, bias in zip(outputs, biases)]
        if self.runs is None:
            return torch.cat(outputs, dim=-1)
        return torch.cat([y.unflatten(-1, (-1, run)) for y, run in zip(outputs, self.runs)], dim=-1).flatten(-2)

    def split(self, bias):
        """The parts' shares of the matrix's bias."""
        if self.runs is None:
            return bias.split(self.sizes)
        return [share.flatten() for share in bias.unflatten(0, (-1, sum(self.runs))).split(self.runs, dim=-1)]


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
        linear = FactorLinear(inputs, outputs, entry["rank"], bias)
    else:
        linear = Conv1D(outputs, inputs) if entry.get("transposed") else nn.Linear(inputs, outputs, bias=bias)
    return PerHead(linear, entry) if "out_heads" in entry or "in_heads" in entry else linear


# The linears of an expert in checkpoints, in the families whose experts transformers 5 fuses.
EXPERT_LINEARS = {
    "mixtral": ("w1", "w3", "w2"),
    "qwen2_moe": ("gate_proj", "up_proj", "down_proj"),
    "qwen3_moe": ("gate_proj", "up_proj", "down_proj"),
}


def separate_experts(model, names):
    """Gives every expert its own linears, under the names that checkpoints have."""
    for module in list(model.modules()):
        experts = getattr(module, "experts", None)
        if isinstance(getattr(experts, "down_proj", None), nn.Parameter):
            module.experts = Experts(experts, names)


def replace_linears(model, linears):
    """Puts layers of the stored form in place of those listed. Returns the list under the names that the model's tensors
    get when it is saved: with the base model's name in front where it has a head, even if they were stored without."""
    prefix = f"{model.base_model_prefix}."
    layers = dict(model.named_modules())

    def saved_name(name):
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if renamed(candidate, model.renamings) in layers:
                return candidate
        raise ValueError(f"config.json lists {name} under `softlm`, but {type(model).__name__} has no such layer")

    def replace(name, make):
        name = renamed(name, model.renamings)
        parent, _, leaf = name.rpartition(".")
        setattr(layers[parent], leaf, make(layers[name]))

    saved, parts = {}, {}
    for name, entry in linears.items():
        if "part_of" in entry:
            matrix = saved_name(entry["part_of"])
            part = name.removeprefix(entry["part_of"] + ".")
            parts.setdefault(matrix, {})[part] = saved[f"{matrix}.{part}"] = {**entry, "part_of": matrix}
        else:
            saved[saved_name(name)] = entry
            replace(saved_name(name), lambda _: stored_linear(entry))
    for matrix, entries in parts.items():
        replace(matrix, lambda fused: SplitLinear(entries, bias=fused.bias is not None))
    return saved


def renamed(name, renamings):
    """What transformers calls the layer whose tensors have this name in checkpoints."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def register_renamings(class_name, base, base_model_type):
    """Transformers 5 gives some layers other names than their checkpoints have: has it do so for a class made from `base`
    too, when loading and backwards when saving. Returns these renamings."""
    if conversion_mapping is None:
        return []
    known = conversion_mapping.get_checkpoint_conversion_mapping
    transforms = known(base.__name__) or known(base_model_type) or []
    # The others put tensors together, such as those of experts, which stay separate here.
    renamings = [transform for transform in transforms if isinstance(transform, conversion_mapping.WeightRenaming)]
    if renamings:
        conversion_mapping.register_checkpoint_conversion_mapping(class_name, renamings, overwrite=True)
    return renamings


# Configuration --------------------------------------------------------------------------------------------------------


class StoredConfig:
    """What every configuration made here has in front of its base's class."""

    model_type = "softlm"
    _auto_class = "AutoConfig"
    # How processes share a model names the base's layers and would add the outputs of whole factors up: there is no such plan.
    base_model_tp_plan = None
    base_model_ep_plan = None

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
        # The classes made here are found through those that stand in this file, and the file is saved beside the weights,
        # wherever it was loaded from.
        heads = {cls.__name__: cls.head.__name__ for cls in made.values() if hasattr(cls, "head")}
        config_dict["architectures"] = [heads.get(name, name) for name in self.architectures or []]
        classes = {key: name.rpartition(".")[2] for key, name in self.auto_map.items()}
        config_dict["auto_map"] = {key: f"modeling_softlm.{heads.get(name, name)}" for key, name in classes.items()}
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
        separate_experts(self, EXPERT_LINEARS.get(section["base_model_type"]))
        self.config.softlm = {**section, "linears": replace_linears(self, section["linears"])}
        super().post_init()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        # A new head may be missing, it is trained later; a layer that was compressed may not.
        linears = [renamed(name, cls.renamings) for name in model.config.softlm["linears"]]
        stored = {f"{name}.{part}" for name in linears for part in ("weight", "factor_a.weight", "factor_b.weight", "bias")}
        if missing := sorted(stored.intersection(info["missing_keys"])):
            raise ValueError(f"the weight files lack {len(missing)} tensors that config.json lists, such as {missing[0]}")
        return (model, info) if output_loading_info else model

    def __reduce__(self):
        return new_model, (self.head.__name__, self.config.softlm["base_model_type"]), self.__dict__


class Head(PreTrainedModel):
    """Stands for the compressed models of all families that have the same head; `auto_map` names these classes."""

    config_class = SoftlmConfig
    auto_class = None
    models = None
    # Asked by other programs before they make a model. Every family with attention has it.
    _supports_attention_backend = True

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
            name = f"Softlm{base.__name__}"
            members = {"__module__": __name__, "__doc__": base.__doc__, "config_class": type(config), "head": cls}
            members.update(_auto_class=cls.auto_class, renamings=register_renamings(name, base, key[1]))
            made[key] = type(name, (StoredModel, base), members)
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
