/* test_01_tokenizer.c - chapter 1: byte-level BPE, its files, its training
 * Build:  cc -O2 -I. tests/test_01_tokenizer.c -o build/test_01_tokenizer -lm      Run from the top directory. */
#include <stddef.h>
static void *test_realloc(void *p, size_t n);
static void  test_free(void *p);
#define FTUNE_MALLOC(n)     test_realloc(NULL, n)
#define FTUNE_REALLOC(p, n) test_realloc(p, n)
#define FTUNE_FREE(p)       test_free(p)
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include <fcntl.h>
#include <unistd.h>

/* Memory that is counted and that can be made to run out. */
static size_t held, peak;
static long   fail_after = -1;          /* allocations that still succeed; -1: all */

static void *test_realloc(void *p, size_t n)
{
    size_t old = p ? ((size_t *)p)[-2] : 0, *q;
    if (fail_after == 0) return NULL;
    if (fail_after > 0) fail_after--;
    q = (size_t *)realloc(p ? (size_t *)p - 2 : NULL, n + 16);
    if (!q) return NULL;
    q[0] = n;
#ifdef _OPENMP
#pragma omp critical(memory)
#endif
    {
        held += n - old;
        if (held > peak) peak = held;
    }
    return q + 2;
}

static void test_free(void *p)
{
    if (!p) return;
#ifdef _OPENMP
#pragma omp critical(memory)
#endif
    held -= ((size_t *)p)[-2];
    free((size_t *)p - 2);
}

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
    size_t n, size;
    int line, wrong = 0;
    snprintf(name, sizeof name, "golden/%s.jsonl", golden_name);
    if (!path || !(file = test_shared(name))) return;
    n = held;
    peak = held;
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    if (!tok) return;
    n = peak - n;                                              /* 4 times the file and a constant: tables by two bytes */
    data = strstr(path, "tokenizer.") || strstr(path, "tiktoken") ? test_read(path, &size) : NULL;     /* one file */
    if (data)
        CHECK_MSG(n <= 4 * size + (1u << 20), "%s: %lu bytes of memory for %lu", path, (unsigned long)n,
                  (unsigned long)size);
    free(data);
    if (!(data = test_read(file, &n))) return;
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

/* 46 strings of llama.cpp, with the ids Hugging Face gave them. */
static void llama_cpp(const char *vocabulary, const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char in_name[128], out_name[128];
    const char *path = test_shared(vocabulary), *in_path, *out_path;
    ft_tokenizer *tok = NULL;
    char *in, *out, *p, *q, *stop;
    size_t n_in, n_out;
    int line = 1;
    snprintf(in_name, sizeof in_name, "vocab/llama.cpp/ggml-vocab-%s.gguf.inp", name);
    snprintf(out_name, sizeof out_name, "vocab/llama.cpp/ggml-vocab-%s.gguf.out", name);
    if (!path || !(in_path = test_shared(in_name)) || !(out_path = test_shared(out_name))) return;
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    in = test_read(in_path, &n_in);
    out = test_read(out_path, &n_out);
    for (p = in, q = out; tok && in && out && (stop = strstr(p, mark)) != NULL; p = stop + sizeof mark - 1, line++) {
        ids r = encode(tok, p, (size_t)(stop - p), FTUNE_SPECIAL_PARSE);
        int32_t expected[512];
        size_t k = 0;
        while (*q && *q != '\n' && k < 512) { while (*q == ' ') q++; if (*q && *q != '\n') expected[k++] = (int32_t)strtol(q, &q, 10); }
        if (*q) q++;
        same_ids(name, line, p, (size_t)(stop - p), r.at, r.n, expected, k);
        ids_free(&r);
    }
    CHECK_INT(line - 1, 46);
    free(in);
    free(out);
    ft_tokenizer_free(tok);
}

static const char slice[] = "tests/data/qwen_slice.tiktoken";

/* The article's sentences, on the committed slice of the vocabulary and, where it is, on the whole. */
static void article(const char *path)
{
    static const char *const chat = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
                                    "<|im_start|>assistant\nI am fine<|im_end|>";
    static const int32_t chat_ids[] = { 151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 4340, 525, 498, 30,
                                        151645, 198, 151644, 77091, 198, 40, 1079, 6915, 151645 };
    static const int32_t city[] = { 104130, 104104, 52801, 100371 };
    ft_tokenizer *tok = NULL;
    ids r;
    if (!path) return;
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    if (!tok) return;
    r = encode(tok, "杭州是个好地方", 21, FTUNE_SPECIAL_AS_TEXT);
    same_ids("article", 1, "", 0, r.at, r.n, city, 4);
    CHECK_INT(r.span[2].begin, 12);
    CHECK_INT(r.span[2].end, 15);
    ids_free(&r);
    r = encode(tok, chat, strlen(chat), FTUNE_SPECIAL_PARSE);
    same_ids("article", 2, "", 0, r.at, r.n, chat_ids, 27);
    ids_free(&r);
    CHECK_INT(ft_tokenizer_size(tok), 151851);
    CHECK_INT(ft_tokenizer_attribute(tok, "eos_token_id"), 151643);
    CHECK_INT(ft_tokenizer_attribute(tok, "bos_token_id"), -1);
    CHECK_INT(ft_token_id(tok, "<|extra_204|>", 13), 151850);
    CHECK(ft_token_is_special(tok, 151644) && !ft_token_is_special(tok, 8948));
    CHECK(ft_token_bytes(tok, 151851).p == NULL && ft_token_bytes(tok, -1).p == NULL);
    ft_tokenizer_free(tok);
}

