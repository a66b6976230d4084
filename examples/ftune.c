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
    const char *backend, *dtype, *prompt, *color, *format;
    int add_special, skip_special, no_chat_template, html, full, resume, strict, json, help, rslora;
    long long threads, lowercase, swift, max_length, vocab_size, min_frequency, seed, lora_r, batch, accumulate, epochs;
    long long steps, packing, save_every, log_every, max_new_tokens, top_k;
    double lora_alpha, lora_dropout, lr, warmup, weight_decay, max_grad_norm, temperature, top_p, repetition_penalty;
    const char **files; int n_files;
    int colour;                         /* --color decided */
} options;

/* Which commands an option belongs to. */
enum { TOK = 1, CHAT = 2, MODEL = 4, TRAIN = 8, GEN = 16, OUT = 32, SEED = 64, ALL = 128, TOKENIZE = 256, DETOK = 512,
       LEARN = 1024, SHOW = 2048, SCALE = 4096, CONFIG = 8192, PLAN = 16384, ADAPTER = 32768, DTYPE = 65536,
       EXPORT = 131072, GRADS = 262144, JSON = 524288 };
typedef enum { FLAG, INT, REAL, TEXT } kind;
typedef struct option { const char *name, *value; int groups; kind kind; size_t at; const char *help; } option;

#define AT(field) offsetof(options, field)
static const option OPTIONS[] = {
    { "--tokenizer", "PATH", TOK | MODEL, TEXT, AT(tokenizer), "file or model directory; \"bytes\" is built in" },
    { "--splitter", "gpt2|cl100k|qwen|o200k|llama3|kimi", TOK | MODEL | LEARN, TEXT, AT(splitter),
      "how a rank file splits text" },
    { "--lowercase", "0|1", TOK, INT, AT(lowercase), "for vocab.txt; else decided from the vocabulary" },
    { "--special", "text|parse", TOKENIZE | CHAT, TEXT, AT(special), "what control tokens in content become [text]" },
    { "--add-special", NULL, TOKENIZE, FLAG, AT(add_special), "add what the tokenizer puts around a sentence" },
    { "--skip-special", NULL, DETOK, FLAG, AT(skip_special), "leave control tokens out" },
    { "--vocab-size", "N", LEARN, INT, AT(vocab_size), "256 bytes + merges + special tokens" },
    { "--min-frequency", "N", LEARN, INT, AT(min_frequency), "a pair seen less often is not merged" },
    { "--special", "A,B", LEARN, TEXT, AT(special), "control tokens; the first is end of text and padding" },
    { "--model", "DIR", MODEL | PLAN, TEXT, AT(model), "model directory: config.json, *.safetensors, tokenizer" },
    { "--config", "FILE", CONFIG | PLAN, TEXT, AT(config), "config.json" },
    { "--adapter", "DIR", ADAPTER, TEXT, AT(adapter), "LoRA adapter directory (PEFT)" },
    { "--data", "FILE", TRAIN, TEXT, AT(data), "data set: .jsonl, .json or .txt" },
    { "--eval", "FILE", TRAIN, TEXT, AT(eval), "held-out data set, evaluated at the end" },
    { "--out", "PATH", OUT | TRAIN | LEARN, TEXT, AT(out), "where the result is written" },
    { "--template", "NAME", CHAT, TEXT, AT(template_name), "chat template; ftune templates lists them [chatml]" },
    { "--swift", "2|3", CHAT, INT, AT(swift), "rules of ms-swift 2.0.5, or of the newest [3]" },
    { "--system", "S", CHAT, TEXT, AT(system), "default system text; \"\": none" },
    { "--max-length", "N", CHAT | PLAN, INT, AT(max_length), "longest row in tokens; 0: no limit" },
    { "--truncation", "delete|left|right", CHAT, TEXT, AT(truncation), "drop a longer row, or cut it [delete]" },
    { "--loss-scale", "NAME", CHAT, TEXT, AT(loss_scale),
      "what is learnt: default, last_round, all; how much: +react, ..; with --swift 2: agent" },
    { "--no-chat-template", NULL, CHAT, FLAG, AT(no_chat_template), "plain text, for pre-training" },
    { "--html", NULL, SHOW, FLAG, AT(html), "a self-contained page" },
    { "--color", "auto|always|never", SHOW, TEXT, AT(color), "colour [auto: on a terminal]" },
    { "--lora-r", "N", TRAIN | PLAN, INT, AT(lora_r), "rank of the adapter" },
    { "--lora-alpha", "X", TRAIN | PLAN, REAL, AT(lora_alpha), "scaling = alpha / rank" },
    { "--lora-dropout", "X", TRAIN | PLAN, REAL, AT(lora_dropout), "share of inputs the adapter does not see" },
    { "--rslora", NULL, TRAIN | PLAN, FLAG, AT(rslora), "scaling = alpha / sqrt(rank)" },
    { "--target-modules", "A,B", TRAIN | PLAN, TEXT, AT(target_modules), "projections; all-linear: all but lm_head" },
    { "--full", NULL, TRAIN | PLAN | GRADS, FLAG, AT(full), "train every weight, no adapter" },
    { "--freeze", "A,B", TRAIN | PLAN | GRADS, TEXT, AT(freeze),
      "--full, but for tensors whose names begin so, or for a share: 0.5" },
    { "--quant", "nf4|int8|none", MODEL | PLAN, TEXT, AT(quant), "frozen linear layers in 4 or 8 bits [none]" },
    { "--batch", "N", TRAIN | PLAN, INT, AT(batch), "rows of one forward pass" },
    { "--accumulate", "N", TRAIN | PLAN, INT, AT(accumulate), "forward passes of one update" },
    { "--packing", "N", TRAIN | PLAN, INT, AT(packing), "fill sequences of N tokens; --batch then counts those" },
    { "--epochs", "N", TRAIN | PLAN, INT, AT(epochs), "times through the data" },
    { "--steps", "N", TRAIN | PLAN, INT, AT(steps), "updates; wins over --epochs" },
    { "--lr", "X", TRAIN | PLAN, REAL, AT(lr), "learning rate" },
    { "--schedule", "cosine|linear|constant", TRAIN | PLAN, TEXT, AT(schedule), "its way down [cosine]" },
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
    { "--backend", "cpu|cuda", MODEL, TEXT, AT(backend), "where the numbers are computed [cpu]" },
    { "--dtype", "f32|bf16", MODEL | PLAN | DTYPE, TEXT, AT(dtype),
      "bf16: frozen weights are rounded to it; init, merge: type of the file" },
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
    o.lowercase = -1; o.seed = (long long)t.seed; o.vocab_size = 0;
    o.min_frequency = ft_tokenizer_train_options_default().min_frequency;
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
    int   least = d->at == AT(max_length) ? -1 : 0;     /* -1: no limit, as elsewhere */
    errno = 0;
    if (strchr(d->value, '|') && choice(value, d->value) < 0)
        return say("%s: expected %s, found \"%s\"", d->name, d->value, value);
    if (d->kind == TEXT) *(const char **)field = value;
    if (d->kind == INT)  *(long long *)field = strtoll(value, &end, 10);
    if (d->kind == REAL) *(double *)field = strtod(value, &end);
    if (end && (end == value || *end || errno || (d->kind == REAL && !isfinite(*(double *)field))))
        return say("%s: expected a number, found \"%s\"", d->name, value);
    if (d->kind == INT && (*(long long *)field < least || (*(long long *)field > INT32_MAX && d->at != AT(seed))))
        return say("%s: expected %d to %d, found \"%s\"", d->name, least, INT32_MAX, value);
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
        while (d < end && !(d->groups & (c->groups | ALL) && strlen(d->name) == len && memcmp(d->name, word, len) == 0))
            d++;
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

/* FTUNE_F32: weights as the file has them. */
static ft_dtype quant_of(const options *o)
{
    return o->quant && strcmp(o->quant, "nf4") == 0 ? FTUNE_NF4 : o->quant && strcmp(o->quant, "int8") == 0 ? FTUNE_I8
         : FTUNE_F32;
}

/* What makes no sense together, and what this program was built without. */
static int unsupported(const options *o)
{
    if (o->full && !o->freeze && quant_of(o) != FTUNE_F32)
        return say("--quant %s: what is trained cannot be quantised: train an adapter, or --freeze a part", o->quant);
#ifndef FTUNE_CUDA
    if (o->backend && strcmp(o->backend, "cuda") == 0)
        return say("--backend cuda: this program was built without it (FTUNE_CUDA and ftune_cuda.cu); use cpu");
#endif
    return 0;
}

/* ---- small helpers ------------------------------------------------------------------------------------------- */

/* Memory that grows and is used again for the next row. */
typedef struct buffer { void *p; size_t bytes; } buffer;

static void *room(buffer *b, size_t n, size_t size)     /* for n elements; NULL: out of memory */
{
    size_t bytes = n * size;
    void  *bigger;
    if (n > SIZE_MAX / 2 / size) return NULL;
    if (b->p && bytes <= b->bytes) return b->p;
    bytes = bytes < b->bytes * 2 ? b->bytes * 2 : bytes + 1;
    if ((bigger = realloc(b->p, bytes)) != NULL) { b->p = bigger; b->bytes = bytes; }
    return bigger;
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

/* A stream to its end, behind the n bytes at start (malloc'ed, or NULL); the caller frees the result. */
static char *read_stream(FILE *f, char *start, size_t n, size_t *n_out)
{
    buffer b = { start, n };
    size_t got = 1;
    while (got && room(&b, n + 65536, 1)) n += got = fread((char *)b.p + n, 1, 65536, f);
    if (got || !room(&b, n + 1, 1)) { free(b.p); return NULL; }
    ((char *)b.p)[n] = 0;
    *n_out = n;
    return b.p;
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
        if (!len) fputs("\xef\xbf\xbd", f);
        else if (cp == '"' || cp == '\\') fprintf(f, "\\%c", (char)cp);
        else if (cp == '\n') fputs("\\n", f);
        else if (cp < 0x20 || cp == 0x7f || cp == 0x85 || cp == 0x2028 || cp == 0x2029)
            fprintf(f, "\\u%04x", (unsigned)cp);
        else fwrite(p + i, 1, (size_t)len, f);
        i += len ? (size_t)len : 1;
    }
    putc('"', f);
}

static void put_text_row(const char *text, size_t n)
{
    fputs("{\"text\":", stdout);
    put_json(stdout, text, n);
    fputs("}\n", stdout);
}

/* A refused row leaves a line too, so that line n out belongs to row n in. */
static ft_status put_error(ft_status st, const ft_error *err)
{
    if (!st) return st;
    fputs("{\"error\":", stdout);
    put_json(stdout, err->message, strlen(err->message));
    fputs("}\n", stdout);
    return st;
}

static void put_ids(FILE *f, const int32_t *ids, size_t n)
{
    putc('[', f);
    for (size_t i = 0; i < n; i++) fprintf(f, i ? ",%d" : "%d", (int)ids[i]);
    putc(']', f);
}

/* A text made readable: escapes for control characters and stray bytes, dots for spaces. Returns its width. */
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
            int wide = (cp >= 0x1100 && cp < 0x1160) || (cp >= 0x2e80 && cp < 0xa4d0) || (cp >= 0xac00 && cp < 0xd7a4)
                    || (cp >= 0xf900 && cp < 0xfb00) || (cp >= 0xff01 && cp < 0xff61)
                    || (cp >= 0x1f300 && cp < 0x40000);
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
    fprintf(stderr, "%s%s", named ? "" : where, named ? "" : ": ");
    for (const char *p = err->message; *p; p++) putc((unsigned char)*p < 0x20 ? ' ' : *p, stderr);
    putc('\n', stderr);
}

