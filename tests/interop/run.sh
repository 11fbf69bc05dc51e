#!/usr/bin/env bash
# Outputs of softlm in transformers 4.57 and 5: makes the environments, compresses the tiny checkpoints, runs the tests.
#
#     tests/interop/run.sh [pytest's arguments]
#
# SOFTLM           the program [target/release/softlm, built if it is not there]
# SOFTLM_INTEROP   where environments and outputs lie [target/interop]; environments are kept and used again
# SOFTLM_PYTHON    the Python to make them with [python3]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
place=$(mkdir -p "${SOFTLM_INTEROP:-$root/target/interop}" && cd "${SOFTLM_INTEROP:-$root/target/interop}" && pwd)
python=${SOFTLM_PYTHON:-python3}
export SOFTLM=${SOFTLM:-$root/target/release/softlm}
began=$SECONDS

took() { echo "interop: $1 after $((SECONDS - began)) s"; }

if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
    echo "tests/interop needs Python 3.10 or newer with venv and ensurepip; SOFTLM_PYTHON names one" >&2
    exit 1
fi

# environment NAME REQUIREMENTS: one that has them, made anew when they changed.
environment() {
    local env=$place/$1 file=$here/$2 stamp
    stamp=$(cat "$here/requirements-torch.txt" "$file" && "$python" --version)
    [ -f "$env/made" ] && [ "$stamp" = "$(cat "$env/made")" ] && return
    if [ -z "${reached:-}" ]; then
        "$python" -m venv "$place/probe"
        if ! "$place/probe/bin/pip" download -q --no-deps --no-cache-dir --retries 2 -d "$place/probe/got" packaging > "$place/probe/log" 2>&1; then
            echo "skipped: tests/interop (the package index cannot be reached: $(tail -1 "$place/probe/log"))"
            exit 0
        fi
        rm -rf "$place/probe"
        reached=yes
    fi
    rm -rf "$env"
    "$python" -m venv "$env"
    # torch is large: both use one.
    [ "$1" = torch ] || echo "$("$place/torch/bin/python" -c 'import site; print(site.getsitepackages()[0])')" > "$("$env/bin/python" -c 'import site; print(site.getsitepackages()[0])')/torch.pth"
    "$env/bin/pip" install -q --disable-pip-version-check -r "$file"
    echo "$stamp" > "$env/made"
    took "environment $1"
}

environment torch requirements-torch.txt
environment transformers-4.57 requirements-4.57.txt
environment transformers-5 requirements-5.txt

[ -x "$SOFTLM" ] || (cd "$root" && cargo build --release)
"$place/transformers-5/bin/python" "$here/outputs.py" "$SOFTLM" "$place/outputs"
took "outputs"

export SOFTLM_INTEROP=$place/outputs OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 CUDA_VISIBLE_DEVICES=
cd "$here"
failed=0 jobs=()
for version in 4.57 5; do
    export HF_HOME=$place/home-$version
    rm -rf "$HF_HOME"
    "$place/transformers-$version/bin/python" -m pytest -p no:cacheprovider -q --tb=short -rs --disable-warnings "$@" > "$place/$version.log" 2>&1 &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
for version in 4.57 5; do
    echo "-- transformers $version: $(tail -1 "$place/$version.log")"
    if [ $failed = 1 ]; then grep -vE '^\.+' "$place/$version.log" || true; else grep -E '^SKIPPED' "$place/$version.log" || true; fi
done
took "done"
exit $failed