/* Control tokens: as text, parsed, refused, and inside ranges that stay text. */
static void test_special(void)
{
    static const char text[] = "user<|im_end|>user<|im_end|>";
    ft_tokenizer *tok = NULL;
    ft_span plain[1] = { { 0, 14 } };
    int32_t a[64];
    size_t n;
    int i, found;
    CHECK_OK(ft_tokenizer_load(&tok, slice, NULL, &err), err);
    if (!tok) return;
    for (i = 0; i < 4; i++) {
        plain[0].end = i == 1 ? 5 : 14;                        /* a token that only touches a range is text too */
        CHECK_OK(ft_tokenizer_encode_spans(tok, text, sizeof text - 1, i ? FTUNE_SPECIAL_PARSE : 0, plain, i == 3 ? 0 : 1, a, NULL, 64, &n, &err), err);
        for (found = 0; n > 0; n--) found += a[n - 1] == 151645;
        CHECK_INT(found, i == 0 ? 0 : i == 3 ? 2 : 1);
    }
    CHECK_FAILS(ft_tokenizer_encode(tok, text, sizeof text - 1, FTUNE_SPECIAL_REFUSE, a, 64, &n, &err), err, FTUNE_ERR_SPECIAL, "byte 4");
    CHECK_OK(ft_tokenizer_encode(tok, "user<|im_en", 11, FTUNE_SPECIAL_REFUSE, a, 64, &n, &err), err);
    CHECK_FAILS(ft_tokenizer_encode(tok, text, sizeof text - 1, 0, a, 3, &n, &err), err, FTUNE_ERR_BUFFER_TOO_SMALL, "room");
    CHECK_OK(ft_tokenizer_encode(tok, text, sizeof text - 1, FTUNE_SPECIAL_PARSE, NULL, 0, &n, &err), err);
    CHECK_INT(n, 4);
    CHECK_FAILS(ft_tokenizer_encode(tok, "ab\xC3", 3, 0, a, 64, &n, &err), err, FTUNE_ERR_UTF8, "byte 2");
    CHECK_OK(ft_tokenizer_encode(tok, "", 0, 0, a, 64, &n, &err), err);
    CHECK_INT(n, 0);
    ft_tokenizer_free(tok);
}

static void test_bytes(void)
{
    ft_tokenizer *tok = NULL;
    int32_t a[16];
    char text[64];
    size_t n;
    CHECK_OK(ft_tokenizer_load(&tok, "bytes", NULL, &err), err);
    CHECK_OK(ft_tokenizer_encode(tok, "A\xFF</s>", 6, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL, a, 16, &n, &err), err);
    CHECK_INT(n, 7);
    CHECK_INT(a[0], 1);
    CHECK_INT(a[1], 'A' + 16);
    CHECK_INT(a[2], 255 + 16);
    CHECK_OK(ft_tokenizer_decode(tok, a, n, 1, text, sizeof text, &n, &err), err);
    CHECK(n == 8 && !memcmp(text, "A\xEF\xBF\xBD</s>", 8));
    CHECK_INT(ft_tokenizer_attribute(tok, "user_token_id"), 5);
    CHECK_INT(ft_tokenizer_attribute(tok, "bot_token_id"), 6);
    CHECK_INT(ft_tokenizer_size(tok), 272);
    a[0] = 300;
    CHECK_FAILS(ft_tokenizer_decode(tok, a, 1, 0, text, sizeof text, &n, &err), err, FTUNE_ERR_NOT_FOUND, "300");
    ft_tokenizer_free(tok);
}

/* Seeded text of many kinds of characters, always UTF-8. */
static size_t random_text(ft_rng *rng, char *out, size_t n)
{
    static const struct { uint32_t from, to; } range[] = { { 'a', 'z' }, { 'A', 'Z' }, { ' ', ' ' }, { '0', '9' }, { '!', '/' }, { 9, 13 }, { 0x4E00, 0x4E40 },
        { 0xC0, 0x17F }, { 0x300, 0x320 }, { 0x3040, 0x30FF }, { 0xAC00, 0xAC40 }, { 0x1F600, 0x1F640 }, { 0x2000, 0x2030 }, { 0, 0xD7FF }, { 'e', 'e' } };
    size_t k = 0;
    while (k + 8 < n) {
        size_t r = (size_t)ft_rng_below(rng, sizeof range / sizeof *range), run = 1 + (size_t)ft_rng_below(rng, 4);
        while (run-- && k + 4 < n) k += (size_t)fti_utf8_encode(range[r].from + (uint32_t)ft_rng_below(rng, range[r].to - range[r].from + 1), out + k);
    }
    return k;
}

/* What the kinds of start and of cut see differently: runs of one range, with a stranger now and then. */
static size_t random_run(ft_rng *rng, char *out, size_t n)
{
    static const struct { uint32_t from, to; } range[] = { { 'a', 'z' }, { 'a', 'e' }, { 'A', 'z' }, { 0x4E00, 0x9FA5 }, { 0x4E00, 0x4E40 }, { 0x7684, 0x76EE },
        { 0x3041, 0x30FA }, { 0x430, 0x44F }, { 0xAC00, 0xD7A3 }, { 0xE0, 0x17E }, { 0xE01, 0xE3A }, { 0x1F600, 0x1F64F }, { 0xF0, 0xD7FF }, { '0', '9' }, { ' ', '!' } };
    size_t k = 0, r = (size_t)ft_rng_below(rng, sizeof range / sizeof *range), now;
    while (k + 4 < n) {
        now = ft_rng_below(rng, 12) ? r : (size_t)ft_rng_below(rng, sizeof range / sizeof *range);
        if (!ft_rng_below(rng, 40)) r = now;
        k += (size_t)fti_utf8_encode(range[now].from + (uint32_t)ft_rng_below(rng, range[now].to - range[now].from + 1), out + k);
    }
    return k;
}

