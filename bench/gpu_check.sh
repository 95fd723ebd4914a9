#!/usr/bin/env bash
# Builds, tests, sanitizes and measures the CUDA kernels on a machine with a GPU, without a network:
#
#     bench/gpu_check.sh OUT [build] [short] [test] [sanitize] [bench] [profile] [exhaustive] [gloo] [ddp]
#
# Without stages: build, short, test, sanitize and bench, within eight minutes whatever happens. Stages run in the order
# given; test, sanitize, exhaustive and gloo, which look at bits, beside those of them that are named next, and all
# others, which look at times, alone. A stage that is the only one may take longer. Writes at most 8 files to OUT;
# summary.txt says what passed. Exit status: 0 nothing failed (what was skipped is counted), 1 something did, 2 wrong
# usage, 3 there is nothing to run on.
# Needs python3 with pybind11, scikit-build-core, cmake, ninja, pytest, torch (whose dlpack.h is taken) and nvcc;
# compute-sanitizer, ncu, pytest-xdist, pytest-timeout, Triton, JAX and CuPy where they are there.
set -uo pipefail

usage() {
  echo "usage: bench/gpu_check.sh OUT [build] [short] [test] [sanitize] [bench] [profile] [exhaustive] [gloo] [ddp]" >&2
  exit 2
}
[ $# -ge 1 ] || usage
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
for stage in "$@"; do
  case $stage in build | short | test | sanitize | bench | profile | exhaustive | gloo | ddp) ;; *) usage ;; esac
