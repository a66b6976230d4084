#!/bin/sh
# test_examples.sh - each example prints what examples/expected/NN.txt says. `sh tests/test_examples.sh write` records it anew.
# Run from the root of the project after `make examples`; EXAMPLES names another directory with the built programs.
bin=${EXAMPLES:-build}
out=build/tmp/example.txt; mkdir -p build/tmp examples/expected || exit 1
passed=0 failed=0
for source in examples/[0-9][0-9]_*.c; do
    name=$(basename "$source" .c); number=${name%%_*}; expected=examples/expected/$number.txt
    [ "$1" = write ] && "$bin/$name" >"$expected" 2>/dev/null
    "$bin/$name" >"$out" 2>&1; status=$?
    if [ $status -eq 0 ] && cmp -s "$out" "$expected"; then passed=$((passed + 1)); continue; fi
    failed=$((failed + 1))
    echo "$name: exit status $status; expected (<) and found (>):"
    diff "$expected" "$out" | head -n 20
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
