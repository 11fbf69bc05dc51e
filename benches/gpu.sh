#!/usr/bin/env bash
# softlm on a GPU, against its own work on that machine's processor and against PyTorch on the same card, in one run:
#
#     SOFTLM=softlm CALIB=wiki.txt TEXT=test.txt benches/gpu.sh MODEL…
#
# Each MODEL is a folder with a Llama checkpoint, or one with a configuration and a tokenizer alone: then weights of its shapes
# are made up (benches/synthetic.py). Needs a program built with --features cuda, and python3 with torch, safetensors and
# tokenizers. Variables: PYTHON, OUT (a folder for the reports), WINDOWS, WINDOW, KEEP, MAX_WINDOWS, LIMIT (seconds for one
# run, after which it counts as failed), PROCESSOR=no to leave out the processor's runs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
softlm=${SOFTLM:-$here/../target/release/softlm}
python=${PYTHON:-python3}
out=${OUT:-gpu-results}
windows=${WINDOWS:-32} window=${WINDOW:-512} keep=${KEEP:-0.8} max_windows=${MAX_WINDOWS:-40} limit=${LIMIT:-150}
: "${CALIB:?a text to calibrate with}" "${TEXT:?a text to evaluate on}"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# run REPORT COMMAND…: what the command prints becomes the report.
run() {
    local report=$1
    shift
    timeout "$limit" "$@" > "$out/$report.json" || echo "failed: $report" >&2
}

# compress DEVICE REPORT MODEL [OPTION…]
compress() {
    local device=$1 report=$2 model=$3
    shift 3
    [ "$device" = cuda ] || [ "${PROCESSOR:-yes}" = yes ] || return 0
    rm -rf "$work"/output*
    run "$report" "$softlm" --quiet --device "$device" compress "$model" -o "$work/output" --method whiten --json "$@"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$softlm" --version
compress cuda demo-gpu-first demo
compress cuda demo-gpu demo
compress cpu demo-cpu demo

for model; do
    name=$(basename "$model")
    if [ ! -e "$model"/model.safetensors ] && [ ! -e "$model"/model.safetensors.index.json ]; then
        "$python" "$here/synthetic.py" "$model/config.json" "$work/$name"
        model=$work/$name
    fi
    options=(--keep "$keep" --allocation uniform --inputs dense --calib "$CALIB" --calib-windows "$windows"
        --window "$window" --sampling first --ppl "$TEXT" --eval-window "$window" --max-windows "$max_windows")
    compress cuda "$name-gpu" "$model" "${options[@]}"
    compress cpu "$name-cpu" "$model" "${options[@]}"
    options=(--device cuda --model "$model" --text "$CALIB" --keep "$keep" --windows "$windows" --window "$window"
        --ppl "$TEXT" --max-windows "$max_windows")
    run "$name-torch-f32" "$python" "$here/torch_reference.py" "${options[@]}" --repeat 2
    run "$name-torch-tf32" "$python" "$here/torch_reference.py" "${options[@]}" --tf32
done

"$python" - "$out" <<'END'
import json, pathlib, sys

# PyTorch's stages beside softlm's.
TORCH = {
    "reading text": ["tokenise"],
    "compressing": ["calibrate", "factorise"],
    "writing": ["save"],
    "evaluating": ["evaluate"],
    "all": ["total", "evaluate"],
}


def ours(run):
    """Seconds by stage, and perplexities before and after."""
    seconds = {stage["name"]: stage["seconds"] for stage in run["cost"]["stages"]} | {"all": run["cost"]["seconds"]}
    ppl = [row[side]["perplexity"]["ppl"] for row in run["evaluation"] for side in ["before", "after"]]
    return seconds, ppl, run["cost"]["peak_rss_bytes"] / 2**20


def theirs(run):
    seconds = {stage: sum(run["seconds"][part] for part in parts) for stage, parts in TORCH.items()}
    return seconds, [run["perplexity"]], run["peak_rss_mib"]


runs = {}
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    if file.stat().st_size:
        run = json.loads(file.read_text())
        runs[file.stem] = ours(run) if "cost" in run else theirs(run)
stages = list(dict.fromkeys(stage for seconds, _, _ in runs.values() for stage in seconds if stage != "all")) + ["all"]
print("| seconds | " + " | ".join(stages) + " | peak MiB of the host | perplexity |")
print("|---" * (len(stages) + 3) + "|")
for name, (seconds, ppl, mib) in runs.items():
    cells = [f"{seconds[stage]:.2f}" if stage in seconds else "" for stage in stages]
    print(f"| {name} | " + " | ".join(cells) + f" | {mib:.0f} | " + ", ".join(f"{value:.5g}" for value in ppl) + " |")
END
