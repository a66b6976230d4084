/* fuzz.c - libFuzzer on every reader: whatever the bytes, no crash, no leak, no hang, one clear error.
 * run.sh compiles it once per target, with -DFUZZ_TARGET=fuzz_json and so on. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"

/* An error must have a code and a message; success must have neither claim. */
static void judge(ft_status st, const ft_error *err)
{
    if (st != FTUNE_OK && (err->code != st || !err->message[0])) __builtin_trap();
}

/* Readers open files: the bytes go to build/fuzz/NAME.PID/file. */
static const char *as_file(const char *file, const uint8_t *data, size_t n)
{
    static char path[512];
    char dir[400];
    FILE *f;
    snprintf(dir, sizeof dir, "build/fuzz/tmp.%ld", (long)getpid());
    mkdir("build", 0777); mkdir("build/fuzz", 0777); mkdir(dir, 0777);
    snprintf(path, sizeof path, "%s/%s", dir, file);
    if ((f = fopen(path, "wb")) != NULL) { fwrite(data, 1, n, f); fclose(f); }
    return path;
}

static void use_tokenizer(ft_tokenizer *tok)
{
    static const char text[] = "Hello <|im_end|> w\xc3\xb6rld, \xe6\x9d\xad\xe5\xb7\x9e 123\n\n  [CLS] \xff end";
    int32_t ids[256];
    char out[4096];
    size_t n = 0, m = 0;
    ft_error err = { FTUNE_OK, "" };
    for (unsigned special = 0; special < 8; special++)
        if (ft_tokenizer_encode(tok, text, sizeof text - 1, special, ids, 256, &n, &err) == FTUNE_OK && n <= 256)
            ft_tokenizer_decode(tok, ids, n, 0, out, sizeof out, &m, &err);
}
static void load_tokenizer(const char *file, const uint8_t *data, size_t n, const char *splitter)
{
    ft_error err = { FTUNE_OK, "" };
    ft_tokenizer *tok = NULL;
    ft_tokenizer_options opt = ft_tokenizer_options_default();
    opt.splitter = splitter;
    ft_status st = ft_tokenizer_load(&tok, as_file(file, data, n), &opt, &err);
    judge(st, &err);
    if (st == FTUNE_OK) use_tokenizer(tok);
    ft_tokenizer_free(tok);
}
void fuzz_tokenizer_json(const uint8_t *data, size_t n) { load_tokenizer("tokenizer.json", data, n, NULL); }
void fuzz_rank_file(const uint8_t *data, size_t n)      { load_tokenizer("some.tiktoken", data, n, "qwen"); }
void fuzz_vocab_txt(const uint8_t *data, size_t n)      { load_tokenizer("vocab.txt", data, n, NULL); }
void fuzz_sentencepiece(const uint8_t *data, size_t n)  { load_tokenizer("tokenizer.model", data, n, NULL); }

void fuzz_encode(const uint8_t *data, size_t n)         /* any bytes as text, through a real vocabulary */
{
    static ft_tokenizer *tok;
    static ft_tokenizer_options opt;
    ft_error err = { FTUNE_OK, "" };
    int32_t *ids = (int32_t *)malloc((n + 16) * sizeof *ids);
    size_t m = 0;
    opt = ft_tokenizer_options_default(); opt.splitter = "qwen";
    if (!tok && ft_tokenizer_load(&tok, "tests/data/qwen_slice.tiktoken", &opt, &err)) __builtin_trap();
    if (ids) {
        ft_status st = ft_tokenizer_encode(tok, (const char *)data, n, FTUNE_SPECIAL_PARSE, ids, n + 16, &m, &err);
        judge(st, &err);
        fti_buf normal = { 0 };                                /* at most one id for each byte of what is encoded */
        if (!fti_is_nfc((const char *)data, n) && fti_normalize(FTI_NFC, (const char *)data, n, &normal, NULL) && normal.n > n) n = normal.n;
        fti_buf_free(&normal);
        if (m > n + 16) __builtin_trap();
    }
    free(ids);
}