static ft_status call_row(row_fn fn, void *user, ft_text row, const char *where, int *refused)
{
    ft_error  err = { FTUNE_OK, "" };
    ft_status st  = fn(user, row, where, &err);
    if (st) { report(where, &err); *refused += 1; }
    return st == FTUNE_ERR_NO_MEMORY ? st : FTUNE_OK;
}

/* A .json file is one array: it is read whole. */
static ft_status rows_of_array(const char *text, size_t n, const char *name, row_fn fn, void *user, int *refused)
{
    ft_error  err = { FTUNE_OK, "" };
    ft_json  *j   = NULL;
    long      line = 1;
    ft_status st  = ft_json_parse(&j, text, n, name, &err);
    if (st) { report(name, &err); *refused += 1; }
    for (int row = j ? ft_json_child(j, 0) : -1; row >= 0 && !st; row = ft_json_next(j, row)) {
        char where[4200];
        while (text < ft_json_raw(j, row).p) line += *text++ == '\n';
        snprintf(where, sizeof where, "%s:%ld", name, line);
        st = call_row(fn, user, ft_json_raw(j, row), where, refused);
    }
    ft_json_free(j);
    return st;
}

/* Is there anything but white space left? A line that is a whole array with others behind it is a (refused) row. */
static int more_follows(FILE *f)
{
    int c;
    while ((c = getc(f)) == ' ' || c == '\t' || c == '\r' || c == '\n') { }
    if (c != EOF) ungetc(c, f);
    return c != EOF;
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
    int         live = f && fstat(fileno(f), &info) == 0 && !S_ISREG(info.st_mode);    /* someone may wait */
    if (!f) { say("%s: cannot open: %s", path, strerror(errno)); *refused += 1; return; }
    for (long number = 1; (n = getline(&line, &cap, f)) >= 0; number++) {
        ft_text row = { line, (size_t)n };
        if (number == 1 && row.n >= 3 && memcmp(row.p, "\xef\xbb\xbf", 3) == 0) row.p += 3, row.n -= 3;
        while (row.n && strchr(" \t\r\n", row.p[row.n - 1]) && row.p[row.n - 1]) row.n--;
        if (number == 1 && row.n && row.p[0] == '[' && !(row.p[row.n - 1] == ']' && more_follows(f))) {
            size_t skip = (size_t)(row.p - line), whole = 0;
            line = read_stream(f, line, (size_t)n, &whole);
            if (line) rows_of_array(line + skip, whole - skip, name, fn, user, refused);
            else *refused += say("out of memory");
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

/* ---- the session: what a command loads, and what it keeps from row to row --------------------------------------- */

typedef struct session {
    const options *o;
    ft_backend    *be;
    ft_model      *model;
    ft_tokenizer  *tok;
    ft_chat_options chat;
    ft_row_parser *parser;
    char          *settings_text;       /* ftune.json beside the adapter or model: how it was trained */
    ft_json       *settings;
    ft_sample      sample;
    ft_batch       batch;
    buffer         ids, labels, scale, text, logprobs;
    long           n_rows, n_dropped, n_targets;
    double         loss;
    ft_error       err;
} session;

enum { WANT_TOKENIZER = 1, WANT_CHAT = 2, WANT_ROWS = 4, WANT_BACKEND = 8, WANT_MODEL = 16, WANT_DTYPE = 32 };

static void session_close(session *s)
{
    ft_model_free(s->model);
    ft_backend_free(s->be);
    ft_tokenizer_free(s->tok);
    ft_row_parser_free(s->parser);
    ft_json_free(s->settings);
    ft_sample_free(&s->sample);
    ft_batch_free(&s->batch);
    free(s->settings_text); free(s->ids.p); free(s->labels.p); free(s->scale.p); free(s->text.p); free(s->logprobs.p);
}

/* ftune.json is optional: an adapter made elsewhere has none. */
static int load_settings(session *s)
{
    const char *dirs[3] = { s->o->adapter, s->o->adapter, s->o->model };    /* the second: a checkpoint inside a run */
    for (int i = 0; i < 3 && !s->settings_text; i++) {
        char   path[4200];
        size_t n = 0;
        if (!dirs[i]) continue;
        snprintf(path, sizeof path, i == 1 ? "%s/../ftune.json" : "%s/ftune.json", dirs[i]);
        s->settings_text = read_file(path, &n, &s->err);
        if (s->settings_text && ft_json_parse(&s->settings, s->settings_text, n, path, &s->err)) return fail(&s->err);
    }
    memset(&s->err, 0, sizeof s->err);
    return 0;
}

static const char *setting(session *s, const char *key)
{
    return s->settings ? ft_json_text(s->settings, ft_json_get(s->settings, 0, key)).p : NULL;
}

static ft_special special_of(const options *o)
{
    return o->special && strcmp(o->special, "parse") == 0 ? FTUNE_SPECIAL_PARSE : FTUNE_SPECIAL_AS_TEXT;
}

/* The template options of the command line; what it does not say is taken from ftune.json, then from the library. */
static int chat_options(session *s, const options *o)
{
    ft_chat_options *c = &s->chat;
    *c = ft_chat_options_default();
    if (setting(s, "template")) c->template_name = setting(s, "template");
    if (setting(s, "system"))   c->default_system = setting(s, "system");
    if (s->settings) {
        c->swift = (int)ft_json_number(s->settings, ft_json_get(s->settings, 0, "swift"), c->swift);
        int plain = ft_json_get(s->settings, 0, "use_chat_template");
        c->use_chat_template = ft_json_type_of(s->settings, plain) != FTUNE_JSON_FALSE;
    }
    if (o->template_name) { c->template_name = o->template_name; c->use_chat_template = 1; }
    if (o->no_chat_template) c->use_chat_template = 0;
    if (o->swift)      c->swift = (int)o->swift;
    if (o->system)     c->default_system = o->system;
    if (o->max_length > 0) c->max_length = (int)o->max_length;
    if (o->truncation) c->truncation = (ft_truncation)choice(o->truncation, "delete|left|right");
    if (o->loss_scale) { c->loss_scale = o->loss_scale; c->want_loss_scale = 1; }
    c->special = special_of(o);
    return ft_template_find(NULL, c->template_name, &s->err) ? 0 : say("--template: %s", s->err.message);
}

static const char *template_used(const session *s)
{
    return s->chat.use_chat_template ? s->chat.template_name : "none: plain text";
}

/* The tokenizer of a model: --tokenizer, or the one it was trained with, or the one in its directory. */
static const char *tokenizer_path(session *s)
{
    return s->o->tokenizer ? s->o->tokenizer : setting(s, "tokenizer") ? setting(s, "tokenizer") : s->o->model;
}

static int load_backend(session *s)
{
#ifdef FTUNE_CUDA
    if (s->o->backend && strcmp(s->o->backend, "cuda") == 0)
        return ft_backend_cuda(&s->be, 0, &s->err) ? fail(&s->err) : 0;
#endif
    return ft_backend_cpu(&s->be, (int)s->o->threads, &s->err) ? fail(&s->err) : 0;
}

/* --quant, and --dtype where it is not the type of a file: what is frozen, in fewer bits. Codes first, as they are best
 * made from the numbers of the file. */
static int narrow(session *s, int with_dtype)
{
    ft_dtype quant = quant_of(s->o);
    if (quant != FTUNE_F32 && ft_model_quantize(s->model, quant, 1, &s->err)) return fail(&s->err);
    if (with_dtype && s->o->dtype && strcmp(s->o->dtype, "bf16") == 0
        && ft_model_quantize(s->model, FTUNE_BF16, 0, &s->err)) return fail(&s->err);
    return 0;
}

/* A --loss-scale that is none is wrong usage: found before any row is read. A --system that the template has no place
 * for is found at each row. */
static int chat_check(session *s)
{
    ft_turn  turn = { ft_text_of("q"), ft_text_of("r"), -1, 0 };
    ft_row   row  = { { NULL, 0 }, &turn, 1, { NULL, 0 } };
    ft_chat_options plain = s->chat;
    plain.max_length = 0;
    plain.default_system = NULL;
    if (!ft_row_encode(&s->sample, s->tok, &row, &plain, &s->err)) return 0;
    return s->err.code == FTUNE_ERR_ARGUMENT || s->err.code == FTUNE_ERR_UNSUPPORTED ? say("%s", s->err.message) : 0;
}

/* Load what the command wants; 0, or the exit status. */
static int session_open(session *s, const options *o, int wants)
{
    ft_tokenizer_options t = ft_tokenizer_options_default();
    s->o = o;
    if (wants & WANT_MODEL && need(o->model, "--model DIR")) return 2;
    if (wants & WANT_TOKENIZER && !o->model && need(o->tokenizer, "--tokenizer PATH")) return 2;
    if (unsupported(o)) return 2;
    if (wants & WANT_MODEL && load_settings(s)) return 1;
    if (wants & WANT_CHAT) { int rc = chat_options(s, o); if (rc) return rc; }
    t.splitter = o->splitter; t.lowercase = (int)o->lowercase;
    if (wants & WANT_TOKENIZER && ft_tokenizer_load(&s->tok, tokenizer_path(s), &t, &s->err)) return fail(&s->err);
    if (wants & WANT_ROWS && ft_row_parser_new(&s->parser, &s->err)) return fail(&s->err);
    if (wants & WANT_ROWS && wants & WANT_CHAT) { int rc = chat_check(s); if (rc) return rc; }
    if (wants & WANT_BACKEND && load_backend(s)) return 1;
    if (wants & WANT_MODEL && ft_model_load(&s->model, o->model, s->be, &s->err)) return fail(&s->err);
    if (wants & WANT_MODEL && o->adapter && ft_lora_load(s->model, o->adapter, &s->err)) return fail(&s->err);
    return wants & WANT_MODEL && !o->full ? narrow(s, wants & WANT_DTYPE) : 0;
}

/* The commands that turn each row into one line. */
static int row_command(const options *o, int wants, row_fn fn)
{
    session s = { 0 };
    int rc = session_open(&s, o, wants);
    if (!rc) rc = each_row(o, fn, &s);
    if (s.n_dropped) fprintf(stderr, "%ld of %ld rows dropped: longer than --max-length\n", s.n_dropped, s.n_rows);
    session_close(&s);
    return rc;
}

/* ---- text and ids -------------------------------------------------------------------------------------------- */

/* Member `key` of a row: a list of int32. */
static ft_status read_ids(const ft_json *j, const char *key, buffer *ids, int *n, ft_error *err)
{
    int list = ft_json_get(j, 0, key), i = 0;
    int32_t *p = room(ids, (size_t)ft_json_count(j, list) + 1, sizeof *p);
    if (ft_json_type_of(j, list) != FTUNE_JSON_ARRAY)
        return refuse(err, FTUNE_ERR_FORMAT, "expected \"%s\": a list of integers, found %s", key,
                      list < 0 ? "none" : "another type");
    if (!p) return no_memory(err);
    for (int e = ft_json_child(j, list); e >= 0; e = ft_json_next(j, e), i++) {
        double  v = ft_json_number(j, e, 0.5);
        ft_text raw = ft_json_raw(j, e);
        if (!(v >= INT32_MIN && v <= INT32_MAX) || v != (int32_t)v)
            return refuse(err, FTUNE_ERR_FORMAT, "%s[%d]: expected an integer, found %.*s", key, i,
                          raw.n > 40 ? 40 : (int)raw.n, raw.p);
        p[i] = (int32_t)v;
    }
    *n = i;
    return FTUNE_OK;
}

static ft_status tokenize_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session *s = user;
    ft_json *j = NULL;
    ft_status st = ft_json_parse(&j, json.p, json.n, where, err);
    ft_special special = special_of(s->o) | (s->o->add_special ? FTUNE_ADD_SPECIAL : 0);
    ft_text t = st ? json : ft_json_text(j, ft_json_get(j, 0, "text"));
    size_t  n = t.n + 16;
    if (!t.p) st = refuse(err, FTUNE_ERR_FORMAT, "expected {\"text\": a string}, found %.*s",
                          json.n > 60 ? 60 : (int)json.n, json.p);
    if (!st) do {
        if (!room(&s->ids, n, sizeof(int32_t))) st = no_memory(err);
        else st = ft_tokenizer_encode_threads(s->tok, t.p, t.n, special, (int)s->o->threads, s->ids.p,
                                              s->ids.bytes / sizeof(int32_t), &n, err);
    } while (st == FTUNE_ERR_BUFFER_TOO_SMALL);
    if (!st) {
        fputs("{\"ids\":", stdout);
        put_ids(stdout, s->ids.p, n);
        fputs("}\n", stdout);
    }
    ft_json_free(j);
    return put_error(st, err);
}

static int cmd_tokenize(const options *o) { return row_command(o, WANT_TOKENIZER, tokenize_row); }

/* The text of ids into s->text, 0-terminated. */
static ft_status decode_ids(session *s, const int32_t *ids, size_t n_ids, int skip_special, size_t *n, ft_error *err)
{
    ft_status st = FTUNE_OK;
    *n = n_ids * 8;
    do {
        if (!room(&s->text, *n + 1, 1)) return no_memory(err);
        st = ft_tokenizer_decode(s->tok, ids, n_ids, skip_special, s->text.p, s->text.bytes - 1, n, err);
    } while (st == FTUNE_ERR_BUFFER_TOO_SMALL);
    if (!st) ((char *)s->text.p)[*n] = 0;
    return st;
}

static ft_status detokenize_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session *s = user;
    ft_json *j = NULL;
    int      n_ids = 0;
    size_t   n = 0;
    ft_status st = ft_json_parse(&j, json.p, json.n, where, err);
    if (!st) st = read_ids(j, "ids", &s->ids, &n_ids, err);
    if (!st) st = decode_ids(s, s->ids.p, (size_t)n_ids, s->o->skip_special, &n, err);
    if (!st) put_text_row(s->text.p, n);
    ft_json_free(j);
    return put_error(st, err);
}

static int cmd_detokenize(const options *o) { return row_command(o, WANT_TOKENIZER, detokenize_row); }

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
    int      rc = 0, n = 0, which, at = 0;
    char   **texts = calloc((size_t)o->n_files + 1, sizeof *texts), list[4096];
    size_t  *lengths = calloc((size_t)o->n_files + 1, sizeof *lengths);
    const char *names[256];
    if (need(o->out, "--out DIR") || need(o->vocab_size ? "" : NULL, "--vocab-size N")) rc = 2;
    else if (!o->n_files) rc = say("expected text files behind the options");
    else if (!texts || !lengths) rc = fail((no_memory(&s.err), &s.err));
    snprintf(list, sizeof list, "%s", o->special ? o->special : "<|endoftext|>,<|im_start|>,<|im_end|>");
    t.vocab_size = (int)o->vocab_size; t.min_frequency = (int)o->min_frequency;
    t.special = names; t.n_special = split_list(list, names, 256);
    if (o->splitter) t.splitter = o->splitter;
    for (; n < o->n_files && !rc; n++)
        if (!(texts[n] = read_file(o->files[n], &lengths[n], &s.err))) rc = fail(&s.err);
    if (!rc && ft_tokenizer_train(&s.tok, (const char *const *)texts, lengths, n, &t, &s.err)) {
        rc = 1;                         /* the library has texts, we have files */
        if (sscanf(s.err.message, "text %d: %n", &which, &at) == 1 && at && which < n)
            say("%s: %s", o->files[which], s.err.message + at);
        else fail(&s.err);
    }
    if (!rc && t.n_special) {           /* the first one ends a text and fills up batches */
        int32_t end = ft_token_id(s.tok, names[0], strlen(names[0]));
        ft_tokenizer_set_attribute(s.tok, "eos_token_id", end, &s.err);
        ft_tokenizer_set_attribute(s.tok, "pad_token_id", end, &s.err);
    }
    if (!rc && ft_tokenizer_save(s.tok, o->out, &s.err)) rc = fail(&s.err);
    if (!rc) fprintf(stderr, "%s: %d tokens, learnt from %d files\n", o->out, ft_tokenizer_size(s.tok), n);
    for (int i = 0; i < n; i++) free(texts[i]);
    free(texts); free(lengths);
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
        fputs("]", stdout);
    }
    fputs("}\n", stdout);
}