/* The fast joining against the twenty lines, with both kinds of start, and both lengths. */
static void test_against_simple(const char *path)
{
    ft_tokenizer *tok = NULL;
    ft_rng rng;
    char text[1600];
    int32_t expected[1600];
    int round, wrong = 0;
    if (!path) return;
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    if (!tok) return;
    ft_rng_seed(&rng, 7);
    ((fti_bpe *)tok->model)->form = -1;
    ((fti_bpe *)tok->model)->splitter = fti_splitter_find("none", NULL);
    for (round = 0; round < 6000 && !wrong; round++) {
        size_t n = round % 2 ? random_text(&rng, text, round % 50 ? 60 : sizeof text)
                             : random_run(&rng, text, round % 500 ? 6 + (size_t)ft_rng_below(&rng, 60) : sizeof text), k = fti_bpe_simple(&tok->vocab, text, n, expected);
        ids r = encode(tok, text, n, FTUNE_SPECIAL_AS_TEXT);
        wrong = !same_ids("simple", round, text, n, r.at, r.n, expected, k);
        ids_free(&r);
    }
    ft_tokenizer_free(tok);
}

/* Vocabularies of any kind: tokens are two others next to each other, parts of characters among them; then some change
 * places, so that merges come before their parts, and some tokens are never reached. */
typedef struct made_token { char p[24]; size_t n; } made_token;

static size_t made_text(ft_rng *rng, char *out, size_t chars)
{
    static const char *const alphabet[] = { "a", "b", " ", "\xC3\xA9", "\xC3\xAA", "\xE3\x81\x82", "\xE3\x81\xAE", "\xE7\x9A\x84", "\xE4\xB8\x80", "\xF0\x9F\x98\x80" };
    size_t n = 0;
    while (chars--) {
        const char *c = alphabet[ft_rng_below(rng, sizeof alphabet / sizeof *alphabet)];
        memcpy(out + n, c, strlen(c));
        n += strlen(c);
    }
    return n;
}

static size_t made_match(ft_rng *rng, const made_token *t, size_t n_tokens, const char *p, size_t n)
{
    size_t start = (size_t)ft_rng_below(rng, n_tokens), i, k;
    for (i = 0; i < n_tokens; i++) {
        k = (start + i) % n_tokens;
        if (t[k].n <= n && !memcmp(t[k].p, p, t[k].n)) return k;
    }
    return 0;
}

static void test_made_ranks(void)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    enum { N = 556 };
    static made_token t[N];
    static char file[N * 48], text[4000];
    static int32_t expected[4000];
    ft_rng rng;
    int round, i, wrong = 0, odd = 0;
    ft_rng_seed(&rng, 11);
    for (round = 0; round < 60 && !wrong; round++) {
        ft_tokenizer *tok = NULL;
        ft_tokenizer_options o = { 0 };
        size_t n, k, at, n_tokens = 256, used = 0;
        const char *path = test_tmp("made.tiktoken");
        for (i = 0; i < 256; i++) { t[i].p[0] = (char)i; t[i].n = 1; }
        while (n_tokens < N) {
            made_token *x = &t[n_tokens];
            n = made_text(&rng, text, 8);
            at = (size_t)ft_rng_below(&rng, n / 2);
            k = made_match(&rng, t, n_tokens, text + at, n - at);
            x->n = t[k].n;
            if (at + x->n >= n) continue;
            x->n += t[made_match(&rng, t, n_tokens, text + at + x->n, n - at - x->n)].n;
            if (x->n > 16) continue;
            memcpy(x->p, text + at, x->n);
            for (k = 0; k < n_tokens && (t[k].n != x->n || memcmp(t[k].p, x->p, x->n)); k++) ;
            n_tokens += k == n_tokens;
        }
        for (i = 0; i < round % 4 * 30; i++) {
            made_token *a = &t[256 + ft_rng_below(&rng, N - 256)], *b = &t[256 + ft_rng_below(&rng, N - 256)], c = *a;
            *a = *b;
            *b = c;
        }
        for (i = 0; i < N; i++) {
            uint8_t b[24] = { 0 };
            memcpy(b, t[i].p, t[i].n);
            for (k = 0; k < t[i].n; k += 3) {
                uint32_t w = (uint32_t)b[k] << 16 | (uint32_t)b[k + 1] << 8 | b[k + 2];
                for (at = 0; at < 4; at++) file[used++] = k + at > t[i].n ? '=' : digits[w >> (18 - 6 * at) & 63];
            }
            used += (size_t)sprintf(file + used, " %d\n", i);
        }
        CHECK(test_write(path, file, used));
        o.splitter = "none";
        CHECK_OK(ft_tokenizer_load(&tok, path, &o, &err), err);
        if (!tok) return;
        odd += ((fti_bpe *)tok->model)->late != NULL;
        for (i = 0; i < 400 && !wrong; i++) {
            n = made_text(&rng, text, 1 + (size_t)ft_rng_below(&rng, i == 399 ? 900 : i % 10 ? 12 : 80));
            if ((expected[0] = fti_vocab_find(&tok->vocab, text, n)) >= 0) k = 1;     /* a whole piece is looked up first */
            else k = fti_bpe_simple(&tok->vocab, text, n, expected);
            ids r = encode(tok, text, n, FTUNE_SPECIAL_AS_TEXT);
            wrong = !same_ids("made ranks", round * 1000 + i, text, n, r.at, r.n, expected, k);
            ids_free(&r);
        }
        ft_tokenizer_free(tok);
    }
    CHECK(odd > 20);
}

