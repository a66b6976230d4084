/* ftune.c - the whole library at the command line
 *
 * Every command is a short function over the public API: find the one you need in your own program and copy it.
 * Rows are JSON, one per line ("-" or no file is standard input). Results go to standard output, everything else to
 * standard error. Exit status: 0 all well, 1 some input was refused (one line each), 2 wrong usage.
 *
 * Build:  cc -O3 -march=native -fopenmp -I. examples/ftune.c -o ftune -lm        (or: make build/ftune)
 * Run:    ./ftune                       what there is
 *         ./ftune COMMAND --help        the options of one command
 *
 * How it is laid out: options, small helpers, reading rows, the session (model + tokenizer + template), then the
 * commands in the order data flows. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- options ------------------------------------------------------------------------------------------------- */

typedef struct options {
    const char *tokenizer, *splitter, *special, *template_name, *system, *truncation, *loss_scale;
    const char *model, *adapter, *config, *data, *eval, *out, *target_modules, *freeze, *quant, *schedule;
    const char *backend, *dtype, *prompt, *special_tokens, *color, *format;
    int add_special, skip_special, no_chat_template, html, full, resume, strict, json, help, rslora;
    long long threads, lowercase, swift, max_length, vocab_size, min_frequency, seed, lora_r, batch, accumulate, epochs;
    long long steps, packing, save_every, log_every, max_new_tokens, top_k;
    double lora_alpha, lora_dropout, lr, warmup, weight_decay, max_grad_norm, temperature, top_p, repetition_penalty;
    const char **files; int n_files;
    int colour;                         /* --color decided */
} options;

enum { TOK = 1, CHAT = 2, MODEL = 4, TRAIN = 8, GEN = 16, OUT = 32, SEED = 64, ALL = 128, TOKENIZE = 256, DETOK = 512,
       LEARN = 1024, SHOW = 2048, SCALE = 4096, CONFIG = 8192, PLAN = 16384, ADAPTER = 32768, DTYPE = 65536,
       EXPORT = 131072, GRADS = 262144, JSON = 524288 };      /* which commands an option belongs to */
typedef enum { FLAG, INT, REAL, TEXT } kind;
typedef struct option { const char *name, *value; int groups; kind kind; size_t at; const char *help; } option;

#define AT(field) offsetof(options, field)
static const option OPTIONS[] = {
    { "--tokenizer", "PATH", TOK | MODEL, TEXT, AT(tokenizer), "tokenizer file or model directory; bytes: the byte tokenizer" },
    { "--splitter", "gpt2|cl100k|qwen|o200k|llama3|kimi", TOK | MODEL | LEARN, TEXT, AT(splitter), "how a rank file splits text" },
    { "--lowercase", "0|1", TOK, INT, AT(lowercase), "for vocab.txt; else decided from the vocabulary" },
    { "--special", "text|parse", TOKENIZE | CHAT, TEXT, AT(special), "control tokens spelled in content stay text, or are parsed" },
    { "--add-special", NULL, TOKENIZE, FLAG, AT(add_special), "add what the tokenizer puts around a sentence" },
    { "--skip-special", NULL, DETOK, FLAG, AT(skip_special), "leave control tokens out" },
    { "--vocab-size", "N", LEARN, INT, AT(vocab_size), "256 bytes + merges + special tokens" },
    { "--min-frequency", "N", LEARN, INT, AT(min_frequency), "a pair seen less often is not merged" },
    { "--special", "A,B", LEARN, TEXT, AT(special_tokens), "control tokens; the first is end of text and padding" },
    { "--model", "DIR", MODEL | PLAN, TEXT, AT(model), "model directory: config.json, *.safetensors, tokenizer" },
    { "--config", "FILE", CONFIG | PLAN, TEXT, AT(config), "config.json" },
    { "--adapter", "DIR", ADAPTER, TEXT, AT(adapter), "LoRA adapter directory (PEFT)" },
    { "--data", "FILE", TRAIN, TEXT, AT(data), "data set: .jsonl, .json or .txt" },
    { "--eval", "FILE", TRAIN, TEXT, AT(eval), "held-out data set, evaluated at the end" },
    { "--out", "PATH", OUT | TRAIN | LEARN, TEXT, AT(out), "where the result is written" },
    { "--template", "NAME", CHAT, TEXT, AT(template_name), "chat template; ftune templates lists them" },
    { "--swift", "2|3", CHAT, INT, AT(swift), "rules of ms-swift 2.0.5, or of the newest" },
    { "--system", "S", CHAT, TEXT, AT(system), "default system text; \"\": none" },
    { "--max-length", "N", CHAT | PLAN, INT, AT(max_length), "longest row in tokens; 0: no limit" },
    { "--truncation", "delete|left|right", CHAT, TEXT, AT(truncation), "a longer row is dropped, or keeps its end, or its beginning" },
    { "--loss-scale", "NAME", CHAT, TEXT, AT(loss_scale), "default, last_round, all, ...; with --swift 2: agent" },
    { "--no-chat-template", NULL, CHAT, FLAG, AT(no_chat_template), "plain text, for pre-training" },
    { "--html", NULL, SHOW, FLAG, AT(html), "a self-contained page" },
    { "--color", "auto|always|never", SHOW, TEXT, AT(color), "colour; auto: when a terminal is read" },
    { "--lora-r", "N", TRAIN | PLAN, INT, AT(lora_r), "rank of the adapter" },
    { "--lora-alpha", "X", TRAIN | PLAN, REAL, AT(lora_alpha), "scaling = alpha / rank" },
    { "--lora-dropout", "X", TRAIN | PLAN, REAL, AT(lora_dropout), "share of inputs the adapter does not see" },
    { "--rslora", NULL, TRAIN | PLAN, FLAG, AT(rslora), "scaling = alpha / sqrt(rank)" },
    { "--target-modules", "A,B", TRAIN | PLAN, TEXT, AT(target_modules), "which projections; all-linear: all but lm_head" },
    { "--full", NULL, TRAIN | PLAN | GRADS, FLAG, AT(full), "train every weight, no adapter" },
    { "--freeze", "A,B", TRAIN | PLAN, TEXT, AT(freeze), "(not in this version)" },
    { "--quant", "nf4|int8|none", TRAIN | PLAN, TEXT, AT(quant), "(nf4 and int8: not in this version)" },
    { "--batch", "N", TRAIN | PLAN, INT, AT(batch), "rows of one forward pass" },
    { "--accumulate", "N", TRAIN | PLAN, INT, AT(accumulate), "forward passes of one update" },
    { "--packing", "N", TRAIN | PLAN, INT, AT(packing), "fill sequences of N tokens; --batch then counts those" },
    { "--epochs", "N", TRAIN | PLAN, INT, AT(epochs), "times through the data" },
    { "--steps", "N", TRAIN | PLAN, INT, AT(steps), "updates; wins over --epochs" },
    { "--lr", "X", TRAIN | PLAN, REAL, AT(lr), "learning rate" },
    { "--schedule", "cosine|linear|constant", TRAIN | PLAN, TEXT, AT(schedule), "how the learning rate falls" },
    { "--warmup", "X", TRAIN | PLAN, REAL, AT(warmup), "below 1: share of all updates, else how many" },
    { "--weight-decay", "X", TRAIN | PLAN, REAL, AT(weight_decay), "AdamW's; spares biases and norms" },
    { "--max-grad-norm", "X", TRAIN | PLAN, REAL, AT(max_grad_norm), "clip the gradient; 0: never" },
    { "--resume", NULL, TRAIN, FLAG, AT(resume), "go on from the newest checkpoint in --out" },
    { "--save-every", "N", TRAIN, INT, AT(save_every), "a checkpoint each N updates; 0: only at the end" },
    { "--log-every", "N", TRAIN, INT, AT(log_every), "a progress line each N updates" },
    { "--strict", NULL, TRAIN, FLAG, AT(strict), "the first refused row ends the run" },
    { "--prompt", "S", GEN, TEXT, AT(prompt), "what to answer; without it prompts are read, one per line" },
    { "--max-new-tokens", "N", GEN, INT, AT(max_new_tokens), "longest answer" },
    { "--temperature", "X", GEN, REAL, AT(temperature), "0: always the likeliest token" },
    { "--top-k", "N", GEN, INT, AT(top_k), "choose among the N likeliest; 0: all" },
    { "--top-p", "X", GEN, REAL, AT(top_p), "choose among the likeliest that together have this share" },
    { "--repetition-penalty", "X", GEN, REAL, AT(repetition_penalty), "above 1: repeat less" },
    { "--seed", "N", SEED | TRAIN | GEN, INT, AT(seed), "of every random choice" },
    { "--json", NULL, JSON, FLAG, AT(json), "the result as JSON" },
    { "--format", "gguf|ollama", EXPORT, TEXT, AT(format), "(not in this version)" },
    { "--backend", "cpu|cuda", MODEL, TEXT, AT(backend), "where the numbers are computed" },
    { "--dtype", "f32|bf16", MODEL | DTYPE, TEXT, AT(dtype), "of the computation; for init and merge: of the written file" },
    { "--threads", "N", ALL, INT, AT(threads), "0: all cores" },
    { "--help", NULL, ALL, FLAG, AT(help), "this page" },
};
enum { N_OPTIONS = sizeof OPTIONS / sizeof OPTIONS[0] };

typedef struct command {
    const char *name, *arguments, *help; int groups; int (*run)(const options *o);
} command;

/* Defaults are the library's own. */
static options options_default(void)
{
    options o;
    ft_train_options    t = ft_train_options_default();
    ft_generate_options g = ft_generate_options_default();
    static ft_lora_config l;            /* static: target_modules points into it */
    l = ft_lora_config_default();
    memset(&o, 0, sizeof o);
    o.lowercase = -1; o.swift = 3; o.seed = (long long)t.seed; o.vocab_size = 0;
    o.min_frequency = ft_tokenizer_train_options_default().min_frequency;
    o.special_tokens = "<|endoftext|>,<|im_start|>,<|im_end|>";
    o.lora_r = l.r; o.lora_alpha = l.lora_alpha; o.lora_dropout = l.lora_dropout; o.target_modules = l.target_modules;
    o.batch = t.batch; o.accumulate = t.accumulate; o.epochs = t.epochs; o.steps = t.steps; o.lr = t.lr;
    o.warmup = t.warmup; o.weight_decay = t.weight_decay; o.max_grad_norm = t.max_grad_norm;
    o.save_every = t.save_every; o.log_every = t.log_every; o.max_length = -1;
    o.max_new_tokens = g.max_new_tokens; o.temperature = g.temperature; o.top_k = g.top_k; o.top_p = g.top_p;
    o.repetition_penalty = g.repetition_penalty;
    return o;
}

