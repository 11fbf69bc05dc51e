"""Training: gradient checkpointing changes nothing, peft's LoRA trains on the factors, the Trainer saves what loads again."""

import peft
import pytest
import torch
import transformers

import bases
import reference
from conftest import close, load, output, some_ids

DECODERS = [name for name in bases.FAMILIES if "bert" not in name]


def loss_and_gradients(model):
    model.zero_grad()
    loss = model(some_ids(), labels=some_ids(), use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", DECODERS)
def test_gradient_checkpointing(name):
    torch.manual_seed(0)
    model = load(output(name, "soco"))
    # Without dropout, so that both runs compute the same.
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.train()
    loss, gradients = loss_and_gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    again, recomputed = loss_and_gradients(model)
    assert torch.isclose(loss, again, rtol=1e-6)
    assert gradients.keys() == recomputed.keys()
    assert any(".factor_a.weight" in key for key in gradients)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert all((gradients[key] - recomputed[key]).abs().max() <= 1e-5 * largest for key in gradients)


def train(model, steps):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(some_ids(), labels=some_ids()).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", DECODERS)
def test_lora_on_the_factors(name, tmp_path):
    folder = output(name, "whiten")
    model = load(folder)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["factor_a", "factor_b"], task_type="CAUSAL_LM", lora_dropout=0.0)
    tuned = peft.get_peft_model(model, config)
    trained = {key for key, p in tuned.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in key and ".factor_" in key for key in trained)
    losses = train(tuned, 8)
    assert losses[-1] < losses[0]
    frozen = {key: p for key, p in tuned.named_parameters() if key not in trained}
    assert len(frozen) == len(before)
    for key, p in frozen.items():
        assert torch.equal(p, before[key.removeprefix("base_model.model.").replace(".base_layer", "")])
    tuned.eval()
    with torch.no_grad():
        expected = tuned(some_ids()).logits
        # The adapter on a model loaded anew.
        tuned.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
        assert close(again(some_ids()).logits, expected, 1e-6)
        # Merged, the factors have their shapes and names, and saving keeps them.
        merged = again.merge_and_unload()
        assert close(merged(some_ids()).logits, expected, 1e-4)
        merged.save_pretrained(tmp_path / "merged")
        assert reference.stored(tmp_path / "merged").keys() == reference.stored(folder).keys()
        assert close(load(tmp_path / "merged")(some_ids()).logits, expected, 1e-4)


def test_lora_by_the_layers_names_is_refused_by_peft():
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="FactorLinear"):
        peft.get_peft_model(load(output("llama-tiny-rope3", "svd")), config)


def test_an_adapter_finds_the_output_that_it_was_trained_on(tmp_path):
    folder = output("llama-tiny-rope3", "svd")
    config = peft.LoraConfig(r=2, target_modules=["factor_a"], init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(load(folder), config).eval()
    tuned.save_pretrained(tmp_path)
    options = {"trust_remote_code": True, "dtype": torch.float32}
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path, **options).eval()
    with torch.no_grad():
        assert close(again(some_ids()).logits, tuned(some_ids()).logits, 1e-6)


@pytest.mark.parametrize("name", ["llama-tiny-rope3", "gpt2-tiny"])
def test_the_trainer(name, tmp_path):
    model = load(output(name, "whiten"))
    data = [{"input_ids": row, "labels": row} for row in some_ids(16, 8)]
    options = {"use_cpu": True, "report_to": [], "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 5e-3}
    options |= {"per_device_train_batch_size": 4, "logging_steps": 1, "gradient_checkpointing": True, "disable_tqdm": True}
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(tmp_path), **options), train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    model.eval()
    saved = load(tmp_path / "checkpoint-4")
    with torch.no_grad():
        assert close(saved(some_ids()).logits, model(some_ids()).logits, 1e-6)


def test_new_embeddings(tmp_path):
    model = load(output("llama-tiny-rope3", "svd"))
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.vocab_size == 100
    with torch.no_grad():
        assert close(again(some_ids()).logits, model(some_ids()).logits, 1e-6)
