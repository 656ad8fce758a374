#!/usr/bin/env bash
# Builds this checkout on a machine with an NVIDIA GPU, tests it there and measures it.
#
#   benchmarks/gpu_check.sh OUT_DIR
#
# A step that fails is reported and does not stop the others; the exit status is 0 only if all
# passed. OUT_DIR gets the suites' results, the logs, and check.json, which says how each step ended.
# The environment decides what runs and with what:
#   STEPS            of: build info kernels tests sanitizers kernels_suite layer cold eager
#                    dropout quantised moe shared memory model host merge            (all)
#   PYTHON           interpreter that has torch, and peft for the comparisons       (python3)
#   WHEEL            of this checkout, built before; the build step installs it     (build)
#   CHECK_KERNELS    program of tests/kernels, built before                         (build)
#   GRALORA_COMMIT   recorded in the results where the checkout has no history
#   TEST_ARGS        arguments of pytest; add --gpu-only where another machine has
#                    run the rest                                                   (tests)
#   TEST_SECONDS     how long they may take                                         (900)
#   TEST_WORKERS     processes that share them, where pytest-xdist is there         (8)
#   KERNEL_TESTS     arguments of pytest that select the tests of kernels
#   SANITIZER_TOOLS  of: memcheck racecheck initcheck synccheck                     (all)
#   SANITIZER_LIMIT  how long each of their processes may take, in seconds          (540)
#   SHAPES, RK       layers and adapters of the layer step, as run.py takes them
#   KERNEL_RK        adapters of the kernels_suite step
#   MODEL            whose layer shapes the model step takes
#   ROUNDS           interleaved rounds of each measurement                         (15)
set -u

if [ $# -ne 1 ]; then
  echo "usage: $0 OUT_DIR" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

steps=" ${STEPS:-build info kernels tests sanitizers kernels_suite layer cold \
eager dropout quantised moe shared memory model host merge} "
python=${PYTHON:-python3}
read -r -a tools <<<"${SANITIZER_TOOLS:-memcheck racecheck initcheck synccheck}"
shapes=${SHAPES:-4096x4096,4096x14336,14336x4096,4096x1024}
rk=${RK:-32:2,128:4,256:8}
kernel_rk=${KERNEL_RK:-64:4}
model=${MODEL:-llama-3.1-8b}
rounds=${ROUNDS:-15}
read -r -a test_args <<<"${TEST_ARGS:-tests}"
test_seconds=${TEST_SECONDS:-900}
test_workers=${TEST_WORKERS:-8}
sanitizer_limit=${SANITIZER_LIMIT:-540}
read -r -a kernel_tests <<<"${KERNEL_TESTS:-tests/ops/test_project.py -m cuda_kernels -k exact_one}"

export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}

wanted() { [[ $steps == *" $1 "* ]]; }

# timed NAME LOG SECONDS COMMAND...: run it, and leave status and duration for the closing table.
timed() {
  local name=$1 log=$2 limit=$3 start=$SECONDS status
  shift 3
  printf '\n== %s\n' "$name" >>"$log"
  timeout "$limit" "$@" >>"$log" 2>&1
  status=$?
  echo "$status $((SECONDS - start))" >"$work/$name.status"
}