static int say(const char *format, ...)         /* one line on standard error; returns 2, wrong usage */
{
    va_list ap;
    va_start(ap, format);
    fputs("ftune: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    return 2;
}

static int fail(const ft_error *err) { say("%s", err->message); return 1; }

/* Which of "a|b|c" a value is; -1: none. */
static int choice(const char *value, const char *choices)
{
    size_t n = strlen(value);
    for (int i = 0; ; i++) {
        size_t m = strcspn(choices, "|");
        if (m == n && memcmp(choices, value, n) == 0) return i;
        if (!choices[m]) return -1;
        choices += m + 1;
    }
}

static int read_value(options *o, const option *d, const char *value)
{
    char *end = NULL;
    void *field = (char *)o + d->at;
    errno = 0;
    if (strchr(d->value, '|') && choice(value, d->value) < 0)
        return say("%s: expected %s, found \"%s\"", d->name, d->value, value);
    if (d->kind == TEXT) *(const char **)field = value;
    if (d->kind == INT)  *(long long *)field = strtoll(value, &end, 10);
    if (d->kind == REAL) *(double *)field = strtod(value, &end);
    if (end && (end == value || *end || errno || (d->kind == REAL && !isfinite(*(double *)field))))
        return say("%s: expected a number, found \"%s\"", d->name, value);
    if (d->kind == INT && (*(long long *)field < (d->at == AT(max_length) ? -1 : 0) || (*(long long *)field > INT32_MAX && d->at != AT(seed))))
        return say("%s: expected 0 to %d, found \"%s\"", d->name, INT32_MAX, value);
    return 0;
}

/* Fill o from the words behind the command. Words without -- are files. */
static int read_options(options *o, const command *c, int n, char **words)
{
    for (int i = 0; i < n; i++) {
        const char *word = words[i], *equals = strchr(word, '=');
        size_t      len  = equals ? (size_t)(equals - word) : strlen(word);
        const option *d = OPTIONS, *end = OPTIONS + N_OPTIONS;
        if (word[0] != '-' || !word[1]) { o->files[o->n_files++] = word; continue; }
        if (strcmp(word, "-h") == 0) { o->help = 1; continue; }
        while (d < end && !(d->groups & (c->groups | ALL) && strlen(d->name) == len && memcmp(d->name, word, len) == 0)) d++;
        if (d == end)
            return say("%s has no option %.*s; ftune %s --help lists them", c->name, (int)len, word, c->name);
        if (d->kind == FLAG) {
            if (equals) return say("%s takes no value", d->name);
            *(int *)((char *)o + d->at) = 1;
        } else {
            if (!equals && i + 1 == n) return say("%s: expected %s behind it", d->name, d->value);
            if (read_value(o, d, equals ? equals + 1 : words[++i])) return 2;
        }
    }
    return 0;
}

static int help(const command *c)
{
    options o = options_default();
    printf("ftune %s %s\n%s\n\n", c->name, c->arguments, c->help);
    for (int i = 0; i < N_OPTIONS; i++) {
        const option *d = &OPTIONS[i];
        const void   *field = (const char *)&o + d->at;
        char left[80];
        if (!(d->groups & (c->groups | ALL))) continue;
        snprintf(left, sizeof left, "%s %s", d->name, d->value ? d->value : "");
        printf("  %-34s %s", left, d->help);
        if (d->kind == INT && *(const long long *)field > 0) printf(" [%lld]", *(const long long *)field);
        if (d->kind == REAL) printf(" [%g]", *(const double *)field);
        if (d->kind == TEXT && *(const char *const *)field) printf(" [%s]", *(const char *const *)field);
        putchar('\n');
    }
    return 0;
}

/* A missing option is wrong usage. */
static int need(const char *value, const char *what) { return value ? 0 : say("expected %s (see --help)", what); }

/* What the contract names and this version does not have. */
static int unsupported(const options *o)
{
    if (o->quant && strcmp(o->quant, "none") != 0) return say("--quant %s: not in this version; use none", o->quant);
    if (o->freeze) return say("--freeze: not in this version; use --full or an adapter");
#ifndef FTUNE_CUDA
    if (o->backend && strcmp(o->backend, "cuda") == 0)
        return say("--backend cuda: this program was built without it (FTUNE_CUDA and ftune_cuda.cu); use cpu");
#endif
    return 0;
}

/* ---- small helpers ------------------------------------------------------------------------------------------- */

/* Make *p hold at least n elements. */
static int grow(void *p, size_t *cap, size_t n, size_t size)
{
    void *bigger, **place = (void **)p;
    if (n <= *cap) return 1;
    if (n < *cap * 2) n = *cap * 2;
    if (n > SIZE_MAX / size || !(bigger = realloc(*place, n * size))) return 0;
    *place = bigger; *cap = n;
    return 1;
}

static ft_status refuse(ft_error *err, ft_status code, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    err->code = code;
    vsnprintf(err->message, sizeof err->message, format, ap);
    va_end(ap);
    return code;
}

static ft_status no_memory(ft_error *err) { return refuse(err, FTUNE_ERR_NO_MEMORY, "out of memory"); }

/* A stream to its end, 0-terminated; the caller frees it. */
static char *read_stream(FILE *f, char *p, size_t n, size_t *n_out)
{
    size_t cap = n, got;
    do {
        if (!grow(&p, &cap, n + 65537, 1)) { free(p); return NULL; }
        n += got = fread(p + n, 1, cap - n - 1, f);
    } while (got);
    p[n] = 0; *n_out = n;
    return p;
}

static char *read_file(const char *path, size_t *n, ft_error *err)
{
    FILE *f = fopen(path, "rb");
    char *p = f ? read_stream(f, NULL, 0, n) : NULL;
    if (!f) refuse(err, FTUNE_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    else if (!p) no_memory(err);
    else if (ferror(f)) { refuse(err, FTUNE_ERR_IO, "%s: cannot read: %s", path, strerror(errno)); free(p); p = NULL; }
    if (f) fclose(f);
    return p;
}

/* The old file or the new one, never half of either. */
static ft_status write_file(const char *path, const char *data, size_t n, ft_error *err)
{
    char  temporary[4096];
    FILE *f;
    int   ok;
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    f  = fopen(temporary, "wb");
    ok = f && fwrite(data, 1, n, f) == n && fflush(f) == 0 && fsync(fileno(f)) == 0;
    if (f && fclose(f) != 0) ok = 0;
    if (!ok || rename(temporary, path) != 0)
        return refuse(err, FTUNE_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
    return FTUNE_OK;
}

/* Bytes of the UTF-8 character at p, 0 when there is none; *cp is its code point. */
static int character(const char *p, size_t n, uint32_t *cp)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    unsigned char c = n ? (unsigned char)p[0] : 0xff;
    int len = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    if (!len || (size_t)len > n) return 0;
    *cp = len == 1 ? c : c & (0xff >> (len + 1));
    for (int i = 1; i < len; i++) {
        if (((unsigned char)p[i] & 0xc0) != 0x80) return 0;
        *cp = *cp << 6 | ((unsigned char)p[i] & 0x3f);
    }
    return *cp < least[len] || *cp > 0x10ffff || (*cp >= 0xd800 && *cp < 0xe000) ? 0 : len;
}

/* A JSON string. What some readers take for a line end is escaped too; bytes that are not UTF-8 become U+FFFD. */
static void put_json(FILE *f, const char *p, size_t n)
{
    putc('"', f);
    for (size_t i = 0; i < n; ) {
        uint32_t cp = 0;
        int len = character(p + i, n - i, &cp);
        if (!len)                             fputs("\xef\xbf\xbd", f);
        else if (cp == '"' || cp == '\\')     fprintf(f, "\\%c", (char)cp);
        else if (cp == '\n')                  fputs("\\n", f);
        else if (cp < 0x20 || cp == 0x7f || cp == 0x85 || cp == 0x2028 || cp == 0x2029) fprintf(f, "\\u%04x", (unsigned)cp);
        else                                  fwrite(p + i, 1, (size_t)len, f);
        i += len ? (size_t)len : 1;
    }
    putc('"', f);
}

static void put_ids(FILE *f, const int32_t *ids, size_t n)
{
    putc('[', f);
    for (size_t i = 0; i < n; i++) fprintf(f, i ? ",%d" : "%d", (int)ids[i]);
    putc(']', f);
}

/* Readable form of a text: control characters and stray bytes as escapes, spaces as a dot. Returns its width in columns. */
static int visible(char *out, size_t cap, ft_text t)
{
    int width = 0;
    size_t n = 0;
    out[0] = 0;
    for (size_t i = 0; i < t.n && n + 8 < cap; ) {
        uint32_t cp = 0;
        int len = character(t.p + i, t.n - i, &cp), wrote;
        if (!len || cp < 0x20 || cp == 0x7f) {
            const char *e = !len ? NULL : cp == '\n' ? "\\n" : cp == '\t' ? "\\t" : cp == '\r' ? "\\r" : NULL;
            wrote = e ? sprintf(out + n, "%s", e) : sprintf(out + n, "<%02x>", (unsigned char)t.p[i]);
            width += wrote;
        } else if (cp == ' ') {
            wrote = sprintf(out + n, "\xc2\xb7");
            width++;
        } else {
            int wide = cp >= 0x1100 && (cp < 0x1160 || (cp >= 0x2e80 && cp < 0xa4d0) || (cp >= 0xac00 && cp < 0xd7a4)
                       || (cp >= 0xf900 && cp < 0xfb00) || (cp >= 0xfe30 && cp < 0xfe70) || (cp >= 0xff01 && cp < 0xff61)
                       || (cp >= 0x1f300 && cp < 0x1faff) || (cp >= 0x20000 && cp < 0x40000));
            int none = (cp >= 0x300 && cp < 0x370) || cp == 0x200d || (cp >= 0xfe00 && cp < 0xfe10);
            memcpy(out + n, t.p + i, (size_t)len);
            wrote = len;
            width += none ? 0 : 1 + wide;
        }
        n += (size_t)wrote; out[n] = 0;
        i += len ? (size_t)len : 1;
    }
    return width;
}

/* ---- reading rows -------------------------------------------------------------------------------------------- */

/* Called for each row; where is "file:line". What it refuses is reported, and the rows go on. */
typedef ft_status (*row_fn)(void *user, ft_text row, const char *where, ft_error *err);

static void report(const char *where, const ft_error *err)
{
    int named = strncmp(err->message, where, strlen(where)) == 0;
    fprintf(stderr, "%s%s%s\n", named ? "" : where, named ? "" : ": ", err->message);
}

static ft_status call_row(row_fn fn, void *user, ft_text row, const char *where, int *refused)
{
    ft_error  err = { FTUNE_OK, "" };
    ft_status st  = fn(user, row, where, &err);
    if (st) { report(where, &err); *refused += 1; }
    return st == FTUNE_ERR_NO_MEMORY ? st : FTUNE_OK;
}

/* A .json file is one array: it is read whole. */
static ft_status rows_of_array(char *text, size_t n, const char *name, row_fn fn, void *user, int *refused)
{
    ft_error  err = { FTUNE_OK, "" };
    ft_json  *j   = NULL;
    ft_status st  = ft_json_parse(&j, text, n, name, &err);
    if (st) { report(name, &err); *refused += 1; }
    for (int row = j ? ft_json_child(j, 0) : -1; row >= 0 && !st; row = ft_json_next(j, row)) {
        char where[4200];
        snprintf(where, sizeof where, "%s:%d", name, ft_json_line(j, row));
        st = call_row(fn, user, ft_json_raw(j, row), where, refused);
    }
    ft_json_free(j);
    return st;
}

static void rows_of_file(const char *path, row_fn fn, void *user, int *refused)
{
    int         in   = strcmp(path, "-") == 0;
    const char *name = in ? "stdin" : path;
    FILE       *f    = in ? stdin : fopen(path, "rb");
    char       *line = NULL, where[4200];
    size_t      cap  = 0;
    ssize_t     n;
    struct stat info;
    int         live = f && fstat(fileno(f), &info) == 0 && !S_ISREG(info.st_mode);   /* someone may wait for each answer */
    if (!f) { say("%s: cannot open: %s", path, strerror(errno)); *refused += 1; return; }
    for (long number = 1; (n = getline(&line, &cap, f)) >= 0; number++) {
        ft_text row = { line, (size_t)n };
        if (number == 1 && row.n >= 3 && memcmp(row.p, "\xef\xbb\xbf", 3) == 0) row.p += 3, row.n -= 3;
        while (row.n && strchr(" \t\r\n", row.p[row.n - 1]) && row.p[row.n - 1]) row.n--;
        if (number == 1 && row.n && row.p[0] == '[') {
            char *whole = read_stream(f, line, (size_t)n, &cap);
            line = whole;
            if (whole) rows_of_array(whole + (row.p - line), cap - (size_t)(row.p - line), name, fn, user, refused);
            else { say("out of memory"); *refused += 1; }
            break;
        }
        if (!row.n) continue;
        snprintf(where, sizeof where, "%s:%ld", name, number);
        if (call_row(fn, user, row, where, refused)) break;
        if (live) fflush(stdout);
    }
    if (ferror(f)) { say("%s: cannot read: %s", name, strerror(errno)); *refused += 1; }
    free(line);
    if (!in) fclose(f);
}

/* Every row of every file behind the command; returns the exit status. */
static int each_row(const options *o, row_fn fn, void *user)
{
    int refused = 0;
    for (int i = 0; i < o->n_files; i++) rows_of_file(o->files[i], fn, user, &refused);
    if (!o->n_files) rows_of_file("-", fn, user, &refused);
    if (fflush(stdout) != 0 || ferror(stdout)) return say("standard output: cannot write: %s", strerror(errno)), 1;
    return refused != 0;
}

/* The ids of {"ids": [..]}: member `key` of a row, as int32. *n is -1 when the row has no such member and it may be missing. */
static ft_status read_ids(ft_json *j, const char *key, int optional, int32_t **ids, size_t *cap, int *n, ft_error *err)
{
    int list = ft_json_get(j, 0, key), i = 0;
    *n = -1;
    if (optional && (list < 0 || ft_json_type_of(j, list) == FTUNE_JSON_NULL)) return FTUNE_OK;
    if (ft_json_type_of(j, list) != FTUNE_JSON_ARRAY)
        return refuse(err, FTUNE_ERR_FORMAT, "expected \"%s\": a list of integers, found %s", key, list < 0 ? "no such key" : "something else");
    if (!grow(ids, cap, (size_t)ft_json_count(j, list) + 1, sizeof **ids)) return no_memory(err);
    for (int e = ft_json_child(j, list); e >= 0; e = ft_json_next(j, e), i++) {
        double v = ft_json_number(j, e, 0.5);
        if (!(v >= INT32_MIN && v <= INT32_MAX) || v != (int32_t)v)
            return refuse(err, FTUNE_ERR_FORMAT, "%s[%d]: expected an integer, found %.*s", key, i,
                          (int)(ft_json_raw(j, e).n > 40 ? 40 : ft_json_raw(j, e).n), ft_json_raw(j, e).p);
        (*ids)[i] = (int32_t)v;
    }
    *n = i;
    return FTUNE_OK;
}

/* {"input_ids": [..], "labels": [..], "loss_scale": [..]?} */
typedef struct id_row { int32_t *input_ids, *labels; float *scale; size_t cap_ids, cap_labels, cap_scale; ft_sample sample; } id_row;

static ft_status read_id_row(id_row *r, ft_text text, const char *where, ft_error *err)
{
    ft_json  *j = NULL;
    int       n_ids = 0, n_labels = 0, scale, i = 0;
    ft_status st = ft_json_parse(&j, text.p, text.n, where, err);
    if (!st) st = read_ids(j, "input_ids", 0, &r->input_ids, &r->cap_ids, &n_ids, err);
    if (!st) st = read_ids(j, "labels", 0, &r->labels, &r->cap_labels, &n_labels, err);
    if (!st && n_ids != n_labels)
        st = refuse(err, FTUNE_ERR_FORMAT, "expected as many labels as input_ids (%d), found %d", n_ids, n_labels);
    memset(&r->sample, 0, sizeof r->sample);
    r->sample.input_ids = r->input_ids; r->sample.labels = r->labels; r->sample.n = n_ids;
    scale = st ? -1 : ft_json_get(j, 0, "loss_scale");
    if (!st && ft_json_type_of(j, scale) == FTUNE_JSON_ARRAY) {
        if (ft_json_count(j, scale) != n_ids)
            st = refuse(err, FTUNE_ERR_FORMAT, "expected as many loss_scale as input_ids (%d), found %d", n_ids, ft_json_count(j, scale));
        else if (!grow(&r->scale, &r->cap_scale, (size_t)n_ids + 1, sizeof *r->scale)) st = no_memory(err);
        else for (int e = ft_json_child(j, scale); e >= 0; e = ft_json_next(j, e)) r->scale[i++] = (float)ft_json_number(j, e, 1);
        r->sample.loss_scale = r->scale;
    }
    ft_json_free(j);
    return st;
}

static void id_row_free(id_row *r) { free(r->input_ids); free(r->labels); free(r->scale); }

/* ---- the session: what a command loads ----------------------------------------------------------------------- */

typedef struct session {
    ft_backend *be;
    ft_model   *model;
    ft_tokenizer *tok;
    ft_chat_options chat;
    char    *text;                      /* ftune.json beside the adapter or model: how it was trained */
    ft_json *settings;
    ft_error err;
} session;

static void session_close(session *s)
{
    ft_model_free(s->model);
    ft_backend_free(s->be);
    ft_tokenizer_free(s->tok);
    ft_json_free(s->settings);
    free(s->text);
}

static int load_tokenizer(session *s, const options *o, const char *path)
{
    ft_tokenizer_options t = ft_tokenizer_options_default();
    t.splitter  = o->splitter;
    t.lowercase = (int)o->lowercase;
    return ft_tokenizer_load(&s->tok, path, &t, &s->err) ? fail(&s->err) : 0;
}

/* The template options of the command line; what it does not say is taken from ftune.json, then from the library. */
static int chat_options(session *s, const options *o)
{
    ft_chat_options *c = &s->chat;
    ft_json *j = s->settings;
    *c = ft_chat_options_default();
    c->swift = (int)o->swift;
    if (j) {
        const char *name   = ft_json_text(j, ft_json_get(j, 0, "template")).p;
        const char *system = ft_json_text(j, ft_json_get(j, 0, "system")).p;
        c->swift = (int)ft_json_number(j, ft_json_get(j, 0, "swift"), (double)c->swift);
        if (name)   c->template_name = name;
        if (system) c->default_system = system;
        if (ft_json_type_of(j, ft_json_get(j, 0, "use_chat_template")) == FTUNE_JSON_FALSE) c->use_chat_template = 0;
    }
    if (o->template_name) { c->template_name = o->template_name; c->use_chat_template = 1; }
    if (o->system)        c->default_system = o->system;
    if (o->max_length > 0) c->max_length = (int)o->max_length;
    if (o->truncation)    c->truncation = (ft_truncation)choice(o->truncation, "delete|left|right");
    if (o->loss_scale)    { c->loss_scale = o->loss_scale; c->want_loss_scale = 1; }
    if (o->special)       c->special = choice(o->special, "text|parse") ? FTUNE_SPECIAL_PARSE : FTUNE_SPECIAL_AS_TEXT;
    if (o->no_chat_template) c->use_chat_template = 0;
    if (!ft_template_find(NULL, c->template_name, &s->err)) return say("--template: %s", s->err.message);
    return 0;
}

static int load_backend(session *s, const options *o)
{
#ifdef FTUNE_CUDA
    if (o->backend && strcmp(o->backend, "cuda") == 0) return ft_backend_cuda(&s->be, 0, &s->err) ? fail(&s->err) : 0;
#endif
    return ft_backend_cpu(&s->be, (int)o->threads, &s->err) ? fail(&s->err) : 0;
}

/* ftune.json is optional: an adapter made elsewhere has none. */
static int load_settings(session *s, const options *o)
{
    const char *dirs[2] = { o->adapter, o->model };
    for (int i = 0; i < 2 && !s->text; i++) {
        char   path[4200];
        size_t n = 0;
        if (!dirs[i]) continue;
        snprintf(path, sizeof path, "%s/ftune.json", dirs[i]);
        s->text = read_file(path, &n, &s->err);
        if (s->text && ft_json_parse(&s->settings, s->text, n, path, &s->err)) return fail(&s->err);
    }
    memset(&s->err, 0, sizeof s->err);
    return 0;
}

static int no_bf16(const options *o)
{
    return o->dtype && strcmp(o->dtype, "f32") ? say("--dtype bf16: computing in bf16 is not in this version; use f32") : 0;
}

/* Backend, model, adapter. */
static int load_model(session *s, const options *o)
{
    if (need(o->model, "--model DIR") || unsupported(o)) return 2;
    if (load_settings(s, o) || load_backend(s, o)) return 1;
    if (ft_model_load(&s->model, o->model, s->be, &s->err)) return fail(&s->err);
    if (o->adapter && ft_lora_load(s->model, o->adapter, &s->err)) return fail(&s->err);
    return 0;
}

/* The tokenizer of a model: --tokenizer, or the one it was trained with, or the one in its directory. */
static const char *tokenizer_path(const session *s, const options *o)
{
    const char *noted = s->settings ? ft_json_text(s->settings, ft_json_get(s->settings, 0, "tokenizer")).p : NULL;
    return o->tokenizer ? o->tokenizer : noted ? noted : o->model;
}

/* ---- text and ids -------------------------------------------------------------------------------------------- */

typedef struct worker {                 /* what the row functions keep from row to row */
    session s;
    const options *o;
    ft_special special;
    ft_row_parser *parser;
    ft_sample sample;
    int32_t *ids; size_t cap_ids;
    char    *text; size_t cap_text;
    id_row   row;
    ft_batch batch;
    float   *logprobs; size_t cap_logprobs;
    long     n_rows, n_dropped, n_targets;
    double   sum;
} worker;

static void worker_free(worker *w)
{
    ft_row_parser_free(w->parser);
    ft_sample_free(&w->sample);
    ft_batch_free(&w->batch);
    id_row_free(&w->row);
    free(w->ids); free(w->text); free(w->logprobs);
    session_close(&w->s);
}

static ft_status encode_text(worker *w, ft_text t, ft_special special, size_t *n, ft_error *err)
{
    ft_status st = FTUNE_OK;
    *n = t.n + 16;
    do {
        if (!grow(&w->ids, &w->cap_ids, *n, sizeof *w->ids)) return no_memory(err);
        st = ft_tokenizer_encode(w->s.tok, t.p, t.n, special, w->ids, w->cap_ids, n, err);
    } while (st == FTUNE_ERR_BUFFER_TOO_SMALL);
    return st;
}

static ft_status decode_ids(worker *w, const int32_t *ids, size_t n_ids, int skip_special, size_t *n, ft_error *err)
{
    ft_status st = FTUNE_OK;
    *n = n_ids * 8;
    do {
        if (!grow(&w->text, &w->cap_text, *n + 1, 1)) return no_memory(err);
        st = ft_tokenizer_decode(w->s.tok, ids, n_ids, skip_special, w->text, w->cap_text - 1, n, err);
    } while (st == FTUNE_ERR_BUFFER_TOO_SMALL);
    if (!st) w->text[*n] = 0;
    return st;
}

static ft_status tokenize_row(void *user, ft_text json, const char *where, ft_error *err)
{
    worker  *w = user;
    ft_json *j = NULL;
    size_t   n = 0;
    ft_status st = ft_json_parse(&j, json.p, json.n, where, err);
    if (!st) {
        ft_text t = ft_json_text(j, ft_json_get(j, 0, "text"));
        st = t.p ? encode_text(w, t, w->special, &n, err)
                 : refuse(err, FTUNE_ERR_FORMAT, "expected {\"text\": a string}, found %.*s", json.n > 60 ? 60 : (int)json.n, json.p);
    }
    if (!st) {
        fputs("{\"ids\":", stdout);
        put_ids(stdout, w->ids, n);
        fputs("}\n", stdout);
    }
    ft_json_free(j);
    return st;
}

static int cmd_tokenize(const options *o)
{
    worker w = { 0 };
    int    rc = need(o->tokenizer, "--tokenizer PATH");
    if (!rc) rc = load_tokenizer(&w.s, o, o->tokenizer);
    w.special = (o->special && strcmp(o->special, "parse") == 0 ? FTUNE_SPECIAL_PARSE : FTUNE_SPECIAL_AS_TEXT)
              | (o->add_special ? FTUNE_ADD_SPECIAL : 0);
    if (!rc) rc = each_row(o, tokenize_row, &w);
    worker_free(&w);
    return rc;
}

static ft_status detokenize_row(void *user, ft_text json, const char *where, ft_error *err)
{
    worker  *w = user;
    ft_json *j = NULL;
    int      n_ids = 0;
    size_t   n = 0;
    ft_status st = ft_json_parse(&j, json.p, json.n, where, err);
    if (!st) st = read_ids(j, "ids", 0, &w->ids, &w->cap_ids, &n_ids, err);
    if (!st) st = decode_ids(w, w->ids, (size_t)n_ids, w->o->skip_special, &n, err);
    if (!st) {
        fputs("{\"text\":", stdout);
        put_json(stdout, w->text, n);
        fputs("}\n", stdout);
    }
    ft_json_free(j);
    return st;
}

static int cmd_detokenize(const options *o)
{
    worker w = { 0 };
    int    rc = need(o->tokenizer, "--tokenizer PATH");
    w.o = o;
    if (!rc) rc = load_tokenizer(&w.s, o, o->tokenizer);
    if (!rc) rc = each_row(o, detokenize_row, &w);
    worker_free(&w);
    return rc;
}

/* Split "a,b" in place into at most cap names. */
static int split_list(char *list, const char **names, int cap)
{
    int n = 0;
    for (char *p = list; *p && n < cap; ) {
        char *comma = strchr(p, ',');
        if (comma) *comma = 0;
        if (*p) names[n++] = p;
        p = comma ? comma + 1 : p + strlen(p);
    }
    return n;
}

static int cmd_train_tokenizer(const options *o)
{
    ft_tokenizer_train_options t = ft_tokenizer_train_options_default();
    session  s = { 0 };
    int      rc = 0, n = 0;
    char    *list = NULL, **texts = NULL;
    size_t  *lengths = NULL;
    const char *names[256];
    if (need(o->out, "--out DIR") || (!o->vocab_size && say("expected --vocab-size N (see --help)"))) return 2;
    if (!o->n_files) return say("expected text files behind the options");
    list    = strcpy(calloc(strlen(o->special_tokens) + 1, 1), o->special_tokens);
    texts   = calloc((size_t)o->n_files, sizeof *texts);
    lengths = calloc((size_t)o->n_files, sizeof *lengths);
    t.vocab_size = (int)o->vocab_size; t.min_frequency = (int)o->min_frequency;
    t.special = names; t.n_special = split_list(list, names, 256);
    if (o->splitter) t.splitter = o->splitter;
    for (; n < o->n_files && !rc; n++)
        if (!(texts[n] = read_file(o->files[n], &lengths[n], &s.err))) rc = fail(&s.err);
    if (!rc && ft_tokenizer_train(&s.tok, (const char *const *)texts, lengths, n, &t, &s.err)) rc = fail(&s.err);
    if (!rc && t.n_special) {           /* the first one ends a text and fills up batches */
        int32_t end = ft_token_id(s.tok, names[0], strlen(names[0]));
        ft_tokenizer_set_attribute(s.tok, "eos_token_id", end, &s.err);
        ft_tokenizer_set_attribute(s.tok, "pad_token_id", end, &s.err);
    }
    if (!rc && ft_tokenizer_save(s.tok, o->out, &s.err)) rc = fail(&s.err);
    if (!rc) fprintf(stderr, "%s: %d tokens learnt from %d file%s\n", o->out, ft_tokenizer_size(s.tok), n, n == 1 ? "" : "s");
    for (int i = 0; i < o->n_files; i++) free(texts[i]);
    free(texts); free(lengths); free(list);
    session_close(&s);
    return rc;
}

/* ---- rows and labels ----------------------------------------------------------------------------------------- */

static void put_sample(const ft_sample *s)
{
    fputs("{\"input_ids\":", stdout);
    put_ids(stdout, s->input_ids, (size_t)s->n);
    fputs(",\"labels\":", stdout);
    if (s->labels) put_ids(stdout, s->labels, (size_t)s->n);
    else fputs("null", stdout);
    if (s->loss_scale) {
        fputs(",\"loss_scale\":[", stdout);
        for (int i = 0; i < s->n; i++) printf(i ? ",%.9g" : "%.9g", (double)s->loss_scale[i]);
        putchar(']');
    }
    fputs("}\n", stdout);
}

static ft_status parse_and_encode(worker *w, ft_text json, const char *where, ft_error *err)
{
    ft_row row;
    ft_status st = ft_row_parse(w->parser, json.p, json.n, where, &row, err);
    if (!st) st = ft_row_encode(&w->sample, w->s.tok, &row, &w->s.chat, err);
    w->n_rows++;
    if (!st) w->n_dropped += w->sample.dropped != 0;
    return st;
}

static ft_status encode_row(void *user, ft_text json, const char *where, ft_error *err)
{
    worker   *w  = user;
    ft_status st = parse_and_encode(w, json, where, err);
    if (st) {
        fputs("{\"error\":", stdout);
        put_json(stdout, err->message, strlen(err->message));
        fputs("}\n", stdout);
    } else if (w->sample.dropped) printf("{\"dropped\":\"too_long\",\"n\":%d}\n", w->sample.n);
    else put_sample(&w->sample);
    return st;
}

/* For a data set with refused rows: one line for each. */
static ft_status only_check_row(void *user, ft_text json, const char *where, ft_error *err)
{
    return parse_and_encode(user, json, where, err);
}

static int encode_or_show(const options *o, row_fn fn)
{
    worker w = { 0 };
    int    rc = need(o->tokenizer, "--tokenizer PATH");
    w.o = o;
    if (!rc && !o->no_chat_template) rc = need(o->template_name, "--template NAME or --no-chat-template");
    if (!rc) rc = chat_options(&w.s, o);
    if (!rc) rc = load_tokenizer(&w.s, o, o->tokenizer);
    if (!rc && ft_row_parser_new(&w.parser, &w.s.err)) rc = fail(&w.s.err);
    if (!rc) rc = each_row(o, fn, &w);
    if (w.n_dropped)
        fprintf(stderr, "%ld of %ld rows dropped: longer than --max-length %d\n", w.n_dropped, w.n_rows, w.s.chat.max_length);
    worker_free(&w);
    return rc;
}

static int cmd_encode(const options *o) { return encode_or_show(o, encode_row); }

static const char *ORIGIN[] = { "bos", "system", "prompt", "response", "chat_sep", "suffix", "text" };

static void put_html(const char *s)
{
    for (; *s; s++) {
        if (*s == '<') fputs("&lt;", stdout);
        else if (*s == '&') fputs("&amp;", stdout);
        else putchar(*s);
    }
}

/* One line of the table: what the token is, what it is asked to predict. */
static void show_token(const worker *w, int t, const char *text, int width)
{
    const ft_sample *s = &w->sample;
    int32_t id = s->input_ids[t], label = s->labels ? s->labels[t] : FTUNE_IGNORE_INDEX;
    int32_t target = s->labels && t + 1 < s->n ? s->labels[t + 1] : FTUNE_IGNORE_INDEX;     /* the shift */
    int counts = label != FTUNE_IGNORE_INDEX, pad = 22 - width, special = ft_token_is_special(w->s.tok, id);
    const char *from = s->origin ? ORIGIN[s->origin[t]] : "";
    if (w->o->html) {
        printf("<tr class=\"%s%s\"><td>%d<td class=t>", counts ? "yes" : "no", special ? " special" : "", t);
        put_html(text);
        printf("<td>%d<td>%d<td>%d", (int)id, (int)label, (int)target);
        if (s->loss_scale) printf("<td>%g", (double)s->loss_scale[t]);
        printf("<td class=t>%s\n", from);
        return;
    }
    const char *on = !w->o->colour ? "" : counts ? "\x1b[32m" : special ? "\x1b[36m" : "\x1b[2m";
    printf("%5d  %s%s%s%*s %7d ", t, on, text, *on ? "\x1b[0m" : "", pad > 0 ? pad : 0, "", (int)id);
    printf("%s%7d%s ", on, (int)label, *on ? "\x1b[0m" : "");
    printf("%s%7d%s", w->o->colour && target != FTUNE_IGNORE_INDEX ? "\x1b[33m" : w->o->colour ? "\x1b[2m" : "", (int)target,
           w->o->colour ? "\x1b[0m" : "");
    if (s->loss_scale) printf(" %6g", (double)s->loss_scale[t]);
    printf("  %s\n", from);
}

static ft_status show_row(void *user, ft_text json, const char *where, ft_error *err)
{
    worker   *w  = user;
    ft_sample *s = &w->sample;
    int       n_labels = 0;
    ft_status st = parse_and_encode(w, json, where, err);
    if (st) return st;
    if (s->dropped) { printf("%s: dropped, %d tokens\n", where, s->n); return st; }
    for (int t = 0; t < s->n; t++) n_labels += s->labels && s->labels[t] != FTUNE_IGNORE_INDEX;
    if (w->o->html) {
        printf("<h2>%s</h2><p>%d tokens, %d labels</p>\n<table><tr><th>#<th>text<th>id<th>label<th>target", where, s->n, n_labels);
        printf("%s<th>from\n", s->loss_scale ? "<th>scale" : "");
    } else {
        printf("%s: %d tokens, %d labels%s\n", where, s->n, n_labels, s->labels ? "" : " (inference form)");
        printf("%5s  %-22s %7s %7s %7s%s  %s\n", "#", "text", "id", "label", "target", s->loss_scale ? "  scale" : "", "from");
    }
    for (int t = 0; t < s->n; t++) {
        char text[600];
        int  width = visible(text, sizeof text, ft_token_bytes(w->s.tok, s->input_ids[t]));
        show_token(w, t, text, width);
    }
    if (w->o->html) fputs("</table>\n", stdout);
    else putchar('\n');
    return st;
}

static int cmd_show(const options *o)
{
    int rc;
    if (o->html)
        puts("<!doctype html><meta charset=utf-8><title>ftune show</title><style>"
             "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:1px 10px;text-align:right}"
             ".t{text-align:left;font-family:monospace}tr.yes{background:#dff5e1}tr.no{color:#777}tr.special .t{color:#06c}"
             "</style><h1>What teaches the model</h1><p>Green rows have a label and are learnt; grey rows are only read (-100). "
             "Target is the label one step to the left: what this position is asked to predict.</p>");
    rc = encode_or_show(o, show_row);
    return rc;
}

/* A template's piece: \n for newlines, ids in brackets. */
static void put_piece(const char *name, const char *const *pieces)
{
    printf("  %-14s", name);
    for (int i = 0; i < FTUNE_MAX_PIECES && pieces[i]; i++) {
        ft_text t = ft_text_of(pieces[i]);
        if (pieces[i][0] == FTUNE_IDS[0]) { printf(" [%s]", pieces[i] + 1); continue; }
        putchar(' ');
        putchar('"');
        for (size_t k = 0; k < t.n; k++) {
            if (t.p[k] == '\n') fputs("\\n", stdout);
            else putchar(t.p[k]);
        }
        putchar('"');
    }
    putchar('\n');
}

static void put_example_piece(void *user, const ft_piece *p)
{
    const options *o = user;
    const char *on = p->weight > 0 ? (o->colour ? "\x1b[32m" : "[[") : "", *off = p->weight > 0 ? (o->colour ? "\x1b[0m" : "]]") : "";
    fputs(on, stdout);
    if (p->ids) for (int i = 0; i < p->n_ids; i++) printf("<%d>", (int)p->ids[i]);
    else fwrite(p->text.p, 1, p->text.n, stdout);
    fputs(off, stdout);
}

static int show_template(const options *o, const ft_template *t)
{
    ft_turn turns[2] = { { { "How are you?", 12 }, { "I am fine.", 10 }, -1 }, { { "And today?", 10 }, { "Even better.", 12 }, -1 } };
    ft_row  row = { { NULL, 0 }, turns, 2, { NULL, 0 } };
    session s = { 0 };
    int     rc;
    printf("%s%s%s\n", t->name, t->single_round ? ", one round only" : "", t->auto_add_bos ? ", begins with bos if the tokenizer does" : "");
    put_piece("prefix", t->prefix);
    put_piece("system_prefix", t->system_prefix);
    put_piece("prompt", t->prompt);
    put_piece("chat_sep", t->chat_sep);
    put_piece("suffix", t->suffix);
    printf("  %-14s %s\n\n", "default_system", t->default_system ? t->default_system : "(none)");
    if (t->single_round) { row.turns = turns + 1; row.n_turns = 1; }
    rc = chat_options(&s, o);
    s.chat.template_name = t->name;
    if (!rc && ft_tokenizer_load(&s.tok, "bytes", NULL, &s.err)) rc = fail(&s.err);
    printf("example%s, with what is learnt %s:\n", s.chat.swift == 2 ? " (--swift 2)" : "", o->colour ? "in green" : "in [[ ]]");
    if (!rc && ft_row_pieces(s.tok, &row, &s.chat, put_example_piece, (void *)o, &s.err)) rc = fail(&s.err);
    putchar('\n');
    session_close(&s);
    return rc;
}

static int cmd_templates(const options *o)
{
    ft_error err = { FTUNE_OK, "" };
    if (o->n_files) {
        const ft_template *t = ft_template_find(NULL, o->files[0], &err);
        return t ? show_template(o, t) : fail(&err);
    }
    printf("%-28s %-10s %s\n", "name", "rounds", "default system");
    for (int i = 0; i < ft_template_count(NULL); i++) {
        const ft_template *t = ft_template_at(NULL, i);
        ft_text system = ft_text_of(t->default_system ? t->default_system : "-");
        int     n = system.n > 60 ? 60 : (int)system.n;
        while (n > 0 && (size_t)n < system.n && (system.p[n] & 0xc0) == 0x80) n--;
        const char *line = memchr(system.p, '\n', (size_t)n);
        if (line) n = (int)(line - system.p);
        printf("%-28s %-10s %.*s%s\n", t->name, t->single_round ? "one" : "any", n, system.p, (size_t)n < system.n ? " ..." : "");
    }
    return 0;
}

/* ---- models -------------------------------------------------------------------------------------------------- */

/* The files a tokenizer may consist of go along with a model. A tokenizer that is not a directory stays where it is. */
static void copy_tokenizer(const char *from, const char *to)
{
    static const char *NAMES[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
                                   "merges.txt", "tokenizer.model", "qwen.tiktoken", "tiktoken.model", "added_tokens.json",
                                   "generation_config.json" };
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        char     source[4200], target[4200];
        size_t   n;
        ft_error err;
        snprintf(source, sizeof source, "%s/%s", from, NAMES[i]);
        snprintf(target, sizeof target, "%s/%s", to, NAMES[i]);
        char *data = read_file(source, &n, &err);
        if (data && write_file(target, data, n, &err)) fail(&err);
        free(data);
    }
}

static ft_dtype file_dtype(const options *o, ft_dtype otherwise)
{
    return !o->dtype ? otherwise : strcmp(o->dtype, "bf16") ? FTUNE_F32 : FTUNE_BF16;
}

static int cmd_init(const options *o)
{
    session   s = { 0 };
    ft_config c;
    int rc = need(o->config, "--config FILE") || need(o->out, "--out DIR") ? 2 : 0;
    if (!rc && ft_config_load(&c, o->config, &s.err)) rc = fail(&s.err);
    if (!rc) rc = load_backend(&s, o);
    if (!rc && ft_model_init(&s.model, &c, (uint64_t)o->seed, s.be, &s.err)) rc = fail(&s.err);
    if (!rc && ft_model_save(s.model, o->out, file_dtype(o, FTUNE_F32), &s.err)) rc = fail(&s.err);
    if (!rc && o->tokenizer) copy_tokenizer(o->tokenizer, o->out);
    if (!rc) fprintf(stderr, "%s: %lld parameters, random\n", o->out, (long long)ft_config_parameters(&c));
    session_close(&s);
    return rc;
}

static int cmd_merge(const options *o)
{
    session s = { 0 };
    int rc = need(o->adapter, "--adapter DIR") || need(o->out, "--out DIR") ? 2 : load_model(&s, o);
    if (!rc && ft_lora_merge(s.model, &s.err)) rc = fail(&s.err);
    if (!rc && ft_model_save(s.model, o->out, file_dtype(o, s.model->config.dtype), &s.err)) rc = fail(&s.err);
    if (!rc) copy_tokenizer(o->model, o->out);
    if (!rc && s.text) {
        char path[4200];
        snprintf(path, sizeof path, "%s/ftune.json", o->out);
        if (write_file(path, s.text, strlen(s.text), &s.err)) rc = fail(&s.err);
    }
    session_close(&s);
    return rc;
}

static ft_lora_config lora_config(const options *o)
{
    ft_lora_config c = ft_lora_config_default();
    c.r = (int)o->lora_r; c.lora_alpha = (float)o->lora_alpha; c.lora_dropout = (float)o->lora_dropout;
    c.use_rslora = o->rslora;
    if (o->target_modules) snprintf(c.target_modules, sizeof c.target_modules, "%s", o->target_modules);
    if (o->model) snprintf(c.base_model_name_or_path, sizeof c.base_model_name_or_path, "%s", o->model);
    return c;
}

static int cmd_plan(const options *o)
{
    ft_config c;
    ft_plan   p;
    ft_error  err = { FTUNE_OK, "" };
    ft_lora_config lora = lora_config(o);
    const char *where = o->config ? o->config : o->model;
    int tokens;
    if (need(where, "--model DIR or --config FILE") || unsupported(o)) return 2;
    if (ft_config_load(&c, where, &err)) return fail(&err);
    tokens = (int)(o->packing > 0 ? o->packing : o->max_length > 0 ? o->max_length : c.max_position_embeddings < 2048 ? c.max_position_embeddings : 2048);
    if ((double)tokens * (double)o->batch > INT32_MAX) return say("--batch times --max-length is more than %d", INT32_MAX);
    tokens *= (int)o->batch;
    if (ft_model_plan(&p, &c, c.dtype, o->full ? NULL : &lora, tokens, &err)) return fail(&err);
    const struct { const char *name; double value; int bytes; } lines[] = {
        { "parameters", (double)p.parameters, 0 }, { "trainable", (double)p.trainable, 0 }, { "weights", (double)p.weights, 1 },
        { "packed", (double)p.packed, 1 }, { "adapters", (double)p.adapters, 1 }, { "gradients", (double)p.gradients, 1 },
        { "moments", (double)p.moments, 1 }, { "activations", (double)p.activations, 1 }, { "logits", (double)p.logits, 1 },
        { "kv_cache", (double)p.kv_cache, 1 }, { "peak", (double)p.peak, 1 },
        { "flop_per_token_forward", p.flop_per_token_forward, 0 }, { "flop_per_token_backward", p.flop_per_token_backward, 0 } };
    if (o->json) printf("{\"tokens_per_batch\":%d", tokens);
    else printf("%-26s %18d\n", "tokens_per_batch", tokens);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (o->json) printf(",\"%s\":%.0f", lines[i].name, lines[i].value);
        else if (lines[i].bytes) printf("%-26s %18.0f bytes %9.3f GiB\n", lines[i].name, lines[i].value, lines[i].value / 1073741824.0);
        else printf("%-26s %18.0f\n", lines[i].name, lines[i].value);
    }
    if (o->json) puts("}");
    return 0;
}

