# What an installed wheel does without torch: sh -e tools/try_wheel.sh BIN RUNS (make packages): BIN
# holds cero-rl, RUNS a run's directory by the name of run.
bin=$1
runs=$2
if "$bin/python" -c "import torch" 2>/dev/null; then echo "torch is in this environment"; exit 1; fi
"$bin/cero-rl" recipes copy digits_cpu
"$bin/cero-rl" validate --config digits_cpu.yaml >validated.txt
head -n 2 validated.txt
"$bin/cero-rl" simulate --suite smoke --seeds 2 --processes 1 >simulated.txt
tail -n 3 simulated.txt
"$bin/cero-rl" report "$runs/run" --format md >report.md
sed -n 3p report.md
status=0
"$bin/cero-rl" train digits_cpu.yaml 2>refused.txt || status=$?
grep -q "cero_rl\[train\]" refused.txt
test "$status" = 6
echo "packages: without torch the wheel validates, simulates and reports, and says what training needs"
