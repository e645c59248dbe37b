#!/usr/bin/env bash
# All that is measured on a GPU, in one command of under nine minutes and without a network: the GPU tests, the kernels,
# whole steps in several ways and what the trainer adds. Writes gpu.json and gpu.md into $OUT (default:
# benchmarks/results). What is not installed is skipped and said.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-benchmarks/results}
if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: $PYTHON finds no GPU" >&2
    exit 1
fi
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
export PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
if ! "$PYTHON" -c "import jaxtyping" 2>/dev/null; then
    echo "jaxtyping is not installed: a stand-in takes its place"
    PYTHONPATH=$PWD/benchmarks/kernels/bare:$PWD
fi

part() { # part NAME SECONDS MODULES WORDS...: run python WORDS if the modules are installed, and keep what it says
    local name=$1 limit=$2 modules=$3 start=$SECONDS
    shift 3
    if ! "$PYTHON" -c "import $modules" 2>/dev/null; then
        echo "$name: skipped, not all of $modules are installed" | tee "$parts/$name.skipped"
        return
    fi
    timeout -k 5 "$limit" "$PYTHON" "$@" >"$parts/$name.out" 2>"$parts/$name.err"
    local code=$?
    echo "$name: exit $code after $((SECONDS - start)) s"
    if [ $code -ne 0 ]; then
        tail -n 15 "$parts/$name.out" "$parts/$name.err" | cut -c 1-500
        echo "exit $code" >"$parts/$name.failed"
    fi
    "$PYTHON" benchmarks/gpu_report.py "$parts" "$OUT" # after each, in case that somebody's own limit ends this
}

part step 120 timm benchmarks/steps/step.py --device cuda --rounds 10 --seconds 90
part variants 130 timm,triton benchmarks/steps/step_variants.py --device cuda --rounds 10 --seconds 90
part kernels 90 triton benchmarks/kernels/compare.py --device cuda --rounds 10 --sizes 224 --ratios 0.75
part tests 110 pytest,beartype,jaxtyping -m pytest -q -m "gpu and not slow" --durations 5 tests/gpu
part trainer 30 tyro,tensorboard,rich benchmarks/steps/trainer_overhead.py \
    --network swin_base --micro-batch 64 --steps 20 --no-goal