static int cmd_export(const options *o)
{
    return say("export --format %s: not in this version; merge writes a model directory", o->format ? o->format : "gguf|ollama");
}

/* ---- training ------------------------------------------------------------------------------------------------ */

/* On a terminal one line that changes, in a file one line each. */
static void show_progress(void *user, const char *line)
{
    (void)user;
    if (isatty(2)) fprintf(stderr, "\r\x1b[K%s", line);
    else fprintf(stderr, "%s\n", line);
}

/* Every refused row has its own line; the library kept only the first. */
static void report_refused(session *s, const options *o, const char *path)
{
    worker  w = { 0 };
    options again = *o;
    w.s = *s;
    again.files = &path; again.n_files = 1;
    if (!ft_row_parser_new(&w.parser, &s->err)) each_row(&again, only_check_row, &w);
    ft_row_parser_free(w.parser);
    ft_sample_free(&w.sample);
}

static int load_dataset(ft_dataset *d, session *s, const options *o, const char *path)
{
    if (ft_dataset_load(d, path, s->tok, &s->chat, o->strict, &s->err)) return fail(&s->err);
    fprintf(stderr, "%s: %d rows", path, d->n_rows);
    if (d->n_too_long)  fprintf(stderr, ", %d too long and dropped", d->n_too_long);
    if (d->n_truncated) fprintf(stderr, ", %d cut", d->n_truncated);
    if (d->n_no_target) fprintf(stderr, ", %d without anything to learn", d->n_no_target);
    if (d->n_refused)   fprintf(stderr, ", %d refused", d->n_refused);
    fprintf(stderr, "; %d used, %lld tokens, %lld of them labels\n", d->n, (long long)d->n_tokens, (long long)d->n_targets);
    if (d->n_refused) report_refused(s, o, path);
    return 0;
}