done
stages=${*:-build short test sanitize bench}
[ $# -eq 1 ] && alone=1 || alone=
for tools in /usr/local/cuda/bin /opt/nvidia/nsight-compute/*; do PATH=$PATH:$tools; done
work=$PWD/build/gpu_check # which git ignores, so that it is kept between calls
site=$work/site
# JAX would take three quarters of the memory, and each of many processes all processors.
export PYTHONPATH=$site:$PWD/tests PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=3
export OMP_NUM_THREADS=4
summary=$out/summary.txt

say() { echo "$*" | tee -a "$summary"; }

# seconds AMONG ALONE: how long a stage may take, among others or as the only one.
seconds() { [ "$alone" ] && echo "$2" || echo "$1"; }

# step NAME SECONDS LOG COMMAND...: runs it, writes down how it ended, and goes on. A command says by 77 that it was
# skipped. At the end of its time it is interrupted, so that it can still say what it found; a process in the background
# would not see that. Lines are marked, since several steps may write to one log.
step() {
  local name=$1 limit=$2 log=$out/$3 start=$SECONDS status end last
  shift 3
  echo "[$name] + $*" >>"$log"
  timeout --signal=INT --kill-after=10 "$limit" env --default-signal=INT "$@" 2>&1 | sed -u "s/^/[$name] /" >>"$log"
  status=${PIPESTATUS[0]}
  last=$(grep -F "[$name] " "$log" | tail -n 1)
  last=${last#"[$name] "}
  case $status in
    0) end="passed: $last" ;;
    77) end="skipped: $last" ;;
    124 | 137) end="FAILED: not done after $limit s: $last" ;;
    *) end="FAILED (exit status $status): $last" ;;
  esac
  say "$name: $end ($((SECONDS - start)) s)"
  return "$status"
}

run_build() {
  command -v nvcc >/dev/null || { say "build: FAILED: no nvcc"; return 1; }
  # CMake's "native" would compile and run a program to find out.
  local capability architectures=native
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
  [[ $capability =~ ^[0-9]+\.[0-9]+$ ]] && architectures=${capability/./}-real
  step build "$(seconds 110 500)" build.log python3 -m pip install --no-build-isolation --no-deps --no-index --upgrade \
    --target "$site" -Cbuild-dir="$work/build" -Ccmake.define.TERNGRAD_KERNELS_CUDA=ON \
    -Ccmake.define.TERNGRAD_KERNELS_CUDA_ARCHITECTURES="$architectures" --verbose . || return
  step info 20 build.log python3 -m terngrad_kernels info
}

# The operations once, with nothing around them: whether there is any point in looking further, and where to look first.
run_short() { step short "$(seconds 40 120)" checks.log python3 bench/gpu_check.py short; }

run_test() {
  local options=(-q --tb=short --durations=15)
  # What the machine's packages warn of is no error here.
  options+=(-W default -p no:cacheprovider)
  # A few at a time, or one process would get all the long ones, which are neighbours.
  python3 -c "import xdist" 2>/dev/null && options+=(-n 8 --maxschedchunk 2)
  # A kernel that hangs holds the whole process, which ends with it; xdist starts another.
  python3 -c "import pytest_timeout" 2>/dev/null && options+=(--timeout 90 --timeout-method thread)
  step "pytest -m cuda" "$(seconds 190 570)" test.log python3 -m pytest -m cuda "${options[@]}" tests
  # Where all tests are skipped, pytest is content, but not this.
  tail -n 1 "$out/test.log" | grep -q "[0-9] passed" || say "pytest -m cuda: FAILED: no test passed"
}

run_sanitize() {
  command -v compute-sanitizer >/dev/null || { say "sanitize: FAILED: no compute-sanitizer"; return; }
  local tool port=49152
  for tool in memcheck racecheck initcheck synccheck; do
    # No caching allocator: what lies in one of its blocks is all the same to the tools. Errors of calls that the
    # frameworks make to find out what there is are none; ours are raised.
    local options=(--tool "$tool" --error-exitcode 9 --port $((port += 16)) --launch-timeout 120)
    [ $tool = memcheck ] && options+=(--report-api-errors no)
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" "$(seconds 190 280)" checks.log \
      compute-sanitizer "${options[@]}" python3 bench/gpu_check.py short &
  done
  wait
}

run_exhaustive() { step "2^32 float32 patterns" "$(seconds 80 500)" checks.log python3 bench/gpu_check.py exhaustive; }

run_gloo() { step "two processes on one card, gloo" 80 checks.log python3 bench/gpu_check.py gloo 2; }

run_bench() { step bench "$(seconds 90 400)" bench.log python3 bench/gpu_bench.py "$out"; }

run_profile() {
  # The clocks as they are in use; it may be refused the counters, and says so then.
  step ncu "$(seconds 75 300)" profile.log ncu --clock-control none --section SpeedOfLight --section LaunchStats \
    --section Occupancy --section MemoryWorkloadAnalysis --section WarpStateStats --section SchedulerStats \
    --kernel-name "regex:measure|encode|decode" python3 bench/gpu_check.py profile
}

run_ddp() { step "one process, NCCL: overhead, overlap, no waits" "$(seconds 45 200)" checks.log python3 bench/gpu_check.py ddp; }

: >"$summary"
say "$(date -u +%FT%TZ) $(git rev-parse --short HEAD 2>/dev/null) on $(uname -srm), $(env -u OMP_NUM_THREADS nproc) processors"
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >>"$summary" 2>&1; then
  say "no GPU: nvidia-smi is not there or finds none; nothing was run"
  exit 3
fi

# Each stage needs what build leaves; a fresh machine has not got it.
case " $stages " in *" build "*) ;; *) [ -d "$site/terngrad_kernels" ] || stages="build $stages" ;; esac

for stage in $stages; do
  case $stage in
    build) run_build || break ;;
    test | sanitize | exhaustive | gloo) "run_$stage" & ;;
    *) wait && "run_$stage" ;;
  esac
done
wait

# What comes back is limited: of a log that ran over, its ends.
for log in "$out"/*.log; do
  [ -f "$log" ] && [ "$(wc -c <"$log")" -gt 4000000 ] || continue
  { head -c 1000000 "$log" && printf '\n[...]\n' && tail -c 1000000 "$log"; } >"$log.cut" && mv "$log.cut" "$log"
done
if grep -q FAILED "$summary"; then
  say "something FAILED"
  exit 1
fi
say "nothing failed, $(grep -c ": skipped: " "$summary") skipped"
