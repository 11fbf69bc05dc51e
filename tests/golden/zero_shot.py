"""Writes zero_shot.json: what lm-evaluation-harness makes of a few items of each zero-shot task, with the tasks' own files
of the harness and transformers in f32.

The items are hand-written, in the fields that the data sets have on the hub. Models: demo (context 512), the same with a
tokenizer that begins every text with BOS, and gpt2-tiny (context 64, so that long items are truncated).

    pip install lm-eval==0.4.13 torch==2.15.0 transformers==4.57.6
    python zero_shot.py
"""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import datasets
import torch
from common import DEMO, HERE, digits, versions, write_json
from lm_eval import simple_evaluate
from lm_eval.api.metrics import mean_stderr
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

# Name here, name in the harness.
NAMES = {
    "piqa": "piqa",
    "arc_easy": "arc_easy",
    "arc_challenge": "arc_challenge",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "openbookqa": "openbookqa",
    "boolq": "boolq",
    "mathqa": "mathqa",
    "lambada": "lambada_openai",
}
# What is said of the hub's data set; the rows come from a file.
UNUSED = ["dataset_name", "tag", "training_split", "validation_split", "fewshot_split"]
BEGINS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}


def evaluate(model, tasks):
    """Results of `tasks`, {name: (rows, config or None for the harness's own)}, each with its items."""
    lm = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=8)
    out = {}
    for name, (rows, config) in tasks.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            if config is None:
                config = own_config(NAMES[name])
            split = config.get("test_split") or config.get("validation_split") or "test"
            config = {key: value for key, value in config.items() if key not in UNUSED} | {
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {split: str(path)}, "cache_dir": folder},
                "test_split": split,
            }
            found = simple_evaluate(lm, tasks=[config], log_samples=True, bootstrap_iters=0, random_seed=0, num_fewshot=0)
        out[name] = summary(found, config["task"])
    return out


def own_config(task):
    """The harness's configuration of a task, its functions loaded."""
    config = load_yaml(TaskManager().task_index[task].yaml_path, resolve_func=True)
    return config | {"task": task}


def summary(found, task):
    result = found["results"][task]
    items = []
    for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"]):
        log_p = [float(answer[0][0] if isinstance(answer[0], (list, tuple)) else answer[0]) for answer in sample["resps"]]
        greedy = [bool(answer[0][1] if isinstance(answer[0], (list, tuple)) else answer[1]) for answer in sample["resps"]]
        pick = max(range(len(log_p)), key=lambda i: (log_p[i], -i))
        items.append({"log_p": log_p, "greedy": greedy, "pick": pick, "acc": float(sample["acc"])})
        if "acc_norm" in sample:
            items[-1]["acc_norm"] = float(sample["acc_norm"])
    n = len(items)
    out = {"n": n}
    for metric in ["acc", "acc_norm", "perplexity"]:
        if f"{metric},none" in result:
            out[metric] = float(result[f"{metric},none"])
    for metric in ["acc", "acc_norm"]:
        if metric in out:
            values = [item[metric] for item in items]
            out[f"{metric}_stderr"] = float(mean_stderr(values))
    return out | {"items": items}


def main():
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    rows = json.loads((HERE / "zero_shot_items.json").read_text())
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        begins = Path(folder) / "demo-bos"
        shutil.copytree(DEMO, begins)
        definition = json.loads((begins / "tokenizer.json").read_text())
        definition["post_processor"] = BEGINS
        (begins / "tokenizer.json").write_text(json.dumps(definition))
        for name, path in {"demo": DEMO, "demo-bos": begins, "gpt2-tiny": HERE / "models" / "gpt2-tiny"}.items():
            models[name] = evaluate(path, {task: (items, None) for task, items in rows.items()})
    made_by = versions() | {"lm_eval": version("lm-eval")}
    write_json("zero_shot.json", {"versions": made_by, "post_processor": BEGINS, "models": digits(models, 9)})


if __name__ == "__main__":
    main()