/* A row into s->sample, nothing printed. */
static ft_status read_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session *s = user;
    ft_row   row;
    ft_status st = ft_row_parse(s->parser, json.p, json.n, where, &row, err);
    if (!st) st = ft_row_encode(&s->sample, s->tok, &row, &s->chat, err);
    s->n_rows++;
    s->n_dropped += !st && s->sample.dropped;
    return st;
}

static ft_status encode_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session  *s  = user;
    ft_status st = read_row(s, json, where, err);
    if (st) return put_error(st, err);
    if (s->sample.dropped) printf("{\"dropped\":\"too_long\",\"n\":%d}\n", s->sample.n);
    else put_sample(&s->sample);
    return st;
}

static int encode_or_show(const options *o, row_fn fn)
{
    if (!o->no_chat_template && need(o->template_name, "--template NAME or --no-chat-template")) return 2;
    return row_command(o, WANT_TOKENIZER | WANT_CHAT | WANT_ROWS, fn);
}

static int cmd_encode(const options *o) { return encode_or_show(o, encode_row); }

static const char *ORIGIN[] = { "bos", "system", "prompt", "response", "chat_sep", "suffix", "text" };

static void put_html(const char *p)
{
    for (; *p; p++) {
        if (*p == '<') fputs("&lt;", stdout);
        else if (*p == '&') fputs("&amp;", stdout);
        else putchar(*p);
    }
}

