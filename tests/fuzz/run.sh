#!/bin/sh
# run.sh - each target of fuzz.c for $SECONDS seconds, under AddressSanitizer and UBSan, from small real files as seeds.
# A finding stays in build/fuzz/TARGET/ with the command that shows it again.
CC=${CC:-clang} SECONDS=${SECONDS:-60}
passed=0 failed=0
if ! echo 'int LLVMFuzzerTestOneInput(const char*d,long n){return d&&n<0;}' | $CC -fsanitize=fuzzer -xc - -o /dev/null 2>/dev/null; then
    echo "SKIP $CC with libFuzzer is not installed (Debian: clang)"; echo "0 passed, 0 failed, 1 skipped"; exit 0
fi
mkdir -p build/fuzz
seeds() {
    case $1 in
    fuzz_tokenizer_json) echo tests/data/*tokenizer*.json tests/data/*/tokenizer.json tests/data/*.json ;;
    fuzz_regex)          printf '%s' '(?i:s|ll)|[^\r\n\p{L}]?+\p{L}+|\p{N}{1,3}(?<=a+)| ?[^\s[a-z&&b]]*?|(?>\s+)(?!\S)|\x{e9}\b' >build/fuzz/regex.txt
                         echo build/fuzz/regex.txt ;;
    fuzz_rank_file)      echo tests/data/*.tiktoken ;;
    fuzz_vocab_txt)      echo tests/data/*vocab*.txt ;;
    fuzz_sentencepiece)  echo tests/data/*.model ;;
    fuzz_safetensors)    echo tests/golden/weights/*.safetensors ;;
    fuzz_config)         echo tests/golden/model/config.json ;;
    fuzz_adapter_config) echo tests/golden/model/adapter_config.json ;;
    fuzz_row|fuzz_json)  for n in 1 40 80; do sed -n ${n}p examples/data/*train*.jsonl | head -n 1 >build/fuzz/row$n.json; done; echo build/fuzz/row*.json ;;
    fuzz_dataset)        head -n 3 examples/data/*train*.jsonl >build/fuzz/rows.jsonl; echo build/fuzz/rows.jsonl ;;
    esac
}
for target in $(grep -oE '^void fuzz_[a-z_]+' tests/fuzz/fuzz.c | cut -d' ' -f2); do
    dir=build/fuzz/$target; mkdir -p "$dir/corpus"
    for f in $(seeds "$target"); do [ -f "$f" ] && [ "$(wc -c <"$f")" -lt 100000 ] && cp "$f" "$dir/corpus/"; done
    if ! $CC -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DFUZZ_TARGET="$target" \
        -DFTUNE_STATIC -Wno-unused-function -I. tests/fuzz/fuzz.c -o "$dir/run" -lm; then failed=$((failed + 1)); continue; fi
    if "$dir/run" -max_total_time="$SECONDS" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -artifact_prefix="$dir/" \
        "$dir/corpus" >"$dir/log" 2>&1; then
        passed=$((passed + 1)); echo "$target: $(grep -E '^#[0-9]+.*DONE' "$dir/log" | tail -n 1)"
    else
        failed=$((failed + 1)); echo "$target: FAILED, again with: $dir/run $dir/{crash,timeout,oom,leak}-*"
        grep -E 'ERROR|runtime error|SUMMARY|#[0-7] ' "$dir/log" | head -n 12
    fi
    rm -rf build/fuzz/tmp.*
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
