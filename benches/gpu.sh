#!/usr/bin/env bash
# softlm on a GPU against that machine's processor and against PyTorch on the same card, in one run of at most 8 minutes.
#
#     benches/gpu.sh pack OUT.run SOFTLM CALIB TEXT MODEL…     # anywhere; SOFTLM is a program built with --features cuda
#     bash OUT.run                                             # on the machine with the GPU
#
# OUT.run carries the program, the scripts, the texts cut to what is needed, and of each MODEL (a Llama checkpoint) the
# configuration, the tokenizer and, up to 64 MiB, the weights; larger ones are replaced by made-up weights of the same shapes
# (`softlm synthetic`), good for times and memory. It needs bash, tar and gzip, and for the comparison python3 with torch,
# safetensors, tokenizers and transformers; what is missing is said and left out. Variables:
#
#     DEVICE=cuda   or cpu: the same parts on the processor, with small shapes, to try the script
#     OUT=gpu-results   folder for results.json, table.md and every report and log
#     BUDGET=470    seconds for everything; a part that does not fit is cut or left out, and named
#     PYTHON=python3
#
# Ends with 1 if a method's perplexity on the GPU is not the processor's (relative difference above 0.001, of learned methods
# 0.01) or if a run of softlm failed, was cut or left out.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

pack() {
    [ $# -ge 4 ] || { echo "usage: gpu.sh pack OUT.run SOFTLM CALIB TEXT MODEL…" >&2 && exit 2; }
    local target=$1 program=$2 calib=$3 text=$4 model folder
    shift 4
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
    cp "$program" "$stage/softlm"
    strip "$stage/softlm" 2>/dev/null || true
    cp -r "$here"/{gpu.sh,torch_reference.py,training_reference.py,shapes} "$stage"
    cut_text "$calib" 2000000 > "$stage/calib.txt"
    cut_text "$text" 400000 > "$stage/text.txt"
    mkdir "$stage/models"
    for model; do
        folder=$stage/models/$(basename "$model")
        mkdir "$folder"
        cp "$model"/config.json "$model"/tokenizer*.json "$folder"
        if [ "$(cat "$model"/*.safetensors | wc -c)" -le $((64 << 20)) ]; then
            cp "$model"/*.safetensors* "$folder"
        fi
    done
    chmod -R u+w "$stage"
    {
        cat <<'END'
#!/usr/bin/env bash
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sed '1,/^__ARCHIVE__$/d' "${BASH_SOURCE[0]}" | gzip -dc | tar -xf - -C "$folder"
bash "$folder/gpu.sh" run
exit
__ARCHIVE__
END
        tar -C "$stage" -cf - . | gzip -9
    } > "$target"
    echo "$target: $(($(wc -c < "$target") >> 20)) MiB"
}

# cut_text FILE BYTES: whole lines.
cut_text() {
    if [ "$(wc -c < "$1")" -gt "$2" ]; then head -c "$2" "$1" | sed '$d'; else cat "$1"; fi
}

# part NAME LIMIT COMMAND…: what the command prints is its report; time, memory of the device and outcome become a line of
# parts.tsv. LIMIT is in seconds.
part() {
    local name=$1 limit=$2 left=$((budget - SECONDS)) status=done watcher= start stop mib=
    shift 2
    if [ "$left" -lt 5 ]; then
        printf '%s\tnot run: no time left\t\t\n' "$name" >> "$out/parts.tsv"
        echo "$name: not run, no time left" >&2
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    rm -rf "$work"/output*
    if [ -n "$gpu" ]; then
        : > "$work/mib"
        while sleep 0.2; do
            nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1 >> "$work/mib" || break
        done &
        watcher=$!
    fi
    start=$(date +%s%N)
    timeout "$limit" "$@" > "$out/$name.json" 2> "$out/$name.log" && code=0 || code=$?
    stop=$(date +%s%N)
    if [ -n "$watcher" ]; then
        kill "$watcher" 2>/dev/null || true
        wait "$watcher" 2>/dev/null || true
        mib=$(sort -n "$work/mib" | tail -1)
    fi
    case $code in
        0) ;;
        124) status="cut after $limit s" ;;
        *) status="failed: $(grep -m 1 -i error "$out/$name.log" || tail -1 "$out/$name.log")" ;;
    esac
    status=$(tr -d '"\\\t' <<< "$status")
    printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$(((stop - start) / 1000000))" "$mib" >> "$out/parts.tsv"
    echo "$name: $status, $(((stop - start) / 1000000)) ms" >&2
}

skip() {
    printf '%s\tnot run: %s\t\t\n' "$1" "$2" >> "$out/parts.tsv"
    echo "$1: not run, $2" >&2
}

# compress NAME LIMIT DEVICE MODEL OPTION…
compress() {
    local name=$1 limit=$2 on=$3 model=$4
    shift 4
    part "$name" "$limit" "$here/softlm" --quiet --device "$on" compress "$model" -o "$work/output" --json "$@"
}

# torch_lacks MODULES: why PyTorch's part cannot run here, or nothing.
torch_lacks() {
    timeout 60 "$python" -c "import torch, $1; '$device' == 'cpu' or torch.zeros(1, device='$device')" 2>&1 > /dev/null |
        grep -i error | tail -1 | tr -d '"\\\t' || true
}

# torch NAME LIMIT SCRIPT OPTION…
torch() {
    local name=$1 limit=$2 script=$3 lacks=$reference_lacks
    shift 3
    [ "$script" = torch_reference.py ] || lacks=$training_lacks
    if [ -n "$lacks" ]; then
        skip "$name" "$lacks"
    else
        part "$name" "$limit" "$python" "$here/$script" --device "$device" --threads "$(nproc)" "$@"
    fi
}

# weights FOLDER CONFIG [--blocks N]: a checkpoint of the configuration's shapes in FOLDER.
weights() {
    local folder=$1 config=$2
    shift 2
    part "$(basename "$folder")-synthetic" 60 "$here/softlm" --quiet synthetic "$config" -o "$folder" "$@"
}

parity() {
    local method options
    for method in svd awsvd lorap rom whiten soft soco; do
        options=(--method "$method" --keep 0.6)
        case $method in soft | soco) options+=(--steps 20 --heal 0) ;; esac
        compress "demo-$method-$device" 60 "$device" demo "${options[@]}"
        compress "demo-$method-processor" 60 cpu demo "${options[@]}"
    done
}

model() {
    local folder=$1 name texts uniform
    name=$(basename "$folder")
    if ! ls "$folder"/*.safetensors > /dev/null 2>&1; then
        weights "$work/$name" "$folder/config.json" "${few_blocks[@]}"
        folder=$work/$name
    fi
    [ -e "$folder/config.json" ] || return 0
    texts=(--calib "$here/calib.txt" --ppl "$here/text.txt" --eval-window "$window" --max-windows "$max_windows")
    uniform=(--keep 0.8 --allocation uniform --calib-windows "$windows" --window "$window" --sampling first)
    compress "$name-whiten-defaults" 60 "$device" "$folder" --method whiten "${defaults[@]}" "${texts[@]}"
    compress "$name-heal" 90 "$device" "$folder" --method svd "${uniform[@]}" --heal "$steps" --heal-batch 4 \
        --calib "$here/calib.txt" --ppl none
    torch "$name-heal-torch" 45 training_reference.py --mode heal --model "$folder" --text "$here/calib.txt" \
        --window "$window" --batch 4 --steps "$torch_steps"
    local reference=(--model "$folder" --text "$here/calib.txt" --keep 0.8 --windows "$windows" --window "$window")
    for method in whiten rom; do
        compress "$name-$method" 45 "$device" "$folder" --method "$method" "${uniform[@]}" "${texts[@]}"
        torch "$name-$method-torch" 30 torch_reference.py --method "$method" "${reference[@]}" --ppl "$here/text.txt" \
            --max-windows "$max_windows"
    done
    torch "$name-whiten-torch-tf32" 30 torch_reference.py --tf32 --gram f32 "${reference[@]}" --ppl "$here/text.txt" \
        --max-windows "$max_windows"
}

shape() {
    local name=$1 method
    weights "$work/$name" "$here/shapes/$name.json" --blocks 2
    [ -e "$work/$name/config.json" ] || return 0
    for method in whiten rom; do
        compress "$name-$method" 45 "$device" "$work/$name" --method "$method" --keep 0.8 --allocation uniform \
            --sampling first --calib "$here/calib.txt" --calib-windows 16 --window "$long_window" --ppl none
        torch "$name-$method-torch" 40 torch_reference.py --method "$method" --model "$work/$name" --keep 0.8 \
            --text "$here/calib.txt" --windows 16 --window "$long_window"
    done
    rm -rf "${work:?}/$name"
}

# field FILE KEY: every value of a key, one a line; none of a file that is not there.
field() {
    [ -e "$1" ] || return 0
    tr ',{}[]' '\n\n\n\n\n' < "$1" | sed -n "s/^ *\"$2\": *\"*\([^\"]*[^\" ]\)\"* *\$/\1/p"
}

# figures NAME: tab-separated seconds to compress, to evaluate and per step, MiB of the host, perplexities, stages.
figures() {
    local file=$out/$1.json
    if grep -q '"torch"' "$file"; then
        local total ppl
        total=$(field "$file" total)
        ppl=$(echo $({ field "$file" perplexity; field "$file" perplexity_after; } | grep -v null))
        printf '%s\t%s\t%s\t%s\t%s\t' "$total" "$(field "$file" evaluate)" "$(field "$file" seconds_per_step)" \
            "$(field "$file" peak_rss_mib)" "$ppl"
        return
    fi
    tr ',{}[]' '\n\n\n\n\n' < "$file" | awk -v steps="$steps" '
        $1 == "\"name\":" { name = $0; sub(/^ *"name": *"/, "", name); sub(/" *$/, "", name) }
        # Linears have a name and seconds too, and dots in their names.
        $1 == "\"seconds\":" && name ~ /[.]/ { name = ""; next }
        $1 == "\"seconds\":" && name != "" { stage[name] = $2; stages = stages sprintf("%s %.2f; ", name, $2); name = "" ; next }
        $1 == "\"seconds\":" { all = $2 }
        $1 == "\"peak_rss_bytes\":" { mib = $2 / 1048576 }
        $1 == "\"ppl\":" { ppl = ppl $2 " " }
        END {
            healing = stage["healing"]
            printf "%s\t%s\t%s\t%s\t%s\t%s", all - stage["evaluating"] - healing, stage["evaluating"], \
                (healing == "" ? "" : healing / steps), mib, ppl, stages
        }'
}

table() {
    local name status ms mib seconds evaluating step host ppl stages
    echo "| | outcome | wall s | compress s | evaluate s | s per step | host MiB | device MiB | perplexity | stages |"
    echo "|---|---|---|---|---|---|---|---|---|---|"
    # A tab is white space to `read`, and empty fields would vanish: the separator is another one.
    while IFS=$'\x1f' read -r name status ms mib; do
        seconds= evaluating= step= host= ppl= stages=
        if [ "$status" = done ] && [ -s "$out/$name.json" ]; then
            IFS=$'\x1f' read -r seconds evaluating step host ppl stages < <(figures "$name" | tr '\t' '\037'; echo)
        fi
        LC_ALL=C awk -v name="$name" -v status="$status" -v ms="$ms" -v s="$seconds" -v e="$evaluating" -v step="$step" \
            -v host="$host" -v mib="$mib" -v ppl="$ppl" -v stages="$stages" '
            function number(x, form) { return x == "" ? "" : sprintf(form, x) }
            BEGIN {
                count = split(ppl, values, " "); ppl = ""
                for (i = 1; i <= count; i++) ppl = ppl (i > 1 ? ", " : "") sprintf("%.5g", values[i])
                sub(/; $/, "", stages)
                printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name, status, (ms == "" ? "" : sprintf("%.1f", ms / 1000)),
                    number(s, "%.2f"), number(e, "%.2f"), number(step, "%.4f"), number(host, "%.0f"), mib, ppl, stages
            }'
    done < <(tr '\t' '\037' < "$out/parts.tsv")
    echo
    ratios
    echo
    agreement
}

# PyTorch's time over softlm's, where both ran.
ratios() {
    local name ours theirs column
    while read -r theirs; do
        case $theirs in *-torch | *-torch-tf32) ;; *) continue ;; esac
        name=${theirs%-torch*}
        grep -q "^$name"$'\tdone\t' "$out/parts.tsv" || continue
        column=1
        case $name in *-heal) column=3 ;; esac
        ours=$(figures "$name" | cut -f $column)
        awk -v a="$ours" -v b="$(figures "$theirs" | cut -f $column)" -v name="$theirs" \
            'BEGIN { if (a > 0 && b > 0) printf "%s / softlm: %.2f\n", name, b / a }'
    done < <(awk -F '\t' '$2 == "done" { print $1 }' "$out/parts.tsv")
}

# Perplexities after compressing, of the device and the processor. What is missing counts as different.
agreement() {
    local method a b tolerance
    for method in svd awsvd lorap rom whiten soft soco; do
        tolerance=0.001
        case $method in soft | soco) tolerance=0.01 ;; esac
        a=$(field "$out/demo-$method-$device.json" ppl | sed -n 2p)
        b=$(field "$out/demo-$method-processor.json" ppl | sed -n 2p)
        awk -v a="$a" -v b="$b" -v tolerance="$tolerance" -v method="$method" 'BEGIN {
            if (a == "" || b == "") { printf "%s: no perplexity to compare: DIFFERENT\n", method; exit }
            d = (a - b) / b; if (d < 0) d = -d
            printf "%s: %.6g, on the processor %.6g, relative difference %.1e of at most %s: %s\n", method, a, b, d, tolerance,
                (d <= tolerance ? "equal" : "DIFFERENT")
        }'
    done
}

results() {
    local name status ms mib separator=
    printf '{"softlm": "%s", "device": "%s", "gpu": "%s", "cores": %s, "parts": [' "$version" "$device" "$gpu" "$(nproc)"
    while IFS=$'\x1f' read -r name status ms mib; do
        printf '%s\n{"name": "%s", "outcome": "%s", "seconds": %s, "peak_device_mib": %s, "report": ' "$separator" "$name" \
            "$status" "$([ -n "$ms" ] && awk "BEGIN { print $ms / 1000 }" || echo null)" "${mib:-null}"
        if [ "$status" = done ] && [ -s "$out/$name.json" ]; then cat "$out/$name.json"; else printf null; fi
        printf '}'
        separator=,
    done < <(tr '\t' '\037' < "$out/parts.tsv")
    printf '\n]}\n'
}

run() {
    python=${PYTHON:-python3} device=${DEVICE:-cuda} budget=${BUDGET:-470}
    out=${OUT:-gpu-results}
    windows=32 window=512 max_windows=40 steps=200 torch_steps=50 long_window=2048
    shapes=(llama-7b tinyllama) few_blocks=() defaults=()
    if [ "$device" = cpu ]; then
        windows=8 window=128 max_windows=4 steps=4 torch_steps=2 long_window=128
        shapes=(small) few_blocks=(--blocks 2) defaults=(--calib-windows 8 --window 128)
    fi
    mkdir -p "$out"
    rm -f "$out"/*.json "$out"/*.log "$out"/parts.tsv
    out=$(cd "$out" && pwd)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # Where no folder has the name of a model.
    cd "$work"
    version=$("$here/softlm" --version)
    gpu=
    if [ "$device" != cpu ]; then
        gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null | head -1) || gpu=
    fi
    echo "$version on ${gpu:-$device}, $(nproc) cores" >&2
    reference_lacks=$(torch_lacks "safetensors, tokenizers")
    training_lacks=$(torch_lacks transformers)
    parity
    shape "${shapes[0]}"
    for folder in "$here"/models/*/; do
        [ ! -e "$folder" ] || model "${folder%/}"
    done
    for name in "${shapes[@]:1}"; do
        shape "$name"
    done
    results > "$out/results.json"
    table > "$out/table.md"
    cat "$out/table.md"
    if grep -q DIFFERENT "$out/table.md"; then exit 1; fi
    if grep -v -e '-torch' "$out/parts.tsv" | cut -f 2 | grep -qvx 'done'; then exit 1; fi
}

case ${1:-} in
    pack) shift && pack "$@" ;;
    run) run ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