/* Several threads give the same ids; the first ids stand for the text they say, whatever the limit. */
static void test_threads_and_first(const char *path)
{
    static const ft_special special[] = { FTUNE_SPECIAL_AS_TEXT, FTUNE_SPECIAL_PARSE };
    ft_tokenizer *tok = NULL;
    ft_rng rng;
    size_t size = 400000, n_text, n, n_bytes, at, limit;
    char *text = (char *)malloc(size);
    int32_t *a = (int32_t *)malloc((size + 16) * sizeof *a);
    int kind, threads;
    if (path) CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    ft_rng_seed(&rng, 11);
    for (kind = 0; tok && kind < 4; kind++) {
        ids all;
        if (kind < 2) n_text = random_text(&rng, text, size);
        else for (n_text = 0; n_text + 3000 < size; n_text += random_run(&rng, text + n_text, 20 + (size_t)ft_rng_below(&rng, 2000))) ;
        if (kind & 1) for (at = 0; at + 12 < n_text; at += 3000) {       /* control tokens, over whole characters */
            while (at + 12 < n_text && ((uint8_t)text[at] & 0xC0) == 0x80) at++;
            for (n = at + 10; n < n_text && ((uint8_t)text[n] & 0xC0) == 0x80; n++) text[n] = 'x';
            memcpy(text + at, "<|im_end|>", 10);
        }
        all = encode(tok, text, n_text, special[kind & 1]);
        CHECK_OK(all.status, err);
        for (threads = 1; threads <= 5; threads++) {
            CHECK_OK(ft_tokenizer_encode_threads(tok, text, n_text, special[kind & 1], threads, a, size + 16, &n, &err), err);
            same_ids("threads", threads, text, n_text, a, n, all.at, all.n);
            CHECK_OK(ft_tokenizer_encode_threads(tok, text, n_text, special[kind & 1], threads, NULL, 0, &n, &err), err);
            CHECK_INT(n, all.n);
        }
        for (limit = 0; limit < 3000; limit += 1 + limit / 3) {
            CHECK_OK(ft_tokenizer_encode_first(tok, text, n_text, special[kind & 1], limit, a, &n, &n_bytes, &err), err);
            CHECK(n <= limit && n + 16 > limit && n_bytes <= n_text && (n_bytes == n_text || ((uint8_t)text[n_bytes] & 0xC0) != 0x80));
            same_ids("first", (int)limit, text, n_text, a, n, all.at, n);
            if (n) CHECK_INT(n_bytes, all.span[n - 1].end);
        }
        for (at = 2000; ((uint8_t)text[at] & 0xC0) == 0x80; at++) ;
        CHECK_OK(ft_tokenizer_encode_first(tok, text, at, FTUNE_SPECIAL_AS_TEXT, SIZE_MAX, a, &n, &n_bytes, &err), err);
        CHECK_INT(n_bytes, at);
        ids_free(&all);
    }
    if (tok) CHECK_FAILS(ft_tokenizer_encode_first(tok, "ab\xC3", 3, 0, 9, a, &n, &n_bytes, &err), err, FTUNE_ERR_UTF8, "byte 2");
    free(text);
    free(a);
    ft_tokenizer_free(tok);
}

/* Words met before give what they gave: many words of all lengths against a tokenizer that remembers nothing, as it does
 * on short texts; again in a text of their own, when all were met. */
static void test_words_met_before(const char *path)
{
    enum { WORDS = 90000, LINE = 240 };
    static const char *const alphabet[] = { "abcdefghijklmnop", "\xD0\xB0\xD0\xB1\xD0\xB2\xD0\xB3\xD0\xB4\xD0\xB5\xD0\xB6\xD0\xB7", "!!!!!!!!\"\"\"$$$",
        "\xE0\xA4\x95\xE0\xA4\xA8\xE0\xA4\xB0", "\xEA\xB0\x80\xEB\x82\x98\xEB\x8B\xA4", "\xE4\xB8\x80\xE4\xBA\x86\xE5\x9C\xA8\xE6\x98\xAF" };
    ft_tokenizer *tok = NULL, *fresh = NULL;
    ft_rng rng;
    size_t n = 0, i, k, m, at, end, n_all, n_part;
    char *text = (char *)malloc(WORDS * 50);
    int32_t *all = (int32_t *)malloc(WORDS * 50 * sizeof *all), part[LINE + 8];
    if (path) CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    if (path) CHECK_OK(ft_tokenizer_load(&fresh, path, NULL, &err), err);
    ft_rng_seed(&rng, 5);
    for (i = 0; i < WORDS; i++) {
        const char *letters = alphabet[ft_rng_below(&rng, 6)];
        size_t size = *letters < 'z' && *letters > 0 ? 1 : (uint8_t)*letters < 0xE0 ? 2 : 3, many = strlen(letters) / size;
        text[n++] = ' ';
        if (i && !ft_rng_below(&rng, 3)) {                        /* one from before */
            for (at = (size_t)ft_rng_below(&rng, n - 1); at && text[at - 1] != ' '; at--) ;
            while (text[at] != ' ') text[n++] = text[at++];
            continue;
        }
        for (k = 1 + (size_t)ft_rng_below(&rng, ft_rng_below(&rng, 4) ? 24 / size : 44 / size); k > 0; k--, n += size)
            memcpy(text + n, letters + size * (size_t)ft_rng_below(&rng, many), size);
    }
    for (int round = 0; round < 3 && tok && fresh; round++) {
        size_t step = round ? n : 3000;                           /* the memory grows; all fits in */
        int wrong = 0;
        for (at = n_all = 0; at < n; at = end) {
            for (end = at + step < n ? at + step : n; end < n && text[end] != ' '; end++) ;
            CHECK_OK(ft_tokenizer_encode(tok, text + at, end - at, FTUNE_SPECIAL_AS_TEXT, all + n_all, WORDS * 50 - n_all, &n_part, &err), err);
            n_all += n_part;
        }
        for (at = m = 0; at < n && !wrong; at = end, m += n_part) {
            for (end = k = at + 1; k <= n && k - at < LINE; k++) if (k == n || text[k] == ' ') end = k;
            CHECK_OK(ft_tokenizer_encode(fresh, text + at, end - at, FTUNE_SPECIAL_AS_TEXT, part, LINE + 8, &n_part, &err), err);
            test_passed--;
            wrong = m + n_part > n_all || !same_ids("met before", round, text + at, end - at, all + m, n_part, part, n_part);
        }
        CHECK(!wrong && m == n_all);
    }
    ft_tokenizer_free(tok);
    ft_tokenizer_free(fresh);
    free(text);
    free(all);
}

