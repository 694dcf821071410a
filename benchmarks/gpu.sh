#!/usr/bin/env bash
# Prove and time cfpose on this machine's CUDA GPU, through its own commands.
#
#   benchmarks/gpu.sh                        the default model, some 15 minutes
#   benchmarks/gpu.sh --model NAME=F.onnx    only the given artifacts; may be repeated
#   benchmarks/gpu.sh --flavour tensorrt     or rtx, where both are installed
#   benchmarks/gpu.sh --results DIR          where results go (default: benchmarks/results)
#   benchmarks/gpu.sh --dry-run              print each step with its command, on any machine
#   PYTHON=...                               the interpreter (default: python3)
#
# Each step is a command of cfpose in a process of its own; one that cannot run says why, and the
# others go on. Writes gpu-NAME-GPU.json after each step; make tables makes a table of them. Exit: 0
# with a summary, 2 without a GPU.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
words=() plan=

while (($#)); do
  case $1 in
    --model) [[ ${2:-} =~ ^[a-z0-9_-]+= ]] || { echo "gpu.sh: --model needs NAME=F.onnx" >&2; exit 2; }
      words+=("$1" "$2"); shift 2 ;;
    --flavour | --results) words+=("$1" "${2:?gpu.sh: $1 needs a value}"); shift 2 ;;
    --dry-run) plan=yes; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "gpu.sh: unknown argument $1; see --help" >&2; exit 2 ;;
  esac
done

if [[ $plan ]]; then
  exec "$python" "$here/gpu_steps.py" --plan "${words[@]}"
fi
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  {
    echo "gpu.sh: no CUDA GPU here (nvidia-smi is absent or finds none); nothing was measured."
    echo "It would have measured:"
    "$python" "$here/gpu_steps.py" --plan "${words[@]}"
  } >&2
  exit 2
fi
exec "$python" "$here/gpu_steps.py" "${words[@]}"
