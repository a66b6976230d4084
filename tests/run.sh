#!/bin/sh
# run.sh COMMAND... - run each test command, show what went wrong, add up the counts.
# A command reports 'N passed, N failed, N skipped' in its last line. One that ends without that line, or with a
# nonzero status and no failure counted, is itself a failure. The last line printed here is the sum.
passed=0 failed=0 skipped=0
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
for command in "$@"; do
    start=$(date +%s)
    sh -c "$command" >"$log" 2>&1; status=$?
    seconds=$(($(date +%s) - start))
    counts=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [ -z "$counts" ]; then counts="0 passed, 1 failed, 0 skipped"
    elif [ $status -ne 0 ] && [ "${counts#* passed, 0 failed}" != "$counts" ]; then
        counts="${counts%%,*}, 1 failed, ${counts##*, }"
    fi
    p=${counts%% *}; rest=${counts#*, }; f=${rest%% *}; rest=${rest#*, }; s=${rest%% *}
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-34s %s  (%ss)\n' "$(basename "${command%% *}")${command#"${command%% *}"}" "$counts" "$seconds"
    if [ "$f" -ne 0 ]; then grep -vE '^[0-9]+ passed,' "$log" | tail -n 40 | sed 's/^/    /'
    else grep '^SKIP' "$log" | sort | uniq -c | sort -rn | head -n 5 | sed -E 's/^ +([0-9]+) SKIP/    SKIP (\1x)/'; fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
