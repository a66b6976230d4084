/* test_01_memory.c - no tokenizer file takes more memory than 4 times its size and 1 MiB (DESIGN.md, section 7)
 *
 * The hard ones say much in few bytes: their tokens have one to three. Each such file is made here and loaded with a
 * counting allocator; with a few bytes of nothing it is worth larger tables, which must give the same ids. */
#define _POSIX_C_SOURCE 200809L
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()*+,-./:;=<>?@[]^_`{|}~";
enum { LETTERS = sizeof letters - 1 };

/* One, then two, then three letters. */
static size_t nth(size_t i, char out[16])
{
    size_t n = 0;
    if (i < LETTERS) { out[n++] = letters[i]; return n; }
    i -= LETTERS;
    if (i >= LETTERS * LETTERS) { i -= LETTERS * LETTERS; out[n++] = letters[i / LETTERS / LETTERS % LETTERS]; }
    out[n++] = letters[i / LETTERS % LETTERS];
    out[n++] = letters[i % LETTERS];
    return n;
}

typedef struct files { fti_buf main, config, merges; } files;

#define S(s)   fti_buf_str(&f->main, s)
#define F(...) fti_buf_fmt(&f->main, __VA_ARGS__)
#define ADDED "\"added_tokens\":[" TEST_ADDED("%d", "%s") "],"

/* how: which variant of the kind */
static void unigram(files *f, size_t n, char how)
{
    ft_rng rng;
    ft_rng_seed(&rng, 1);
    S("{");
    if (how == 's') F(ADDED, 1, "b");
    S("\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[");
    for (size_t i = 0; i < n; i++) {
        char t[16];
        size_t k = how == '3' && i ? (size_t)fti_utf8_encode((uint32_t)(0x800 + i), t) : nth(how == '1' ? i % LETTERS : i, t);
        F("%s[\"%.*s", i ? "," : "", (int)k, t);
        for (int x = 0; x < 7 && how == 'l'; x++) F("%c", letters[ft_rng_below(&rng, 26)]);
        F("\",-%d]", (int)(i % 7));
    }
    S("]}}");
}

/* kind: of a piece, 0: normal */
static void piece(files *f, const char *p, size_t n, int score, int kind)
{
    char m[32] = { 10, (char)n };
    size_t k = 2;
    float value = (float)-score;
    memcpy(m + k, p, n);
    k += n;
    if (score) { m[k++] = 0x15; memcpy(m + k, &value, 4); k += 4; }
    if (kind) { m[k++] = 0x18; m[k++] = (char)kind; }
    F("\n%c", (int)k);
    fti_buf_add(&f->main, m, k);
}

static void model(files *f, size_t n, char how)
{
    piece(f, "<unk>", 5, 0, FTI_SP_UNKNOWN);
    for (size_t i = 0; i < n; i++) {
        char t[16];
        size_t k = nth(i, t);
        piece(f, t, k, how == 'U' || how == 'B' ? (int)(i + 1) : 0, how == 'c' ? FTI_SP_CONTROL : how == 'd' ? FTI_SP_USER : 0);
    }
    F("%c%c%c%c", 0x12, 2, 0x18, how == 'b' || how == 'B' ? 2 : 1);
}

static void words(files *f, size_t n, char how)
{
    S(how == 'p' ? "{\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"a\",\"continuing_subword_prefix\":\"\","
      "\"max_input_chars_per_word\":100,\"vocab\":{" : "{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{");
    for (size_t i = 0; i < n; i++) {
        char t[16];
        int k = (int)nth(i, t);
        F("%s\"%.*s\":%d", i ? "," : "", k, t, (int)i);
    }
    S("}}}");
}

static void lines(files *f, size_t n, char how)
{
    S("[UNK]\n");
    for (size_t i = 0; i < n; i++) {
        char t[16];
        F("%.*s\n", how == 'e' ? 0 : (int)nth(how == '1' ? 0 : i, t), t);
    }
}

static void bytes(files *f)
{
    for (unsigned i = 0; i < 256; i++) {
        char t[4];
        int n = fti_utf8_encode(fti_byte_letter(i), t);
        F("%s\"%s%.*s\":%u", i ? "," : "", *t == '"' || *t == '\\' ? "\\" : "", n, t, i);
    }
}

/* Lower case: BPE over bytes; upper case: over characters. */
static void bpe(files *f, size_t n, char how)
{
    size_t first = how >= 'a' ? LETTERS : 0, base = how >= 'a' ? 256 : 0;
    S("{");
    if (how >= 'a') S("\"pre_tokenizer\":" TEST_BYTE_LEVEL("false") ",");
    if (how == 'C') F(ADDED, (int)LETTERS, "aa");
    F("\"model\":{\"type\":\"BPE\",%s\"vocab\":{", how == 'A' ? "\"end_of_word_suffix\":\"</w>\"," : "");
    if (how >= 'a') bytes(f);
    for (size_t i = 0; i < n; i++) {
        char t[16];
        int k = (int)nth(first + i, t);
        F("%s\"%.*s\":%d", i || base ? "," : "", k, t, (int)(base + i));
    }
    S("},\"merges\":[");
    for (size_t i = LETTERS - first; i < n && how != 'n' && how != 'N'; i++) {
        char t[16];
        int k = (int)nth(first + i, t);
        F(how == 'p' ? "%s[\"%.*s\",\"%c\"]" : "%s\"%.*s %c\"", i > LETTERS - first ? "," : "", k - 1, t, t[k - 1]);
    }
    S("]}}");
}

static void pair(files *f, size_t n, char how)
{
    fti_buf_str(&f->merges, "#version: 0.2\n");
    S("{");
    bytes(f);
    for (size_t i = 0; i < n; i++) {
        char t[16];
        int k = (int)nth(LETTERS + i, t);
        F(",\"%.*s\":%d", k, t, (int)(256 + i));
        if (how != 'n') fti_buf_fmt(&f->merges, "%.*s %c\n", k - 1, t, t[k - 1]);
    }
    S("}");
}

static void ranks(files *f, size_t n, char how)
{
    (void)how;
    for (size_t i = 0; i < 256 + n; i++) {
        unsigned char t[16] = { (unsigned char)i };
        size_t k = i < 256 ? 1 : nth(LETTERS + i - 256, (char *)t);
        const char *d = fti_base64_digits;
        if (k < 3) t[2] = 0;
        F("%c%c%c%c %d\n", d[t[0] >> 2], d[(t[0] & 3) << 4 | (k > 1 ? t[1] >> 4 : 0)], k > 1 ? d[(t[1] & 15) << 2 | t[2] >> 6] : '=',
          k > 2 ? d[t[2] & 63] : '=', (int)i);
    }
}

/* Added tokens in tokenizer_config.json, beside a vocab.txt or a rank file. */
static void config(files *f, size_t n, char how)
{
    fti_buf *c = &f->config;
    int base = how == 'r' ? 256 : 1;
    if (how == 'r') ranks(f, 0, 0); else S("[UNK]\n");
    fti_buf_str(c, "{\"added_tokens_decoder\":{");
    for (size_t i = 0; i < n; i++) {
        char t[16];
        int k = (int)nth(LETTERS + i, t);
        fti_buf_fmt(c, "%s\"%d\":{\"content\":\"%.*s\"}", i ? "," : "", base + (int)i, k, t);
    }
    fti_buf_str(c, "}}");
}

static void repeated(files *f, const char *head, const char *part, const char *tail, size_t n)
{
    S(head);
    for (size_t i = 0; i < n; i++) F("%s%s", i ? "," : "", part);
    S(tail);
}

/* What no reader asks for, and lists of something else than they should hold. */
static void odd(files *f, size_t n, char how)
{
    static const char small[] = "],\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{\"a\":0}}}", bytes_from[] =
        "],\"pre_tokenizer\":" TEST_BYTE_LEVEL("false") ",\"model\":{\"type\":\"BPE\",\"vocab\":{";
    if (how == 'b') { repeated(f, "{\"x\":[", "0", bytes_from, n); bytes(f); S("},\"merges\":[]}}"); }
    if (how == 'o') repeated(f, "{\"x\":[", "{}", small, n);
    if (how == 'd') repeated(f, "{\"x\":[", "[0,0,0,0,0,0,0,0,0,0]", small, n);
    if (how == 'w') repeated(f, "{\"x\":[", "[[],[],[],[],[],[],[],[],[],[[[[]]]]]", small, n);
    if (how == 'u') repeated(f, "{\"model\":{\"type\":\"Unigram\",\"vocab\":[", "0", "]}}", n);
    if (how == 'v') repeated(f, "{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{", "\"\":0", "}}}", n);
    if (how == 'm') { repeated(f, "{\"x\":[", "0", bytes_from, 1); bytes(f); repeated(f, "},\"merges\":[", "0", "]}}", n); }
    if (how == 't') {                                          /* looked up in a table of names with escapes */
        repeated(f, "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"pair\":[],\"single\":["
                 "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},", "{\"SpecialToken\":{\"id\":\"a\",\"type_id\":0}}", "],", 200);
        repeated(f, "\"special_tokens\":{", "\"\\u0062\":0", ",\"a\":{\"id\":\"a\",\"ids\":[],\"tokens\":[]}}},\"x\":[", n);
        S(small);
    }
    if (how == 'r') { ranks(f, 0, 0); for (size_t i = 0; i < n; i++) S("\n"); S("AAAA 1\n"); }
    if (how == 'c') { S("[UNK]\n"); fti_buf_str(&f->config, "{\"added_tokens_decoder\":{\"\":0");
        for (size_t i = 0; i < n; i++) fti_buf_str(&f->config, ",\"\":0");
        fti_buf_str(&f->config, "}}"); }
}

static const struct { const char *name; void (*make)(files *f, size_t n, char how); size_t n; char how; const char *message; } made[] = {
    { "Unigram", unigram, 38000, 0, NULL }, { "Unigram, a character each", unigram, 38000, '3', NULL },
    { "Unigram, a control token", unigram, 30000, 's', NULL }, { "Unigram, long pieces", unigram, 18000, 'l', NULL },
    { "Unigram, equal pieces", unigram, 38000, '1', NULL }, { ".model, Unigram", model, 38000, 'u', NULL },
    { ".model, Unigram with scores", model, 60000, 'U', NULL }, { ".model, BPE", model, 38000, 'b', NULL },
    { ".model, BPE with scores", model, 60000, 'B', NULL }, { ".model, control tokens", model, 9000, 'c', NULL },
    { ".model, user-defined pieces", model, 18000, 'd', NULL }, { "WordPiece", words, 60000, 'p', NULL },
    { "WordLevel", words, 60000, 'l', NULL }, { "vocab.txt", lines, 60000, 0, NULL }, { "vocab.txt, empty lines", lines, 200000, 'e', NULL },
    { "vocab.txt, equal lines", lines, 400000, '1', "expected fewer tokens" }, { "BPE over bytes", bpe, 18000, 'm', NULL },
    { "BPE over bytes, merges as lists", bpe, 18000, 'p', NULL }, { "BPE over bytes, no merges", bpe, 9000, 'n', NULL },
    { "BPE over characters", bpe, 38000, 'M', NULL }, { "BPE over characters, no merges", bpe, 18000, 'N', NULL },
    { "BPE over characters, a merge to a control token", bpe, 18000, 'C', NULL }, { "BPE with affixes", bpe, 38000, 'N', NULL },
    { "ranks", ranks, 18000, 0, NULL }, { "ranks, 38000", ranks, 38000, 0, NULL }, { "ranks, 1000", ranks, 1000, 0, NULL },
    { "ranks, 300000", ranks, 300000, 0, "expected fewer tokens" }, { "vocab.json", pair, 9000, 0, NULL },
    { "vocab.json, no merges", pair, 9000, 'n', NULL }, { "added tokens, vocab.txt", config, 18000, 't', NULL },
    { "added tokens, ranks", config, 4000, 'r', NULL }, { "numbers", odd, 50000, 'b', NULL }, { "objects", odd, 50000, 'o', NULL },
    { "lists", odd, 20000, 'd', NULL }, { "lists of lists", odd, 200, 'w', NULL }, { "Unigram of numbers", odd, 300000, 'u', "expected fewer tokens" },
    { "empty tokens", odd, 300000, 'v', NULL }, { "merges of numbers", odd, 300000, 'm', "expected fewer tokens" },
    { "names with escapes", odd, 200, 't', NULL }, { "ranks of empty lines", odd, 300000, 'r', "expected" },
    { "added tokens of numbers", odd, 300000, 'c', "expected" } };

static ft_status load(ft_tokenizer **tok, const files *f, const char *name, ft_error *err)
{
    char path[3][1200];
    size_t size = f->main.n + f->config.n + f->merges.n, before;
    ft_tokenizer_options o = ft_tokenizer_options_default();
    ft_status status;
    const char *dir = test_tmp("memory");
    CHECK_OK(fti_make_directory(dir, err), *err);
    snprintf(path[0], sizeof path[0], "%s/vocab", dir);
    snprintf(path[1], sizeof path[1], "%s/tokenizer_config.json", dir);
    snprintf(path[2], sizeof path[2], "%s/merges.txt", dir);
    remove(path[1]);
    remove(path[2]);
    CHECK(test_write(path[0], f->main.p, f->main.n));
    CHECK(!f->config.n || test_write(path[1], f->config.p, f->config.n));
    CHECK(!f->merges.n || test_write(path[2], f->merges.p, f->merges.n));
    o.splitter = "gpt2";
    before = test_peak = test_bytes_now;
    status = ft_tokenizer_load(tok, path[0], &o, err);
    CHECK_MSG(test_peak - before <= 4 * size + 1048576, "%s: expected at most %.2f MB of memory, found %.2f MB", name,
              (4.0 * (double)size + 1048576) / 1e6, (double)(test_peak - before) / 1e6);
    return status;
}

/* The same with a million and a half bytes that say nothing; false: there is no place for them. */
static int pad(files *f)
{
    enum { PAD = 1500000 };
    char *some = (char *)memset(malloc(PAD), 'x', PAD);
    fti_buf b = { 0 };
    int json = f->main.p[0] == '{' && !f->merges.n;
    if (f->config.n) { free(some); return 0; }
    if (f->merges.n) {
        fti_buf_add(&f->merges, (char *)memset(some, '\n', PAD), PAD);
    } else if (json) {
        fti_buf_str(&b, "{\"pad\":\"");
        fti_buf_add(&b, some, PAD);
        fti_buf_str(&b, "\",");
        fti_buf_add(&b, f->main.p + 1, f->main.n - 1);
    } else if (f->main.p[0] == '\n') {                        /* field 100 of the message */
        fti_buf_add(&f->main, "\xA2\x06\xE0\xC6\x5B", 5);
        fti_buf_add(&f->main, some, PAD);
    } else fti_buf_add(&f->main, (char *)memset(some, '\n', PAD), PAD);
    free(some);
    if (json) { fti_buf_free(&f->main); f->main = b; }
    return 1;
}

static void same_ids(const ft_tokenizer *a, const ft_tokenizer *b, const char *name)
{
    ft_rng rng;
    int different = 0;
    ft_rng_seed(&rng, 1);
    for (int row = 0; row < 300; row++) {
        ft_error err = { FTUNE_OK, "" };
        char text[64];
        int32_t x[80], y[80];
        size_t n = 0, n_x = 0, n_y = 0;
        for (size_t most = 1 + ft_rng_below(&rng, 50); n < most; ) {
            uint32_t kind = (uint32_t)ft_rng_below(&rng, 12);
            if (kind == 0) n += (size_t)fti_utf8_encode(0x800 + (uint32_t)ft_rng_below(&rng, 50000), text + n);
            else text[n++] = kind == 1 ? ' ' : letters[ft_rng_below(&rng, kind < 4 ? LETTERS : 4)];
        }
        if (ft_tokenizer_encode(a, text, n, FTUNE_SPECIAL_PARSE, x, 80, &n_x, &err)) n_x = 0;
        if (ft_tokenizer_encode(b, text, n, FTUNE_SPECIAL_PARSE, y, 80, &n_y, &err)) n_y = 0;
        different += n_x != n_y || memcmp(x, y, n_x * sizeof *x) != 0;
        if (n_x && ft_token_id(a, text, 2) != ft_token_id(b, text, 2)) different++;
    }
    CHECK_MSG(!different, "%s: %d of 300 texts have other ids with smaller tables", name, different);
}

/* Lists without nodes read as those with nodes do. */
static void show(const fti_json *j, int node, fti_buf *out)
{
    const fti_json_node *x = &j->node[node];
    fti_arena a = { 0 };
    ft_text key = x->member ? fti_json_key(j, node, &a) : ft_text_of(""), text = ft_text_of("");
    if (x->type < FTI_ARRAY) { text.p = j->text + x->start; text.n = x->len; }
    fti_buf_fmt(out, "%d %u %.*s:%.*s%s(", (int)x->type, x->count, (int)key.n, key.p, (int)text.n, text.p, x->escaped ? "\\" : "");
    for (int i = fti_json_child(j, node); i >= 0; i = fti_json_next(j, i)) show(j, i, out);
    fti_buf_str(out, ")");
    fti_arena_free(&a);
}

static void test_long_lists(void)
{
    static const char *const member[] = { "\"a\"", "\"\\\"b,\\\\\"", "[ \"x\" , \"\\u00e9]\" ]", "[]", "[ ]", "{}", "12", "-0.5e3", "true", "false",
        " null ", "\"\"", "[\"a\",-1]", "[[1],{\"a longer name\":[2,3]},\"and a longer text\"]", "{\"content\":\"\xC3\xA9\",\"id\":7,\"l\":[1,{}]}", "\"0123456789abc\\n\"" };
    ft_rng rng;
    ft_rng_seed(&rng, 1);
    for (int row = 0, brief = 0; row < 400 || !brief; row++) {
        fti_buf b = { 0 }, found = { 0 }, expected = { 0 };
        fti_json j = { 0 };
        ft_error err = { FTUNE_OK, "" };
        int object = (int)ft_rng_below(&rng, 2), n = (int)ft_rng_below(&rng, 600), one = row % 2 ? (int)ft_rng_below(&rng, 16) : -1, last;
        fti_buf_str(&b, "{\"first\":1,\"list\":");
        fti_buf_str(&b, object ? "{" : "[");
        for (int i = 0; i < n; i++) {
            fti_buf_str(&b, i ? "\n, " : " ");
            if (object) fti_buf_fmt(&b, i % 7 ? "\"k%d\": " : "\"\\\\k\\\"%d\" : ", i);
            fti_buf_str(&b, member[one >= 0 ? one : (int)ft_rng_below(&rng, 16)]);
        }
        fti_buf_str(&b, object ? " }" : " ]");
        fti_buf_str(&b, ",\"last\":[2]}");
        CHECK_OK(fti_json_parse(&j, b.p, b.n, "full", &err), err);
        show(&j, 0, &expected);
        fti_json_free(&j);
        CHECK_OK(fti_json_parse_brief(&j, b.p, b.n, "brief", &err), err);
        show(&j, 0, &found);
        CHECK_MSG(found.n == expected.n && !memcmp(found.p, expected.p, found.n), "list %d of %d members: %.200s", row, n, b.p);
        last = fti_json_child(&j, fti_json_get(&j, 0, "last"));
        CHECK_INT(fti_json_int(&j, last, 0), 2);
        if (object && n > 5) {
            char key[16];
            snprintf(key, sizeof key, "k%d", n / 7 * 7 - 1);
            last = fti_json_get(&j, fti_json_get(&j, 0, "list"), key);
            CHECK(last >= 0 && fti_json_named(&j, last, key));
        }
        brief |= j.node[fti_json_get(&j, 0, "list")].brief;
        CHECK(!j.node[fti_json_get(&j, 0, "list")].brief || j.n_nodes < 8);
        fti_json_free(&j);
        fti_buf_free(&b);
        fti_buf_free(&found);
        fti_buf_free(&expected);
    }
}

/* A long list of added tokens: all of them are found. */
static void test_added(void)
{
    enum { N = 1000 };
    files f = { { 0 }, { 0 }, { 0 } };
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    int wrong = 0;
    fti_buf_str(&f.main, "{\"added_tokens\":[");
    for (int i = 0; i < N; i++)
        fti_buf_fmt(&f.main, "%s" TEST_ADDED("%d", "<%d\\u00e9>"), i ? "," : "", 256 + i, i);
    fti_buf_str(&f.main, "],\"pre_tokenizer\":" TEST_BYTE_LEVEL("false") ",\"model\":{\"type\":\"BPE\",\"vocab\":{");
    bytes(&f);
    fti_buf_str(&f.main, "},\"merges\":[]}}");
    CHECK_OK(load(&tok, &f, "added tokens", &err), err);
    for (int i = 0; i < N && tok; i++) {
        char text[32];
        int32_t id[8];
        size_t n = 0;
        snprintf(text, sizeof text, "<%d\xC3\xA9>", i);
        if (ft_tokenizer_encode(tok, text, strlen(text), FTUNE_SPECIAL_PARSE, id, 8, &n, &err)) n = 0;
        wrong += n != 1 || *id != 256 + i;
    }
    CHECK_INT(wrong, 0);
    ft_tokenizer_free(tok);
    fti_buf_free(&f.main);
}

int main(void)
{
    int terse = 0;
    test_long_lists();
    test_added();
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        files f = { { 0 }, { 0 }, { 0 } };
        ft_tokenizer *tok = NULL, *wide = NULL;
        ft_error err = { FTUNE_OK, "" };
        made[i].make(&f, made[i].n, made[i].how);
        if (load(&tok, &f, made[i].name, &err) || made[i].message)
            CHECK_MSG(made[i].message && strstr(err.message, made[i].message), "%s: expected \"%s\", found \"%s\"", made[i].name,
                      made[i].message ? made[i].message : "success", err.message);
        if (tok && pad(&f)) {
            CHECK_OK(load(&wide, &f, made[i].name, &err), err);
            if (wide) same_ids(tok, wide, made[i].name);
            terse += wide && (tok->terse || tok->vocab.order || tok->vocab.cap < wide->vocab.cap);
            if (wide) CHECK(!wide->terse && !wide->vocab.order);
        }
        ft_tokenizer_free(tok);
        ft_tokenizer_free(wide);
        fti_buf_free(&f.main);
        fti_buf_free(&f.config);
        fti_buf_free(&f.merges);
    }
    CHECK(terse > 5);
    return test_end();
}