/* What the model will see, once, in the open: most training faults can be read here. */
static void show_first_sample(const session *s, const ft_dataset *d)
{
    const ft_sample *x = &d->samples[0];
    const char *on = isatty(2) ? "\x1b[32m" : "[[", *off = isatty(2) ? "\x1b[0m" : "]]";
    int learnt = 0, n = x->n < 400 ? x->n : 400;
    fprintf(stderr, "first row, what is learnt %s:\n  ", isatty(2) ? "in green" : "in [[ ]]");
    for (int t = 0; t < n; t++) {
        ft_text text = ft_token_bytes(s->tok, x->input_ids[t]);
        int now = x->labels[t] != FTUNE_IGNORE_INDEX;
        if (now != learnt) fputs(now ? on : off, stderr);
        learnt = now;
        if (text.p) fwrite(text.p, 1, text.n, stderr);
    }
    fprintf(stderr, "%s%s\n", learnt ? off : "", n < x->n ? " ..." : "");
}

/* Length of one embedding row; 0 when the type is not a float. */
static double embedding_norm(const ft_model *m, int32_t id)
{
    int       C = m->config.hidden_size;
    ft_tensor row = m->embed_tokens;
    float    *x = malloc((size_t)C * sizeof *x);
    double    sum = 0;
    row.rank = 1; row.shape[0] = C;
    row.data = (char *)row.data + (size_t)id * (size_t)C * ft_dtype_size(row.dtype);
    if (x && ft_tensor_to_f32(&row, x, NULL) == FTUNE_OK)
        for (int c = 0; c < C; c++) sum += (double)x[c] * x[c];
    free(x);
    return sqrt(sum);
}