/* NFC makes two characters of U+0F75: more ids than bytes and 16. */
static void test_longer(void)
{
    enum { N = 100 };
    ft_tokenizer_options opt = ft_tokenizer_options_default();
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    char text[3 * N + 1];
    int32_t ids[6 * N];
    size_t n = 0;
    for (int i = 0; i < N; i++) memcpy(text + 3 * i, "\xE0\xBD\xB5", 4);
    opt.splitter = "qwen";
    CHECK_OK(ft_tokenizer_load(&tok, slice, &opt, &err), err);
    CHECK_INT(ft_tokenizer_encode(tok, text, 3 * N, 0, ids, 3 * N + 16, &n, NULL), FTUNE_ERR_BUFFER_TOO_SMALL);
    CHECK(n > 3 * N + 16 && n <= 6 * N);
    CHECK_OK(ft_tokenizer_encode(tok, text, 3 * N, 0, ids, n, &n, &err), err);
    ft_tokenizer_free(tok);
}

/* One id at a time: never half a character, and together the same text. */
static void test_stream(void)
{
    ft_tokenizer *tok = NULL;
    ft_stream s;
    ft_rng rng;
    char text[400], out[1024], all[2000], whole[2000];
    int32_t a[420];
    size_t n, i, k, round, n_whole;
    CHECK_OK(ft_tokenizer_load(&tok, slice, NULL, &err), err);
    if (!tok) return;
    ft_rng_seed(&rng, 3);
    for (round = 0; round < 60; round++) {
        size_t n_text = random_text(&rng, text, sizeof text);
        CHECK_OK(ft_tokenizer_encode(tok, text, n_text, 0, a, 420, &n, &err), err);
        if (round & 1) for (i = 0; i < n; i++) a[i] = ft_token_id(tok, text + ft_rng_below(&rng, n_text), 1);   /* broken on purpose */
        ft_stream_init(&s, tok, 0);
        for (i = k = 0; i <= n; i++) {
            ft_text t = i < n ? ft_stream_push(&s, a[i], out, sizeof out) : ft_stream_finish(&s, out, sizeof out);
            if (fti_utf8_valid(t.p, t.n) < t.n || k + t.n > sizeof all) break;
            memcpy(all + k, t.p, t.n);
            k += t.n;
        }
        CHECK_OK(ft_tokenizer_decode(tok, a, n, 0, whole, sizeof whole, &n_whole, &err), err);
        CHECK_MSG(i == n + 1 && k == n_whole && !memcmp(all, whole, k), "stream: round %d: %d of %d bytes", (int)round, (int)k, (int)n_whole);
    }
    ft_tokenizer_free(tok);
}

/* A million equal characters of any class take time in proportion. The bound is loose: sanitizers, busy machines. */
static void test_linear(void)
{
    static const char *const unit[] = { "a", " ", "^", "\n", "1", "中", "é", "'", "A", "<", "<|im_start|", "e\xCC\x81" };
    const char *path = test_shared("vocab/qwen/qwen.tiktoken");
    ft_tokenizer *tok = NULL;
    size_t i, k, n, size = 1000000;
    char *text = (char *)malloc(size + 16);
    CHECK_OK(ft_tokenizer_load(&tok, path ? path : slice, NULL, &err), err);
    for (i = 0; tok && i < sizeof unit / sizeof *unit; i++) {
        double t = fti_now();
        for (k = 0; k + strlen(unit[i]) <= size; k += strlen(unit[i])) memcpy(text + k, unit[i], strlen(unit[i]));
        CHECK_OK(ft_tokenizer_encode(tok, text, k, FTUNE_SPECIAL_PARSE, NULL, 0, &n, &err), err);
        t = fti_now() - t;
        CHECK_MSG(t < 5, "a megabyte of \"%s\" took %.2f s", unit[i], t);
    }
    free(text);
    ft_tokenizer_free(tok);
}

