#!/bin/sh
# On a machine with a GPU, in a folder that `cargo xtask bundle` wrote: the tests on the device, then the benchmark.
#
#   run.sh tests                          every op, format and optimizer on the GPU
#   run.sh bench DATA.parquet [VENV]      LLaMA-7B and 13B, micro-batches 1, 4, 8; with VENV the Python stack beside it
#
# Results are appended to results.jsonl, one object a line.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
results=$here/results.jsonl

# Two of the programs hold tests of the CPU, too.
filter() {
    case $1 in
        *-ops | *-optim) echo cuda ;;
    esac
}

tests() {
    ./halfbyte doctor
    for test in tests/*; do
        echo "== $test"
        # shellcheck disable=SC2046
        "$test" $(filter "$test") --test-threads 1
    done
    if command -v compute-sanitizer >/dev/null; then
        for test in tests/*; do
            # shellcheck disable=SC2046
            compute-sanitizer --error-exitcode 1 "$test" $(filter "$test") --test-threads 1
        done
    else
        echo "skipped: compute-sanitizer is not installed"
    fi
}

# model, micro-batch, further flags
ours() {
    rm -rf run
    # shellcheck disable=SC2086
    ./halfbyte finetune --device cuda --model "$1" --data "$data" --output run --quant nf4 --method qlora --rank 16 --lora-alpha 16 \
        --target-modules all-linear --compute-dtype bf16 --max-length 2048 --per-device-train-batch-size "$2" --max-steps 8 \
        --no-eval-before --rows 0..64 $3 || return 0
    printf '{"stack": "halfbyte", "model": "%s", "batch": %s, "flags": "%s", "summary": %s}\n' "$1" "$2" "$3" \
        "$(tr -d '\n' < run/summary.json)" >> "$results"
}

theirs() {
    [ -n "$venv" ] || return 0
    found=$("$venv/bin/python" reference/peer.py train --device cuda --model "$1" --data "$data" --quant nf4 --dtype bf16 --batch "$2" \
        --max-length 2048 --steps 8 --rank 16 $3 | tail -n 1) || return 0
    printf '{"stack": "transformers+peft+bitsandbytes", "model": "%s", "batch": %s, "flags": "%s", "summary": %s}\n' "$1" "$2" "$3" \
        "$found" >> "$results"
}

bench() {
    data=$1
    venv=${2:-}
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    for model in llama-7b llama-13b; do
        [ -d "$model" ] || ./xtask synth --like "$model" --output "$model"
        for batch in 1 4 8; do
            ours "$model" "$batch" "--gradient-checkpointing off"
            theirs "$model" "$batch" ""
            ours "$model" "$batch" "--gradient-checkpointing on"
            theirs "$model" "$batch" "--checkpointing"
        done
        ours "$model" 1 "--gradient-checkpointing on --optim-resident-mib 64"
    done
    echo "results are in $results"
}

case ${1:-} in
    tests) tests ;;
    bench) shift; bench "$@" ;;
    *) sed -n '2,7p' "$0"; exit 2 ;;
esac