/* The faults people report most, looked for before the first step. */
static void warn_about_data(const session *s, const options *o, const ft_dataset *d)
{
    int32_t stop[16], bos = ft_tokenizer_attribute(s->tok, "bos_token_id");
    int n_stop = ft_chat_stop_ids(s->tok, &s->chat, stop, 16), endless = 0, two_bos = 0;
    double ordinary = 0;
    for (int i = 0; i < d->n; i++) {
        const ft_sample *x = &d->samples[i];
        int ends = 0;
        for (int t = 0; t < x->n; t++)
            for (int k = 0; k < n_stop; k++) ends |= x->labels[t] == stop[k];
        endless += !ends;
        two_bos += x->n > 1 && bos >= 0 && x->input_ids[0] == bos && x->input_ids[1] == bos;
    }
    if (n_stop && endless)
        fprintf(stderr, "warning: %d of %d rows have no end marker among their labels: they do not teach the model to stop\n", endless, d->n);
    if (two_bos) fprintf(stderr, "warning: %d rows begin with two bos tokens\n", two_bos);
    if (ft_tokenizer_size(s->tok) > s->model->config.vocab_size)
        fprintf(stderr, "warning: the tokenizer has %d ids, the model %d\n", ft_tokenizer_size(s->tok), s->model->config.vocab_size);
    if (strcmp(s->be->name, "cpu") != 0 || o->full) return;
    for (int id = 0; id < 100 && id < s->model->config.vocab_size; id++) ordinary += embedding_norm(s->model, id) / 100;
    for (int t = 0; t < d->samples[0].n; t++) {
        int32_t id = d->samples[0].input_ids[t];
        if (!ft_token_is_special(s->tok, id) || id >= s->model->config.vocab_size || embedding_norm(s->model, id) > 0.01 * ordinary) continue;
        fprintf(stderr, "warning: the embedding of %.*s is almost zero: the base model never saw this token, and an adapter cannot teach it\n",
                (int)ft_token_bytes(s->tok, id).n, ft_token_bytes(s->tok, id).p);
        break;
    }
}