/* Train, save, load: the same ids; the same file again; and as a rank file. */
static void test_training(void)
{
    static const char *const special[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    static const char text[] = "low lower lowest new newer newest wide wider widest\nthe lowest of the new, the newest of the low 2024 2025\n"
                               "你好 你好吗 你好 aaaa aaaaaaa aaaa\n";
    const char *texts[2] = { text, text };
    size_t lengths[2] = { sizeof text - 1, sizeof text - 1 };
    ft_tokenizer_train_options o = ft_tokenizer_train_options_default();
    ft_tokenizer_options load = ft_tokenizer_options_default();
    ft_tokenizer *tok = NULL, *again = NULL, *ranks = NULL;
    char *first, *second;
    size_t n, k;
    ids a, b, c;
    o.vocab_size = 290;
    o.special = special;
    o.n_special = 3;
    CHECK_OK(ft_tokenizer_train(&tok, texts, lengths, 2, &o, &err), err);
    if (!tok) return;
    CHECK_INT(ft_tokenizer_size(tok), 290);
    CHECK_OK(ft_tokenizer_set_attribute(tok, "eos_token_id", ft_token_id(tok, "<|im_end|>", 10), &err), err);
    CHECK_OK(ft_tokenizer_save(tok, test_tmp("bpe"), &err), err);
    CHECK_OK(ft_tokenizer_load(&again, test_tmp("bpe"), NULL, &err), err);
    CHECK_OK(ft_tokenizer_save_tiktoken(tok, test_tmp("bpe.tiktoken"), &err), err);
    load.splitter = "qwen";
    CHECK_OK(ft_tokenizer_load(&ranks, test_tmp("bpe.tiktoken"), &load, &err), err);
    if (!again || !ranks) return;
    CHECK_INT(ft_tokenizer_attribute(again, "eos_token_id"), 289);
    CHECK(ft_token_is_special(again, 287));
    a = encode(tok, text, sizeof text - 1, 0);
    b = encode(again, text, sizeof text - 1, 0);
    c = encode(ranks, text, sizeof text - 1, 0);
    same_ids("saved", 1, text, 20, b.at, b.n, a.at, a.n);
    same_ids("ranks", 1, text, 20, c.at, c.n, a.at, a.n);
    CHECK(a.n < (sizeof text - 1) / 2);
    first = test_read(test_tmp("bpe/tokenizer.json"), &n);
    CHECK_OK(ft_tokenizer_save(again, test_tmp("bpe"), &err), err);
    second = test_read(test_tmp("bpe/tokenizer.json"), &k);
    CHECK(first && second && n == k && !memcmp(first, second, n));
    o.vocab_size = 258;
    ft_tokenizer_free(tok);
    CHECK_FAILS(ft_tokenizer_load(&tok, test_tmp("none"), NULL, &err), err, FTUNE_ERR_IO, "none");
    CHECK_FAILS(ft_tokenizer_train(&tok, texts, lengths, 2, &o, &err), err, FTUNE_ERR_ARGUMENT, "vocab_size");
    free(first);
    free(second);
    ids_free(&a);
    ids_free(&b);
    ids_free(&c);
    ft_tokenizer_free(again);
    ft_tokenizer_free(ranks);
}

/* A rank file has the tokens of the model: of a pair of files however merges.txt begins and ends, and without what was added. */
static void test_save_ranks(void)
{
    static const char *const merges[] = { "a b\nab c", "#version: 0.2\na b\nab c\n", "a b\r\n\r\nab c\r\n\r\n", NULL };
    char vocab[8192] = "{", json[12000];
    size_t at = 1, n;
    for (int b = 0; b < 256; b++) {
        char letter[5] = "";
        fti_utf8_encode(fti_byte_letter((unsigned)b), letter);
        at += (size_t)snprintf(vocab + at, sizeof vocab - at, "\"%s%s\": %d, ", b == '"' || b == '\\' ? "\\" : "", letter, b);
    }
    at += (size_t)snprintf(vocab + at, sizeof vocab - at, "\"ab\": 256, \"abc\": 257}");
    n = (size_t)snprintf(json, sizeof json, "{\"added_tokens\": [{\"id\": 258, \"content\": \"<t>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false,"
                         "\"normalized\": false, \"special\": false}," TEST_ADDED("259", "<s>") "],"
                         "\"pre_tokenizer\": " TEST_BYTE_LEVEL("false") ", \"decoder\": " TEST_BYTE_LEVEL("true") ","
                         "\"model\": {\"type\": \"BPE\", \"vocab\": %s, \"merges\": [\"a b\", \"ab c\"]}}", vocab);
    fti_make_directory("build/tmp/pair", NULL);
    CHECK(test_write("build/tmp/pair/vocab.json", vocab, at) && test_write("build/tmp/pair.json", json, n));
    for (int k = 0; k < 4; k++) {
        ft_tokenizer_options opt = ft_tokenizer_options_default();
        ft_tokenizer *tok = NULL, *ranks = NULL;
        ft_error err = { FTUNE_OK, "" };
        int32_t ids[4] = { 0 };
        char *text;
        int lines = 0;
        opt.splitter = "gpt2";
        if (merges[k]) CHECK(test_write("build/tmp/pair/merges.txt", merges[k], strlen(merges[k])));
        CHECK_OK(ft_tokenizer_load(&tok, merges[k] ? "build/tmp/pair" : "build/tmp/pair.json", &opt, &err), err);
        if (tok) CHECK_OK(ft_tokenizer_save_tiktoken(tok, "build/tmp/pair.tiktoken", &err), err);
        CHECK_OK(ft_tokenizer_load(&ranks, "build/tmp/pair.tiktoken", &opt, &err), err);
        if (ranks) CHECK_OK(ft_tokenizer_encode(ranks, "abcab", 5, 0, ids, 4, &n, &err), err);
        CHECK(n == 2 && ids[0] == 257 && ids[1] == 256);
        if ((text = test_read("build/tmp/pair.tiktoken", &n)) != NULL) for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
        CHECK_INT(lines, 258);
        free(text);
        ft_tokenizer_free(tok);
        ft_tokenizer_free(ranks);
    }
}

/* ---- broken files ---------------------------------------------------------------------------------------------- */

static const char *const merges_text = "#version: 0.2\nh e\nl l\nhe ll\nhell o\n";

/* Load a copy that ends where the memory ends; use what loads. */
static ft_status load_bytes(const char *data, size_t n, const char *where)
{
    ft_tokenizer_options o = ft_tokenizer_options_default();
    ft_tokenizer *tok = (ft_tokenizer *)fti_calloc(1, sizeof *tok);
    char *copy = (char *)malloc(n ? n : 1), text[256];
    size_t before = held, k;
    int32_t a[64];
    ft_status status;
    o.splitter = "qwen";
    memcpy(copy, data, n);
    peak = held;
    status = fti_load_data(tok, copy, n, where, "build/tmp/broken", &o, &err);
    CHECK_MSG(peak - before <= 4 * (n + strlen(merges_text)) + (1u << 20), "%s: %lu bytes of memory for a file of %lu", where, (unsigned long)(peak - before),
              (unsigned long)n);
    memset(copy, 0, n);                                        /* the file is gone once it is loaded */
    free(copy);
    if (!status && !ft_tokenizer_encode(tok, "hello 你好 <s> x", 18, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL, a, 64, &k, &err))
        ft_tokenizer_decode(tok, a, k, 0, text, sizeof text, &k, &err);
    if (status) CHECK_MSG(err.message[0] && err.code == status, "%s: no message", where);
    ft_tokenizer_free(tok);
    return status;
}

/* Every prefix, and every byte changed in nine ways. */
static void mutate(const char *what, const char *data, size_t n)
{
    static const char byte[] = { 0, '"', '9', (char)0xFF, '\n', ' ', '}' };
    char *copy = (char *)malloc(n);
    size_t i, k, before = held;
    for (i = 0; i < n; i++) load_bytes(data, i, what);
    memcpy(copy, data, n);
    for (i = 0; i < n; i++, copy[i - 1] = data[i - 1])
        for (k = 0; k < sizeof byte + 2; k++) {
            copy[i] = k < sizeof byte ? byte[k] : (char)(data[i] ^ (k == sizeof byte ? 1 : 0x20));
            load_bytes(copy, n, what);
        }
    CHECK_INT(held, before);
    free(copy);
}

static void test_broken(void)
{
    static const char json[] = "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"single_word\":true,\"lstrip\":true,\"rstrip\":true,"
        "\"normalized\":true,\"special\":true}],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]},\"pre_tokenizer\":{\"type\":"
        "\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true}," TEST_BYTE_LEVEL("false") "]},"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
        "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[6],\"tokens\":[\"<s>\"]}}},\"model\":{\"type\":\"BPE\",\"unk_token\":\"h\",\"vocab\":{\"h\":0,\"e\":1,\"l\":2,"
        "\"o\":3,\"he\":4,\"hel\":5},\"merges\":[\"h e\",[\"he\",\"l\"]]}}";
    static const struct { const char *file, *message; } bad[] = {
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]},\"decoder\":" TEST_BYTE_LEVEL("false") "}", "one token for each id" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]},\"decoder\":" TEST_BYTE_LEVEL("false") "}", "one id for each token" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999999},\"merges\":[]},\"decoder\":" TEST_BYTE_LEVEL("false") "}", "99999999999" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]},\"decoder\":" TEST_BYTE_LEVEL("false") "}", "merges[0]" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]},\"decoder\":" TEST_BYTE_LEVEL("false") "}", "two pieces" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":" TEST_BYTE_LEVEL("true") ",\"normalizer\":{\"type\":\"CharLevel\"}}",
          "CharLevel" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":" TEST_BYTE_LEVEL("false") ",\"pre_tokenizer\":{\"type\":\"Split\","
          "\"pattern\":{\"Regex\":\"(?~x)y\"},\"behavior\":\"Isolated\",\"invert\":false}}", "(?~x)y" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":" TEST_BYTE_LEVEL("false") ",\"added_tokens\":[" TEST_ADDED("7", "b") "]}",
          "expected id 1 (the next free one), found 7" },
        { "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":" TEST_BYTE_LEVEL("false") ",\"added_tokens\":[" TEST_ADDED("1", "a") "]}",
          "expected id 0 (its id in the vocabulary), found 1" },
        { "{\"model\":{\"type\":\"PhraseLevel\",\"vocab\":{\"a\":0}}}", "PhraseLevel" },
        { "IQ== 0\nIg== 0\n", "256" },
        { "IQ== 0\nIg= 1\n", "line 2" },
        { "IQ== 0\nIg== 99999999999\n", "line 2" },
        { "IQ== 0\n", "256" },
        { "", "empty" },
        { "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS" }
    };
    char deep[4000];
    char *data;
    size_t n, i;
    ft_status status;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        status = load_bytes(bad[i].file, strlen(bad[i].file), "bad");
        CHECK_MSG(status && strstr(err.message, bad[i].message), "bad file %d: expected \"%s\", found \"%s\"", (int)i, bad[i].message, status ? err.message : "loaded");
    }
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"model\":", 9);
    CHECK(load_bytes(deep, sizeof deep, "deep"));
    CHECK_OK(load_bytes(json, sizeof json - 1, "json"), err);
    mutate("json", json, sizeof json - 1);
    data = test_read(slice, &n);
    CHECK(data != NULL);
    if (data) mutate("ranks", data, n);
    if (data) {                                                /* every allocation may be the one that fails */
        long k;
        size_t before = held;
        for (k = 0; k < 400; k++) {
            fail_after = k;
            status = 0;
            {
                ft_tokenizer *tok = NULL;
                int32_t a[64];
                size_t m;
                status = ft_tokenizer_load(&tok, slice, NULL, &err);
                if (!status) { status = ft_tokenizer_encode(tok, "e\xCC\x81 hello", 9, 0, a, 64, &m, &err); ft_tokenizer_free(tok); }
            }
            fail_after = -1;
            if (!status) break;
        }
        CHECK_MSG(k > 5 && k < 400, "allocations before success: %ld", k);
        CHECK_INT(held, before);
    }
    free(data);
}

