#!/usr/bin/env bash
# Check and time cfpose on this machine's CUDA GPU, with the packages that are installed here.
#
#   benchmarks/gpu.sh                        the default model and an untrained W32, 5 to 15 minutes
#   benchmarks/gpu.sh --model NAME=F.onnx    only the given artifacts; may be repeated
#   benchmarks/gpu.sh --results DIR          where results go (default: benchmarks/results)
#   PYTHON=...                               the interpreter (default: python3)
#
# The step `bench` is cfpose-bench over the examples' photos. Each step runs in a process of its own,
# so that one runtime cannot disturb or end another. A step that cannot run says why. Writes NAME-GPU.json. Exit: 0 with a summary, 2 without a GPU.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-python3}
results=$here/results
models=()

while (($#)); do
  case $1 in
    --model) [[ ${2:-} =~ ^[a-z0-9_-]+= ]] || { echo "gpu.sh: --model needs NAME=F.onnx" >&2; exit 2; }
      models+=("$2"); shift 2 ;;
    --results) results=${2:?gpu.sh: --results needs a folder}; shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "gpu.sh: unknown argument $1; see --help" >&2; exit 2 ;;
  esac
done

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  echo "gpu.sh: no CUDA GPU here (nvidia-smi is absent or finds none); nothing was measured" >&2
  exit 2
fi
if ! "$python" -c "import numpy, cv2" 2>/dev/null; then
  echo "gpu.sh: $python has no numpy or no OpenCV; run: pip install '.[gpu]', or set PYTHON" >&2
  exit 2
fi

export PYTHONPATH="$root:$root/training:$root/export:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/records"

# step RECORD STEP [ARGUMENTS]: run one step; a crash or 15 minutes without an end are recorded too
step() {
  local record=$work/records/$1.json code
  shift
  echo "-- $(basename "$record" .json)"
  timeout 900 "$python" "$here/gpu_probe.py" "$@" --record "$record" >"$work/log" 2>&1
  code=$?
  if [[ ! -s $record ]]; then
    tail -n 5 "$work/log"
    printf '{"status": "failed", "why": "the process ended with code %d"}\n' "$code" >"$record"
  fi
}

step facts facts
if ! grep -q '"status": "done"' "$work/records/facts.json"; then
  cat "$work/records/facts.json" >&2
  echo "gpu.sh: nvidia-smi does not say which GPU this is; nothing was measured" >&2
  exit 2
fi
if ((${#models[@]} == 0)); then
  models=("default=$root/cfpose_sdk/models/cfpose-s.onnx" "w32=$work/w32.onnx")
  step w32.export make-w32 --model "$work/w32.onnx"
  step w32.torch torch
fi
for entry in "${models[@]}"; do
  name=${entry%%=*} file=${entry#*=}
  for runtime in onnxruntime-cuda tensorrt tensorrt-rtx bench; do
    if [[ -f $file ]]; then
      step "$name.$runtime" "$runtime" --model "$file"
    else
      printf '{"status": "skipped", "why": "there is no file %s"}\n' "$(basename "$file")" \
        >"$work/records/$name.$runtime.json"
    fi
  done
done
"$python" "$here/gpu_probe.py" collect --record "$work/records" --results "$results"