static ft_train_options train_options(const options *o)
{
    ft_train_options t = ft_train_options_default();
    t.lr = (float)o->lr; t.weight_decay = (float)o->weight_decay; t.max_grad_norm = (float)o->max_grad_norm;
    t.warmup = (float)o->warmup; t.batch = (int)o->batch; t.accumulate = (int)o->accumulate;
    t.epochs = (int)o->epochs; t.steps = o->steps; t.packing_length = (int)o->packing; t.seed = (uint64_t)o->seed;
    t.save_every = (int)o->save_every; t.log_every = (int)o->log_every; t.out_dir = o->out; t.log = show_progress;
    if (o->schedule) t.schedule = o->schedule[0] == 'l' ? FTUNE_SCHEDULE_LINEAR : o->schedule[1] == 'o' && o->schedule[2] == 's'
                                ? FTUNE_SCHEDULE_COSINE : FTUNE_SCHEDULE_CONSTANT;
    return t;
}

/* ftune.json: what generate and chat must know to ask the way the model was taught. */
static int save_settings(session *s, const options *o)
{
    char path[4200], *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    int   rc = 0;
    const char *noted = tokenizer_path(s, o);
    if (!f) return say("out of memory"), 1;
    fputs("{\"template\":", f);
    put_json(f, s->chat.template_name, strlen(s->chat.template_name));
    fprintf(f, ",\"use_chat_template\":%s,\"swift\":%d", s->chat.use_chat_template ? "true" : "false", s->chat.swift);
    if (s->chat.default_system) { fputs(",\"system\":", f); put_json(f, s->chat.default_system, strlen(s->chat.default_system)); }
    if (strcmp(noted, o->model) != 0) { fputs(",\"tokenizer\":", f); put_json(f, noted, strlen(noted)); }
    fputs("}\n", f);
    fclose(f);
    snprintf(path, sizeof path, "%s/ftune.json", o->out);
    if (write_file(path, text, n, &s->err)) rc = fail(&s->err);
    free(text);
    return rc;
}