/* One line of the table: what the token is, what it is asked to predict. */
static void show_token(const session *s, int t)
{
    const ft_sample *x = &s->sample;
    char    text[600];
    int     width = visible(text, sizeof text, ft_token_bytes(s->tok, x->input_ids[t]));
    int32_t id = x->input_ids[t], label = x->labels ? x->labels[t] : FTUNE_IGNORE_INDEX;
    int32_t target = x->labels && t + 1 < x->n ? x->labels[t + 1] : FTUNE_IGNORE_INDEX;     /* the shift */
    int     counts = label != FTUNE_IGNORE_INDEX, special = ft_token_is_special(s->tok, id);
    const char *from = x->origin ? ORIGIN[x->origin[t]] : "";
    if (s->o->html) {
        printf("<tr class=\"%s%s\"><td>%d<td class=t>", counts ? "yes" : "no", special ? " special" : "", t);
        put_html(text);
        printf("<td>%d<td>%d<td>%d", (int)id, (int)label, (int)target);
        if (x->loss_scale) printf("<td>%g", (double)x->loss_scale[t]);
        printf("<td class=t>%s\n", from);
        return;
    }
    const char *on  = !s->o->colour ? "" : counts ? "\x1b[32m" : special ? "\x1b[36m" : "\x1b[2m";
    const char *ask = !s->o->colour ? "" : target != FTUNE_IGNORE_INDEX ? "\x1b[33m" : "\x1b[2m";
    const char *off = !s->o->colour ? "" : "\x1b[0m";
    printf("%5d  %s%s%s%*s %7d ", t, on, text, off, width < 22 ? 22 - width : 0, "", (int)id);
    printf("%s%7d%s %s%7d%s", on, (int)label, off, ask, (int)target, off);
    if (x->loss_scale) printf(" %6g", (double)x->loss_scale[t]);
    printf("  %s\n", from);
}

static ft_status show_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session   *s = user;
    ft_sample *x = &s->sample;
    int        n_labels = 0;
    ft_status  st = read_row(s, json, where, err);
    if (st) return st;
    if (s->o->html) printf("<h2>%s</h2><p>", where);
    else printf("%s: ", where);
    if (x->dropped) { printf("%d tokens: dropped\n", x->n); return st; }
    for (int t = 0; t < x->n; t++) n_labels += x->labels && x->labels[t] != FTUNE_IGNORE_INDEX;
    printf("%d tokens, %d labels%s\n", x->n, n_labels, x->labels ? "" : " (inference form)");
    printf(s->o->html ? "<table><tr><th>#<th>text<th>id<th>label<th>target%s<th>from\n"
                      : "    #  text                        id   label  target%s  from\n",
           !x->loss_scale ? "" : s->o->html ? "<th>scale" : "  scale");
    for (int t = 0; t < x->n; t++) show_token(s, t);
    puts(s->o->html ? "</table>" : "");
    return st;
}

static int cmd_show(const options *o)
{
    if (o->html)
        puts("<!doctype html><meta charset=utf-8><title>ftune show</title><style>"
             "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:1px 10px;"
             "text-align:right}.t{text-align:left;font-family:monospace}tr.yes{background:#dff5e1}tr.no{color:#777}"
             "tr.special .t{color:#06c}</style><h1>What teaches the model</h1><p>Green rows have a label and are "
             "learnt; grey rows are only read (-100). Target is the label one step to the left: what this position is "
             "asked to predict.</p>");
    return encode_or_show(o, show_row);
}

