#!/usr/bin/env bash
# softlm for NVIDIA GPUs, built on a machine that need have neither a GPU nor CUDA:
#
#     .github/cuda/build.sh                                  # cargo build --release --features cuda
#     .github/cuda/build.sh test --release --lib cuda::      # any other command of cargo's
#
# Needs cargo, a C++ compiler and python3 with pip. CUDA's compiler comes as wheels (110 MB) and stays in the target
# folder. The program starts everywhere and looks for CUDA when it runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=$PWD/.github/cuda
mkdir -p "${CARGO_TARGET_DIR:-target}/cuda"
work=$(cd "${CARGO_TARGET_DIR:-target}/cuda" && pwd)

toolkit=$work/toolkit
if ! cmp -s "$here/wheels.txt" "$toolkit/wheels.txt"; then
    rm -rf "$toolkit" "$work/wheels"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work/wheels" --requirement "$here/wheels.txt"
    for wheel in "$work"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$toolkit"
    done
    chmod +x "$toolkit"/nvidia/cu13/bin/* "$toolkit"/nvidia/cu13/nvvm/bin/*
    rm -rf "$work/wheels"
    cp "$here/wheels.txt" "$toolkit/"
fi

export CUDA_HOME=$toolkit/nvidia/cu13
export CUDA_PATH=$CUDA_HOME CUDA_ROOT=$CUDA_HOME CUDA_TOOLKIT_ROOT_DIR=$CUDA_HOME
# A copy: when the path of the compiler changes, candle is compiled anew.
cp "$here/nvcc" "$work/nvcc"
export PATH=$CUDA_HOME/bin:$PATH NVCC=$work/nvcc
# The kernels as text, which the driver compiles for any GPU from this capability on (8.0: Ampere, 2020).
export CUDA_COMPUTE_CAP=80

# The same kernels as machine code, so that the driver need not. Code for x.0 runs on all x.y.
candle=$(cargo metadata --locked --format-version 1 --features cuda --filter-platform "$(rustc -vV | sed -n "s/^host: //p")" | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "candle-kernels":
        print(package["version"], os.path.dirname(package["manifest_path"]))')
export SOFTLM_CUDA_KERNELS=$work/kernels-${candle%% *}
sources=${candle#* }/src
mkdir -p "$SOFTLM_CUDA_KERNELS"
for module in affine binary cast conv fill indexing reduce sort ternary unary; do
    image=$SOFTLM_CUDA_KERNELS/$module.fatbin
    [ -e "$image" ] && continue
    # The flags are those of candle-kernels' own build.
    nvcc --fatbin -gencode 'arch=compute_80,code=[sm_80,sm_90,sm_100,sm_120]' --compress-mode=size -O3 -std=c++17 \
        --default-stream per-thread --expt-relaxed-constexpr -o "$work/$module.part" "$sources/$module.cu"
    mv "$work/$module.part" "$image"
done

if [ $# = 0 ]; then
    set -- build --release
fi
cargo "$1" --features cuda "${@:2}"
