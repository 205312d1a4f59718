# What an installed wheel does without torch: sh -e tools/try_wheel.sh DIR_OF_CERO_RL (make packages).
bin=$1
if "$bin/python" -c "import torch" 2>/dev/null; then echo "torch is in this environment"; exit 1; fi
"$bin/cero-rl" recipes copy digits_cpu
"$bin/cero-rl" validate --config digits_cpu.yaml >validated.txt
head -n 2 validated.txt
"$bin/cero-rl" simulate --suite smoke --seeds 2 --processes 1 >simulated.txt
tail -n 3 simulated.txt
status=0
"$bin/cero-rl" train digits_cpu.yaml 2>refused.txt || status=$?
grep -q "cero_rl\[train\]" refused.txt
test "$status" = 6
echo "packages: without torch the wheel validates and simulates, and says what training needs"