/* A list of pieces in C's spelling; ids in brackets. */
static void put_pieces(const char *name, const char *const *pieces)
{
    printf("  %-14s", name);
    for (int i = 0; i < FTUNE_MAX_PIECES && pieces[i]; i++) {
        const char *p = pieces[i];
        if (*p == FTUNE_IDS[0]) { printf(" [%s]", p + 1); continue; }
        for (printf(" \""); *p; p++) {
            if (*p == '\n') fputs("\\n", stdout);
            else putchar(*p);
        }
        putchar('"');
    }
    putchar('\n');
}

/* Pieces beside the labels of the encoded row: with the byte tokenizer every byte of text is one id. */
typedef struct example { const options *o; const ft_sample *sample; int t, learnt; } example;

static void put_mark(example *e, int learnt)
{
    if (learnt == e->learnt) return;
    fputs(learnt ? e->o->colour ? "\x1b[32m" : "[[" : e->o->colour ? "\x1b[0m" : "]]", stdout);
    e->learnt = learnt;
}

static void put_example_piece(void *user, const ft_piece *p)
{
    example *e = user;
    size_t   n = p->ids ? (size_t)p->n_ids : p->text.n;
    for (size_t i = 0; i < n && e->t < e->sample->n; i++) {
        put_mark(e, e->sample->labels[e->t++] != FTUNE_IGNORE_INDEX);
        if (p->ids) printf("<%d>", (int)p->ids[i]);
        else putchar(p->text.p[i]);
    }
}

static int show_template(const options *o, const ft_template *t)
{
    ft_turn turns[2] = { { ft_text_of("How are you?"), ft_text_of("I am fine."), -1, 0 },
                         { ft_text_of("And today?"), ft_text_of("Even better."), -1, 0 } };
    ft_row  row = { { NULL, 0 }, turns, t->single_round ? 1 : 2, { NULL, 0 } };
    session s = { 0 };
    int     rc;
    printf("%s%s%s\n", t->name, t->single_round ? ", one round only" : "",
           t->auto_add_bos ? ", begins with bos if the tokenizer does" : "");
    put_pieces("prefix", t->prefix);
    put_pieces("system_prefix", t->system_prefix);
    put_pieces("prompt", t->prompt);
    put_pieces("chat_sep", t->chat_sep);
    put_pieces("suffix", t->suffix);
    printf("  %-14s %s\n\n", "default_system", t->default_system ? t->default_system : "(none)");
    rc = chat_options(&s, o);
    s.chat.template_name = t->name;
    if (!rc && ft_tokenizer_load(&s.tok, "bytes", NULL, &s.err)) rc = fail(&s.err);
    printf("example (--swift %d), what is learnt %s:\n", s.chat.swift, o->colour ? "in green" : "in [[ ]]");
    example e = { o, &s.sample, 0, 0 };
    if (!rc && (ft_row_encode(&s.sample, s.tok, &row, &s.chat, &s.err)
                || ft_row_pieces(s.tok, &row, &s.chat, put_example_piece, &e, &s.err))) rc = fail(&s.err);
    put_mark(&e, 0);
    putchar('\n');
    session_close(&s);
    return rc;
}

static int cmd_templates(const options *o)
{
    ft_error err = { FTUNE_OK, "" };
    if (o->n_files) {
        const ft_template *t = ft_template_find(NULL, o->files[0], &err);
        return t ? show_template(o, t) : say("%s", err.message);
    }
    printf("%-28s %-10s %s\n", "name", "rounds", "default system");
    for (int i = 0; i < ft_template_count(NULL); i++) {
        const ft_template *t = ft_template_at(NULL, i);
        const char *system = t->default_system ? t->default_system : "-";
        int n = (int)strcspn(system, "\n");
        if (n > 60) for (n = 60; n && (system[n] & 0xc0) == 0x80; ) n--;         /* not inside a character */
        printf("%-28s %-10s %.*s%s\n", t->name, t->single_round ? "one" : "any", n, system, system[n] ? " ..." : "");
    }
    return 0;
}

/* ---- models -------------------------------------------------------------------------------------------------- */

/* The files a tokenizer may consist of go along with a model. A tokenizer that is not a directory stays where it is. */
static void copy_tokenizer(const char *from, const char *to)
{
    static const char *NAMES[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
                                   "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
                                   "qwen.tiktoken", "tiktoken.model", "generation_config.json" };
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        char     source[4200], target[4200], *data;
        size_t   n;
        ft_error err;
        snprintf(source, sizeof source, "%s/%s", from, NAMES[i]);
        snprintf(target, sizeof target, "%s/%s", to, NAMES[i]);
        data = read_file(source, &n, &err);
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
    if (!rc) rc = session_open(&s, o, WANT_BACKEND);
    if (!rc && ft_model_init(&s.model, &c, (uint64_t)o->seed, s.be, &s.err)) rc = fail(&s.err);
    if (!rc && ft_model_save(s.model, o->out, file_dtype(o, FTUNE_F32), &s.err)) rc = fail(&s.err);
    if (!rc && o->tokenizer) copy_tokenizer(o->tokenizer, o->out);
    if (!rc) fprintf(stderr, "%s: %lld parameters, random\n", o->out, (long long)ft_config_parameters(&c));
    session_close(&s);
    return rc;
}

static int write_settings(session *s, const char *text, size_t n)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/ftune.json", s->o->out);
    return write_file(path, text, n, &s->err) ? fail(&s->err) : 0;
}

static int cmd_merge(const options *o)
{
    session s = { 0 };
    int rc = need(o->adapter, "--adapter DIR") || need(o->out, "--out DIR") ? 2 : 0;
    if (!rc) rc = session_open(&s, o, WANT_BACKEND | WANT_MODEL);
    if (!rc && ft_lora_merge(s.model, &s.err)) rc = fail(&s.err);
    if (!rc && ft_model_save(s.model, o->out, file_dtype(o, s.model->config.dtype), &s.err)) rc = fail(&s.err);
    if (!rc) copy_tokenizer(o->model, o->out);
    if (!rc && s.settings) rc = write_settings(&s, s.settings_text, strlen(s.settings_text));
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

/* Tokens a row may have: --max-length, else what the model was made for, but not more than 2048. */
static int row_limit(const options *o, const ft_config *c)
{
    if (o->max_length >= 0) return (int)o->max_length;
    return c->max_position_embeddings < 2048 ? c->max_position_embeddings : 2048;
}

static int cmd_plan(const options *o)
{
    ft_config c;
    ft_plan   p;
    ft_error  err = { FTUNE_OK, "" };
    ft_lora_config lora = lora_config(o);
    ft_dtype quant = quant_of(o);
    const char *where = o->config ? o->config : o->model;
    double tokens;
    if (need(where, "--model DIR or --config FILE") || unsupported(o)) return 2;
    if (ft_config_load(&c, where, &err)) return fail(&err);
    tokens = (double)(o->packing > 0 ? o->packing : row_limit(o, &c)) * (double)o->batch;
    if (tokens > INT32_MAX) return say("--batch: %.0f tokens in a batch are too many", tokens);
    if (o->dtype && strcmp(o->dtype, "bf16") == 0) {
        if (quant == FTUNE_F32) quant = FTUNE_BF16;
        else c.dtype = FTUNE_BF16;
    }
    if (ft_model_plan(&p, &c, c.dtype, quant, o->full ? NULL : &lora, o->freeze, (int)tokens, &err)) return fail(&err);
    const struct { const char *name; double value; int bytes; } lines[] = {
        { "tokens_per_batch", tokens, 0 }, { "parameters", (double)p.parameters, 0 },
        { "trainable", (double)p.trainable, 0 }, { "weights", (double)p.weights, 1 }, { "packed", (double)p.packed, 1 },
        { "adapters", (double)p.adapters, 1 }, { "gradients", (double)p.gradients, 1 },
        { "moments", (double)p.moments, 1 }, { "activations", (double)p.activations, 1 },
        { "logits", (double)p.logits, 1 }, { "kv_cache", (double)p.kv_cache, 1 }, { "peak", (double)p.peak, 1 },
        { "flop_per_token_forward", p.flop_per_token_forward, 0 },
        { "flop_per_token_backward", p.flop_per_token_backward, 0 } };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        double v = lines[i].value;
        if (o->json) printf("%c\"%s\":%.0f", i ? ',' : '{', lines[i].name, v);
        else if (lines[i].bytes) printf("%-26s %18.0f bytes %9.3f GiB\n", lines[i].name, v, v / 1073741824.0);
        else printf("%-26s %18.0f\n", lines[i].name, v);
    }
    if (o->json) puts("}");
    return 0;
}