# sanitize TOOL: over the kernels by themselves, and over those that need no library product beside
# them as the operators start them. The reports go to files of their own, since everything runs side
# by side; racecheck, by far the slowest, has a process for each part of the kernels.
sanitize() {
  local tool=$1 parts=(kernels) part filter=(--kernel-name kernel_substring=gralora)
  local options=(--tool "$tool" --error-exitcode 102 --report-api-errors no)
  if [ "$tool" = racecheck ]; then mapfile -t parts < <("$check_kernels" --list); fi
  for part in "${parts[@]}"; do
    timed "$tool-$part" "$work/$tool-$part.log" "$sanitizer_limit" \
      compute-sanitizer "${options[@]}" "$check_kernels" --briefly ${part/#kernels/} &
  done
  # initcheck must see the kernels that write our inputs, or every read of them looks wrong; and
  # racecheck (of CUDA 13.0, on an H200) ends in an internal error where a filter names the kernels,
  # whichever, of an adapter over 1,000 tokens.
  if [ "$tool" = initcheck ] || [ "$tool" = racecheck ]; then filter=(); fi
  # Without the caching allocator each tensor is an allocation of its own, whose end is checked.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timed "$tool" "$work/$tool.log" "$sanitizer_limit" \
    compute-sanitizer "${options[@]}" "${filter[@]}" "${pytest[@]}" "${kernel_tests[@]}"
  wait
}

# measure NAME SUITE ARGUMENTS...: one process for the whole suite, results in OUT_DIR/NAME.json.
measure() {
  local name=$1 suite=$2
  shift 2
  timed "$name" "$out/check.log" 240 "$python" benchmarks/run.py "$suite" --device cuda \
    --json "$out/$name.json" "$@"
}

# The names of the sanitizers' reports, in the order of the tools.
sanitized() {
  local tool
  for tool in "${tools[@]}"; do (cd "$work" && compgen -G "$tool*.status" | sed 's/\.status$//'); done
}

summary() {
  local name status seconds verdict
  printf '\n%-31s %-18s %s\n' step status seconds
  for name in build info build-kernels kernels tests $(sanitized) "${suites[@]}"; do
    [ -f "$work/$name.status" ] || continue
    read -r status seconds <"$work/$name.status"
    case $status in
      0) verdict=passed ;;
      5) verdict="no test selected" ;;
      124) verdict="out of time" ;;
      *) verdict="failed ($status)" ;;
    esac
    if [ "$status" -ne 0 ]; then failures=$((failures + 1)); fi
    printf '%-31s %-18s %s\n' "$name" "$verdict" "$seconds"
    printf '%s\t%s\t%s\n' "$name" "$verdict" "$seconds" >>"$work/verdicts"
  done
  for name in tests "${tools[@]}"; do
    tail -n 1 "$out/$name.log" "$work/$name.log" 2>/dev/null | grep -E 'passed|failed|error'
  done
  for name in "${suites[@]}"; do
    if [ -f "$out/$name.json" ]; then
      "$python" benchmarks/run.py show --short "$out/$name.json"
    fi
  done
}

# environment_over PYTHON DIR: a virtual environment at DIR that also sees PYTHON's packages, also
# where PYTHON is in a virtual environment itself, which --system-site-packages would pass over.
environment_over() {
  "$1" -m venv --without-pip "$2" || return
  "$1" -c 'import site, sysconfig; print(*{sysconfig.get_path("purelib"), *site.getsitepackages()}, sep="\n")' \
    >"$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
}

suites=(kernels_suite layer cold eager dropout quantised moe shared memory model host merge)
failures=0
cd "$root" || exit 2

# The interpreter's own environment stays as it is, and processes that tests start find the package
# without a PYTHONPATH.
environment_over "$python" "$work/venv" || exit 2
PATH=$work/venv/bin:$(dirname "$(command -v "$python")"):$PATH
python=$work/venv/bin/python
# -P keeps the working directory, and with it the sources, off the path: the built package is used.
pytest=("$python" -P -m pytest --import-mode=importlib -p no:cacheprovider -q)

check_kernels=${CHECK_KERNELS:-$work/kernels/check_kernels}
if [ -z "${CHECK_KERNELS:-}" ] && { wanted kernels || wanted sanitizers; }; then
  # shellcheck disable=SC2016  # the folder is the inner shell's argument
  timed build-kernels "$work/build-kernels.log" 600 bash -c \
    'cmake -S tests/kernels -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=Release && cmake --build "$1"' \
    build-kernels "$work/kernels" &
fi
if wanted build; then
  timed build "$out/check.log" 600 "$python" -m pip install --no-build-isolation --no-deps \
    --disable-pip-version-check --ignore-installed "${WHEEL:-.}"
fi
wait
if [ -f "$work/build-kernels.log" ]; then cat "$work/build-kernels.log" >>"$out/check.log"; fi
if wanted info; then
  timed info "$out/check.log" 60 "$python" -P -m gralora info