void fuzz_regex(const uint8_t *data, size_t n)          /* an expression, a 0 byte, a text */
{
    ft_error err = { FTUNE_OK, "" };
    const uint8_t *zero = n ? (const uint8_t *)memchr(data, 0, n) : NULL;
    const char *text = zero ? (const char *)zero + 1 : "It's 12 \xc3\x9f s\xc5\xbf\r\n \xe6\x9d\xad";
    size_t m = zero ? fti_utf8_valid(text, n - (size_t)(zero - data) - 1) : strlen(text), last = 0;
    fti_regex *re = NULL;
    fti_search s;
    ft_span x;
    memset(&s, 0, sizeof s);
    if (m > 200) m = fti_utf8_valid(text, 200);
    ft_status st = fti_regex_new(&re, (const char *)data, zero ? (size_t)(zero - data) : n, "fuzz", &err);
    judge(st, &err);
    if (st) return;
    fti_search_begin(&s, re, text, m);
    while (fti_search_next(&s, &x) > 0) {
        if (x.begin > x.end || x.end > m || x.begin < last) __builtin_trap();
        last = x.end;
    }
    fti_search_free(&s);
    fti_regex_free(re);
}

void fuzz_json(const uint8_t *data, size_t n)
{
    ft_error err = { FTUNE_OK, "" };
    fti_json j;
    fti_arena a = { NULL };
    memset(&j, 0, sizeof j);
    ft_status st = fti_json_parse(&j, (const char *)data, n, "fuzz.json", &err);
    judge(st, &err);
    for (int i = 0; st == FTUNE_OK && i < j.n_nodes && i < 1000; i++) { fti_json_text(&j, i, &a); fti_json_int(&j, i, 0); fti_json_line(&j, i); }
    fti_json_free(&j);
    fti_arena_free(&a);
}
void fuzz_row(const uint8_t *data, size_t n)            /* a row of a data set, all the way to labels */
{
    static const char *const names[] = { "qwen", "chatml", "llama", "chatglm3", "default-generation" };
    ft_error err = { FTUNE_OK, "" };
    ft_row_parser *p = NULL;
    ft_row row;
    ft_tokenizer *tok = NULL;
    ft_sample s;
    memset(&s, 0, sizeof s);
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err) || ft_row_parser_new(&p, &err)) __builtin_trap();
    ft_status st = ft_row_parse(p, (const char *)data, n, "fuzz.jsonl:1", &row, &err);
    judge(st, &err);
    for (int i = 0; st == FTUNE_OK && i < 10; i++) {
        ft_chat_options opt = ft_chat_options_default();
        opt.template_name = names[i % 5]; opt.swift = i < 5 ? 2 : 3; opt.max_length = i & 1 ? 50 : 0;
        opt.truncation = (ft_truncation)(i % 3);
        ft_status encoded = ft_row_encode(&s, tok, &row, &opt, &err);
        judge(encoded, &err);
        for (int t = 0; encoded == FTUNE_OK && s.labels && !s.dropped && t < s.n; t++)
            if (s.labels[t] != FTUNE_IGNORE_INDEX && s.labels[t] != s.input_ids[t]) __builtin_trap();
    }
    ft_sample_free(&s); ft_row_parser_free(p); ft_tokenizer_free(tok);
}
void fuzz_dataset(const uint8_t *data, size_t n)
{
    ft_error err = { FTUNE_OK, "" };
    ft_tokenizer *tok = NULL;
    ft_dataset d;
    ft_chat_options opt = ft_chat_options_default();
    memset(&d, 0, sizeof d);
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err)) __builtin_trap();
    judge(ft_dataset_load(&d, as_file("rows.jsonl", data, n), tok, &opt, 0, &err), &err);
    ft_dataset_free(&d); ft_tokenizer_free(tok);
}
void fuzz_safetensors(const uint8_t *data, size_t n)
{
    ft_error err = { FTUNE_OK, "" };
    ft_weights *w = NULL;
    float x[64];
    ft_status st = ft_weights_open(&w, as_file("model.safetensors", data, n), &err);
    judge(st, &err);
    for (int i = 0; st == FTUNE_OK && i < ft_weights_count(w); i++)
        if (ft_tensor_count(ft_weights_at(w, i)) <= 64) ft_tensor_to_f32(ft_weights_at(w, i), x, &err);
    ft_weights_close(w);
}
void fuzz_config(const uint8_t *data, size_t n)
{
    ft_error err = { FTUNE_OK, "" };
    ft_config c;
    judge(ft_config_load(&c, as_file("config.json", data, n), &err), &err);
}
void fuzz_adapter_config(const uint8_t *data, size_t n)
{
    ft_error err = { FTUNE_OK, "" };
    ft_lora_config c;
    char *slash, dir[512];
    snprintf(dir, sizeof dir, "%s", as_file("adapter_config.json", data, n));
    if ((slash = strrchr(dir, '/')) != NULL) *slash = 0;
    judge(ft_lora_config_load(&c, dir, &err), &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) { FUZZ_TARGET(data, n); return 0; }
