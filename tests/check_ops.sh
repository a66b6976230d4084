#!/bin/sh
# check_ops.sh - read ftune_cuda.cu as text: does it fill every entry of the op table in ftune.h?
# An op added on one side only is noticed on a machine without a GPU.
passed=0 failed=0
ops=$(awk '/^struct ft_backend \{/ { on = 1 } on && /^};/ { exit } on' ftune.h | grep -oE '\(\*[a-z_0-9]+\)' | tr -d '(*)')
[ -n "$ops" ] || { echo "no op table found in ftune.h"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
for op in $ops; do
    if grep -qE "(\.|->)$op *=" ftune_cuda.cu; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "ftune_cuda.cu: op table entry '$op' is not filled"; fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