fi

if wanted kernels; then
  timed kernels "$out/check.log" 120 "$check_kernels"
fi

# Nothing is timed yet, so tests and sanitizers share the machine.
if wanted tests; then
  workers=()
  if "$python" -c 'import xdist' 2>"$work/no-xdist"; then
    workers=(-n "$test_workers" --dist worksteal)
  fi
  # One thread each, or those of all processes wait for each other.
  timed tests "$out/tests.log" "$test_seconds" \
    env OMP_NUM_THREADS=1 "${pytest[@]}" "${workers[@]}" "${test_args[@]}" &
fi
if wanted sanitizers; then
  for tool in "${tools[@]}"; do sanitize "$tool" & done
fi
wait
for name in $(sanitized); do cat "$work/$name.log" >>"$out/sanitizers.log"; done

if wanted kernels_suite; then
  measure kernels_suite kernels --path aten,sm80,sm90 --tokens 512,8192 \
    --shapes 4096x4096,4096x1024,576x1536 --rk "$kernel_rk" --rounds "$rounds"
fi
if wanted layer; then
  measure layer layer --mode graph --tokens 8192 --shapes "$shapes" --rk "$rk" --rounds "$rounds"
fi
if wanted cold; then
  measure cold layer --mode graph --tokens 1,16,512,2048 \
    --shapes 4096x4096,4096x14336,4096x1024 --rk 64:4 --rounds "$rounds"
fi
if wanted eager; then
  measure eager layer --mode eager --tokens 1,512,2048 --shapes 4096x4096 --rk 64:4 \
    --rounds "$rounds"
fi
# Dropout, and a hybrid's plain part.
if wanted dropout; then
  measure dropout layer --mode graph --tokens 512,2048,8192 --shapes 4096x4096,4096x14336 \
    --rk 64:4 --rounds "$rounds" --variants "base,peft_gralora,peft_gralora_dropout,\
peft_gralora_hybrid,gralora,gralora_dropout,gralora_hybrid"
fi
# Not as graphs, since bitsandbytes' 8-bit layer waits for the device.
if wanted quantised; then
  measure quantised layer --mode eager --base bnb-int8,bnb-nf4,torchao-int8,torchao-int4 \
    --tokens 16,512,8192 --shapes 4096x4096 --rk 64:4 --rounds "$rounds" \
    --variants base,peft_lora,peft_gralora,peft_gralora_fp32,peft_accelerated,gralora,gralora_fp32
fi
# Eight of Mixtral's experts and a hundred and twenty-eight of Qwen3's.
if wanted moe; then
  measure moe layer --base moe --experts 4096x14336:8:2,2048x768:128:8 --tokens 512,2048,8192 \
    --rounds "$rounds"
fi
# Projections of q, k and v, and of gate and up, in Llama 3.1 8B.
if wanted shared; then
  measure shared layer --base shared --groups 4096x4096+1024+1024,4096x14336+14336 \
    --tokens 512,2048,8192 --rk 32:2,64:4,128:4 --rounds "$rounds" \
    --variants base,peft_lora,peft_gralora,gralora,gralora_fp32,gralora_shared,gralora_shared_fp32
fi
if wanted memory; then
  measure memory layer --memory --no-timing --tokens 8192 --shapes 4096x4096,4096x14336 --rk "$rk"
fi
if wanted model; then
  measure model model --preset "$model" --tokens 8192,2048,1024 --checkpointed 8192 \
    --rounds "$rounds"
fi
if wanted host; then
  measure host host
fi
if wanted merge; then
  measure merge merge --mode both
fi

summary >"$work/summary.txt" 2>&1
tee -a "$out/check.log" <"$work/summary.txt"
logs=("${tools[@]/#/$work/}")
logs=("${logs[@]/%/.log}")
GRALORA_COMMIT=${GRALORA_COMMIT:-$(git rev-parse HEAD 2>"$work/no-history")} \
  "$python" benchmarks/check_report.py "$work/verdicts" "$out/check.json" "$out/tests.log" \
  "${logs[@]}"
[ "$failures" -eq 0 ]
