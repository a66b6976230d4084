/* run.c - the whole way in about a minute: text, tokenizer, base model, chat rows, LoRA, score, adapter
 *
 * This is what `make run` runs. A language model of under a million weights is trained here from nothing on the texts
 * of a made-up world (examples/world.c), then taught with LoRA to answer questions, and examined before and after on
 * questions it never saw. Only the public functions of ftune.h are used; every number printed is measured in this run.
 * Build:  cc -O3 -march=native -fopenmp -I. examples/run.c -o build/run-world -lm
 * Run:    build/run-world         (in the repository; files go to build/run, the base model is made only once) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define DATA "examples/data/"
#define BASE "build/run/base"
#define ADAPTER "build/run/adapter"
enum { VOCAB = 1600, BASE_STEPS = 2000, BASE_ROWS = 36, LORA_STEPS = 600, LORA_ROWS = 20, MAX_NEW = 24 };

enum { TEXTS = 3 };
static const char *const texts[TEXTS] = { DATA "text_en.txt", DATA "text_zh.txt", DATA "small_talk.jsonl" };
static const struct { const char *file, *what; int learnable; } groups[] = {
    { "facts_en",           "facts the texts state, asked in English", 1 },
    { "facts_zh",           "facts the texts state, asked in Chinese", 1 },
    { "patterns",           "rules: greet, count, many (never in a text)", 1 },
    { "unstated",           "facts that no text states", 0 },
    { "unstated_with_note", "the same, with the fact in the question", 0 } };
enum { GROUPS = sizeof groups / sizeof groups[0] };

typedef struct score { int right[GROUPS], asked[GROUPS]; char answer[GROUPS][3][160]; } score;
typedef struct lab {                                 /* what all steps share */
    ft_backend *be; ft_tokenizer *tok; ft_model *m; ft_trainer *t;
    ft_dataset part[TEXTS], text, chat, test[GROUPS];
    ft_chat_options plain, dialogue;
    ft_error err;
} lab;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static void heading(const char *s) { printf("\n== %s\n", s); fflush(stdout); }
/* The trainer reports 64 times, the file gets all of it, the terminal every eighth. */
static void print_line(void *user, const char *line) { int *n = user; if ((*n)++ % 8 == 0) printf("   %s\n", line); }

static char *read_file(const char *path, size_t *n, ft_error *err)
{
    FILE *f = fopen(path, "rb");
    char *p = malloc(4 << 20);
    *n = f && p ? fread(p, 1, (4 << 20) - 1, f) : 0;
    if (f) fclose(f);
    if (*n) { p[*n] = 0; return p; }
    free(p);
    err->code = FTUNE_ERR_IO;
    snprintf(err->message, sizeof err->message, "%s: expected a readable file; run this from the repository's top",
             path);
    return NULL;
}

/* ---- 1: a tokenizer from the texts ---- */

