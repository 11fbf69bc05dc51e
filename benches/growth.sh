#!/bin/sh
# How the time of `compress --method whiten` grows with tokens, layers and width: seconds, peaks and fitted exponents.
#
#     CALIB=wiki.utf8 THREADS=2 benches/growth.sh
#
# Llama shapes with made-up weights (`softlm synthetic`), three values each of what grows, the rest as in the base: 8,192
# tokens, 4 layers, width 512. An exponent is the slope of the least-squares line through the logarithms: 1 is proportional.
# Some work does not depend on tokens, so they end below 1; products grow with width², decompositions with width³.
# Needs a release build and python3 (no packages). RUNS=3 takes the fastest of three runs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
softlm=${SOFTLM:-$here/../target/release/softlm}
python=${PYTHON:-python3} threads=${THREADS:-2} runs=${RUNS:-1} keep=${KEEP:-0.8}
calib=${CALIB:-$here/../../shared/data/text/calibration/wiki.utf8}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# measure GROWING TOKENS LAYERS WIDTH
measure() {
    cat >"$work/config.json" <<END
{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": $4, "intermediate_size": $(($4 * 11 / 4)), "num_hidden_layers": $3,
  "num_attention_heads": $(($4 / 64)), "num_key_value_heads": $(($4 / 64)), "head_dim": 64,
  "vocab_size": 1024, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true
}
END
    rm -rf "$work/model"
    "$softlm" --quiet synthetic "$work/config.json" -o "$work/model"
    run=0
    while [ "$run" -lt "$runs" ]; do
        run=$((run + 1))
        "$softlm" --quiet --device cpu --threads "$threads" compress "$work/model" -o "$work/out" --force --method whiten \
            --keep "$keep" --allocation uniform --calib "$calib" --calib-windows $(($2 / 512)) --window 512 \
            --ppl none --json >"$work/$1-$2-$3-$4-$run.json"
    done
}

measure base 8192 4 512
for tokens in 16384 32768; do measure tokens $tokens 4 512; done
for layers in 8 16; do measure layers 8192 $layers 512; done
for width in 256 1024; do measure width 8192 4 $width; done

"$python" - "$work" <<'END'
import json, math, pathlib, sys

runs = {}
for file in pathlib.Path(sys.argv[1]).glob("*-*-*-*-*.json"):
    growing, tokens, layers, width, _ = file.stem.split("-")
    cost = json.loads(file.read_text())["cost"]
    stage = next(stage["seconds"] for stage in cost["stages"] if stage["name"] == "decomposing")
    figures = (cost["seconds"], stage, cost["peak_rss_bytes"] / 2**20)
    shape = {"tokens": int(tokens), "layers": int(layers), "width": int(width)}
    key = (growing, tuple(shape.items()))
    runs[key] = min(runs.get(key, figures), figures)


def slope(xs, ys):
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


print(f"{'':<10}{'':>8}{'seconds':>10}{'decomposing':>13}{'peak MiB':>10}")
for what in ["tokens", "layers", "width"]:
    rows = sorted((dict(shape)[what], *figures) for (growing, shape), figures in runs.items() if growing in ["base", what])
    for value, seconds, stage, peak in rows:
        print(f"{what:<10}{value:>8}{seconds:>10.2f}{stage:>13.2f}{peak:>10.0f}")
    values, *figures = zip(*rows)
    print(f"{'':<10}{'exponent':>8}" + "".join(f"{slope(values, y):>{w}.2f}" for y, w in zip(figures, [10, 13, 10])))
END
