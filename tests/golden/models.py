"""Writes the tiny random checkpoints under models/: the corners of the model families that no small trained model has.

    python models.py

gpt2-tiny       GPT-2 as `GPT2LMHeadModel.save_pretrained` writes it: f16, transposed Conv1D weights, names with the
                `transformer.` prefix, tied head not stored, byte-level BPE as vocab.json + merges.txt and nothing else.
                (The checkpoint on the hub that GPT-2 is known for has the same tensors WITHOUT that prefix and with
                additional mask buffers `h.<i>.attn.bias`: a reader has to accept both.)
llama-tiny-rope3  f16, grouped-query attention whose head_dim is not hidden / heads, llama3 rope scaling that acts on
                short sequences (original context 32, so all three frequency bands occur), rope_theta 5000, own head.
llama-tiny-bias  f32, multi-head attention, biases on every linear, tied head.

One of each family that shares Llama's or GPT-2's block, all f16, with sequences that are several windows long where there
is a window:

mistral-tiny    sliding window of 8, own head_dim, grouped-query attention, yarn rope scaling
qwen2-tiny      biases on q, k, v alone, tied head, the last of three blocks with a sliding window
qwen3-tiny      norms on each head's queries and keys, head_dim that is not hidden / heads, own head, no scaling (dynamic
                rope scaling, which does nothing within the context)
gemma2-tiny     tied and scaled embedding, norms of 1 + weight before and behind, capped scores and logits, a query scale of
                its own, every other block with a sliding window
gemma3-tiny     norms on queries and keys as well, two rope bases (the global one scaled linearly), one global block of three
phi3-tiny       q, k, v and gate, up fused, half of each head rotated, sliding window
phi3-tiny-short, phi3-tiny-long  longrope, once with rows shorter and once with rows longer than the original context
gpt-neox-tiny   parallel residual, q, k, v fused head by head, biases, a quarter of each head rotated, own head
gpt-neox-tiny-serial  the same one after the other, without attention biases
opt-tiny        learned positions from row 2 on, ReLU, biases, tied
mixtral-tiny    4 experts, 2 per token
qwen2-moe-tiny  6 experts, 2 per token, whose weights do not sum to 1, and a shared one
qwen3-moe-tiny  5 experts, 3 per token, in the second block alone; norms on queries and keys

Without attention, longer than several of the chunks that the second one is computed in:

mamba-tiny      f32, biases on the input and output projections, state of 6, tied
mamba-tiny-16   f32, no biases on the projections, state of 16, rank 2, as large models have it
mamba2-tiny     f32, 6 heads of 8 in 2 groups, state of 7, time steps clamped on both sides, own head

Every bias and every norm weight is random, so that one that is forgotten or swapped changes the logits.
"""

import json

import torch
from transformers import (
    Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig,
    GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM,
    MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM, Phi3Config,
    Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen3Config,
    Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM,
)
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from common import HERE, arguments

MERGES = """Ġ t|h e|Ġ a|Ġt he|i n|r e|o n|Ġ s|Ġ w|e r|n d|o u|Ġ o|a t|Ġa nd|i s|e n|Ġ b|o r|Ġ f|in g|Ġ h|e s|a n|Ġo f|i t
l l|Ġ in|o m|e d|Ġt o|Ġ p|r o|a s|l e|Ġ c|Ġ m|Ġ d|v e|Ġ n|ou ld|' s|Ã ©|Ġ Ġ|l d""".replace("\n", "|").split("|")