static ft_status make_tokenizer(lab *l)
{
    static const char *const special[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    ft_tokenizer_train_options o = ft_tokenizer_train_options_default();
    char  *text[TEXTS] = { NULL, NULL, NULL };
    size_t n[TEXTS] = { 0, 0, 0 };
    o.vocab_size = VOCAB; o.special = special; o.n_special = 3;
    for (int i = 0; i < TEXTS; i++)
        if (!(text[i] = read_file(texts[i], &n[i], &l->err))) goto done;
    if (ft_tokenizer_train(&l->tok, (const char *const *)text, n, TEXTS, &o, &l->err)) goto done;
    ft_tokenizer_set_attribute(l->tok, "eos_token_id", ft_token_id(l->tok, special[0], strlen(special[0])), &l->err);
    printf("   %lu bytes of text -> %d tokens: 256 bytes, %d merges learnt from the text, 3 control tokens\n",
           (unsigned long)(n[0] + n[1] + n[2]), ft_tokenizer_size(l->tok), ft_tokenizer_size(l->tok) - 259);
done:
    for (int i = 0; i < TEXTS; i++) free(text[i]);
    return l->err.code;
}

/* ---- 2: a base model that has read the texts ---- */

static ft_config shape(const ft_tokenizer *tok)
{
    ft_config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");                   /* biases in q, k, v; fewer key/value heads; tied embeddings */
    c.vocab_size = ft_tokenizer_size(tok);
    c.hidden_size = 128;         c.intermediate_size = 384;  c.num_hidden_layers = 3;
    c.num_attention_heads = 4;   c.num_key_value_heads = 2;  c.head_dim = 32;
    c.max_position_embeddings = 256;
    c.rms_norm_eps = 1e-6f;      c.rope_theta = 10000;       c.qkv_bias = 1;
    c.tie_word_embeddings = 1;   c.bos_token_id = c.pad_token_id = -1;
    c.eos_token_id[0] = ft_tokenizer_attribute(tok, "eos_token_id"); c.n_eos = 1;
    return c;
}

/* The three files as one data set: a list of rows that the parts go on owning. */
static ft_status load_texts(lab *l)
{
    ft_chat_options all = l->dialogue;
    int n = 0;
    all.loss_scale = "all";                          /* small talk is text like any other: every token is learnt */
    for (int i = 0; i < TEXTS; i++) {
        if (ft_dataset_load(&l->part[i], texts[i], l->tok, i < 2 ? &l->plain : &all, 1, &l->err)) return l->err.code;
        l->text.n += l->part[i].n;
        l->text.n_tokens += l->part[i].n_tokens;
        l->text.fingerprint = l->text.fingerprint * 31 + l->part[i].fingerprint;
    }
    l->text.samples = malloc((size_t)l->text.n * sizeof *l->text.samples);
    if (!l->text.samples) return l->err.code = FTUNE_ERR_NO_MEMORY;
    for (int i = 0; i < TEXTS; n += l->part[i++].n)
        memcpy(l->text.samples + n, l->part[i].samples, (size_t)l->part[i].n * sizeof *l->text.samples);
    return FTUNE_OK;
}

static ft_status make_base(lab *l)
{
    ft_config c = shape(l->tok);
    ft_train_options o = ft_train_options_default();
    char   made_from[120];
    int    lines = 0;
    double start = now();
    size_t n;
    ft_error none = { FTUNE_OK, "" };
    char  *cached = read_file(BASE "/made_from", &n, &none);
    snprintf(made_from, sizeof made_from, "data %016llx vocabulary %d steps %d\n",
             (unsigned long long)l->text.fingerprint, c.vocab_size, BASE_STEPS);
    n = cached && !strcmp(cached, made_from);
    free(cached);
    if (n) printf("   " BASE " is from an earlier run (remove it to train it again)\n");
    else {
        FILE *f;
        printf("   %d layers, hidden size %d, %.2f million weights, all random;"
               " it reads %lld tokens about %.0f times\n",
               c.num_hidden_layers, c.hidden_size, 1e-6 * ft_config_parameters(&c), (long long)l->text.n_tokens,
               (double)BASE_STEPS * BASE_ROWS / l->text.n);
        o.lr = 4e-3f; o.beta2 = 0.99f; o.warmup = 0.05f; o.batch = BASE_ROWS; o.steps = BASE_STEPS;
        o.log = print_line; o.log_user = &lines; o.log_every = BASE_STEPS / 64;
        if (ft_model_init(&l->m, &c, 1, l->be, &l->err) || ft_model_unfreeze(l->m, &l->err)) return l->err.code;
        if (ft_trainer_new(&l->t, l->m, &l->text, NULL, &o, &l->err)) return l->err.code;
        if (ft_trainer_run(l->t, &l->err)) return l->err.code;
        ft_trainer_free(l->t); l->t = NULL;
        if (ft_model_save(l->m, BASE, FTUNE_F32, &l->err)) return l->err.code;
        if (ft_tokenizer_save(l->tok, BASE, &l->err)) return l->err.code;
        ft_model_free(l->m); l->m = NULL;
        if ((f = fopen(BASE "/made_from", "wb")) != NULL) { fputs(made_from, f); fclose(f); }
        printf("   read in %.0f seconds; saved in " BASE "\n", now() - start);
    }
    return ft_model_load(&l->m, BASE, l->be, &l->err);       /* frozen from here on, as a downloaded model would be */
}

/* What the base knows in its own form: does it continue "Milo lives in" with the right town? */
static ft_status continue_facts(lab *l)
{
    size_t n, at = 0, n_ids, n_text;
    char  *file = read_file(DATA "facts.jsonl", &n, &l->err), text[400];
    int    stated[2] = { 0, 0 }, right[2] = { 0, 0 };
    ft_generate_options g = ft_generate_options_default();
    g.max_new_tokens = 6;
    while (file && at < n && !l->err.code) {
        size_t   end = (size_t)(strchr(file + at, '\n') - file);
        ft_json *j = NULL;
        if (ft_json_parse(&j, file + at, end - at, DATA "facts.jsonl", &l->err)) break;
        int told = ft_json_type_of(j, ft_json_get(j, 0, "stated")) == FTUNE_JSON_TRUE;
        ft_text s = ft_json_text(j, ft_json_get(j, 0, "sentence")), o = ft_json_text(j, ft_json_get(j, 0, "object"));
        size_t  begin = (size_t)(strstr(s.p, o.p) - s.p) - 1;        /* the blank belongs to the next token */
        int32_t ids[300], out[6];
        int     n_out = 0;
        if (!ft_tokenizer_encode(l->tok, s.p, begin, FTUNE_SPECIAL_AS_TEXT, ids, 300, &n_ids, &l->err)
            && !ft_generate(l->m, ids, (int)n_ids, &g, out, 6, &n_out, &l->err)
            && !ft_tokenizer_decode(l->tok, out, (size_t)n_out, 1, text, sizeof text, &n_text, &l->err)) {
            stated[told]++;
            right[told] += n_text > o.n && !memcmp(text + 1, o.p, o.n);
        }
        ft_json_free(j);
        at = end + 1;
    }
    free(file);
    if (!l->err.code)
        printf("   asked in its own way (\"Milo lives in\" ...) it continues %d of %d stated facts correctly,"
               " %d of %d unstated\n",
               right[1], stated[1], right[0], stated[0]);
    return l->err.code;
}

/* ---- 3: a row as the model sees it ---- */

static void show_row(const lab *l, const ft_sample *s)
{
    printf("   %3s  %-16s %6s %7s\n", "", "token", "id", "label");
    for (int i = 0; i < s->n; i++) {
        ft_text t = ft_token_bytes(l->tok, s->input_ids[i]);
        int newline = t.n == 1 && t.p[0] == '\n';
        printf("   %3d  %-16.*s %6d %7d%s\n", i, newline ? 2 : (int)t.n, newline ? "\\n" : t.p, (int)s->input_ids[i],
               (int)s->labels[i], s->labels[i] != FTUNE_IGNORE_INDEX ? "   learnt" : "");
    }
    printf("   -100 teaches nothing: the question is only read. The end mark is learnt, or the answer"
           " would never end.\n");
}

/* ---- 4, 6: the examination ---- */

static ft_status decode(lab *l, const int32_t *ids, int n, char *text, size_t cap)
{
    size_t n_text = 0;
    ft_tokenizer_decode(l->tok, ids, (size_t)n, 0, text, cap - 1, &n_text, &l->err);
    text[n_text < cap ? n_text : cap - 1] = 0;
    return l->err.code;
}

/* Ask every held-out question, greedily; an answer counts when it is the expected text, exactly, and then ends. */
static ft_status examine(lab *l, score *sc)
{
    ft_generate_options g = ft_generate_options_default();
    int32_t stop[8];
    memset(sc, 0, sizeof *sc);
    g.max_new_tokens = MAX_NEW;
    g.stop_ids = stop; g.n_stop = ft_chat_stop_ids(l->tok, &l->dialogue, stop, 8);
    for (int k = 0; k < GROUPS; k++) {
        const ft_dataset *d = &l->test[k];
        const int32_t **ids = malloc((size_t)d->n * sizeof *ids);
        int *n = malloc((size_t)d->n * sizeof *n), *n_out = malloc((size_t)d->n * sizeof *n_out);
        int32_t *out = malloc((size_t)d->n * MAX_NEW * sizeof *out);
        if (!ids || !n || !n_out || !out) l->err.code = FTUNE_ERR_NO_MEMORY;
        for (int i = 0; !l->err.code && i < d->n; i++) {     /* the prompt is what comes before the first label */
            ids[i] = d->samples[i].input_ids;
            for (n[i] = 0; d->samples[i].labels[n[i]] == FTUNE_IGNORE_INDEX; n[i]++) {}
        }
        if (!l->err.code) ft_generate_batch(l->m, ids, n, d->n, &g, out, MAX_NEW, n_out, &l->err);
        for (int i = 0; !l->err.code && i < d->n; i++) {
            char said[400], want[400];
            int  ended = n_out[i] < MAX_NEW;
            if (decode(l, out + (size_t)i * MAX_NEW, n_out[i], said, sizeof said)) break;
            if (decode(l, ids[i] + n[i], d->samples[i].n - n[i] - 1, want, sizeof want)) break;
            sc->right[k] += ended && !strcmp(said, want);
            if (i < 3) snprintf(sc->answer[k][i], sizeof sc->answer[k][i], "%.100s%s", said, ended ? "" : " ...");
        }
        sc->asked[k] = d->n;
        free(ids); free(n); free(n_out); free(out);
    }
    return l->err.code;
}

static void print_scores(const score *before, const score *after)
{
    int asked = 0, b = 0, a = 0;
    printf("   %-46s %9s %8s %8s\n", "exact answers, by greedy generation", "questions", "before", "after");
    for (int k = 0; k < GROUPS; k++) {
        if (!groups[k].learnable && groups[k - 1].learnable)
            printf("   %-46s %9d %6.0f %% %6.0f %%\n\n", "all that can be learnt", asked,
                   100.0 * b / asked, 100.0 * a / asked);
        printf("   %-46s %9d %6.0f %% %6.0f %%\n", groups[k].what, before->asked[k],
               100.0 * before->right[k] / before->asked[k], 100.0 * after->right[k] / after->asked[k]);
        asked += before->asked[k]; b += before->right[k]; a += after->right[k];
    }
}

static void print_answers(lab *l, const score *before, const score *after)
{
    for (int k = 0; k < GROUPS; k++) {
        const ft_sample *s = &l->test[k].samples[1];
        int  n = 0;
        char prompt[400], *q, *end;
        while (s->labels[n] == FTUNE_IGNORE_INDEX) n++;
        if (decode(l, s->input_ids, n, prompt, sizeof prompt)) return;
        q = strchr(prompt, '\n') + 1;                        /* <|im_start|>user\n ... <|im_end|>\n */
        if ((end = strstr(q, "<|im_end|>")) != NULL) *end = 0;
        printf("   %s\n      before: %s\n      after:  %s\n", q, before->answer[k][1], after->answer[k][1]);
    }
}

/* ---- 5: LoRA ---- */

static ft_status finetune(lab *l)
{
    ft_lora_config   c = ft_lora_config_default();
    ft_train_options o = ft_train_options_default();
    const ft_param  *params;
    int    lines = 0;
    double start = now(), trainable = 0;
    FILE  *f;
    c.r = 16; c.lora_alpha = 32; c.lora_dropout = 0.1f;
    strcpy(c.target_modules, "all-linear");
    strcpy(c.base_model_name_or_path, BASE);
    o.lr = 4e-3f; o.beta2 = 0.99f; o.warmup = 0.05f; o.batch = LORA_ROWS; o.steps = LORA_STEPS;
    o.out_dir = ADAPTER; o.log = print_line; o.log_user = &lines; o.log_every = LORA_STEPS / 64;
    if (ft_lora_attach(l->m, &c, 7, &l->err)) return l->err.code;
    for (int i = ft_model_params(l->m, &params) - 1; i >= 0; i--) {
        double count = 1;
        for (int k = 0; k < params[i].rank; k++) count *= params[i].shape[k];
        trainable += count;
    }
    printf("   rank %d beside every linear layer: %.0f thousand weights learn, %.0f thousand stay as they are\n", c.r,
           trainable / 1e3, 1e-3 * ft_config_parameters(&l->m->config));
    if (ft_trainer_new(&l->t, l->m, &l->chat, NULL, &o, &l->err) || ft_trainer_run(l->t, &l->err)) return l->err.code;
    if ((f = fopen(ADAPTER "/ftune.json", "wb")) != NULL) {  /* how build/ftune must ask this adapter */
        fputs("{\"template\":\"chatml\",\"use_chat_template\":true,\"swift\":3,\"system\":\"\","
              "\"tokenizer\":\"" BASE "\"}\n", f);
        fclose(f);
    }
    printf("   learnt in %.0f seconds; " ADAPTER " has the adapter (PEFT format), log.jsonl and loss.svg\n",
           now() - start);
    return FTUNE_OK;
}

/* The curve of log.jsonl in letters: 60 columns, each the mean of its steps. */
static ft_status draw_loss(lab *l)
{
    enum { W = 60, H = 10 };
    double sum[W] = { 0 }, top = 0;
    int    count[W] = { 0 };
    size_t n;
    char  *file = read_file(ADAPTER "/log.jsonl", &n, &l->err);
    for (char *s = file; s && *s && !l->err.code; ) {
        char    *end = strchr(s, '\n');
        ft_json *j = NULL;
        int      step;
        if (!end) break;
        if (ft_json_parse(&j, s, (size_t)(end - s), "log.jsonl", &l->err)) break;
        step = (int)ft_json_number(j, ft_json_get(j, 0, "step"), 0);
        if (step > 0 && ft_json_get(j, 0, "loss") >= 0) {
            int x = (int)((long)(step - 1) * W / LORA_STEPS);
            if (x < W) { sum[x] += ft_json_number(j, ft_json_get(j, 0, "loss"), 0); count[x]++; }
        }
        ft_json_free(j);
        s = end + 1;
    }
    free(file);
    for (int x = 1; x < W; x++) if (!count[x]) { sum[x] = sum[x - 1]; count[x] = count[x - 1]; }
    for (int x = 0; x < W; x++) if (count[x] && sum[x] / count[x] > top) top = sum[x] / count[x];
    for (int y = H; y-- > 0; ) {
        printf(y == H - 1 ? "   %5.2f |" : y == 0 ? "    0.00 |" : "         |", top);
        for (int x = 0; x < W; x++) putchar(count[x] && (int)(sum[x] / count[x] / top * (H - 0.01)) == y ? '*' : ' ');
        putchar('\n');
    }
    printf("         +%.*s\n          loss over %d steps\n", W,
           "------------------------------------------------------------", LORA_STEPS);
    return l->err.code;
}

int main(void)
{
    static lab   l;
    static score before, after;
    double start = now();
    int    threads;
    mkdir("build", 0777); mkdir("build/run", 0777); mkdir(BASE, 0777); mkdir(ADAPTER, 0777);
    setvbuf(stdout, NULL, _IOLBF, 1 << 12);
    l.plain = l.dialogue = ft_chat_options_default();
    l.plain.use_chat_template = 0;
    l.dialogue.default_system = "";                  /* ChatML without a system text: rows stay short */
    if (ft_backend_cpu(&l.be, 0, &l.err)) goto done;
    threads = l.be->threads;
    if (threads > 4) {                               /* so small a model is not faster on more */
        ft_backend_free(l.be); l.be = NULL;
        if (ft_backend_cpu(&l.be, threads = 4, &l.err)) goto done;
    }

    heading("1. Tokenizer: a byte-level BPE learns its pieces from examples/data");
    if (make_tokenizer(&l)) goto done;
    heading("2. Base model: it reads texts about a made-up world, in English and Chinese");
    if (load_texts(&l) || make_base(&l) || continue_facts(&l)) goto done;
    heading("3. One row of the chat data, as the model sees it");
    if (ft_dataset_load(&l.chat, DATA "chat_train.jsonl", l.tok, &l.dialogue, 1, &l.err)) goto done;
    for (int k = 0; k < GROUPS; k++) {
        char path[100];
        snprintf(path, sizeof path, DATA "test/%s.jsonl", groups[k].file);
        if (ft_dataset_load(&l.test[k], path, l.tok, &l.dialogue, 1, &l.err)) goto done;
    }
    show_row(&l, &l.chat.samples[0]);
    heading("4. Fine-tuning: LoRA on questions about other people, towns, words and numbers than the test's");
    if (examine(&l, &before) || finetune(&l)) goto done;
    heading("5. The loss");
    if (draw_loss(&l)) goto done;
    heading("6. Held-out questions, before and after");
    if (examine(&l, &after)) goto done;
    print_answers(&l, &before, &after);
    printf("\n");
    print_scores(&before, &after);
    printf("\n   LoRA taught a form and a skill. What no text states it could not teach: those answers are well formed and\n"
           "   wrong, guesses among 12 to 16 words. Put into the question (a prompt; found by a search: RAG), the fact can\n"
           "   be read off. So: facts into the prompt, form and skill into the adapter.\n");
    printf("\n== Done in %.0f seconds on %d threads. Next:\n"
           "   build/ftune chat --model " BASE " --adapter " ADAPTER "      (ask: Where does Kasper live?)\n"
           "   build/ftune merge --model " BASE " --adapter " ADAPTER " --out build/run/merged\n"
           "   examples/data/README.md says what else this world can measure\n", now() - start, threads);
done:
    if (l.err.code) fprintf(stderr, "run: %s\n", l.err.message);
    ft_trainer_free(l.t);
    for (int k = 0; k < GROUPS; k++) ft_dataset_free(&l.test[k]);
    ft_dataset_free(&l.chat);
    for (int k = 0; k < TEXTS; k++) ft_dataset_free(&l.part[k]);
    free(l.text.samples);
    ft_model_free(l.m);
    ft_tokenizer_free(l.tok);
    ft_backend_free(l.be);
    return l.err.code ? 1 : 0;
}