/* Make something trainable: adapters, or every weight. */
static int make_trainable(session *s, const options *o)
{
    ft_lora_config c = lora_config(o);
    const ft_param *params;
    double n = 0;
    if (o->full ? ft_model_unfreeze(s->model, &s->err) : ft_lora_attach(s->model, &c, (uint64_t)o->seed, &s->err)) return fail(&s->err);
    for (int i = ft_model_params(s->model, &params) - 1; i >= 0; i--) {
        double count = 1;
        for (int k = 0; k < params[i].rank; k++) count *= params[i].shape[k];
        n += count;
    }
    fprintf(stderr, "%.0f of %lld parameters are trained (%s)\n", n, (long long)ft_config_parameters(&s->model->config) + (o->full ? 0 : (long long)n),
            o->full ? "all" : "LoRA");
    return 0;
}

static int run_training(session *s, const options *o, const ft_dataset *train, const ft_dataset *eval)
{
    ft_train_options t = train_options(o);
    ft_trainer   *trainer = NULL;
    ft_evaluation e;
    int rc = 0;
    if (ft_trainer_new(&trainer, s->model, train, eval, &t, &s->err)) return fail(&s->err);
    if (o->resume && ft_trainer_resume(trainer, o->out, &s->err)) rc = fail(&s->err);
    if (!rc && ft_trainer_run(trainer, &s->err)) rc = fail(&s->err);
    if (isatty(2)) fputc('\n', stderr);
    if (!rc && eval) {
        if (ft_evaluate(s->model, eval, t.batch, &e, &s->err)) rc = fail(&s->err);
        else fprintf(stderr, "held out: loss %.4f, perplexity %.2f, token accuracy %.1f %%\n", e.loss, e.perplexity, 100 * e.accuracy);
    }
    ft_trainer_free(trainer);
    return rc;
}

static int train(const options *o)
{
    session    s = { 0 };
    ft_dataset data = { 0 }, eval = { 0 };
    const char *from;
    int rc = need(o->data, "--data FILE") || need(o->out, "--out DIR") || no_bf16(o) ? 2 : load_model(&s, o);
    if (!rc) rc = chat_options(&s, o);
    if (!rc && o->max_length < 0) s.chat.max_length = s.model->config.max_position_embeddings < 2048 ? s.model->config.max_position_embeddings : 2048;
    if (!rc) rc = load_tokenizer(&s, o, from = tokenizer_path(&s, o));
    if (!rc) fprintf(stderr, "template %s (swift %d rules), at most %d tokens a row\n",
                     s.chat.use_chat_template ? s.chat.template_name : "none: plain text", s.chat.swift, s.chat.max_length);
    if (!rc) rc = load_dataset(&data, &s, o, o->data);
    if (!rc && o->eval) rc = load_dataset(&eval, &s, o, o->eval);
    if (!rc && !data.n) rc = (say("%s: expected rows with something to learn, found none", o->data), 1);
    if (!rc) { show_first_sample(&s, &data); warn_about_data(&s, o, &data); }
    if (!rc) rc = make_trainable(&s, o);
    if (!rc) rc = run_training(&s, o, &data, o->eval ? &eval : NULL);
    if (!rc) rc = save_settings(&s, o);
    if (!rc && o->full) copy_tokenizer(from, o->out);
    if (!rc) fprintf(stderr, "%s: %s, log.jsonl, loss.svg. Next: ftune chat --model %s%s%s\n", o->out, o->full ? "the model" : "the adapter",
                     o->full ? o->out : o->model, o->full ? "" : " --adapter ", o->full ? "" : o->out);
    if (!rc) rc = data.n_refused + eval.n_refused > 0;
    ft_dataset_free(&data);
    ft_dataset_free(&eval);
    session_close(&s);
    return rc;
}

static int cmd_sft(const options *o) { return train(o); }

/* Pre-training is the same with plain text, and all weights unless an adapter is asked for. */
static int cmd_pretrain(const options *o)
{
    options p = *o;
    p.no_chat_template = !o->template_name;
    p.full = 1;
    return train(&p);
}

/* ---- looking inside ------------------------------------------------------------------------------------------ */

static ft_status fill_batch(worker *w, ft_text json, const char *where, ft_error *err)
{
    ft_status st = read_id_row(&w->row, json, where, err);
    ft_batch_clear(&w->batch);
    for (int t = 0; t < w->row.sample.n && !st; t++)
        if (w->row.input_ids[t] < 0 || w->row.input_ids[t] >= w->s.model->config.vocab_size)
            st = refuse(err, FTUNE_ERR_FORMAT, "input_ids[%d]: expected 0 to %d, found %d", t, w->s.model->config.vocab_size - 1, (int)w->row.input_ids[t]);
    return st ? st : ft_batch_add(&w->batch, &w->row.sample, 0, 0, err);
}

static ft_status score_row(void *user, ft_text json, const char *where, ft_error *err)
{
    worker *w = user;
    ft_loss loss = { 0 };
    ft_status st = fill_batch(w, json, where, err);
    if (st) return st;
    if (!grow(&w->logprobs, &w->cap_logprobs, (size_t)w->batch.n_targets, sizeof *w->logprobs)) return no_memory(err);
    loss.logprobs = w->logprobs;
    st = ft_model_step(w->s.model, &w->batch, 0.0f, 0, &loss, err);
    if (st) return st;
    printf("{\"loss\":%.9g,\"n\":%d,\"logprobs\":[", loss.sum / loss.n, loss.n);
    for (int i = 0; i < loss.n; i++) printf(i ? ",%.9g" : "%.9g", (double)loss.logprobs[i]);
    puts("]}");
    return FTUNE_OK;
}

static int cmd_score(const options *o)
{
    worker w = { 0 };
    int rc = no_bf16(o) ? 2 : load_model(&w.s, o);
    if (!rc) rc = each_row(o, score_row, &w);
    worker_free(&w);
    return rc;
}

/* The mean over all rows needs the number of their targets, which is known at the end: add up with dloss 1, divide
 * when saving. */
static ft_status grad_row(void *user, ft_text json, const char *where, ft_error *err)
{
    worker *w = user;
    ft_loss loss = { 0 };
    ft_status st = fill_batch(w, json, where, err);
    if (!st) st = ft_model_step(w->s.model, &w->batch, 1.0f, 0, &loss, err);
    w->n_targets += loss.n;
    w->sum += loss.sum;
    return st;
}

static int save_gradients(session *s, const char *path, double scale)
{
    const ft_param *p;
    int n = ft_model_params(s->model, &p), rc = 0;
    ft_tensor *t = calloc((size_t)n + 1, sizeof *t);
    for (int i = 0; i < n && t; i++) {
        t[i].name = p[i].name; t[i].dtype = FTUNE_F32; t[i].rank = p[i].rank;
        memcpy(t[i].shape, p[i].shape, sizeof t[i].shape);
        t[i].data = malloc(ft_tensor_count(&t[i]) * sizeof(float) + 1);
        if (!t[i].data) { rc = 1; continue; }
        s->be->download(s->be, t[i].data, p[i].grad, ft_tensor_count(&t[i]) * sizeof(float));
        for (size_t k = 0; k < ft_tensor_count(&t[i]); k++) ((float *)t[i].data)[k] *= (float)scale;
    }
    if (!t || rc) rc = (say("out of memory"), 1);
    else if (ft_weights_save(path, t, n, &s->err)) rc = fail(&s->err);
    for (int i = 0; i < n && t; i++) free(t[i].data);
    free(t);
    return rc;
}

static int cmd_grads(const options *o)
{
    worker w = { 0 };
    int rc = need(o->out, "--out FILE") || (!o->full && need(o->adapter, "--adapter DIR or --full")) || no_bf16(o) ? 2 : 0, refused = 0;
    if (!rc) rc = load_model(&w.s, o);
    if (!rc && o->full && ft_model_unfreeze(w.s.model, &w.s.err)) rc = fail(&w.s.err);
    if (!rc) ft_model_zero_grad(w.s.model);
    if (!rc) refused = each_row(o, grad_row, &w);
    if (!rc && !w.n_targets) rc = (say("expected rows with labels, found none"), 1);
    if (!rc) rc = save_gradients(&w.s, o->out, 1.0 / (double)w.n_targets);
    if (!rc) fprintf(stderr, "%s: gradients of the mean loss %.6f of %ld targets\n", o->out, w.sum / (double)w.n_targets, w.n_targets);
    worker_free(&w);
    return rc ? rc : refused;
}

/* ---- generating ---------------------------------------------------------------------------------------------- */

typedef struct speaker { ft_stream stream; int quiet; } speaker;

static int speak(void *user, int32_t id)
{
    speaker *s = user;
    char     out[1024];
    ft_text  t = ft_stream_push(&s->stream, id, out, sizeof out);
    if (!s->quiet && t.n) { fwrite(t.p, 1, t.n, stdout); fflush(stdout); }
    return 0;
}