static void test_broken_pair(void)
{
    static const char vocab[] = "{\"h\":0,\"e\":1,\"l\":2,\"o\":3,\"he\":4,\"ll\":5,\"hell\":6,\"hello\":7}";
    char copy[200];
    size_t i, k, n = strlen(merges_text), before = held;
    fti_make_directory("build/tmp/broken", &err);
    for (i = 0; i < n; i++)
        for (k = 0; k < 7; k++) {                              /* the last one: the prefix that ends here */
            memcpy(copy, merges_text, n);
            copy[i] = k < 5 ? " \nx\xFF\0"[k] : (char)(copy[i] ^ 1);
            test_write("build/tmp/broken/merges.txt", copy, k == 6 ? i : n);
            load_bytes(vocab, sizeof vocab - 1, "merges.txt");
        }
    test_write("build/tmp/broken/merges.txt", merges_text, n);
    CHECK_OK(load_bytes(vocab, sizeof vocab - 1, "pair"), err);
    mutate("vocab.json", vocab, sizeof vocab - 1);
    CHECK_INT(held, before);
}

/* tokenizer_config.json beside a rank file and beside a vocab.txt: every prefix of it and every byte changed. */
static void test_broken_config(void)
{
    static const char config[] = "{\"added_tokens_decoder\":{\"151643\":{\"content\":\"<|endoftext|>\",\"special\":true},\"151644\":"
        "{\"content\":\"<s>\",\"lstrip\":true,\"normalized\":false}},\"bos_token\":null,\"eos_token\":\"<s>\",\"add_eos_token\":true,"
        "\"pad_token\":{\"content\":\"<|endoftext|>\"},\"unk_token\":\"[UNK]\",\"do_lower_case\":false,\"strip_accents\":null}";
    static const char words[] = "[UNK]\nhello\n<s>\n<|endoftext|>\n", byte[] = { 0, '"', '9', (char)0xFF, '}', '\\' };
    const char *path = "build/tmp/broken/tokenizer_config.json";
    size_t i, k, n, before = held;
    char *ranks = test_read(slice, &n);
    int fd;
    fti_make_directory("build/tmp/broken", &err);
    CHECK(test_write(path, config, sizeof config - 1));
    fd = open(path, O_RDWR);
    CHECK(ranks && fd >= 0);
    if (ranks && fd >= 0) {
        CHECK_OK(load_bytes(ranks, n, "ranks and config"), err);
        for (i = 0; i < sizeof config - 1; i++) {
            for (k = 0; k < sizeof byte + 2; k++) {
                char c = k < sizeof byte ? byte[k] : (char)(config[i] ^ (k == sizeof byte ? 1 : 0x80));
                CHECK(pwrite(fd, &c, 1, (off_t)i) == 1);
                load_bytes(ranks, n, "ranks and a broken config");
                load_bytes(words, sizeof words - 1, "vocab.txt and a broken config");
            }
            CHECK(pwrite(fd, config + i, 1, (off_t)i) == 1);
        }
        for (i = sizeof config - 1; i-- > 0; ) {
            CHECK(ftruncate(fd, (off_t)i) == 0);
            load_bytes(ranks, n, "ranks and part of a config");
            load_bytes(words, sizeof words - 1, "vocab.txt and part of a config");
        }
    }
    if (fd >= 0) close(fd);
    remove(path);
    CHECK_INT(held, before);
    free(ranks);
}

