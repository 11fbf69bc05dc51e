#!/bin/sh
# A training step in softlm and in PyTorch, interleaved: medians of seconds per step, peaks, and their ratio.
#
#     PYTHON=python3 THREADS=2 RUNS=3 benches/training.sh                                       # a step of soft
#     MODE=heal MODEL=SmolLM2-135M TEXT=wiki.utf8 WINDOW=512 BATCH=4 benches/training.sh        # a step of --heal
#
# softlm's seconds per step are the difference of two runs, of STEPS + 2 and of 2 steps, in the stage that trains, divided by
# STEPS: work that is done once does not count. In MODE=soft they include a look at 1,024 held-out tokens after every step,
# which the PyTorch script does not take. Needs a release build, python with torch and transformers, and the model and text
# named below (or MODEL=... TEXT=...).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3} threads=${THREADS:-2} runs=${RUNS:-3} steps=${STEPS:-10} batch=${BATCH:-8} window=${WINDOW:-256}
mode=${MODE:-soft} device=${DEVICE:-cpu} windows=${WINDOWS:-128}
softlm=${SOFTLM:-$here/../target/release/softlm}
model=${MODEL:-$here/../../shared/data/models/llama-wiki-7m}
text=${TEXT:-$here/../../shared/data/text/shakespeare/input.txt}
case $mode in
    soft) keep=${KEEP:-0.6} ;;
    heal) keep=${KEEP:-0.8} ;;
    *) echo "MODE is $mode; soft and heal are known" >&2 && exit 2 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# train STEPS REPORT
train() {
    if [ "$mode" = soft ]; then
        set -- "$2" --method soft --basis weight --unit raw --steps "$1" --batch "$batch" --heal 0
    else
        set -- "$2" --method svd --allocation uniform --heal "$1" --heal-batch "$batch"
    fi
    report=$1
    shift
    "$softlm" --quiet --threads "$threads" --device "$device" compress "$model" -o "$work/out" --force --keep "$keep" "$@" \
        --calib "$text" --calib-windows "$windows" --window "$window" --ppl none --json >"$work/$report.json"
}

i=0
while [ "$i" -lt "$runs" ]; do
    i=$((i + 1))
    train 2 "softlm-two-$i"
    train $((steps + 2)) "softlm-$i"
    "$python" "$here/training_reference.py" --mode "$mode" --keep "$keep" --model "$model" --text "$text" --window "$window" \
        --batch "$batch" --steps "$steps" --threads "$threads" --device "$device" >"$work/torch-$i.json"
done
"$python" - "$work" "$runs" "$steps" "$mode" <<'END'
import json, statistics, sys

work, runs, steps = sys.argv[1], range(1, int(sys.argv[2]) + 1), int(sys.argv[3])
name = {"soft": "learning", "heal": "healing"}[sys.argv[4]]
read = lambda name: [json.load(open(f"{work}/{name}-{i}.json")) for i in runs]
two, softlm, torch = read("softlm-two"), read("softlm"), read("torch")
stage = lambda run: next(s for s in run["cost"]["stages"] if s["name"] == name)
ours = statistics.median((stage(b)["seconds"] - stage(a)["seconds"]) / steps for a, b in zip(two, softlm))
theirs = statistics.median(run["seconds_per_step"] for run in torch)
peaks = [statistics.median(x) for x in ([stage(r)["peak_rss_bytes"] / 2**20 for r in softlm], [t["peak_rss_mib"] for t in torch])]
print(f"{'':<20}{'softlm':>9}{'torch':>9}{'torch / softlm':>16}")
print(f"{'seconds per step':<20}{ours:>9.3f}{theirs:>9.3f}{theirs / ours:>16.2f}")
print(f"{'peak MiB':<20}{peaks[0]:>9.0f}{peaks[1]:>9.0f}{peaks[1] / peaks[0]:>16.2f}")
END
