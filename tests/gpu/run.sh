#!/bin/sh
# On a machine with a GPU, in a folder that `cargo xtask bundle` wrote: the tests on the device, then the benchmark.
#
#   run.sh tests                every op, format and optimizer on the GPU
#   run.sh bench MODEL [VENV]   MODEL is llama-7b or llama-13b (micro-batches 1, 4, 8, paged and not), llama-65b, or
#                               context (the longest row for an 8-billion model); with VENV the Python stack beside it
#
# The models are made here, with random weights. Results are appended to results.jsonl, one object a line.
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
            HALFBYTE_CUDA_POOL=off compute-sanitizer --error-exitcode 1 "$test" $(filter "$test") --test-threads 1
        done
    else
        echo "skipped: compute-sanitizer is not installed"
    fi
}

# model, tokens a row, micro-batch, further flags
ours() {
    rm -rf run
    # shellcheck disable=SC2086
    ./halfbyte finetune --device cuda --model "$1" --data "$1/rows.jsonl" --output run --quant nf4 --method qlora --rank 16 \
        --lora-alpha 16 --target-modules all-linear --compute-dtype bf16 --max-length "$2" --per-device-train-batch-size "$3" \
        --max-steps "$steps" --no-eval-before $4 || return 1
    printf '{"stack": "halfbyte", "model": "%s", "tokens": %s, "batch": %s, "flags": "%s", "summary": %s}\n' "$1" "$2" "$3" "$4" \
        "$(tr -d '\n' < run/summary.json)" >> "$results"
}

theirs() {
    [ -n "$venv" ] || return 0
    # shellcheck disable=SC2086
    found=$("$venv/bin/python" reference/peer.py train --device cuda --model "$1" --data "$1/rows.jsonl" --quant nf4 --dtype bf16 \
        --max-length "$2" --batch "$3" --steps "$steps" --rank 16 $4 | tail -n 1) || return 1
    printf '{"stack": "transformers+peft+bitsandbytes", "model": "%s", "tokens": %s, "batch": %s, "flags": "%s", "summary": %s}\n' \
        "$1" "$2" "$3" "$4" "$found" >> "$results"
}

# What does not fit says so and is a blank in the table, not the end.
failed() {
    echo "no figure: $*"
}

both() {
    ours "$1" 2048 "$2" "--gradient-checkpointing off" || failed halfbyte "$@"
    theirs "$1" 2048 "$2" "" || failed python "$@"
    ours "$1" 2048 "$2" "--gradient-checkpointing on" || failed halfbyte "$@" checkpointing
    theirs "$1" 2048 "$2" "--checkpointing" || failed python "$@" checkpointing
}

bench() {
    steps=6
    venv=${2:-}
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    case $1 in
        llama-7b | llama-13b)
            [ -d "$1" ] || ./halfbyte-datasets synth --like "$1" --output "$1"
            for batch in 1 4 8; do
                both "$1" "$batch"
            done
            ours "$1" 2048 1 "--gradient-checkpointing on --optim-resident-mib 64" || failed halfbyte "$1" paged
            ;;
        llama-65b)
            [ -d "$1" ] || ./halfbyte-datasets synth --like "$1" --quantized --output "$1"
            steps=3
            ours "$1" 2048 1 "--gradient-checkpointing on" || failed halfbyte "$1"
            ours "$1" 2048 1 "--gradient-checkpointing on --optim-resident-mib 64" || failed halfbyte "$1" paged
            theirs "$1" 2048 1 "--checkpointing" || failed python "$1"
            ;;
        context)
            [ -d llama-8b ] || ./halfbyte-datasets synth --like llama-8b --quantized --output llama-8b
            steps=2
            # The answer for a smaller card is the longest row whose peak would fit it.
            for tokens in 4096 8192 16384 32768 65536 131072; do
                ours llama-8b "$tokens" 1 "--gradient-checkpointing on" || { failed halfbyte "$tokens tokens"; break; }
            done
            ;;
        *)
            echo "no such benchmark: $1" >&2
            exit 2
            ;;
    esac
    echo "results are in $results"
}

case ${1:-} in
    tests) tests ;;
    bench) shift; bench "$@" ;;
    *) sed -n '2,8p' run.sh; exit 2 ;;
esac
