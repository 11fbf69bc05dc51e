"""What the Transformers backends of vLLM and SGLang ask of a model that comes with its own code, without running them: its
class before it is made, attention through transformers' interface, and linears that can be exchanged one by one."""

import pytest
import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from safetensors.torch import load_file

from conftest import close, load, output, some_ids

DENSE = ["llama-tiny-rope3", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "phi3-tiny", "gpt2-tiny", "gpt-neox-tiny", "opt-tiny"]


class Exchanged(torch.nn.Module):
    """Another program's linear: the parameters of the old one under the same names."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return x @ self.weight.T + (0 if self.bias is None else self.bias)


@pytest.mark.parametrize("method", ["lorap", "soco", "narrow"])
@pytest.mark.parametrize("name", DENSE)
def test_the_class_attention_and_linears(name, method):
    folder = output(name, method)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for auto in ("AutoModel", "AutoModelForCausalLM"):
        cls = get_class_from_dynamic_module(config.auto_map[auto], folder)
        assert issubclass(cls, transformers.PreTrainedModel)
        assert cls._supports_attention_backend and cls._can_set_attn_implementation()
    assert getattr(config, "quantization_config", None) is None

    seen = set()

    def attention(module, *args, **options):
        seen.add(module.layer_idx)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **options)

    ALL_ATTENTION_FUNCTIONS.register("counted", attention)
    transformers.AttentionMaskInterface.register("counted", transformers.masking_utils.sdpa_mask)
    config._attn_implementation = "counted"
    made = transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=True).eval()
    for parent in list(made.modules()):
        for leaf, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, leaf, Exchanged(child))
    # Weights are assigned by the names in the file, with or without the name of the base model.
    own = dict(made.named_parameters())
    prefix = f"{made.base_model_prefix}."
    for key, tensor in load_file(f"{folder}/model.safetensors").items():
        if (key := key.removeprefix(prefix)) in own:
            own.pop(key).data.copy_(tensor)
    assert not own
    with torch.no_grad():
        found = made(some_ids())[0]
        assert close(found, load(folder, attn_implementation="sdpa").base_model(some_ids())[0], 1e-5)
    assert seen == set(range(config.num_hidden_layers))
