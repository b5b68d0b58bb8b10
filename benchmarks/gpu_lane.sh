#!/usr/bin/env bash
# Everything that needs a GPU, in ten minutes: build, tests, compute-sanitizer, benchmarks.
#
#   benchmarks/gpu_lane.sh
#
# OUT     folder for JSON files and logs, default benchmarks/results
# PYTHON  one with torch, triton and pytest, default python3; nothing is installed or downloaded
# DEVICE  cpu: a rehearsal without a GPU; tests are only collected, the smallest case of each benchmark is timed
#
# Every part has a time limit of its own, and none waits for another to succeed; the exit code is the number that failed.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results} PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda}
mkdir -p "$OUT/logs" && OUT=$(cd "$OUT" && pwd)
export PYTHONPATH=$PWD
failed=0 table=()

# part NAME SECONDS COMMAND...
part() {
  local name=$1 limit=$2 log=$OUT/logs/$1.log start=$SECONDS result=ok code
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
  code=$?
  if [ $code = 124 ] || [ $code = 137 ]; then
    result="over its $limit s"
  elif [ $code != 0 ]; then
    result="failed ($code)"
  fi
  if [ "$result" != ok ]; then
    failed=$((failed + 1))
    tail -n 15 "$log"
  fi
  table+=("$(printf '%-18s %-16s %4d s  %s' "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$log" | cut -c1-100)")")
  echo "${table[-1]}"
}

skipped() {
  table+=("$(printf '%-18s %-16s %6s  %s' "$1" skipped "" "$2")")
  echo "${table[-1]}"
}

build() {
  local torch options=() cuda=AUTO
  torch=$("$PYTHON" -c 'import torch; print(torch.__path__[0])') || return 1
  command -v ninja >/dev/null && options=(-G Ninja)
  if command -v nvcc >/dev/null && [ "$DEVICE" = cuda ]; then
    cuda=ON options+=(-DBITFAST_CUDA_ARCHITECTURES=native)
  fi
  cmake -S . -B build/gpu_lane "${options[@]}" -DBITFAST_CUDA=$cuda -DTORCH_ROOT="$torch" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/bitfast" && cmake --build build/gpu_lane --parallel
}
export -f build
export PYTHON DEVICE

timm=() few=() usual=(--seconds 0.5) tests=(-m gpu)
"$PYTHON" -c 'import timm' 2>/dev/null && timm=(timm "timm channels_last" "timm compile channels_last")
networks=(--model resnet50x1 --px 224 --batch 64 --dtype bfloat16 --rounds 5 --seconds 3)
if [ "$DEVICE" = cpu ]; then
  few=(--model resnet26x0_5) usual=(--seconds 0.1) tests=(-m gpu --collect-only) timm=()
  networks=(--model resnet26x0_5 --px 32 --batch 2 --rounds 1 --seconds 0)
fi
networks+=(--device "$DEVICE" --providers official "${timm[@]}" bitfast "convolutions alone")

if command -v cmake >/dev/null; then
  part build 80 bash -c build
else
  skipped build "no cmake; the Triton kernels need no build"
fi
part tests 140 "$PYTHON" -m pytest -q "${tests[@]}"
if command -v compute-sanitizer >/dev/null && [ "$DEVICE" = cuda ]; then
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 part sanitizer 50 compute-sanitizer --error-exitcode 9 --target-processes all \
    "$PYTHON" -m pytest -q -x -m gpu tests/ops -k "(triton or cuda) and matches and float32 and (odd or two_by_two)"
else
  skipped sanitizer "no compute-sanitizer, or no GPU"
fi
part weight_std 70 "$PYTHON" -m benchmarks.ops.bench_weight_std --device "$DEVICE" "${few[@]}" "${usual[@]}" \
  --name "$OUT/weight_std_$DEVICE"
part stem_pool 50 "$PYTHON" -m benchmarks.ops.bench_stem_pool --device "$DEVICE" --dtype bfloat16 "${usual[@]}" \
  --name "$OUT/stem_pool_$DEVICE"
part group_norm 110 "$PYTHON" -m benchmarks.ops.bench_group_norm --device "$DEVICE" --dtype bfloat16 --networks R50x1 \
  "${usual[@]}" --name "$OUT/group_norm_$DEVICE"
part infer 35 "$PYTHON" -m benchmarks.models.bench_infer "${networks[@]}" --name "$OUT/infer_$DEVICE"
part train 50 "$PYTHON" -m benchmarks.models.bench_train "${networks[@]}" --name "$OUT/train_$DEVICE"

printf '\n'
printf '%s\n' "${table[@]}"
exit $failed
