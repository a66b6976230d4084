#!/bin/sh
# check_cxx.sh - every way the header promises to compile, each without a warning.
passed=0 failed=0 skipped=0
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
printf '#define FTUNE_IMPLEMENTATION\n#include "ftune.h"\nint main(void){return 0;}\n' >"$t/impl.c"
printf '#define FTUNE_IMPLEMENTATION\n#define FTUNE_STATIC\n#include "ftune.h"\n#include "ftune.h"\nint main(void){return 0;}\n' >"$t/twice.c"
printf '#define FTUNE_IMPLEMENTATION\n#define FTUNE_NO_MMAP\n#include "ftune.h"\nint main(void){return 0;}\n' >"$t/nommap.c"
printf '#include <stddef.h>\nvoid *my_malloc(size_t n);\nvoid *my_realloc(void *p, size_t n);\nvoid my_free(void *p);\n#define FTUNE_MALLOC my_malloc\n#define FTUNE_REALLOC my_realloc\n#define FTUNE_FREE my_free\n#define FTUNE_IMPLEMENTATION\n#include "ftune.h"\nint main(void){return 0;}\n' >"$t/alloc.c"
printf '#include "ftune.h"\nint main(){ ft_error e; (void)e; return 0; }\n' >"$t/decl.cc"
try() {
    if ! command -v "$1" >/dev/null 2>&1; then skipped=$((skipped + 1)); echo "SKIP $1 is not installed"; return; fi
    if out=$("$@" 2>&1) && [ -z "$out" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "$*"; printf '%s\n' "$out" | head -n 20; fi
}
W="-Wall -Wextra -I."
for cc in gcc clang; do
    try $cc -std=c99 -O1 $W -Wpedantic -Wno-overlength-strings -fsyntax-only "$t/impl.c"
    try $cc -std=c11 -O1 $W -fsyntax-only "$t/impl.c"
    try $cc -std=gnu17 -O1 $W -fsyntax-only "$t/nommap.c"
    try $cc -std=c99 -O1 $W -fsyntax-only "$t/alloc.c"
    try $cc -std=c99 -O1 $W -Wno-unused-function -fsyntax-only "$t/twice.c"
done
try gcc -std=c99 -O3 -march=native -fopenmp $W -c "$t/impl.c" -o "$t/impl.o"
try gcc -std=c99 -O2 $W -c "$t/impl.c" -o "$t/impl.o"
try g++ -std=c++17 $W -Wpedantic -fsyntax-only "$t/decl.cc"
try clang++ -std=c++17 $W -Wpedantic -fsyntax-only "$t/decl.cc"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
