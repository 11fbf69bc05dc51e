"""How `softlm eval --tasks` agrees with lm-evaluation-harness on a real model and local task files.

Both see the same items: JSON Lines with query, choices, gold (winogrande: context_options, continuation, gold). Prints, per
task, on how many items both pick the same choice, both accuracies, and the largest relative difference of a log-likelihood.
Fails where fewer than 99.5 % of the picks are the same or accuracies differ by more than half a point.

    pip install lm-eval==0.4.13 torch==2.15.0 transformers==4.57.6
    python zero_shot_agreement.py --softlm target/release/softlm --model DIR --data FOLDER --limit 200
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zero_shot import evaluate

FILES = {
    "arc_easy": "arc_easy",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "openbookqa": "openbook_qa",
    "winogrande": "winogrande",
}


def config(task, path, limit):
    """The task as the harness is told it."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[:limit]]
    fields = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
    if task == "winogrande":
        fields = {"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"}
    metrics = [{"metric": name} for name in ["acc", "acc_norm"]]
    return rows, {"task": f"{task}_file", "output_type": "multiple_choice", "metric_list": metrics, **fields}


def softlm(program, model, task, path, limit):
    """What softlm says of each item, and its result."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        command = [program, "eval", model, "--tasks", f"{task}={path}", "--limit", str(limit), "--json"]
        out = subprocess.run(command + ["--log-samples", str(samples), "--quiet"], check=True, capture_output=True, text=True)
        items = [json.loads(line) for line in samples.read_text().splitlines()]
    return items, json.loads(out.stdout)["tasks"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--softlm", required=True)
    parser.add_argument("--model", required=True, help="folder of a decoder")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--tasks", default=",".join(FILES))
    given = parser.parse_args()
    failed = False
    print("| task | items | same choice | acc, harness | acc, softlm | largest difference of a log-likelihood | seconds, harness | seconds, softlm |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for task in given.tasks.split(","):
        path = given.data / f"{FILES[task]}.jsonl"
        rows, told = config(task, path, given.limit)
        started = time.monotonic()
        theirs = evaluate(given.model, {task: (rows, told)})[task]
        between = time.monotonic()
        ours, result = softlm(given.softlm, given.model, task, path, given.limit)
        seconds = (between - started, time.monotonic() - between)
        same = sum(a["pick"] == b["pick"] for a, b in zip(ours, theirs["items"], strict=True)) / len(ours)
        pairs = [(x, y) for a, b in zip(ours, theirs["items"]) for x, y in zip(a["log_p"], b["log_p"], strict=True)]
        off = max(abs(x - y) / max(1.0, abs(y)) for x, y in pairs)
        accs = (theirs["acc"], result["acc"])
        failed |= same < 0.995 or abs(accs[0] - accs[1]) > 0.005
        print(f"| {task} | {len(ours)} | {100 * same:.1f} % | {100 * accs[0]:.2f} % | {100 * accs[1]:.2f} % | {off:.1e} | {seconds[0]:.0f} | {seconds[1]:.0f} |", flush=True)
    sys.exit(failed)


main()
