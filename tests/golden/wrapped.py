"""Text models inside multimodal ones: what the outer class computes of text alone is what the text model computes.

    python wrapped.py

For each pair of an outer class and a model under models/: the text model's weights are put into the outer class beside a
tiny vision tower of random weights, the logits of text are compared, and the whole is saved. wrapped.json keeps the
config.json that transformers wrote, what the text model's tensors are called there, and the names of all others.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM, CLIPVisionConfig, Gemma3Config, Gemma3ForConditionalGeneration, Idefics3Config,
    Idefics3ForConditionalGeneration, InternVLConfig, InternVLForConditionalGeneration, LlavaConfig,
    LlavaForConditionalGeneration, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration, Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig,
    SiglipVisionConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from common import HERE, arguments, versions, write_json

VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
CLIP = CLIPVisionConfig(**VISION, projection_dim=8)
SIGLIP = SiglipVisionConfig(**VISION)
PIXTRAL = PixtralVisionConfig(**VISION)
LAYER = dict(vision_feature_layer=-1, image_token_index=95)
INTERN = dict(VISION, image_size=[28, 28], patch_size=[14, 14])

CASES = [
    ("llama-tiny-rope3", LlavaForConditionalGeneration, lambda text: LlavaConfig(vision_config=CLIP, text_config=text, **LAYER)),
    ("mistral-tiny", LlavaForConditionalGeneration, lambda text: LlavaConfig(vision_config=CLIP, text_config=text, **LAYER)),
    ("qwen2-tiny", LlavaForConditionalGeneration, lambda text: LlavaConfig(vision_config=CLIP, text_config=text, **LAYER)),
    ("llama-tiny-rope3", LlavaNextForConditionalGeneration, lambda text: LlavaNextConfig(vision_config=CLIP, text_config=text, **LAYER)),
    ("llama-tiny-rope3", VipLlavaForConditionalGeneration,
     lambda text: VipLlavaConfig(vision_config=CLIP, text_config=text, image_token_index=95, vision_feature_layers=[-1])),
    ("qwen2-tiny", LlavaOnevisionForConditionalGeneration,
     lambda text: LlavaOnevisionConfig(vision_config=SIGLIP, text_config=text, vision_feature_layer=-1, image_token_index=95, video_token_index=94)),
    ("mistral-tiny", Mistral3ForConditionalGeneration,
     lambda text: Mistral3Config(vision_config=PIXTRAL, text_config=text, image_token_index=95)),
    ("gemma3-tiny", Gemma3ForConditionalGeneration,
     lambda text: Gemma3Config(text_config=text, vision_config=SIGLIP, image_token_index=95, mm_tokens_per_image=1)),
    ("qwen2-tiny", InternVLForConditionalGeneration,
     lambda text: InternVLConfig(vision_config=INTERN, text_config=text, image_token_id=95)),
    ("llama-tiny-rope3", Idefics3ForConditionalGeneration,
     lambda text: Idefics3Config(vision_config=VISION, text_config=text, image_token_id=95)),
    ("llama-tiny-rope3", SmolVLMForConditionalGeneration,
     lambda text: SmolVLMConfig(vision_config=VISION, text_config=text, image_token_id=95)),
]


@torch.no_grad()
def wrapped(name, outer_class, make):
    text = AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()
    torch.manual_seed(1)
    config = make({key: value for key, value in text.config.to_dict().items() if key != "_name_or_path"})
    outer = outer_class._from_config(config, attn_implementation="eager").eval()
    inner = outer.model.text_model if hasattr(outer.model, "text_model") else outer.model.language_model
    inner.load_state_dict(text.model.state_dict())
    outer.lm_head.load_state_dict(text.lm_head.state_dict())
    ids = torch.tensor([[(7 + 31 * i) % 90 for i in range(60)]])
    expected, found = text(ids, use_cache=False).logits, outer(input_ids=ids, use_cache=False).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item()), outer_class.__name__
    with tempfile.TemporaryDirectory() as folder:
        outer.save_pretrained(folder)
        stored = load_file(Path(folder) / "model.safetensors")
        saved = json.loads((Path(folder) / "config.json").read_text())
        again = outer_class.from_pretrained(folder, attn_implementation="eager").eval()
        assert torch.equal(again(input_ids=ids, use_cache=False).logits, found)
    names = {}
    for own, tensor in load_file(HERE / "models" / name / "model.safetensors").items():
        tail = own.removeprefix("model.")
        fits = [n for n, t in stored.items() if n.endswith("." + tail) or n == tail]
        fits = [n for n in fits if t_equal(stored[n], tensor)]
        assert len(fits) == 1, (own, fits)
        names[own] = fits[0]
    others = {n: list(t.shape) for n, t in stored.items() if n not in names.values()}
    assert others
    print(outer_class.__name__, name, names["model.norm.weight"], len(others), "others")
    return {"text": name, "config": saved, "names": names, "others": others}


def t_equal(a, b):
    return a.shape == b.shape and torch.equal(a, b.float())


def main():
    arguments(__doc__.splitlines()[0])
    write_json("wrapped.json", {"schema": 1, "versions": versions(), "models": [wrapped(*case) for case in CASES]})


if __name__ == "__main__":
    main()