static int cmd_export(const options *o)
{
    return say("export --format %s: not in this version; merge writes a model directory", o->format ? o->format : "");
}

/* ---- training ------------------------------------------------------------------------------------------------ */

/* Steps on a terminal share one line that changes; elsewhere, and for evaluations, each has its own. */
static void show_progress(void *user, const char *line)
{
    int stays = !isatty(2) || strncmp(line, "step", 4) != 0;
    (void)user;
    fprintf(stderr, "%s%s%s", isatty(2) ? "\r\x1b[K" : "", line, stays ? "\n" : "");
}

static int load_dataset(ft_dataset *d, session *s, const char *path)
{
    int refused = 0;
    if (ft_dataset_load(d, path, s->tok, &s->chat, s->o->strict, &s->err)) return fail(&s->err);
    fprintf(stderr, "%s: %d rows", path, d->n_rows);
    if (d->n_too_long)  fprintf(stderr, ", %d too long and dropped", d->n_too_long);
    if (d->n_truncated) fprintf(stderr, ", %d cut", d->n_truncated);
    if (d->n_no_target) fprintf(stderr, ", %d without anything to learn", d->n_no_target);
    if (d->n_refused)   fprintf(stderr, ", %d refused", d->n_refused);
    fprintf(stderr, "; %d used: %lld tokens, %lld targets\n", d->n, (long long)d->n_tokens, (long long)d->n_targets);
    if (d->n_refused) rows_of_file(path, read_row, s, &refused);      /* again, for a line about each */
    return 0;
}

