/* test_01_tokenizer.c - chapter 1: byte-level BPE, its files, its training
 * Build:  cc -O2 -I. tests/test_01_tokenizer.c -o build/test_01_tokenizer -lm      Run from the top directory. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static ft_error err;

/* ---- helpers --------------------------------------------------------------------------------------------------- */

typedef struct ids { int32_t *at; ft_span *span; size_t n; ft_status status; } ids;

static ids encode(const ft_tokenizer *tok, const char *text, size_t n, ft_special special)
{
    ids r = { NULL, NULL, 0, FTUNE_OK };
    r.at = (int32_t *)malloc((n + 16) * sizeof *r.at);
    r.span = (ft_span *)malloc((n + 16) * sizeof *r.span);
    r.status = ft_tokenizer_encode_spans(tok, text, n, special, NULL, 0, r.at, r.span, n + 16, &r.n, &err);
    return r;
}

static void ids_free(ids *r) { free(r->at); free(r->span); }

static void show(char *out, size_t cap, const int32_t *a, size_t n, size_t from)
{
    size_t i, k = 0;
    out[0] = 0;
    for (i = from; i < n && i < from + 8 && k + 16 < cap; i++) k += (size_t)snprintf(out + k, cap - k, "%d ", (int)a[i]);
}

static int same_ids(const char *what, int line, const char *text, size_t text_n, const int32_t *found, size_t n_found,
                    const int32_t *expected, size_t n_expected)
{
    char a[200], b[200];
    size_t i;
    for (i = 0; i < n_found && i < n_expected && found[i] == expected[i]; i++) ;
    if (i == n_found && i == n_expected) { test_passed++; return 1; }
    test_failed++;
    show(a, sizeof a, expected, n_expected, i);
    show(b, sizeof b, found, n_found, i);
    fprintf(stderr, "%s:%d: \"%.*s\": id %d: expected %s.. (%d), found %s.. (%d)\n", what, line, text_n < 60 ? (int)text_n : 60, text, (int)i, a,
            (int)n_expected, b, (int)n_found);
    return 0;
}

/* Every line of a golden file: the same ids, the count, offsets that cover the text in order, and the way back. */
static void golden(const char *vocabulary, const char *golden_name, ft_special special, int nfc)
{
    char name[256];
    const char *path = test_shared(vocabulary), *file;
    ft_tokenizer *tok = NULL;
    char *data, *p, *stop;
    size_t n;
    int line, wrong = 0;
    snprintf(name, sizeof name, "golden/%s.jsonl", golden_name);
    if (!path || !(file = test_shared(name))) return;
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    if (!tok || !(data = test_read(file, &n))) return;
    for (p = data, line = 1; p < data + n && wrong < 5; p = stop + 1, line++) {
        fti_json j = { 0 };
        fti_arena arena = { 0 };
        int node;
        stop = (char *)memchr(p, '\n', (size_t)(data + n - p));
        if (!stop) break;
        if (fti_json_parse(&j, p, (size_t)(stop - p), file, &err)) { CHECK_MSG(0, "%s", err.message); break; }
        {
            ft_text text = fti_json_text(&j, fti_json_get(&j, 0, "text"), &arena);
            ids r = encode(tok, text.p, text.n, special);
            int32_t *expected = (int32_t *)malloc((text.n + 32) * sizeof *expected);
            size_t k = 0, i, count = 0, n_text = 0;
            char *back = (char *)malloc(text.n * 4 + 64);
            for (node = fti_json_child(&j, fti_json_get(&j, 0, "ids")); node >= 0 && k < text.n + 32; node = fti_json_next(&j, node))
                expected[k++] = (int32_t)fti_json_int(&j, node, -1);
            CHECK_OK(r.status, err);
            wrong += !same_ids(golden_name, line, text.p, text.n, r.at, r.n, expected, k);
            CHECK_OK(ft_tokenizer_encode(tok, text.p, text.n, special, NULL, 0, &count, &err), err);
            CHECK_INT(count, r.n);
            for (i = 0; i < r.n; i++)
                if (r.span[i].end > text.n || r.span[i].begin > r.span[i].end || (i && !nfc && r.span[i].begin < r.span[i - 1].begin)) break;
            CHECK_MSG(i == r.n, "%s:%d: offset of id %d: %lu..%lu", golden_name, line, (int)i, (unsigned long)r.span[i].begin, (unsigned long)r.span[i].end);
            if (!nfc && !(special & FTUNE_ADD_SPECIAL)) {
                CHECK_OK(ft_tokenizer_decode(tok, r.at, r.n, 0, back, text.n * 4 + 64, &n_text, &err), err);
                CHECK_MSG(n_text == text.n && !memcmp(back, text.p, n_text), "%s:%d: decode is not the text", golden_name, line);
            }
            free(expected);
            free(back);
            ids_free(&r);
        }
        fti_arena_free(&arena);
        fti_json_free(&j);
    }
    CHECK_MSG(line > 10, "%s has only %d lines", file, line - 1);
    free(data);
    ft_tokenizer_free(tok);
}

static void test_golden(void)
{
    golden("vocab/qwen/qwen.tiktoken", "qwen", FTUNE_SPECIAL_AS_TEXT, 1);
    golden("vocab/qwen/qwen.tiktoken", "qwen.special", FTUNE_SPECIAL_PARSE, 1);
    golden("vocab/cl100k_base/cl100k_base.tiktoken", "cl100k_base", FTUNE_SPECIAL_AS_TEXT, 0);
    golden("vocab/cl100k_base/cl100k_base.tiktoken", "cl100k_base.special", FTUNE_SPECIAL_PARSE, 0);
    golden("vocab/o200k_base/o200k_base.tiktoken", "o200k_base", FTUNE_SPECIAL_AS_TEXT, 0);
    golden("vocab/o200k_base/o200k_base.tiktoken", "o200k_base.special", FTUNE_SPECIAL_PARSE, 0);
    golden("vocab/llama3/tokenizer.model", "llama3", FTUNE_SPECIAL_AS_TEXT, 0);
    golden("vocab/llama3/tokenizer.model", "llama3.special", FTUNE_SPECIAL_PARSE, 0);
    golden("vocab/kimi-k2/tiktoken.model", "kimi-k2", FTUNE_SPECIAL_AS_TEXT, 0);
    golden("vocab/kimi-k2/tiktoken.model", "kimi-k2.special", FTUNE_SPECIAL_PARSE, 0);
    golden("vocab/gpt2/vocab.json", "gpt2", FTUNE_SPECIAL_AS_TEXT, 0);
    golden("vocab/gpt2/merges.txt", "gpt2.special", FTUNE_SPECIAL_PARSE, 0);
    golden("vocab/qwen2/vocab.json", "qwen", FTUNE_SPECIAL_AS_TEXT, 1);
    golden("vocab/qwen2/tokenizer.qwen3.json", "qwen3", FTUNE_SPECIAL_PARSE, 1);
    golden("vocab/roberta-base/tokenizer.json", "roberta-base", FTUNE_SPECIAL_PARSE, 1);
    golden("vocab/roberta-base", "roberta-base.special", FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL, 1);
}

int main(void)
{
    test_golden();
    return test_end();
}