/* Answer one row; the text stays in w->text [*n]. Streamed unless --json. */
static ft_status answer(worker *w, const ft_row *row, size_t *n, ft_error *err)
{
    const options *o = w->o;
    ft_generate_options g = ft_generate_options_default();
    speaker  voice = { .quiet = o->json };
    char     rest[64];
    int32_t  stop[16];
    int      n_new = 0;
    ft_status st = ft_row_encode(&w->sample, w->s.tok, row, &w->s.chat, err);
    if (!st && (w->sample.dropped || !w->sample.n))
        st = refuse(err, FTUNE_ERR_ARGUMENT, "expected a prompt of 1 to --max-length tokens, found %d", w->sample.n);
    if (st) return st;
    if (!grow(&w->ids, &w->cap_ids, (size_t)o->max_new_tokens + 1, sizeof *w->ids)) return no_memory(err);
    g.max_new_tokens = (int)o->max_new_tokens; g.temperature = (float)o->temperature; g.top_k = (int)o->top_k;
    g.top_p = (float)o->top_p; g.repetition_penalty = (float)o->repetition_penalty; g.seed = (uint64_t)o->seed;
    g.stop_ids = stop; g.n_stop = ft_chat_stop_ids(w->s.tok, &w->s.chat, stop, 16);
    g.on_token = speak; g.user = &voice;
    ft_stream_init(&voice.stream, w->s.tok, 1);
    st = ft_generate(w->s.model, w->sample.input_ids, w->sample.n, &g, w->ids, (int)o->max_new_tokens, &n_new, err);
    if (!st && !voice.quiet) {
        ft_text t = ft_stream_finish(&voice.stream, rest, sizeof rest);
        fwrite(t.p, 1, t.n, stdout);
        putchar('\n');
        fflush(stdout);
    }
    int kept = 0;                       /* a vocabulary may be padded: an id can be likely and yet stand for nothing */
    for (int i = 0; i < n_new; i++) if (ft_token_bytes(w->s.tok, w->ids[i]).p) w->ids[kept++] = w->ids[i];
    return st ? st : decode_ids(w, w->ids, (size_t)kept, 1, n, err);
}

static int open_speaker(worker *w, const options *o)
{
    int rc = no_bf16(o) ? 2 : load_model(&w->s, o);
    w->o = o;
    if (!rc) rc = chat_options(&w->s, o);
    if (!rc) rc = load_tokenizer(&w->s, o, tokenizer_path(&w->s, o));
    if (!rc && ft_row_parser_new(&w->parser, &w->s.err)) rc = fail(&w->s.err);
    if (!rc) fprintf(stderr, "template %s\n", w->s.chat.use_chat_template ? w->s.chat.template_name : "none: plain text");
    return rc;
}

/* A line is a JSON row, whose last answer is left to the model, or simply the prompt. */
static ft_status generate_row(void *user, ft_text line, const char *where, ft_error *err)
{
    worker *w = user;
    ft_turn turn = { line, { NULL, 0 }, -1 };
    ft_row  row = { { NULL, 0 }, &turn, 1, { NULL, 0 } };
    size_t  n = 0;
    ft_status st = FTUNE_OK;
    if (line.p[0] == '{') {
        st = ft_row_parse(w->parser, line.p, line.n, where, &row, err);
        if (!st && row.text.p) { turn.query = row.text; row.turns = &turn; row.n_turns = 1; row.text.p = NULL; }
        if (!st && row.n_turns) row.turns[row.n_turns - 1].response.p = NULL;
    }
    if (!st) st = answer(w, &row, &n, err);
    if (!st && w->o->json) {
        fputs("{\"text\":", stdout);
        put_json(stdout, w->text, n);
        fputs("}\n", stdout);
    }
    return st;
}

static int cmd_generate(const options *o)
{
    worker w = { 0 };
    int    rc = open_speaker(&w, o);
    if (!rc && o->prompt) {
        if (generate_row(&w, ft_text_of(o->prompt), "--prompt", &w.s.err)) rc = fail(&w.s.err);
    } else if (!rc) rc = each_row(o, generate_row, &w);
    worker_free(&w);
    return rc;
}

static char *copy_text(const char *p, size_t n)
{
    char *q = malloc(n + 1);
    if (q) { memcpy(q, p, n); q[n] = 0; }
    return q;
}

/* Each line of standard input is the user's next turn; the conversation so far goes with it. */
static int cmd_chat(const options *o)
{
    worker   w = { 0 };
    ft_turn *turns = NULL;
    size_t   cap = 0, cap_line = 0, n_text = 0;
    char    *line = NULL;
    int      n = 0, rc = open_speaker(&w, o), terminal = isatty(0);
    ssize_t  len;
    if (!rc && terminal) fprintf(stderr, "an empty line forgets the conversation, end of file (Ctrl-D) ends it\n");
    for (;;) {
        if (rc) break;
        if (terminal) fputs("> ", stderr);
        if (o->prompt && !n) len = (line = copy_text(o->prompt, cap_line = strlen(o->prompt))) ? (ssize_t)cap_line : -1;
        else len = getline(&line, &cap_line, stdin);
        if (len < 0) break;
        while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (!len) { while (n) { n--; free((char *)turns[n].query.p); free((char *)turns[n].response.p); } continue; }
        if (!grow(&turns, &cap, (size_t)n + 1, sizeof *turns)) { rc = say("out of memory"); break; }
        turns[n] = (ft_turn){ { copy_text(line, (size_t)len), (size_t)len }, { NULL, 0 }, -1 };
        ft_row row = { { NULL, 0 }, turns, ++n, { NULL, 0 } };
        if (answer(&w, &row, &n_text, &w.s.err)) rc = fail(&w.s.err);
        else turns[n - 1].response = (ft_text){ copy_text(w.text, n_text), n_text };
        if (o->json && !rc) { fputs("{\"text\":", stdout); put_json(stdout, w.text, n_text); fputs("}\n", stdout); fflush(stdout); }
    }
    while (n) { n--; free((char *)turns[n].query.p); free((char *)turns[n].response.p); }
    free(turns); free(line);
    worker_free(&w);
    return rc;
}

/* ---- the table of commands ----------------------------------------------------------------------------------- */

static const command COMMANDS[] = {
    { "tokenize", "--tokenizer PATH [FILE]", "{\"text\":..} -> {\"ids\":[..]}", TOK | TOKENIZE, cmd_tokenize },
    { "detokenize", "--tokenizer PATH [FILE]", "{\"ids\":[..]} -> {\"text\":..}", TOK | DETOK, cmd_detokenize },
    { "train-tokenizer", "--vocab-size N --out DIR FILE...", "learn byte-level BPE from text files; writes tokenizer.json", LEARN, cmd_train_tokenizer },
    { "encode", "--tokenizer PATH --template NAME [FILE]", "a row -> {\"input_ids\":[..],\"labels\":[..]}", TOK | CHAT, cmd_encode },
    { "show", "--tokenizer PATH --template NAME [FILE]", "a row as a table: token, id, label, target", TOK | CHAT | SHOW, cmd_show },
    { "templates", "[NAME]", "the chat templates, or one of them with an example", CHAT | SHOW, cmd_templates },
    { "init", "--config FILE --out DIR", "a model with random weights", CONFIG | SEED | OUT | DTYPE | TOK, cmd_init },
    { "pretrain", "--model DIR --data FILE --out DIR", "train all weights on plain text", MODEL | TRAIN | CHAT, cmd_pretrain },
    { "sft", "--model DIR --data FILE --out DIR", "fine-tune on conversations: LoRA, or --full", MODEL | TRAIN | CHAT | ADAPTER, cmd_sft },
    { "score", "--model DIR [--adapter DIR] [FILE]", "{\"input_ids\":..,\"labels\":..} -> {\"loss\":..,\"n\":..,\"logprobs\":[..]}", MODEL | ADAPTER, cmd_score },
    { "grads", "--model DIR --adapter DIR --out FILE [FILE]", "gradient of the mean loss of all rows, as safetensors", MODEL | ADAPTER | OUT | GRADS, cmd_grads },
    { "generate", "--model DIR [--adapter DIR] [--prompt S | FILE]", "answer prompts (a line each: text, or a JSON row)", MODEL | ADAPTER | CHAT | GEN | JSON, cmd_generate },
    { "chat", "--model DIR [--adapter DIR]", "talk, line by line", MODEL | ADAPTER | CHAT | GEN | JSON, cmd_chat },
    { "merge", "--model DIR --adapter DIR --out DIR", "W + scaling * B A, as a model directory", MODEL | ADAPTER | OUT, cmd_merge },
    { "plan", "--model DIR | --config FILE", "memory and work of a training run; nothing is allocated", PLAN | JSON, cmd_plan },
    { "export", "--format gguf|ollama --model DIR --adapter DIR --out DIR", "(not in this version)", MODEL | ADAPTER | OUT | EXPORT, cmd_export },
};
enum { N_COMMANDS = sizeof COMMANDS / sizeof COMMANDS[0] };

static void usage(FILE *f)
{
    fputs("ftune COMMAND [options] [FILE...]      ftune COMMAND --help: its options\n\n", f);
    for (int i = 0; i < N_COMMANDS; i++) fprintf(f, "  %-16s %s\n", COMMANDS[i].name, COMMANDS[i].help);
}

int main(int n, char **words)
{
    const command *c = COMMANDS, *end = COMMANDS + N_COMMANDS;
    options o = options_default();
    int     rc;
    if (n < 2) { usage(stderr); return 2; }
    if (strcmp(words[1], "--help") == 0 || strcmp(words[1], "-h") == 0) { usage(stdout); return 0; }
    while (c < end && strcmp(c->name, words[1]) != 0) c++;
    if (c == end) { usage(stderr); return say("no command \"%s\"", words[1]); }
    o.files = calloc((size_t)n, sizeof *o.files);
    if (!o.files) return say("out of memory"), 1;
    rc = read_options(&o, c, n - 2, words + 2);
    o.colour = o.color ? strcmp(o.color, "always") == 0 : isatty(1) && !getenv("NO_COLOR");
    if (o.color && strcmp(o.color, "auto") == 0) o.colour = isatty(1);
    if (!rc) rc = o.help ? help(c) : c->run(&o);
    if (fflush(stdout) != 0 && !rc) rc = 1;
    free(o.files);
    return rc;
}
