#!/bin/sh
# A training step of `soft` in softlm and in PyTorch, interleaved: medians of seconds per step, peaks, and their ratio.
#
#     PYTHON=python3 THREADS=2 RUNS=3 benches/training.sh
#
# softlm's seconds are those of the stage `learning` divided by its steps: they include a look at 1,024 held-out tokens after
# every step, which the PyTorch script does not take. Needs a release build, python with torch and transformers, and the
# model and text named below (or MODEL=... TEXT=...).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3} threads=${THREADS:-2} runs=${RUNS:-3} steps=${STEPS:-10} batch=${BATCH:-8} window=${WINDOW:-256}
softlm=${SOFTLM:-$here/../target/release/softlm}
model=${MODEL:-$here/../../shared/data/models/llama-wiki-7m}
text=${TEXT:-$here/../../shared/data/text/shakespeare/input.txt}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
i=0
while [ "$i" -lt "$runs" ]; do
    i=$((i + 1))
    "$softlm" --quiet --threads "$threads" compress "$model" -o "$work/out" --force --method soft --keep 0.6 \
        --basis weight --unit raw --steps "$steps" --batch "$batch" --heal 0 \
        --calib "$text" --calib-windows 128 --window "$window" --ppl none --json >"$work/softlm-$i.json"
    "$python" "$here/training_reference.py" --model "$model" --text "$text" --window "$window" --batch "$batch" \
        --steps "$steps" --threads "$threads" >"$work/torch-$i.json"
done
"$python" - "$work" "$runs" "$steps" <<'END'
import json, statistics, sys

work, runs, steps = sys.argv[1], range(1, int(sys.argv[2]) + 1), int(sys.argv[3])
read = lambda name: [json.load(open(f"{work}/{name}-{i}.json")) for i in runs]
softlm, torch = read("softlm"), read("torch")
stage = lambda run: next(s for s in run["cost"]["stages"] if s["name"] == "learning")
ours = statistics.median(stage(run)["seconds"] / steps for run in softlm)
theirs = statistics.median(run["seconds_per_step"] for run in torch)
peaks = [statistics.median(x) for x in ([stage(r)["peak_rss_bytes"] / 2**20 for r in softlm], [t["peak_rss_mib"] for t in torch])]
print(f"{'':<20}{'softlm':>9}{'torch':>9}{'torch / softlm':>16}")
print(f"{'seconds per step':<20}{ours:>9.3f}{theirs:>9.3f}{theirs / ours:>16.2f}")
print(f"{'peak MiB':<20}{peaks[0]:>9.0f}{peaks[1]:>9.0f}{peaks[1] / peaks[0]:>16.2f}")
END