/* What the model will see, once, in the open: most training faults can be read here. */
static void show_first_sample(const session *s, const ft_sample *x)
{
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
static void warn_about_data(const session *s, const ft_dataset *d)
{
    int32_t stop[16], bos = ft_tokenizer_attribute(s->tok, "bos_token_id");
    int n_stop = ft_chat_stop_ids(s->tok, &s->chat, stop, 16), endless = 0, two_bos = 0;
    int V = s->model->config.vocab_size;
    double ordinary = 0;
    for (int i = 0; i < d->n; i++) {
        const ft_sample *x = &d->samples[i];
        int ends = 0;
        for (int t = 0; t < x->n; t++) {
            ends |= x->labels[t] != FTUNE_IGNORE_INDEX && x->origin[t] == FTUNE_FROM_SUFFIX;
            for (int k = 0; k < n_stop; k++) ends |= x->labels[t] == stop[k];
        }
        endless += !ends;
        two_bos += x->n > 1 && bos >= 0 && x->input_ids[0] == bos && x->input_ids[1] == bos;
    }
    if (n_stop && endless) fprintf(stderr, "warning: %d of %d rows have no end marker among their labels: they do not "
                                   "teach the model to stop\n", endless, d->n);
    if (two_bos) fprintf(stderr, "warning: %d rows begin with two bos tokens\n", two_bos);
    if (ft_tokenizer_size(s->tok) > V)
        fprintf(stderr, "warning: the tokenizer has %d ids, the model %d\n", ft_tokenizer_size(s->tok), V);
    if (strcmp(s->be->name, "cpu") != 0 || s->o->full) return;
    for (int id = 0; id < 100 && id < V; id++) ordinary += embedding_norm(s->model, id) / 100;
    for (int t = 0; t < d->samples[0].n; t++) {
        int32_t id = d->samples[0].input_ids[t];
        ft_text name = ft_token_bytes(s->tok, id);
        if (!ft_token_is_special(s->tok, id) || id >= V || embedding_norm(s->model, id) > 0.01 * ordinary) continue;
        fprintf(stderr, "warning: the embedding of %.*s is almost zero: the base model never saw this token, and an "
                "adapter cannot teach it\n", (int)name.n, name.p);
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
    if (o->schedule) t.schedule = (ft_schedule)choice(o->schedule, "linear|cosine|constant");
    return t;
}

/* ftune.json: what generate and chat must know to ask the way the model was taught. */
static int save_settings(session *s)
{
    const ft_chat_options *c = &s->chat;
    const char *tokenizer = tokenizer_path(s);
    char  *text = NULL;
    size_t n = 0;
    FILE  *f = open_memstream(&text, &n);
    int    rc;
    if (!f) return fail((no_memory(&s->err), &s->err));
    fputs("{\"template\":", f);
    put_json(f, c->template_name, strlen(c->template_name));
    fprintf(f, ",\"use_chat_template\":%s,\"swift\":%d", c->use_chat_template ? "true" : "false", c->swift);
    if (c->default_system) fputs(",\"system\":", f), put_json(f, c->default_system, strlen(c->default_system));
    if (strcmp(tokenizer, s->o->model) != 0) fputs(",\"tokenizer\":", f), put_json(f, tokenizer, strlen(tokenizer));
    fputs("}\n", f);
    fclose(f);
    rc = write_settings(s, text, n);
    free(text);
    return rc;
}

/* Every weight, or those that --freeze leaves; the others narrow. */
static int make_full(session *s)
{
    if ((s->o->freeze && ft_model_freeze(s->model, s->o->freeze, &s->err)) || ft_model_unfreeze(s->model, &s->err))
        return fail(&s->err);
    return narrow(s, 1);
}

/* Make something trainable: adapters, or every weight. */
static int make_trainable(session *s)
{
    ft_lora_config c = lora_config(s->o);
    const ft_param *params;
    double n = 0, all = (double)ft_config_parameters(&s->model->config);
    if (s->o->full && make_full(s)) return 1;
    if (!s->o->full) ft_lora_attach(s->model, &c, (uint64_t)s->o->seed, &s->err);
    if (s->err.code) return fail(&s->err);
    for (int i = ft_model_params(s->model, &params) - 1; i >= 0; i--) {
        double count = 1;
        for (int k = 0; k < params[i].rank; k++) count *= params[i].shape[k];
        n += count;
    }
    fprintf(stderr, "%.0f of %.0f parameters are trained\n", n, s->o->full ? all : all + n);
    return 0;
}

static int run_training(session *s, const ft_dataset *data, const ft_dataset *eval)
{
    ft_train_options t = train_options(s->o);
    ft_trainer *trainer = NULL;
    int rc = 0;
    if (ft_trainer_new(&trainer, s->model, data, eval, &t, &s->err)) return fail(&s->err);
    if (s->o->resume && ft_trainer_resume(trainer, s->o->out, &s->err)) rc = fail(&s->err);
    if (!rc && ft_trainer_run(trainer, &s->err)) rc = (fputs(isatty(2) ? "\n" : "", stderr), fail(&s->err));
    else if (!rc && isatty(2)) fputc('\n', stderr);
    ft_trainer_free(trainer);
    return rc;
}

static int train(const options *o)
{
    session    s = { 0 };
    ft_dataset data = { 0 }, eval = { 0 };
    int rc = need(o->data, "--data FILE") || need(o->out, "--out DIR") ? 2 : 0;
    if (!rc) rc = session_open(&s, o, WANT_TOKENIZER | WANT_CHAT | WANT_ROWS | WANT_BACKEND | WANT_MODEL | WANT_DTYPE);
    if (!rc) {
        s.chat.max_length = row_limit(o, &s.model->config);
        fprintf(stderr, "template %s (swift %d rules), at most %d tokens a row\n", template_used(&s), s.chat.swift,
                s.chat.max_length);
        rc = load_dataset(&data, &s, o->data);
    }
    if (!rc && o->eval) rc = load_dataset(&eval, &s, o->eval);
    if (!rc && !data.n) rc = (say("%s: expected rows with something to learn, found none", o->data), 1);
    if (!rc) { show_first_sample(&s, &data.samples[0]); warn_about_data(&s, &data); }
    if (!rc) rc = make_trainable(&s);
    if (!rc) rc = run_training(&s, &data, o->eval ? &eval : NULL);
    if (!rc) rc = save_settings(&s);
    if (!rc && o->full) copy_tokenizer(tokenizer_path(&s), o->out);
    if (!rc) fprintf(stderr, "%s: %s, log.jsonl, loss.svg. Next: ftune chat --model %s%s%s\n", o->out,
                     o->full ? "the model" : "the adapter", o->full ? o->out : o->model, o->full ? "" : " --adapter ",
                     o->full ? "" : o->out);
    if (!rc) rc = data.n_refused + eval.n_refused > 0;
    ft_dataset_free(&data);
    ft_dataset_free(&eval);
    session_close(&s);
    return rc;
}

static int cmd_sft(const options *o) { return train(o); }

/* Pre-training is the same with every weight, and with plain text unless a template is asked for. */
static int cmd_pretrain(const options *o)
{
    options p = *o;
    p.no_chat_template = !o->template_name;
    p.full = 1;
    return train(&p);
}

/* ---- looking inside ------------------------------------------------------------------------------------------ */

/* {"input_ids": [..], "labels": [..], "loss_scale": [..] or not there} as a batch of one row. */
static ft_status read_batch(session *s, ft_text json, const char *where, ft_error *err)
{
    ft_json  *j = NULL;
    ft_sample x = { 0 };
    int       n_labels = 0, scale = -1, V = s->model->config.vocab_size;
    ft_status st = ft_json_parse(&j, json.p, json.n, where, err);
    if (!st) st = read_ids(j, "input_ids", &s->ids, &x.n, err);
    if (!st) st = read_ids(j, "labels", &s->labels, &n_labels, err);
    if (!st) scale = ft_json_get(j, 0, "loss_scale");
    if (!st && (x.n != n_labels || (ft_json_count(j, scale) && ft_json_count(j, scale) != x.n)))
        st = refuse(err, FTUNE_ERR_FORMAT, "expected as many labels as input_ids (%d), found %d", x.n, n_labels);
    x.input_ids = s->ids.p; x.labels = s->labels.p;
    if (!st && ft_json_count(j, scale)) {
        if (!(x.loss_scale = room(&s->scale, (size_t)x.n, sizeof(float)))) st = no_memory(err);
        for (int e = st ? -1 : ft_json_child(j, scale), i = 0; e >= 0; e = ft_json_next(j, e))
            x.loss_scale[i++] = (float)ft_json_number(j, e, 1);
    }
    for (int t = 0; t < x.n && !st; t++)
        if (x.input_ids[t] < 0 || x.input_ids[t] >= V)
            st = refuse(err, FTUNE_ERR_FORMAT, "input_ids[%d]: expected 0 to %d, found %d", t, V - 1,
                        (int)x.input_ids[t]);
    ft_json_free(j);
    ft_batch_clear(&s->batch);
    return st ? st : ft_batch_add(&s->batch, &x, 0, 0, err);
}

static ft_status score_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session *s = user;
    ft_loss  loss = { 0 };
    ft_status st = read_batch(s, json, where, err);
    if (!st && !(loss.logprobs = room(&s->logprobs, (size_t)s->batch.n_targets, sizeof(float)))) st = no_memory(err);
    if (!st) st = ft_model_step(s->model, &s->batch, 0.0f, 0, &loss, err);
    if (st) return put_error(st, err);
    printf("{\"loss\":%.9g,\"n\":%d,\"logprobs\":[", loss.sum / loss.n, loss.n);
    for (int i = 0; i < loss.n; i++) printf(i ? ",%.9g" : "%.9g", (double)loss.logprobs[i]);
    puts("]}");
    return FTUNE_OK;
}

static int cmd_score(const options *o) { return row_command(o, WANT_BACKEND | WANT_MODEL | WANT_DTYPE, score_row); }

/* The mean over all rows needs the number of their targets, which is known at the end: add up with dloss 1, divide
 * when saving. */
static ft_status grad_row(void *user, ft_text json, const char *where, ft_error *err)
{
    session *s = user;
    ft_loss  loss = { 0 };
    ft_status st = read_batch(s, json, where, err);
    if (!st) st = ft_model_step(s->model, &s->batch, 1.0f, 0, &loss, err);
    s->n_targets += loss.n;
    s->loss += loss.sum;
    return st;
}

static int save_gradients(session *s)
{
    const ft_param *p;
    int n = ft_model_params(s->model, &p), rc = 0;
    ft_tensor *t = calloc((size_t)n + 1, sizeof *t);
    for (int i = 0; i < n && t && !rc; i++) {
        size_t count;
        float *g;
        t[i].name = p[i].name; t[i].dtype = FTUNE_F32; t[i].rank = p[i].rank;
        memcpy(t[i].shape, p[i].shape, sizeof t[i].shape);
        count = ft_tensor_count(&t[i]);
        if (!(t[i].data = g = malloc(count * sizeof *g + 1))) { rc = 1; break; }
        s->be->download(s->be, g, p[i].grad, count * sizeof *g);
        for (size_t k = 0; k < count; k++) g[k] = (float)((double)g[k] / (double)s->n_targets);
    }
    if (!t || rc) rc = fail((no_memory(&s->err), &s->err));
    else if (ft_weights_save(s->o->out, t, n, &s->err)) rc = fail(&s->err);
    for (int i = 0; i < n && t; i++) free(t[i].data);
    free(t);
    return rc;
}

static int cmd_grads(const options *o)
{
    session s = { 0 };
    int rc = need(o->out, "--out FILE"), refused = 0;
    if (!rc && !o->full) rc = need(o->adapter, "--adapter DIR or --full");
    if (!rc) rc = session_open(&s, o, WANT_BACKEND | WANT_MODEL | WANT_DTYPE);
    if (!rc && o->full) rc = make_full(&s);
    if (!rc) ft_model_zero_grad(s.model);
    if (!rc) refused = each_row(o, grad_row, &s);
    if (!rc && !s.n_targets) rc = (say("expected rows with labels, found none"), 1);
    if (!rc) rc = save_gradients(&s);
    if (!rc) fprintf(stderr, "%s: mean loss %.6f of %ld targets\n", o->out, s.loss / (double)s.n_targets, s.n_targets);
    session_close(&s);
    return rc ? rc : refused;
}

/* ---- generating ---------------------------------------------------------------------------------------------- */

/* What an answer has said so far: in *text, and on the screen unless quiet. */
typedef struct speaker { ft_stop_stream stream; buffer *text; size_t n; int quiet, failed; } speaker;

static void say_more(speaker *v, ft_text t)
{
    char *p = room(v->text, v->n + t.n + 1, 1);
    if (!p) { v->failed = 1; return; }
    if (t.n) memcpy(p + v->n, t.p, t.n);
    p[v->n += t.n] = 0;
    if (!v->quiet && t.n) { fwrite(t.p, 1, t.n, stdout); fflush(stdout); }
}

static int speak(void *user, int32_t id)
{
    speaker *v = user;
    char     out[1024 + FTUNE_MAX_STOP];
    say_more(v, ft_stop_stream_push(&v->stream, id, out, sizeof out));
    v->failed |= v->stream.stream.failed;
    return v->stream.stopped || v->failed;
}

/* Answer one row, streamed unless --json; the text stays in s->text [*n]. */
static ft_status answer(session *s, const ft_row *row, size_t *n, ft_error *err)
{
    const options *o = s->o;
    ft_generate_options g = ft_generate_options_default();
    speaker  voice = { .quiet = o->json, .text = &s->text };
    char     rest[FTUNE_MAX_STOP + 4];
    ft_text  mark = ft_chat_stop_text(s->tok, &s->chat);
    int32_t  stop[16], *ids = room(&s->ids, (size_t)o->max_new_tokens + 1, sizeof *ids);
    int      n_new = 0;
    ft_status st = ids ? ft_row_encode(&s->sample, s->tok, row, &s->chat, err) : no_memory(err);
    if (!st && (s->sample.dropped || !s->sample.n))
        st = refuse(err, FTUNE_ERR_ARGUMENT, "expected a prompt of 1 to --max-length tokens, found %d", s->sample.n);
    if (st) return st;
    g.max_new_tokens = (int)o->max_new_tokens; g.temperature = (float)o->temperature; g.top_k = (int)o->top_k;
    g.top_p = (float)o->top_p; g.repetition_penalty = (float)o->repetition_penalty; g.seed = (uint64_t)o->seed;
    g.stop_ids = stop; g.n_stop = ft_chat_stop_ids(s->tok, &s->chat, stop, 16);
    g.on_token = speak; g.user = &voice;
    st = ft_stop_stream_init(&voice.stream, s->tok, &mark, mark.n > 0, err);
    if (!st) st = ft_generate(s->model, s->sample.input_ids, s->sample.n, &g, ids, (int)o->max_new_tokens, &n_new, err);
    if (st) return st;
    say_more(&voice, ft_stop_stream_finish(&voice.stream, rest, sizeof rest));
    if (!voice.quiet) { putchar('\n'); fflush(stdout); }
    *n = voice.n;
    return voice.failed ? no_memory(err) : FTUNE_OK;
}

enum { WANT_TO_SPEAK = WANT_TOKENIZER | WANT_CHAT | WANT_ROWS | WANT_BACKEND | WANT_MODEL | WANT_DTYPE };

/* A line is a JSON row, whose last answer is left to the model, or simply the prompt. */
static ft_status generate_row(void *user, ft_text line, const char *where, ft_error *err)
{
    session *s = user;
    ft_turn turn = { line, { NULL, 0 }, -1, 0 };
    ft_row  row = { { NULL, 0 }, &turn, 1, { NULL, 0 } };
    size_t  n = 0;
    ft_status st = FTUNE_OK;
    if (line.p[0] == '{') {
        st = ft_row_parse(s->parser, line.p, line.n, where, &row, err);
        if (!st && row.text.p) { turn.query = row.text; row.turns = &turn; row.n_turns = 1; row.text.p = NULL; }
        if (!st && row.n_turns) row.turns[row.n_turns - 1].response.p = NULL;
    }
    if (!st) st = answer(s, &row, &n, err);
    if (!st && s->o->json) put_text_row(s->text.p, n);
    return s->o->json ? put_error(st, err) : st;        /* without --json an answer may have many lines, or none */
}

static int cmd_generate(const options *o)
{
    session s = { 0 };
    int rc = session_open(&s, o, WANT_TO_SPEAK);
    if (!rc) fprintf(stderr, "template %s\n", template_used(&s));
    if (!rc && !o->prompt) rc = each_row(o, generate_row, &s);
    else if (!rc && generate_row(&s, ft_text_of(o->prompt), "--prompt", &s.err)) rc = fail(&s.err);
    session_close(&s);
    return rc;
}

static ft_text copy_text(const char *p, size_t n)
{
    char   *q = malloc(n + 1);
    ft_text t = { q, q ? n : 0 };
    if (q) memcpy(q, p, n);
    return t;
}

static void forget(ft_turn *turns, int *n)
{
    while (*n) { *n -= 1; free((char *)turns[*n].query.p); free((char *)turns[*n].response.p); }
}

/* --prompt, then each line of standard input, is the user's next turn; the conversation so far goes with it. */
static int cmd_chat(const options *o)
{
    session  s = { 0 };
    buffer   memory = { 0 };
    ft_turn *turns = NULL;
    size_t   cap = 0, n_text = 0;
    char    *line = NULL;
    ssize_t  len;
    int      n = 0, rc = session_open(&s, o, WANT_TO_SPEAK), one_round = 0;
    const char *first = o->prompt;
    if (!rc) one_round = !s.chat.use_chat_template || ft_template_find(NULL, s.chat.template_name, NULL)->single_round;
    if (!rc) fprintf(stderr, "template %s; an empty line forgets the conversation\n", template_used(&s));
    while (!rc) {
        if (isatty(0) && !first) fputs("> ", stderr);
        if (first && (line = malloc(cap = strlen(first) + 1)) != NULL) strcpy(line, first), len = (ssize_t)cap - 1;
        else len = getline(&line, &cap, stdin);
        first = NULL;
        if (len < 0) break;
        while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (!len || one_round) forget(turns, &n);
        if (!len) continue;
        if (!room(&memory, (size_t)n + 1, sizeof *turns)) { rc = fail((no_memory(&s.err), &s.err)); break; }
        turns = memory.p;
        turns[n].query = copy_text(line, (size_t)len);
        turns[n].response = ft_text_of(NULL);
        turns[n].loss_scale = 0;
        turns[n++].loss = -1;
        ft_row row = { { NULL, 0 }, turns, n, { NULL, 0 } };
        if (answer(&s, &row, &n_text, &s.err)) rc = fail(&s.err);
        else turns[n - 1].response = copy_text(s.text.p, n_text);
        if (o->json && !rc) { put_text_row(s.text.p, n_text); fflush(stdout); }
    }
    forget(turns, &n);
    free(memory.p); free(line);
    session_close(&s);
    return rc;
}

/* ---- the table of commands ----------------------------------------------------------------------------------- */

static const command COMMANDS[] = {
    { "tokenize", "--tokenizer PATH [FILE]", "{\"text\":..} -> {\"ids\":[..]}", TOK | TOKENIZE, cmd_tokenize },
    { "detokenize", "--tokenizer PATH [FILE]", "{\"ids\":[..]} -> {\"text\":..}", TOK | DETOK, cmd_detokenize },
    { "train-tokenizer", "--vocab-size N --out DIR FILE...", "learn byte-level BPE from text files: a tokenizer.json",
      LEARN, cmd_train_tokenizer },
    { "encode", "--tokenizer PATH --template NAME [FILE]", "a row -> {\"input_ids\":[..],\"labels\":[..]}",
      TOK | CHAT, cmd_encode },
    { "show", "--tokenizer PATH --template NAME [FILE]", "a row as a table: token, id, label, target",
      TOK | CHAT | SHOW, cmd_show },
    { "templates", "[NAME]", "the chat templates, or one of them with an example", CHAT | SHOW, cmd_templates },
    { "init", "--config FILE --out DIR", "a model with random weights", CONFIG | SEED | OUT | DTYPE | TOK, cmd_init },
    { "pretrain", "--model DIR --data FILE --out DIR", "train all weights on plain text",
      MODEL | TRAIN | CHAT, cmd_pretrain },
    { "sft", "--model DIR --data FILE --out DIR", "fine-tune on conversations: LoRA, or --full, --freeze",
      MODEL | TRAIN | CHAT, cmd_sft },
    { "score", "--model DIR [--adapter DIR] [FILE]", "{\"input_ids\":..,\"labels\":..} -> loss, log p of each target",
      MODEL | ADAPTER, cmd_score },
    { "grads", "--model DIR --adapter DIR --out FILE [FILE]", "gradient of the mean loss of all rows, as safetensors",
      MODEL | ADAPTER | OUT | GRADS, cmd_grads },
    { "generate", "--model DIR [--adapter DIR] [--prompt S | FILE]", "answer prompts: a line each, text or a JSON row",
      MODEL | ADAPTER | CHAT | GEN | JSON, cmd_generate },
    { "chat", "--model DIR [--adapter DIR]", "talk, line by line", MODEL | ADAPTER | CHAT | GEN | JSON, cmd_chat },
    { "merge", "--model DIR --adapter DIR --out DIR", "W + scaling * B A, as a model directory",
      MODEL | ADAPTER | OUT, cmd_merge },
    { "plan", "--model DIR | --config FILE", "memory and work of a training run; nothing is allocated",
      PLAN | JSON, cmd_plan },
    { "export", "--format gguf|ollama --model DIR --adapter DIR --out DIR", "(not in this version)",
      MODEL | ADAPTER | OUT | EXPORT, cmd_export },
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
    if (o.freeze) o.full = 1;
    if (!rc) rc = o.help ? help(c) : c->run(&o);
    if (fflush(stdout) != 0 && !rc) rc = 1;
    free(o.files);
    return rc;
}
