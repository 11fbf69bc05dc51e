"""Writes the tiny random checkpoints under models/: the corners of the model families that no small trained model has.

    python models.py

gpt2-tiny       GPT-2 as `GPT2LMHeadModel.save_pretrained` writes it: f16, transposed Conv1D weights, names with the
                `transformer.` prefix, tied head not stored, byte-level BPE as vocab.json + merges.txt and nothing else.
                (The checkpoint on the hub that GPT-2 is known for has the same tensors WITHOUT that prefix and with
                additional mask buffers `h.<i>.attn.bias`: a reader has to accept both.)
llama-tiny-rope3  f16, grouped-query attention whose head_dim is not hidden / heads, llama3 rope scaling that acts on
                short sequences (original context 32, so all three frequency bands occur), rope_theta 5000, own head.
llama-tiny-bias  f32, multi-head attention, biases on every linear, tied head.

Every bias and every norm weight is random, so that one that is forgotten or swapped changes the logits.
"""

import json

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from common import HERE, arguments

MERGES = """Ġ t|h e|Ġ a|Ġt he|i n|r e|o n|Ġ s|Ġ w|e r|n d|o u|Ġ o|a t|Ġa nd|i s|e n|Ġ b|o r|Ġ f|in g|Ġ h|e s|a n|Ġo f|i t
l l|Ġ in|o m|e d|Ġt o|Ġ p|r o|a s|l e|Ġ c|Ġ m|Ġ d|v e|Ġ n|ou ld|' s|Ã ©|Ġ Ġ|l d""".replace("\n", "|").split("|")


def randomise(model, seed, scale):
    """Weights from N(0, scale²), biases from N(0, 0.1²), norm weights from N(1, 0.2²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            norm = any(part in name for part in ("norm", "ln_"))
            p.copy_(noise * 0.1 if name.endswith("bias") else 1 + 0.2 * noise if norm else noise * scale)
    return model


def save(model, name, dtype):
    folder = HERE / "models" / name
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    print(name, sum(p.numel() for p in model.parameters()), "parameters",
          (folder / "model.safetensors").stat().st_size, "bytes")
    return folder


def gpt2():
    # A merge needs its parts earlier in the list or among the bytes: sort by length, keep the given order within.
    merges, known = [], set(bytes_to_unicode().values())
    waiting = list(dict.fromkeys(MERGES))
    while waiting:
        ready = next(m for m in waiting if set(m.split()) <= known)
        waiting.remove(ready)
        merges.append(ready)
        known.add(ready.replace(" ", ""))
    pieces = list(bytes_to_unicode().values()) + [m.replace(" ", "") for m in merges] + ["<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    assert len(vocabulary) == len(pieces)
    config = GPT2Config(vocab_size=len(pieces), n_positions=64, n_embd=24, n_layer=2, n_head=4,
                        bos_token_id=len(pieces) - 1, eos_token_id=len(pieces) - 1)
    folder = save(randomise(GPT2LMHeadModel(config), 2, 0.3), "gpt2-tiny", torch.float16)
    text = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def rope3():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
                         rope_theta=5000.0, rope_scaling=scaling, rms_norm_eps=1e-5, tie_word_embeddings=False)
    save(randomise(LlamaForCausalLM(config), 3, 0.3), "llama-tiny-rope3", torch.float16)


def bias():
    config = LlamaConfig(vocab_size=96, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
                         attention_bias=True, mlp_bias=True, rms_norm_eps=1e-6, tie_word_embeddings=True)
    save(randomise(LlamaForCausalLM(config), 5, 0.3), "llama-tiny-bias", torch.float32)


if __name__ == "__main__":
    arguments(__doc__.splitlines()[0])
    gpt2()
    rope3()
    bias()
