/* linear.c - does the time of a tokenizer grow with the text, whatever the text? And how long does loading take?
 *
 * Run:  build/bench-linear [--runs 3] [--only NAME]        (make bench-linear, 2 minutes; $FTUNE_SHARED has the vocabularies)
 *
 * A text of one million equal characters is the hard case of every method: one piece, all neighbours joinable, all
 * equally good. For each vocabulary and each class of character: milliseconds for a million, and how many times as long
 * two million take, and four million beside two. Runs of the three sizes take turns; each figure is a median. A star
 * marks what is over 100 ms or over 2.2 times; before it is given, four times as many runs are made, for a few
 * milliseconds are easily disturbed. The array of ids has been written to, as a caller's buffer is from the second text
 * on; what the library takes and gives back in each call counts. Loading: median of the same number of runs, the file in
 * memory already. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MILLION = 1000000, MOST_RUNS = 25, AGAIN = 4 };

static const struct { const char *name, *text; } classes[] = {
    { "letter", "a" }, { "capital", "X" }, { "digit", "0" }, { "space", " " }, { "newline", "\n" }, { "tab", "\t" },
    { "hyphen", "-" }, { "caret", "^" }, { "apostrophe", "'" }, { "control", "\x01" }, { "e acute", "\xC3\xA9" },
    { "Cyrillic", "\xD0\xB0" }, { "accent", "\xCC\x81" }, { "Thai", "\xE0\xB8\x81" }, { "Han", "\xE4\xB8\xAD" },
    { "kana", "\xE3\x81\x8B" }, { "Hangul", "\xEA\xB0\x80" }, { "U+2581", "\xE2\x96\x81" }, { "U+3000", "\xE3\x80\x80" },
    { "full width", "\xEF\xBC\xA1" }, { "emoji", "\xF0\x9F\x98\x80" }, { "U+10FFFD", "\xF4\x8F\xBF\xBD" } };
enum { CLASSES = sizeof classes / sizeof *classes };

static const char *const vocabularies[] = {
    "qwen/qwen.tiktoken", "cl100k_base/cl100k_base.tiktoken", "o200k_base/o200k_base.tiktoken", "llama3/tokenizer.model",
    "kimi-k2/tiktoken.model", "gpt2/vocab.json", "qwen2/tokenizer.qwen3.json", "roberta-base/tokenizer.json",
    "bert-base-uncased/vocab.txt", "bert-base-uncased/tokenizer.json", "t5-small/tokenizer.json", "phi-3/tokenizer.json",
    "llama2/tokenizer.model", "mistral/tokenizer.model.v1", "mistral/mistral_instruct_tokenizer_240323.model.v3",
    "chatglm3/tokenizer.model", "baichuan2/tokenizer.model", "internlm2/tokenizer.model", "xlnet/spiece.model",
    "sentencepiece-test/test_model.model", "sentencepiece-test/test_ja_model.model",
    "sentencepiece-test/nmt.vocab.joint.spm" };
enum { VOCABULARIES = sizeof vocabularies / sizeof *vocabularies };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static double encode(const ft_tokenizer *tok, const char *text, size_t n, int32_t *ids, size_t cap)
{
    ft_error err = { FTUNE_OK, "" };
    double begin = now();
    size_t k;
    if (ft_tokenizer_encode(tok, text, n, FTUNE_SPECIAL_AS_TEXT, ids, cap, &k, &err)) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    return now() - begin;
}

static ft_tokenizer *load(const char *path, int runs, double *ms)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    double t[MOST_RUNS];
    for (int i = 0; i < runs; i++) {
        ft_tokenizer_free(tok);
        t[i] = now();
        if (ft_tokenizer_load(&tok, path, NULL, &err)) return NULL;
        t[i] = now() - t[i];
    }
    *ms = 1e3 * median(t, runs);
    return tok;
}

int main(int argc, char **argv)
{
    const char *shared = getenv("FTUNE_SHARED"), *only = NULL;
    size_t cap = 4 * 4 * MILLION + 64;
    int32_t *ids = (int32_t *)malloc(cap * sizeof *ids);
    char *text = (char *)malloc(cap);
    int runs = 3, over = 0, pairs = 0;
    double ms[VOCABULARIES] = { 0 };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--runs")) runs = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--only")) only = argv[i + 1];
    }
    if (!ids || !text || runs < 1 || runs > MOST_RUNS) return 1;
    memset(ids, 0, cap * sizeof *ids);
    printf("%-44s %-10s %8s %7s %7s\n", "one million equal characters", "", "ms", "2M/1M", "4M/2M");
    for (int v = 0; v < VOCABULARIES; v++) {
        char path[1024];
        ft_tokenizer *tok;
        if (only && !strstr(vocabularies[v], only)) continue;
        snprintf(path, sizeof path, "%s/vocab/%s", shared ? shared : "../shared", vocabularies[v]);
        if (!(tok = load(path, runs, &ms[v]))) { printf("SKIP %s\n", path); continue; }
        for (int c = 0; c < CLASSES; c++) {
            size_t n = strlen(classes[c].text);
            double t[3][AGAIN * MOST_RUNS], at[3] = { 0 };
            int star = 1, done = 0;
            for (size_t i = 0; i < 4 * MILLION; i++) memcpy(text + i * n, classes[c].text, n);
            for (int want = runs; star && want <= AGAIN * runs; want += (AGAIN - 1) * runs) {
                for (; done < want; done++)
                    for (int s = 0; s < 3; s++) t[s][done] = encode(tok, text, n * (size_t)(MILLION << s), ids, cap);
                for (int s = 0; s < 3; s++) at[s] = median(t[s], done);
                star = at[0] > 0.1 || at[1] > 2.2 * at[0] || at[2] > 2.2 * at[1];
            }
            printf("%-44s %-10s %8.1f %7.2f %7.2f%s\n", vocabularies[v], classes[c].name, 1e3 * at[0], at[1] / at[0],
                   at[2] / at[1], star ? " *" : "");
            fflush(stdout);
            over += star;
            pairs++;
        }
        ft_tokenizer_free(tok);
    }
    printf("%d of %d over a limit\n", over, pairs);
    for (int v = 0; v < VOCABULARIES; v++) if (ms[v] > 0) printf("%-44s loaded in %6.1f ms\n", vocabularies[v], ms[v]);
    free(ids);
    free(text);
    return 0;
}