def randomise(model, seed, scale, centre=1):
    """Weights from N(0, scale²), biases from N(0, 0.1²), norm weights from N(centre, 0.2²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            norm = any(part in name for part in ("norm", "ln_"))
            p.copy_(noise * 0.1 if name.endswith("bias") else centre + 0.2 * noise if norm else noise * scale)
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


# What the models of the other families have in common.
SMALL = dict(vocab_size=96, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False)


def mistral():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8.0}
    config = MistralConfig(**SMALL | dict(head_dim=8, sliding_window=8, rope_theta=500.0, rms_norm_eps=1e-5,
                                          rope_scaling=scaling))
    save(randomise(MistralForCausalLM(config), 7, 0.3), "mistral-tiny", torch.float16)


def qwen2():
    config = Qwen2Config(**SMALL | dict(num_hidden_layers=3, use_sliding_window=True, sliding_window=12,
                                        max_window_layers=2, rope_theta=3000.0, tie_word_embeddings=True))
    save(randomise(Qwen2ForCausalLM(config), 11, 0.2), "qwen2-tiny", torch.float16)


def qwen3():
    config = Qwen3Config(**SMALL | dict(head_dim=10, rope_theta=700.0,
                                        rope_scaling={"rope_type": "dynamic", "factor": 4.0}))
    save(randomise(Qwen3ForCausalLM(config), 13, 0.3), "qwen3-tiny", torch.float16)


def gemma2():
    config = Gemma2Config(**SMALL | dict(head_dim=8, sliding_window=10, query_pre_attn_scalar=5, rope_theta=900.0,
                                         attn_logit_softcapping=3.0, final_logit_softcapping=7.0,
                                         tie_word_embeddings=True))
    save(randomise(Gemma2ForCausalLM(config), 17, 0.3, centre=0), "gemma2-tiny", torch.float16)


def gemma3():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**SMALL | dict(num_hidden_layers=3, head_dim=8, sliding_window=10, layer_types=kinds,
                                             query_pre_attn_scalar=5, rope_theta=4000.0, rope_local_base_freq=60.0,
                                             rope_scaling={"rope_type": "linear", "factor": 2.0},
                                             tie_word_embeddings=True))
    save(randomise(Gemma3ForCausalLM(config), 19, 0.2, centre=0), "gemma3-tiny", torch.float16)


def phi3():
    config = Phi3Config(**SMALL | dict(hidden_size=32, sliding_window=14, partial_rotary_factor=0.5, rope_theta=300.0,
                                       pad_token_id=0, bos_token_id=1, eos_token_id=2))
    save(randomise(Phi3ForCausalLM(config), 23, 0.3), "phi3-tiny", torch.float16)


    for name, original in [("short", 64), ("long", 24)]:
        scaling = {"type": "longrope", "short_factor": [1.0, 1.3, 1.9, 2.5], "long_factor": [1.5, 2.0, 5.0, 9.0]}
        config = Phi3Config(**SMALL | dict(hidden_size=32, original_max_position_embeddings=original, rope_theta=300.0,
                                           rope_scaling=scaling, pad_token_id=0, bos_token_id=1, eos_token_id=2))
        save(randomise(Phi3ForCausalLM(config), 53, 0.3), f"phi3-tiny-{name}", torch.float16)


def gpt_neox():
    small = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"} | dict(hidden_size=32)
    config = GPTNeoXConfig(**small, rotary_pct=0.25, rotary_emb_base=200)
    save(randomise(GPTNeoXForCausalLM(config), 29, 0.3), "gpt-neox-tiny", torch.float16)
    config = GPTNeoXConfig(**small, rotary_pct=1.0, use_parallel_residual=False, attention_bias=False)
    save(randomise(GPTNeoXForCausalLM(config), 31, 0.3), "gpt-neox-tiny-serial", torch.float16)


def opt():
    config = OPTConfig(vocab_size=96, hidden_size=24, word_embed_proj_dim=24, ffn_dim=64, num_hidden_layers=2,
                       num_attention_heads=4, max_position_embeddings=64)
    save(randomise(OPTForCausalLM(config), 37, 0.3), "opt-tiny", torch.float16)


def mamba():
    small = dict(vocab_size=96, hidden_size=24, num_hidden_layers=2, conv_kernel=4, bos_token_id=1, eos_token_id=2)
    config = MambaConfig(**small, state_size=6, time_step_rank=3, use_bias=True)
    save(randomise(MambaForCausalLM(config), 41, 0.3), "mamba-tiny", torch.float32)
    config = MambaConfig(**small, state_size=16)
    save(randomise(MambaForCausalLM(config), 53, 0.3), "mamba-tiny-16", torch.float32)
    config = Mamba2Config(**small, num_heads=6, head_dim=8, n_groups=2, state_size=7, chunk_size=16,
                          time_step_limit=(0.2, 1.5), tie_word_embeddings=False)
    save(randomise(Mamba2ForCausalLM(config), 43, 0.3), "mamba2-tiny", torch.float32)


def mixtures():
    config = MixtralConfig(**SMALL | dict(intermediate_size=20, num_local_experts=4, num_experts_per_tok=2,
                                          rope_theta=800.0))
    save(randomise(MixtralForCausalLM(config), 41, 0.3), "mixtral-tiny", torch.float16)
    config = Qwen2MoeConfig(**SMALL | dict(moe_intermediate_size=16, shared_expert_intermediate_size=20, num_experts=6,
                                           num_experts_per_tok=2, rope_theta=800.0))
    save(randomise(Qwen2MoeForCausalLM(config), 43, 0.3), "qwen2-moe-tiny", torch.float16)
    config = Qwen3MoeConfig(**SMALL | dict(moe_intermediate_size=16, num_experts=5, num_experts_per_tok=3, head_dim=8,
                                           norm_topk_prob=True, mlp_only_layers=[0], rope_theta=800.0))
    save(randomise(Qwen3MoeForCausalLM(config), 47, 0.3), "qwen3-moe-tiny", torch.float16)


if __name__ == "__main__":
    arguments(__doc__.splitlines()[0])
    gpt2()
    rope3()
    bias()
    mistral()
    qwen2()
    qwen3()
    gemma2()
    gemma3()
    phi3()
    gpt_neox()
    opt()
    mamba()
    mixtures()