int main(void)
{
    article(slice);
    article(test_shared("vocab/qwen/qwen.tiktoken"));
    test_special();
    test_longer();
    test_bytes();
    test_against_simple(slice);
    test_against_simple(test_shared("vocab/cl100k_base/cl100k_base.tiktoken"));
    test_against_simple(test_shared("vocab/kimi-k2/tiktoken.model"));
    test_against_simple(test_shared("vocab/llama3/tokenizer.model"));
    test_against_simple(test_shared("vocab/o200k_base/o200k_base.tiktoken"));
    test_against_simple(test_shared("vocab/qwen/qwen.tiktoken"));
    test_made_ranks();
    test_words_met_before(slice);
    test_words_met_before(test_shared("vocab/qwen2/tokenizer.qwen3.json"));
    test_words_met_before(test_shared("vocab/o200k_base/o200k_base.tiktoken"));
    test_threads_and_first(slice);
    test_threads_and_first(test_shared("vocab/qwen2/tokenizer.qwen3.json"));
    test_threads_and_first(test_shared("vocab/kimi-k2/tiktoken.model"));
    test_threads_and_first(test_shared("vocab/gpt2/vocab.json"));
    test_stream();
    test_linear();
    test_training();
    test_save_ranks();
    test_broken_pair();
    test_broken_config();
    test_broken();
    llama_cpp("vocab/gpt2/vocab.json", "gpt-2");
    llama_cpp("vocab/qwen2/tokenizer.qwen3.json", "qwen2");
    llama_cpp("vocab/llama3/tokenizer.model", "llama-bpe");
    llama_cpp("vocab/roberta-base", "roberta-bpe");
    test_golden();
    return test_end();
}
