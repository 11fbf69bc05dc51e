#!/bin/sh
# softlm against PyTorch on the same work, interleaved: medians of the stages and their ratio.
#
#     PYTHON=python3 THREADS=2 RUNS=3 benches/compare.sh
#     METHOD=rom KEEP=0.8 MODEL=SmolLM2-135M TEXT=wiki.utf8 WINDOWS=32 WINDOW=512 benches/compare.sh
#
# Needs a release build (target/release/softlm, or SOFTLM=...), python with torch, safetensors and tokenizers, and the
# model and text named below (or MODEL=... TEXT=...).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3} threads=${THREADS:-2} runs=${RUNS:-3} keep=${KEEP:-0.6}
method=${METHOD:-whiten} windows=${WINDOWS:-64} window=${WINDOW:-256}
softlm=${SOFTLM:-$here/../target/release/softlm}
model=${MODEL:-$here/../../shared/data/models/llama-wiki-7m}
text=${TEXT:-$here/../../shared/data/text/shakespeare/input.txt}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
i=0
while [ "$i" -lt "$runs" ]; do
    i=$((i + 1))
    "$softlm" --quiet --threads "$threads" compress "$model" -o "$work/out" --force --method "$method" --keep "$keep" \
        --allocation uniform --calib "$text" --calib-windows "$windows" --window "$window" --sampling first \
        --ppl none --json >"$work/softlm-$i.json"
    "$python" "$here/torch_reference.py" --model "$model" --text "$text" --method "$method" --keep "$keep" \
        --windows "$windows" --window "$window" --threads "$threads" >"$work/torch-$i.json"
done
"$python" - "$work" "$runs" <<'END'
import json, statistics, sys

work, runs = sys.argv[1], range(1, int(sys.argv[2]) + 1)
read = lambda name: [json.load(open(f"{work}/{name}-{i}.json")) for i in runs]
softlm, torch = read("softlm"), read("torch")
stage = lambda run, name: next((s["seconds"] for s in run["cost"]["stages"] if s["name"] == name), 0.0)
rows = [
    ("tokenise", lambda r: stage(r, "reading text"), lambda s: s["tokenise"]),
    ("calibrate and factorise", lambda r: stage(r, "decomposing") + stage(r, "compressing"), lambda s: s["calibrate"] + s["factorise"]),
    ("write", lambda r: stage(r, "writing"), lambda s: s["save"]),
    ("verify", lambda r: stage(r, "verifying"), lambda s: 0.0),
    ("all", lambda r: r["cost"]["seconds"], lambda s: s["total"]),
]
print(f"{'median seconds':<24}{'softlm':>9}{'torch':>9}{'torch / softlm':>16}")
for name, ours, theirs in rows:
    a, b = statistics.median(map(ours, softlm)), statistics.median(theirs(t["seconds"]) for t in torch)
    print(f"{name:<24}{a:>9.3f}{b:>9.3f}" + (f"{b / a:>16.2f}" if a and b else ""))
peak = max(r["cost"]["peak_rss_bytes"] for r in softlm) / 2**20
print(f"{'peak MiB':<24}{peak:>9.0f}{max(t['peak_rss_mib'] for t in torch):>9.0f}")
END
