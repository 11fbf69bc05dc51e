"""softlm's figures computed with transformers, by the protocols of its reports."""

import torch
from transformers import AutoTokenizer


def ids_of(folder, text, special=False):
    """The whole text as one row of ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"], tokenizer


@torch.no_grad()
def next_token_nll(model, ids, window, windows):
    """Windows side by side; every token of a window but its first is predicted."""
    total = count = 0
    for start in range(0, min(len(ids) // window, windows) * window, window):
        row = torch.tensor([ids[start : start + window]])
        logits = model(row).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
        count += window - 1
    return total / count


@torch.no_grad()
def masked_token_nll(model, ids, tokenizer, window, windows):
    """Windows between [CLS] and [SEP]; every token between is masked alone."""
    total = count = 0
    inner = window - 2
    for start in range(0, min(len(ids) // inner, windows) * inner, inner):
        row = torch.tensor([[tokenizer.cls_token_id, *ids[start : start + inner], tokenizer.sep_token_id]])
        rows = row.repeat(inner, 1)
        at = torch.arange(inner)
        rows[at, at + 1] = tokenizer.mask_token_id
        logits = model(rows).logits[at, at + 1].double()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:-1], reduction="sum").item()
        count += inner
    return total / count


@torch.no_grad()
def mean_cosine(model, base, ids, tokenizer, window, windows):
    """Cosine of the mean states of two models, over the windows."""
    inner, cosines = window - 2, []
    for start in range(0, min(len(ids) // inner, windows) * inner, inner):
        row = torch.tensor([[tokenizer.cls_token_id, *ids[start : start + inner], tokenizer.sep_token_id]])
        ours, theirs = (m.base_model(row).last_hidden_state[0].double().mean(0) for m in (model, base))
        cosines.append(torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item())
    return sum(cosines) / len(cosines)
