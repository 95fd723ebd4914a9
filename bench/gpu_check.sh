#!/usr/bin/env bash
# Builds, tests, sanitizes and measures the CUDA kernels on a machine with a GPU, without a network:
#
#     bench/gpu_check.sh OUT [build] [test] [sanitize] [exhaustive] [bench] [profile] [ddp]
#
# Without stages: build, test and bench, cut short so that they end within ten minutes together; a stage that is named
# alone takes longer and sees more. Writes at most 8 files to OUT; summary.txt says what passed. Exit status: 0 nothing
# failed (what was skipped is counted), 1 something did, 2 wrong usage, 3 there is nothing to run on.
# Needs python3 with pybind11, scikit-build-core, cmake, ninja, pytest, torch (whose dlpack.h is taken) and nvcc;
# compute-sanitizer, ncu, pytest-xdist, Triton, JAX and CuPy where they are there.
set -uo pipefail

usage() {
  echo "usage: bench/gpu_check.sh OUT [build] [test] [sanitize] [exhaustive] [bench] [profile] [ddp]" >&2
  exit 2
}
[ $# -ge 1 ] || usage
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
for stage in "$@"; do
  case $stage in build | test | sanitize | exhaustive | bench | profile | ddp) ;; *) usage ;; esac
done
stages=${*:-build test bench}
export PATH=$PATH:/usr/local/cuda/bin
[ $# -eq 1 ] && long=1 || long=
work=$PWD/build/gpu_check # which git ignores, so that it is kept between calls
site=$work/site
export PYTHONPATH=$site:$PWD/tests PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false OMP_NUM_THREADS=4 TF_CPP_MIN_LOG_LEVEL=3
summary=$out/summary.txt
failed=0
skipped=0

# limit SHORT LONG: seconds for a stage among others, and for one that is named alone.
limit() { [ "$long" ] && echo "$2" || echo "$1"; }
say() { echo "$*" | tee -a "$summary"; }

# step NAME SECONDS LOG COMMAND...: runs it, writes down how it ended, and goes on. A command says by 77 that it was skipped.
step() {
  local name=$1 limit=$2 log=$out/$3 start=$SECONDS status end
  shift 3
  { echo && echo "+ $name: $*"; } >>"$log"
  timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) end=passed ;;
    77) end="skipped: $(tail -n 1 "$log")" skipped=$((skipped + 1)) ;;
    124 | 137) end="FAILED: not done after $limit s" failed=1 ;;
    *) end="FAILED (exit status $status): $(tail -n 1 "$log")" failed=1 ;;
  esac
  say "$name: $end ($((SECONDS - start)) s)"
  return "$status"
}

build() {
  command -v nvcc >/dev/null || { say "build: FAILED: no nvcc"; failed=1; return 1; }
  step build "$(limit 150 500)" build.log python3 -m pip install --no-build-isolation --no-deps --no-index --upgrade \
    --target "$site" -Cbuild-dir="$work/build" -Ccmake.define.TERNGRAD_KERNELS_CUDA=ON --verbose .
}

: >"$summary"
say "$(date -u +%FT%TZ) $(git rev-parse --short HEAD 2>/dev/null) on $(uname -srm)"
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >>"$summary" 2>&1; then
  say "no GPU: nvidia-smi is not there or finds none; nothing was run"
  exit 3
fi

# Each stage needs what build leaves; a fresh machine has not got it.
case " $stages " in *" build "*) ;; *) [ -d "$site/terngrad_kernels" ] || stages="build $stages" ;; esac
python3 -c "import xdist" 2>/dev/null && parallel="-n 8" || parallel=

for stage in $stages; do
  case $stage in
    build)
      build || break
      step info 60 build.log python3 -m terngrad_kernels info
      ;;
    test)
      # What the machine's packages warn of is no error here. Where all tests are skipped, pytest is content, but not this.
      # shellcheck disable=SC2086 # one argument or none
      step "pytest -m cuda" "$(limit 270 570)" test.log python3 -m pytest -q -m cuda $parallel -W default -p no:cacheprovider tests
      say "$(tail -n 1 "$out/test.log")"
      tail -n 1 "$out/test.log" | grep -q passed || failed=1
      ;;
    sanitize)
      if command -v compute-sanitizer >/dev/null; then
        # No caching allocator: what lies in one of its blocks is all the same to the tools.
        for tool in memcheck racecheck initcheck synccheck; do
          PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "compute-sanitizer $tool" "$(limit 90 140)" checks.log \
            compute-sanitizer --tool "$tool" --error-exitcode 9 python3 bench/gpu_check.py short
        done
      else
        say "sanitize: FAILED: no compute-sanitizer" && failed=1
      fi
      ;;
    exhaustive)
      step "2^32 float32 patterns" "$(limit 120 500)" checks.log python3 bench/gpu_check.py exhaustive
      ;;
    bench)
      # shellcheck disable=SC2086
      step bench "$(limit 120 570)" bench.log python3 bench/gpu_bench.py "$out" ${long:+--slow} $([ "$long" ] || echo --quick)
      ;;
    profile)
      # The clocks as they are in use; it may be refused the counters, and says so then.
      step "ncu" 240 checks.log ncu --clock-control none --section SpeedOfLight --section LaunchStats --section Occupancy \
        --section MemoryWorkloadAnalysis --section WarpStateStats --section SchedulerStats \
        --kernel-name "regex:measure|encode|decode" python3 bench/gpu_check.py profile
      ;;
    ddp)
      step "one process, NCCL: overhead, overlap, no waits" 200 ddp.log python3 bench/gpu_check.py ddp
      for world in 2 4; do
        step "$world processes on one card, gloo" 90 ddp.log python3 bench/gpu_check.py gloo $world
      done
      ;;
  esac
done
if [ $failed = 0 ]; then say "nothing failed, $skipped skipped"; else say "something FAILED"; fi
exit $failed
