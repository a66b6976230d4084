/* test_02_template.c - templates: the registry, pieces, ids and labels against what ms-swift itself produced
 *
 * Build:  cc -std=c99 -O2 -I. tests/test_02_template.c -o build/test_02_template -lm
 * Golden: tests/golden/pieces_slice.json (always), swift/golden_pieces.json, templates.json, golden_tokens.json (shared) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static ft_tokenizer *bytes;
static ft_error err;

static uint32_t crc32_of(const int32_t *v, int n)
{
    uint32_t crc = 0xffffffffu;
    for (int i = 0; i < n; i++)
        for (int b = 0; b < 32; b += 8) {
            crc ^= ((uint32_t)v[i] >> b) & 0xff;
            for (int k = 0; k < 8; k++) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
        }
    return ~crc;
}

/* ---- a golden case as a row and options ---- */

typedef struct golden_case { ft_row row; ft_turn turns[16]; ft_chat_options opt; } golden_case;

static void read_example(golden_case *g, const fti_json *j, int example, fti_arena *a)
{
    int h = fti_json_get(j, example, "history"), i, n = 0;
    memset(g, 0, sizeof *g);
    if (h >= 0)
        for (i = fti_json_child(j, h); i >= 0; i = fti_json_next(j, i)) {
            int q = fti_json_child(j, i);
            g->turns[n].query = fti_json_text(j, q, a);
            g->turns[n].response = fti_json_text(j, fti_json_next(j, q), a);
            g->turns[n++].loss = -1;
        }
    if (fti_json_get(j, example, "query") >= 0) g->turns[n].query = fti_json_text(j, fti_json_get(j, example, "query"), a);
    if (fti_json_get(j, example, "response") >= 0) g->turns[n].response = fti_json_text(j, fti_json_get(j, example, "response"), a);
    g->turns[n++].loss = -1;
    if (fti_json_get(j, example, "system") >= 0) g->row.system = fti_json_text(j, fti_json_get(j, example, "system"), a);
    g->row.turns = g->turns;
    g->row.n_turns = n;
    g->opt = ft_chat_options_default();
    g->opt.swift = 2;
}

static void read_arguments(golden_case *g, const fti_json *j, int args)
{
    if (args < 0) return;
    if (fti_json_bool(j, fti_json_get(j, args, "use_loss_scale"), 0)) g->opt.loss_scale = "agent";
    g->opt.max_length = (int)fti_json_int(j, fti_json_get(j, args, "max_length"), 0);
    if (fti_json_equals(j, fti_json_get(j, args, "truncation_strategy"), "truncation_left")) g->opt.truncation = FTUNE_TRUNCATE_LEFT;
}

/* pieces are compared one by one as they come */
typedef struct piece_check { const fti_json *j; int node, i; fti_arena *a; char why[300]; } piece_check;

static void check_piece(void *user, const ft_piece *p)
{
    piece_check *c = (piece_check *)user;
    int text, ids, k = 0;
    c->i++;
    if (c->why[0]) return;
    if (c->node < 0) { snprintf(c->why, sizeof c->why, "piece %d is one too many", c->i); return; }
    text = fti_json_child(c->j, c->node);
    ids = fti_json_is(c->j, text, FTI_OBJECT) ? fti_json_get(c->j, text, "ids") : -1;
    if (fti_json_number(c->j, fti_json_next(c->j, text), -1) != p->weight)
        snprintf(c->why, sizeof c->why, "piece %d: weight %g", c->i, p->weight);
    else if ((ids >= 0) != (p->ids != NULL)) snprintf(c->why, sizeof c->why, "piece %d: text against ids", c->i);
    else if (ids >= 0) {
        for (int n = fti_json_child(c->j, ids); n >= 0; n = fti_json_next(c->j, n), k++)
            if (k >= p->n_ids || fti_json_int(c->j, n, -1) != p->ids[k]) snprintf(c->why, sizeof c->why, "piece %d: ids", c->i);
        if (k != p->n_ids) snprintf(c->why, sizeof c->why, "piece %d: expected %d ids, found %d", c->i, k, p->n_ids);
    } else {
        ft_text e = fti_json_text(c->j, text, c->a);
        if (e.n != p->text.n || memcmp(e.p, p->text.p, e.n))
            snprintf(c->why, sizeof c->why, "piece %d: expected \"%.80s\", found \"%.*s\"", c->i, e.p,
                     (int)(p->text.n < 80 ? p->text.n : 80), p->text.p);
    }
    c->node = fti_json_next(c->j, c->node);
}

static void check_ids(const fti_json *j, int want, const ft_sample *s, const char *name)
{
    char hex[12];
    int labels = fti_json_get(j, want, "labels"), supervised = 0;
    CHECK_MSG(s->n == fti_json_int(j, fti_json_get(j, want, "n"), -1), "%s: found %d ids", name, s->n);
    snprintf(hex, sizeof hex, "%08x", (unsigned)crc32_of(s->input_ids, s->n));
    CHECK_MSG(fti_json_equals(j, fti_json_get(j, want, "crc_input_ids"), hex), "%s: crc of input_ids %s", name, hex);
    CHECK_MSG(fti_json_is(j, labels, FTI_OBJECT) == (s->labels != NULL), "%s: labels null or not", name);
    if (!s->labels || !fti_json_is(j, labels, FTI_OBJECT)) return;
    for (int i = 0; i < s->n; i++) supervised += s->labels[i] != FTUNE_IGNORE_INDEX;
    CHECK_MSG(supervised == fti_json_int(j, fti_json_get(j, labels, "n_supervised"), -1), "%s: found %d labels", name, supervised);
    snprintf(hex, sizeof hex, "%08x", (unsigned)crc32_of(s->labels, s->n));
    CHECK_MSG(fti_json_equals(j, fti_json_get(j, labels, "crc"), hex), "%s: crc of labels %s", name, hex);
    if (fti_json_get(j, want, "loss_scale_sum") >= 0) {
        double sum = 0;
        for (int i = 0; i < s->n; i++) sum += s->loss_scale ? s->loss_scale[i] : 0;
        CHECK_MSG(sum == fti_json_number(j, fti_json_get(j, want, "loss_scale_sum"), -1), "%s: loss_scale sums to %g", name, sum);
    }
}

static int test_golden_pieces(const char *path)
{
    fti_json j;
    fti_arena a = { NULL };
    size_t size;
    char *text = path ? test_read(path, &size) : NULL;
    int era, scenarios, results, t, r, cases = 0;
    ft_sample s = { 0 };
    if (!text) return 0;
    if (fti_json_parse(&j, text, size, path, &err)) { CHECK_MSG(0, "%s", err.message); free(text); return 0; }
    era = fti_json_get(&j, 0, "era_2024");
    scenarios = fti_json_get(&j, era, "scenarios");
    results = fti_json_get(&j, era, "results");
    for (t = fti_json_child(&j, results); t >= 0; t = fti_json_next(&j, t))
        for (r = fti_json_child(&j, t); r >= 0; r = fti_json_next(&j, r), cases++) {
            golden_case g;
            piece_check c = { &j, -1, -1, &a, "" };
            ft_text name = fti_json_key(&j, t, &a), scenario = fti_json_key(&j, r, &a);
            char label[128], template_name[64], scenario_name[64];
            ft_status e;
            int which;
            snprintf(template_name, sizeof template_name, "%.*s", (int)name.n, name.p);
            snprintf(scenario_name, sizeof scenario_name, "%.*s", (int)scenario.n, scenario.p);
            snprintf(label, sizeof label, "%s %s", template_name, scenario_name);
            which = fti_json_get(&j, scenarios, scenario_name);
            read_example(&g, &j, fti_json_get(&j, which, "example"), &a);
            read_arguments(&g, &j, fti_json_get(&j, which, "get_template_args"));
            g.opt.template_name = template_name;
            e = ft_row_encode(&s, bytes, &g.row, &g.opt, &err);
            if (fti_json_get(&j, r, "error") >= 0) { CHECK_MSG(e == FTUNE_ERR_UNSUPPORTED, "%s: expected an error", label); continue; }
            CHECK_MSG(!e, "%s: %s", label, err.message);
            if (e) continue;
            if (fti_json_bool(&j, fti_json_get(&j, r, "dropped"), 0)) { CHECK_MSG(s.dropped && s.n > 8, "%s: not dropped", label); continue; }
            check_ids(&j, r, &s, label);
            c.node = fti_json_child(&j, fti_json_get(&j, r, "pieces"));
            CHECK_OK(ft_row_pieces(bytes, &g.row, &g.opt, check_piece, &c, &err), err);
            if (!c.why[0] && c.node >= 0) snprintf(c.why, sizeof c.why, "a piece is missing after %d", c.i);
            CHECK_MSG(!c.why[0], "%s: %s", label, c.why);
        }
    printf("%s: %d cases\n", path, cases);
    ft_sample_free(&s);
    fti_arena_free(&a);
    fti_json_free(&j);
    free(text);
    return cases;
}

/* The newest ms-swift, for the templates that are still what they were: --swift 3 gives the same ids and labels. Pieces are
 * not compared. Left out: what this version does not read (consecutive roles). */
static void read_messages(golden_case *g, const fti_json *j, int messages, fti_arena *a)
{
    int m, n = 0;
    memset(g, 0, sizeof *g);
    for (m = fti_json_child(j, messages); m >= 0; m = fti_json_next(j, m)) {
        ft_text content = fti_json_text(j, fti_json_get(j, m, "content"), a);
        int role = fti_json_get(j, m, "role");
        if (fti_json_equals(j, role, "system")) g->row.system = content;
        else if (fti_json_equals(j, role, "user")) {
            g->turns[n].loss = -1;
            g->turns[n++].query = content;
        } else {
            if (!n) g->turns[n++].loss = -1;                               /* an answer first: its question is empty */
            g->turns[n - 1].response = content;
            if (fti_json_get(j, m, "loss") >= 0) g->turns[n - 1].loss = fti_json_bool(j, fti_json_get(j, m, "loss"), -1);
        }
    }
    g->row.turns = g->turns;
    g->row.n_turns = n;
    g->opt = ft_chat_options_default();
}

static void test_golden_newest(const char *path)
{
    static const char *const names[][2] = {
        { "deepseek", "deepseek" }, { "deepseek_coder", "deepseek-coder" }, { "gemma", "gemma" }, { "internlm", "internlm" },
        { "llama", "llama" }, { "llama3", "llama3" }, { "modelscope_agent", "modelscope-agent" }, { "baichuan", "baichuan" },
        { "xverse", "xverse" }, { "yuan", "yuan" }, { "ziya", "ziya" }, { "skywork", "skywork" }, { "bluelm", "bluelm" },
        { "codefuse_codellama", "codefuse-codellama" }, { "codefuse", "codefuse" }, { "zephyr", "zephyr" }, { "sus", "sus" },
        { "orion", "orion" }, { "mengzi", "mengzi" }, { "c4ai", "c4ai" }, { "atom", "atom" }, { "minicpm", "minicpm" },
        { "openbuddy", "openbuddy" } };
    fti_json j;
    fti_arena a = { NULL };
    size_t size, k;
    char *text = path ? test_read(path, &size) : NULL;
    int newest, r, cases = 0;
    ft_sample s = { 0 };
    if (!text) return;
    if (fti_json_parse(&j, text, size, path, &err)) { CHECK_MSG(0, "%s", err.message); free(text); return; }
    newest = fti_json_get(&j, 0, "newest");
    for (k = 0; k < sizeof names / sizeof *names; k++)
        for (r = fti_json_child(&j, fti_json_get(&j, fti_json_get(&j, newest, "results"), names[k][0])); r >= 0; r = fti_json_next(&j, r)) {
            ft_text key = fti_json_key(&j, r, &a), loss_scale;
            char scenario[64], label[160], rule[32];
            golden_case g;
            int which, args;
            ft_status e;
            snprintf(scenario, sizeof scenario, "%.*s", (int)key.n, key.p);
            snprintf(label, sizeof label, "newest %s %s", names[k][1], scenario);
            if (strcmp(scenario, "consecutive_roles") == 0) continue;
            which = fti_json_get(&j, fti_json_get(&j, newest, "scenarios"), scenario);
            args = fti_json_get(&j, which, "template_args");
            read_messages(&g, &j, fti_json_get(&j, which, "messages"), &a);
            g.opt.template_name = names[k][1];
            g.opt.use_chat_template = fti_json_bool(&j, fti_json_get(&j, args, "use_chat_template"), 1);
            loss_scale = fti_json_text(&j, fti_json_get(&j, args, "loss_scale"), &a);
            snprintf(rule, sizeof rule, "%.*s", (int)loss_scale.n, loss_scale.p ? loss_scale.p : "");
            if (loss_scale.p) g.opt.loss_scale = rule;
            e = ft_row_encode(&s, bytes, &g.row, &g.opt, &err);
            if (g.row.n_turns > 1 && ft_template_find(NULL, names[k][1], NULL)->single_round) {
                CHECK_MSG(e == FTUNE_ERR_UNSUPPORTED, "%s: expected an error", label);      /* there: history is left out */
                continue;
            }
            if (fti_json_get(&j, r, "error") >= 0) {                        /* there: an empty system text is refused too */
                CHECK_MSG(e != FTUNE_OK || (g.row.system.p && !g.row.system.n), "%s: expected an error", label);
                continue;
            }
            CHECK_MSG(!e, "%s: %s", label, err.message);
            if (!e) check_ids(&j, r, &s, label);
            cases++;
        }
    printf("%s: %d cases of the newest\n", path, cases);
    ft_sample_free(&s);
    fti_arena_free(&a);
    fti_json_free(&j);
    free(text);
}

/* ---- the table in ftune.h is the registry ---- */

static void check_list(const fti_json *j, int list, const char *const *found, const char *name, const char *field, fti_arena *a)
{
    int i = 0, n;
    if (list >= 0 && fti_json_is(j, list, FTI_ARRAY))
        for (n = fti_json_child(j, list); n >= 0; n = fti_json_next(j, n), i++) {
            char want[700];
            const char *piece = i < FTUNE_MAX_PIECES && found[i] ? found[i] : "(none)";
            if (fti_json_is(j, n, FTI_STRING)) {
                ft_text t = fti_json_text(j, n, a);
                snprintf(want, sizeof want, "%.*s", (int)t.n, t.p);
            } else if (fti_json_get(j, n, "token") >= 0) {
                ft_text t = fti_json_text(j, fti_json_get(j, n, "token"), a);
                snprintf(want, sizeof want, FTUNE_IDS "%.*s", (int)t.n, t.p);
            } else {
                size_t used = (size_t)snprintf(want, sizeof want, FTUNE_IDS);
                for (int k = fti_json_child(j, fti_json_get(j, n, "ids")); k >= 0; k = fti_json_next(j, k))
                    used += (size_t)snprintf(want + used, sizeof want - used, "%s%d", used > 1 ? " " : "", (int)fti_json_int(j, k, -1));
            }
            CHECK_MSG(strcmp(want, piece) == 0, "%s.%s[%d]: expected \"%s\", found \"%s\"", name, field, i, want, piece);
        }
    CHECK_MSG(i >= FTUNE_MAX_PIECES || !found[i], "%s.%s: expected %d pieces", name, field, i);
}

/* The prefix without a system text: what the file calls effective. */
static void effective_prefix(const ft_template *t, const char **out, char store[FTUNE_MAX_PIECES][400])
{
    memset(out, 0, FTUNE_MAX_PIECES * sizeof *out);
    for (int i = 0; i < FTUNE_MAX_PIECES && t->prefix[i]; i++) {
        char *hit;
        snprintf(store[i], 400, "%s", t->prefix[i]);
        if ((hit = strstr(store[i], "{{SYSTEM}}")) != NULL) memmove(hit, hit + 10, strlen(hit + 10) + 1);
        out[i] = store[i];
    }
}

static void test_registry_equals_file(const char *path)
{
    fti_json j;
    fti_arena a = { NULL };
    size_t size;
    char *text = path ? test_read(path, &size) : NULL, store[FTUNE_MAX_PIECES][400];
    const char *prefix[FTUNE_MAX_PIECES];
    int n, count = 0;
    if (!text) return;
    if (fti_json_parse(&j, text, size, path, &err)) { CHECK_MSG(0, "%s", err.message); free(text); return; }
    n = fti_json_child(&j, fti_json_get(&j, fti_json_get(&j, 0, "era_2024"), "templates"));
    for (; n >= 0; n = fti_json_next(&j, n)) {
        const ft_template *t;
        ft_text key = fti_json_key(&j, n, &a), def = { NULL, 0 };
        char name[64];
        int system = fti_json_get(&j, n, "system_prefix");
        if (!fti_json_equals(&j, fti_json_get(&j, n, "modality"), "text")) continue;
        snprintf(name, sizeof name, "%.*s", (int)key.n, key.p);
        CHECK_MSG((t = ft_template_find(NULL, name, &err)) != NULL, "%s", err.message);
        if (!t) continue;
        CHECK_MSG(t == ft_template_at(NULL, count), "%s: expected at place %d", name, count);
        count++;
        effective_prefix(t, prefix, store);
        check_list(&j, fti_json_get(&j, n, "prefix"), prefix, name, "prefix", &a);
        check_list(&j, fti_json_get(&j, n, "prompt"), t->prompt, name, "prompt", &a);
        check_list(&j, fti_json_get(&j, n, "chat_sep"), t->chat_sep, name, "chat_sep", &a);
        check_list(&j, fti_json_get(&j, n, "suffix"), t->suffix, name, "suffix", &a);
        if (fti_json_is(&j, system, FTI_OBJECT)) {            /* phi3: the broken placeholder, joined, is upstream's string */
            ft_text bare = fti_json_text(&j, fti_json_get(&j, system, "bare_string"), &a);
            char joined[200];
            snprintf(joined, sizeof joined, "%s%s", t->system_prefix[0], t->system_prefix[1]);
            CHECK(strlen(joined) == bare.n && memcmp(joined, bare.p, bare.n) == 0);
        } else {
            int in_prefix = fti_json_bool(&j, fti_json_get(&j, n, "system_in_prefix"), 0);
            check_list(&j, system, in_prefix ? t->prefix : t->system_prefix, name, "system_prefix", &a);
        }
        if (fti_json_is(&j, fti_json_get(&j, n, "default_system"), FTI_STRING)) def = fti_json_text(&j, fti_json_get(&j, n, "default_system"), &a);
        CHECK_MSG((def.p != NULL) == (t->default_system != NULL), "%s: default_system", name);
        if (def.p && t->default_system)
            CHECK_MSG(strlen(t->default_system) == def.n && memcmp(t->default_system, def.p, def.n) == 0, "%s: default_system", name);
        CHECK_INT(t->single_round, !fti_json_bool(&j, fti_json_get(&j, n, "supports_multi_round"), 0));
        CHECK_INT(t->auto_add_bos, fti_json_bool(&j, fti_json_get(&j, n, "auto_add_bos"), 0));
    }
    CHECK_INT(count, 42);
    CHECK_INT(ft_template_count(NULL), count);
    fti_json_free(&j);
    fti_arena_free(&a);
    free(text);
}

/* ---- small cases ---- */

static ft_turn turn(const char *q, const char *r)
{
    ft_turn t = { ft_text_of(q), ft_text_of(r), -1, 0 };
    return t;
}

/* What is supervised, with a bar between separate stretches: "R1|R2</s>". Bytes only. */
static const char *supervised(const ft_sample *s)
{
    static char out[2000];
    size_t n = 0;
    for (int i = 0; i < s->n && n < sizeof out - 8; i++) {
        if (s->labels[i] == FTUNE_IGNORE_INDEX) continue;
        if (n && s->labels[i - 1] == FTUNE_IGNORE_INDEX) out[n++] = '|';
        if (s->labels[i] >= 16 && s->labels[i] < 272) out[n++] = (char)(s->labels[i] - 16);
        else n += (size_t)snprintf(out + n, sizeof out - n, "[%d]", (int)s->labels[i]);
    }
    out[n] = 0;
    return out;
}

static const char *encode(ft_sample *s, const ft_row *row, const ft_chat_options *o)
{
    ft_status e = ft_row_encode(s, bytes, row, o, &err);
    return e ? err.message : s->labels ? supervised(s) : "(inference)";
}

static void test_swift3(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_turn t[3] = { turn("Q1", "R1"), turn("Q2", "R2"), turn("Q3", "R3") };
    ft_row row = { { NULL, 0 }, t, 3, { NULL, 0 } };
    ft_sample s = { 0 };
    o.template_name = "qwen";
    CHECK_STR(encode(&s, &row, &o), "R1<|im_end|>|R2<|im_end|>|R3<|im_end|>");
    o.swift = 2;
    CHECK_STR(encode(&s, &row, &o), "R1|R2|R3<|im_end|>");
    o.template_name = "llama3";
    CHECK_STR(encode(&s, &row, &o), "R1<|eot_id|>|R2<|eot_id|>|R3<|eot_id|>");
    o.template_name = "chatglm3";                                      /* the user marker, before the question too */
    CHECK_STR(encode(&s, &row, &o), "[64795]|R1[64795]|R2[64795]|R3[64795]");
    o.swift = 3;
    CHECK_STR(encode(&s, &row, &o), "R1[64795]|R2[64795]|R3[64795]");
    o.template_name = "default";                                       /* suffix eos, separator two newlines: no match */
    CHECK_STR(encode(&s, &row, &o), "R1|R2|R3[2]");
    o.template_name = "codefuse";
    CHECK_STR(encode(&s, &row, &o), "R1[2]|R2[2]|R3[2]");
    o.template_name = "qwen";
    o.loss_scale = "last_round";
    CHECK_STR(encode(&s, &row, &o), "R3<|im_end|>");
    t[0].loss = 1;                                                     /* one answer's own wish */
    CHECK_STR(encode(&s, &row, &o), "R1<|im_end|>|R3<|im_end|>");
    o.loss_scale = "default";
    t[0].loss = 0;
    CHECK_STR(encode(&s, &row, &o), "R2<|im_end|>|R3<|im_end|>");
    o.loss_scale = "all";
    o.want_loss_scale = 1;
    t[0].loss = -1;
    o.default_system = "";
    CHECK(strncmp(encode(&s, &row, &o), "|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nR1", 53) == 0);
    CHECK_INT(s.labels[0], FTUNE_IGNORE_INDEX);                        /* nothing predicts the first id */
    CHECK(s.loss_scale && s.loss_scale[0] == 0 && s.loss_scale[1] == 1);
    o.loss_scale = "agent";
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_UNSUPPORTED, "found \"agent\"");
    o.loss_scale = "default";
    o.swift = 4;
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_ARGUMENT, "expected 2 or 3");
    ft_sample_free(&s);
}

static void test_edges_of_rounds(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_turn t[3] = { turn(NULL, "R1"), turn("Q2", NULL), turn("Q3", "R3") };
    ft_row row = { { NULL, 0 }, t, 3, { NULL, 0 } };
    ft_sample s = { 0 };
    o.template_name = "telechat";
    o.swift = 2;
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_FORMAT, "round 1: expected an answer, found null");
    CHECK_INT(s.n, 0);
    t[1] = turn(NULL, NULL);                                           /* dropped */
    CHECK_STR(encode(&s, &row, &o), "R1<_end>|R3<_end>");
    CHECK_INT(s.n, (int)strlen("<_user>{{QUERY}}<_bot>R1<_end><_user>Q3<_bot>R3<_end>"));     /* a null query stays literal */
    row.turns = t + 2;
    row.n_turns = 1;
    t[2] = turn(NULL, NULL);
    CHECK_STR(encode(&s, &row, &o), "(inference)");
    CHECK_INT(s.n, 0);
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &(ft_chat_options){ .swift = 3, .template_name = "qwen3", .use_chat_template = 1 }, &err), err,
                FTUNE_ERR_NOT_FOUND, "near it: \"qwen\"");
    row.n_turns = 0;
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_ARGUMENT, "neither");
    ft_sample_free(&s);
}

static void test_agent(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_turn t = turn("Q", "Action:Observation: x");
    ft_row row = { { NULL, 0 }, &t, 1, { NULL, 0 } };
    ft_sample s = { 0 };
    float sum = 0;
    o.swift = 2;
    o.loss_scale = "agent";
    o.template_name = "telechat";
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_FORMAT, "between \"Action:\" and \"Observation:\"");
    t = turn("Q", "Action: a\nObservation:");                          /* ends in a delimiter: nothing is missing */
    CHECK_STR(encode(&s, &row, &o), "Action: a\nObservation:<_end>");
    t = turn("Q", "action: Thought: no");                              /* no keyword: one piece */
    CHECK_STR(encode(&s, &row, &o), "action: Thought: no<_end>");
    CHECK(s.loss_scale != NULL);
    for (int i = 0; i < s.n; i++) sum += s.loss_scale[i];
    CHECK_INT((int)sum, 19 + 6);
    t = turn("Q", "Action: a");
    t.loss = 1;                                                        /* its own wish: supervised, still by part */
    CHECK_STR(encode(&s, &row, &o), "Action: a<_end>");
    CHECK(s.loss_scale && s.loss_scale[s.n - 7] == 2);
    t = turn("Q", "a");
    CHECK_STR(encode(&s, &row, &o), "a<_end>");
    t = turn("a longer question than the row before had ids in all, and unanswered", NULL);
    o.truncation = FTUNE_TRUNCATE_LEFT;                                /* cut without the weights of the row before */
    o.max_length = 64;
    CHECK_STR(encode(&s, &row, &o), "(inference)");
    CHECK(s.loss_scale == NULL && s.n == 64);
    ft_sample_free(&s);
}

/* From the first answer on, runs of one weight: "{1:Thought: }{2:Action: x}". */
static const char *weighed(const ft_sample *s)
{
    static char out[2000];
    size_t n = 0;
    int i = 0;
    while (i < s->n && s->origin[i] != FTUNE_FROM_RESPONSE) i++;
    for (; i < s->n && n < sizeof out - 40; i++) {
        if (n == 0 || s->loss_scale[i] != s->loss_scale[i - 1])
            n += (size_t)snprintf(out + n, 40, "%s{%g:", n ? "}" : "", (double)s->loss_scale[i]);
        out[n++] = (char)(s->input_ids[i] - 16);
    }
    out[n++] = '}';
    out[n] = 0;
    return out;
}

static void test_named_scales(void)
{
    static const struct { const char *scale, *query, *response, *expected; } cases[] = {
        { "react", "q", "a Thought: b\nAction: c\nAction Input: d\nObservation: e\nFinal Answer: f",
          "{1:a Thought: b\n}{2:Action: c\nAction Input: d\nObservation:}{0: e\n}{1:Final Answer: f<_end>}" },
        { "react", "Action: q", "Observation:Action:", "{2:Observation:Action:}{1:<_end>}" },
        { "react", "q", "Next: a", "{1:Next: a<_end>}" },
        { "alpha_umi", "q", "Next: a", "{2:Next: a}{1:<_end>}" },
        { "qwen", "q", "x\xE2\x9C\xBF" "FUNCTION\xE2\x9C\xBF: f\n\xE2\x9C\xBFRESULT\xE2\x9C\xBF: r\n\xE2\x9C\xBFRETURN\xE2\x9C\xBF: t",
          "{1:x}{2:\xE2\x9C\xBF" "FUNCTION\xE2\x9C\xBF: f\n\xE2\x9C\xBFRESULT\xE2\x9C\xBF:}{0: r\n}{1:\xE2\x9C\xBFRETURN\xE2\x9C\xBF: t<_end>}" },
        { "agentflan", "q", "Command x Thought: y", "{1:Command}{3: x }{1:Thought: y<_end>}" },
        { "agentflan", "What is the value of x", "Command x Thought: y", "{3:Command x Thought: y}{1:<_end>}" },
        { "hermes", "q", "a<tool_call>\n1</tool_call>b<tool_call></tool_call>", "{1:a}{2:<tool_call>\n1</tool_call>}{1:b<tool_call></tool_call><_end>}" },
        { "hermes", "q", "<tool_call></tool_call></tool_call>x<tool_call>", "{2:<tool_call></tool_call></tool_call>}{1:x<tool_call><_end>}" },
        { "ignore_empty_think", "q", "<think>\n\xC2\xA0\x1C</think>\n\nx", "{0:<think>\n\xC2\xA0\x1C</think>\n\n}{1:x<_end>}" },
        { "ignore_empty_think", "q", " <think></think>x", "{1: <think></think>x<_end>}" },       /* not where the answer begins */
        { "ignore_empty_think", "q", "<think>\n</think></think>x", "{0:<think>\n</think></think>x}{1:<_end>}" },
        { "ignore_empty_think", "q", "<think>a</think>x", "{1:<think>a</think>x<_end>}" },
        { "ignore_think_prefix", "q", "<think>\n\nx", "{0:<think>\n}{1:\nx<_end>}" },
        { "default+ignore_think_prefix", "q", "<think>x", "{0:<think>}{1:x<_end>}" },
        { "react+hermes", "q", "Action:<tool_call>1</tool_call>", "{2:Action:}{4:<tool_call>1</tool_call>}{1:<_end>}" },
        { "hermes+ignore_empty_think", "q", "<think>\n</think>\n<tool_call>1</tool_call></think>x",
          "{0:<think>\n</think>\n}{2:<tool_call>1</tool_call>}{0:</think>}{1:x<_end>}" },
    };
    ft_chat_options o = ft_chat_options_default();
    ft_turn t[2];
    ft_row row = { { NULL, 0 }, t, 1, { NULL, 0 } };
    ft_sample s = { 0 };
    o.template_name = "telechat";
    o.want_loss_scale = 1;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        t[0] = turn(cases[i].query, cases[i].response);
        o.loss_scale = cases[i].scale;
        CHECK_OK(ft_row_encode(&s, bytes, &row, &o, &err), err);
        CHECK_MSG(strcmp(weighed(&s), cases[i].expected) == 0, "%s, %s: expected %s, found %s", cases[i].scale, cases[i].response,
                  cases[i].expected, weighed(&s));
    }
    row.n_turns = 2;
    t[0] = turn("Action: q", "Action: a");
    t[1] = turn("Q", "Action: b");
    o.loss_scale = "last_round+react";
    encode(&s, &row, &o);
    CHECK_STR(weighed(&s), "{0:Action: a<_end><_user>Q<_bot>}{2:Action: b}{1:<_end>}");
    o.loss_scale = "all+react";                                        /* every text is supervised, and split */
    CHECK_STR(encode(&s, &row, &o), "_user>Action: q<_bot>Action: a<_end><_user>Q<_bot>Action: b<_end>");
    CHECK(s.loss_scale[6] == 1 && s.loss_scale[7] == 2);
    o.want_loss_scale = 0;                                             /* stored only when it says more than the labels */
    o.loss_scale = "ignore_empty_think+ignore_think_prefix+base";
    encode(&s, &row, &o);
    CHECK(s.loss_scale == NULL);
    o.loss_scale = "base+hermes";
    encode(&s, &row, &o);
    CHECK(s.loss_scale != NULL);
    t[0].loss_scale = 0.5f;                                            /* its own weight: not split any more */
    t[1].loss = 0;
    o.loss_scale = "react";
    encode(&s, &row, &o);
    CHECK_STR(weighed(&s), "{0.5:Action: a}{1:<_end>}{0:<_user>Q<_bot>Action: b}{1:<_end>}");
    o.loss_scale = "last_round";                                       /* a weight alone does not make it learnt .. */
    CHECK_STR(encode(&s, &row, &o), "<_end>");
    t[0].loss = 1;                                                     /* .. its wish does */
    encode(&s, &row, &o);
    CHECK_STR(weighed(&s), "{0.5:Action: a}{1:<_end>}{0:<_user>Q<_bot>Action: b}{1:<_end>}");
    t[0].loss_scale = 1;
    encode(&s, &row, &o);
    CHECK(s.loss_scale == NULL);
    {
        static const char *const bad[] = { "", "+", "reakt", "react+", "react+last_round", "default+default", "Default", "agent+react",
                                           "react+react+react+react+react+react+react+react+react" };
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            o.loss_scale = bad[i];
            CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_UNSUPPORTED, "last_round or all, and joined by +");
        }
        o.swift = 2;
        o.loss_scale = "react";
        CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_UNSUPPORTED, "default or agent with swift 2");
    }
    {                                                                  /* as long as any other text of this length */
        enum { N = 1100000 };
        char *text = (char *)malloc(N + 1);
        double start;
        for (int i = 0; i < N; i++) text[i] = "<tool_call>"[i % 11];
        text[N] = 0;
        t[0] = turn("q", text);
        row.n_turns = 1;
        o.swift = 3;
        o.loss_scale = "hermes+react+agentflan";
        start = fti_now();
        CHECK_OK(ft_row_encode(&s, bytes, &row, &o, &err), err);
        CHECK_MSG(fti_now() - start < 2, "expected linear time, found %.1f s", fti_now() - start);
        free(text);
    }
    ft_sample_free(&s);
}

static void test_length(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_turn t = turn("Q", "answer");
    ft_row row = { { NULL, 0 }, &t, 1, { NULL, 0 } };
    ft_sample s = { 0 };
    int n = (int)strlen("<_user>Q<_bot>answer<_end>");
    o.template_name = "telechat";
    o.max_length = n;
    CHECK_STR(encode(&s, &row, &o), "answer<_end>");                   /* exactly as long: kept */
    CHECK(!s.dropped && !s.truncated && s.n == n);
    o.max_length = n - 1;
    encode(&s, &row, &o);
    CHECK(s.dropped && s.n == n);
    o.truncation = FTUNE_TRUNCATE_RIGHT;
    CHECK_STR(encode(&s, &row, &o), "answer<_end");
    CHECK(!s.dropped && s.truncated == n && s.n == n - 1);
    o.truncation = FTUNE_TRUNCATE_LEFT;
    o.max_length = 8;
    CHECK_STR(encode(&s, &row, &o), "er<_end>" + 1);                   /* swift 3 masks the new first id */
    o.swift = 2;
    CHECK_STR(encode(&s, &row, &o), "er<_end>");
    CHECK_INT(s.origin[0], FTUNE_FROM_RESPONSE);
    CHECK_INT(s.origin[7], FTUNE_FROM_SUFFIX);
    o.max_length = -1;
    CHECK_STR(encode(&s, &row, &o), "answer<_end>");
    ft_sample_free(&s);
}

static void test_plain(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_turn t[2] = { turn("Q1", "R1"), turn("Q2", "R2") };
    ft_row text = { { NULL, 0 }, NULL, 0, { "some text", 9 } }, chat = { { NULL, 0 }, t, 2, { NULL, 0 } };
    ft_sample s = { 0 };
    CHECK_STR(encode(&s, &text, &o), "some text[2]");                  /* a text row needs no switch */
    CHECK_INT(s.n, 1 + 9 + 1);
    CHECK_INT(s.input_ids[0], 1);
    CHECK_INT(s.origin[0], FTUNE_FROM_BOS);
    CHECK_INT(s.origin[1], FTUNE_FROM_TEXT);
    o.use_chat_template = 0;
    CHECK_STR(encode(&s, &chat, &o), "R1|R2[2]");
    CHECK_INT(s.n, 1 + 8 + 1);
    o.loss_scale = "all";
    CHECK_STR(encode(&s, &chat, &o), "Q1R1Q2R2[2]");
    t[1].response = ft_text_of(NULL);
    CHECK_STR(encode(&s, &chat, &o), "(inference)");
    CHECK_INT(s.n, 1 + 6);
    ft_sample_free(&s);
}

static void test_origin(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_message m[] = { { "system", "S" }, { "user", "Q1" }, { "assistant", "R1" }, { "user", "Q2" }, { "assistant", "R2" } };
    ft_sample s = { 0 };
    char seen[500] = "";
    o.template_name = "chatml";
    CHECK_OK(ft_chat_encode(&s, bytes, m, 5, &o, &err), err);
    for (int i = 0; i < s.n; i++)
        if (!i || s.origin[i] != s.origin[i - 1]) {
            strcat(seen, ft_origin_name((ft_origin)s.origin[i]));
            strcat(seen, " ");
        }
    CHECK_STR(seen, "bos system prompt response chat_sep prompt response suffix ");
    CHECK_STR(ft_origin_name((ft_origin)77), "?");
    ft_sample_free(&s);
}

static void test_messages(void)
{
    static const struct { ft_message m[4]; int n; ft_status code; const char *text; } bad[] = {
        { { { "user", "a" }, { "user", "b" } }, 2, FTUNE_ERR_FORMAT, "messages[1]: expected assistant, found a second user" },
        { { { "assistant", "a" } }, 1, FTUNE_ERR_FORMAT, "messages[0]: expected user, found assistant first" },
        { { { "user", "a" }, { "assistant", "b" }, { "assistant", "c" } }, 3, FTUNE_ERR_FORMAT, "a second assistant message" },
        { { { "user", "a" }, { "system", "b" } }, 2, FTUNE_ERR_FORMAT, "messages[1]: expected the one system message before" },
        { { { "system", "a" }, { "system", "b" } }, 2, FTUNE_ERR_FORMAT, "messages[1]: expected the one system message" },
        { { { "User", "a" } }, 1, FTUNE_ERR_FORMAT, "in small letters, found \"User\"" },
        { { { "tool", "a" } }, 1, FTUNE_ERR_UNSUPPORTED, "tool messages" },
        { { { "user", NULL } }, 1, FTUNE_ERR_ARGUMENT, "messages[0]: expected a role and a content" },
        { { { "system", "a" } }, 1, FTUNE_ERR_ARGUMENT, "at least one user message" },
    };
    ft_sample s = { 0 };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_FAILS(ft_chat_encode(&s, bytes, bad[i].m, bad[i].n, NULL, &err), err, bad[i].code, bad[i].text);
    CHECK_OK(ft_chat_encode(&s, bytes, &(ft_message){ "user", "a" }, 1, NULL, &err), err);
    CHECK(s.labels == NULL && s.n > 0);
    ft_sample_free(&s);
}

static void test_registry(void)
{
    ft_registry *r = NULL;
    ft_template t = { .name = "mine", .prefix = { "[{{SYSTEM}}]", FTUNE_IDS "7 bos_token_id" }, .prompt = { "U:", "{{QUERY}}" },
                      .chat_sep = { "/" }, .suffix = { "." }, .default_system = "" };
    ft_turn turns[2] = { turn("q", "r"), turn(".", "s") };
    ft_row row = { { "S", 1 }, turns, 2, { NULL, 0 } };
    ft_chat_options o = ft_chat_options_default();
    ft_sample s = { 0 };
    CHECK_OK(ft_registry_new(&r, &err), err);
    CHECK_OK(ft_template_register(r, &t, &err), err);
    CHECK_INT(ft_template_count(r), 43);
    CHECK(ft_template_at(r, 42) == ft_template_find(r, "mine", &err) && ft_template_at(r, 43) == NULL && ft_template_at(r, -1) == NULL);
    CHECK(ft_template_find(r, "mine", NULL)->default_system == NULL);
    CHECK_FAILS(ft_template_register(r, &t, &err), err, FTUNE_ERR_ARGUMENT, "one that is taken");
    t.name = "qwen";
    CHECK_FAILS(ft_template_register(r, &t, &err), err, FTUNE_ERR_ARGUMENT, "one that is taken");
    t.name = "other";
    t.system_prefix[0] = "x";
    CHECK_FAILS(ft_template_register(r, &t, &err), err, FTUNE_ERR_ARGUMENT, "found both");
    t.prefix[0] = t.system_prefix[0] = NULL;
    t.default_system = "d";
    CHECK_FAILS(ft_template_register(r, &t, &err), err, FTUNE_ERR_ARGUMENT, "default_system");
    o.registry = r;
    o.template_name = "mine";
    o.swift = 2;
    CHECK_STR(encode(&s, &row, &o), "r|.s.");                           /* a question that equals the suffix is supervised */
    CHECK_INT(s.n, 3 + 2 + 3 + 1 + 1 + 3 + 1 + 1);
    row.system = ft_text_of("");
    encode(&s, &row, &o);
    CHECK_INT(s.input_ids[0], '[' + 16);
    CHECK_INT(s.input_ids[2], 7);
    CHECK_INT(s.input_ids[3], 1);
    CHECK(!ft_template_find(NULL, "qwn", &err) && strstr(err.message, "\"qwen\""));
    CHECK(!ft_template_find(NULL, "deepseek-coder-v2", &err) && strstr(err.message, "\"deepseek-coder\""));
    CHECK(!ft_template_find(NULL, NULL, &err) && err.code == FTUNE_ERR_NOT_FOUND);
    t.name = "no-such-attribute";
    t.default_system = NULL;
    t.suffix[0] = FTUNE_IDS "moon_token_id";
    CHECK_OK(ft_template_register(r, &t, &err), err);
    o.template_name = t.name;
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_NOT_FOUND, "moon_token_id");
    o.template_name = "telechat";
    row.system = ft_text_of("S");
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_UNSUPPORTED, "has no place for one");
    row.system = ft_text_of(NULL);
    o.default_system = "d";
    CHECK_FAILS(ft_row_encode(&s, bytes, &row, &o, &err), err, FTUNE_ERR_UNSUPPORTED, "has no place for one");
    ft_registry_free(r);
    ft_registry_free(NULL);
    ft_sample_free(&s);
}

/* For every template and rule: labels are ids or -100, in swift 3 never at 0, and decode to the same text. */
static void test_properties(void)
{
    ft_turn t[3] = { turn("Q one", "R one\n"), turn("\n{{ROUND1}}", "R {{QUERY}}"), turn("<|im_end|>", "<|im_end|>") };
    static const char *const rules[] = { "default", "last_round", "all", "agent", "all+react+hermes+ignore_empty_think" };
    ft_sample s = { 0 };
    for (int i = 0; i < ft_template_count(NULL); i++)
        for (int k = 0; k < 5; k++) {
            ft_chat_options o = ft_chat_options_default();
            ft_row row = { { NULL, 0 }, t, ft_template_at(NULL, i)->single_round ? 1 : 3, { NULL, 0 } };
            int wrong = 0, targets = 0;
            o.template_name = ft_template_at(NULL, i)->name;
            o.loss_scale = rules[k];
            o.swift = k == 3 ? 2 : 3;
            o.want_loss_scale = 1;
            CHECK_OK(ft_row_encode(&s, bytes, &row, &o, &err), err);
            for (int n = 0; n < s.n; n++) {
                wrong += s.labels[n] != FTUNE_IGNORE_INDEX && s.labels[n] != s.input_ids[n];
                wrong += (s.labels[n] != FTUNE_IGNORE_INDEX) != (s.loss_scale[n] > 0) || s.origin[n] > FTUNE_FROM_TEXT;
                targets += s.labels[n] != FTUNE_IGNORE_INDEX;
            }
            CHECK_MSG(!wrong && targets && (o.swift == 2 || s.labels[0] == FTUNE_IGNORE_INDEX), "%s %s", o.template_name, rules[k]);
        }
    ft_sample_free(&s);
}

/* ---- real vocabularies ---- */

static int is_space_list(const char *text, const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) {
        char *end;
        if (strtol(text, &end, 10) != ids[i] || end == text) return 0;
        text = end;
    }
    return *text == 0;
}

static void test_article(const char *path)
{
    ft_tokenizer *tok = NULL;
    ft_chat_options o = ft_chat_options_default();
    ft_message m[] = { { "user", "How are you?" }, { "assistant", "I am fine" } };
    ft_message evil[] = { { "user", "<|im_end|>" }, { "assistant", "no" } };
    ft_sample s = { 0 };
    int32_t stop[4];
    FILE *f = path ? fopen(path, "rb") : NULL;
    if (!f) { if (path) test_skip(path); return; }
    fclose(f);
    CHECK_OK(ft_tokenizer_load(&tok, path, &(ft_tokenizer_options){ .splitter = "qwen", .lowercase = -1 }, &err), err);
    if (!tok) return;
    o.template_name = "qwen";
    for (o.swift = 2; o.swift <= 3; o.swift++) {
        CHECK_OK(ft_chat_encode(&s, tok, m, 2, &o, &err), err);
        CHECK_INT(s.n, 27);
        CHECK(is_space_list("151644 8948 198 2610 525 264 10950 17847 13 151645 198 151644 872 198 4340 525 498 30 151645 198 151644 "
                            "77091 198 40 1079 6915 151645", s.input_ids, s.n));
        for (int i = 0; i < s.n; i++) CHECK_INT(s.labels[i], i < 23 ? FTUNE_IGNORE_INDEX : s.input_ids[i]);
    }
    CHECK_INT(s.origin[3], FTUNE_FROM_SYSTEM);
    CHECK_INT(s.origin[14], FTUNE_FROM_PROMPT);
    CHECK_INT(s.origin[25], FTUNE_FROM_RESPONSE);
    CHECK_INT(s.origin[26], FTUNE_FROM_SUFFIX);
    o.swift = 3;
    for (int special = 0; special < 3; special++) {                     /* control-token text in a message */
        ft_status e;
        int ends = 0;
        o.special = (ft_special)special;
        e = ft_chat_encode(&s, tok, evil, 2, &o, &err);
        for (int i = 0; i < s.n; i++) ends += s.input_ids[i] == 151645;
        CHECK_INT(e, special == FTUNE_SPECIAL_REFUSE ? FTUNE_ERR_SPECIAL : FTUNE_OK);
        CHECK_INT(ends, special == FTUNE_SPECIAL_AS_TEXT ? 3 : special == FTUNE_SPECIAL_PARSE ? 4 : 0);
    }
    CHECK(ft_chat_stop_ids(tok, &o, stop, 4) >= 1);
    CHECK(stop[0] == 151645 || stop[1] == 151645);
    ft_sample_free(&s);
    ft_tokenizer_free(tok);
}

/* Sequences printed upstream, for the tokenizers whose names hold `family`. */
static void test_golden_tokens(const char *path, const char *vocab, const char *family, int at_least)
{
    fti_json j;
    fti_arena a = { NULL };
    ft_tokenizer *tok = NULL;
    ft_sample s = { 0 };
    size_t size;
    char *text = path && vocab ? test_read(path, &size) : NULL;
    int n, done = 0;
    if (!text) return;
    if (ft_tokenizer_load(&tok, vocab, NULL, &err) == FTUNE_ERR_UNSUPPORTED) {
        test_skip(err.message);
        free(text);
        return;
    }
    CHECK_MSG(tok != NULL, "%s", err.message);
    if (!tok || fti_json_parse(&j, text, size, path, &err)) { free(text); return; }
    for (n = fti_json_child(&j, fti_json_get(&j, 0, "token_sequences")); n >= 0; n = fti_json_next(&j, n)) {
        ft_text name = fti_json_text(&j, fti_json_get(&j, n, "tokenizer"), &a), id = fti_json_text(&j, fti_json_get(&j, n, "id"), &a);
        int example = fti_json_get(&j, n, "example"), want, k = 0, same = 1;
        char tokenizer[200], label[100], template_name[64];
        golden_case g;
        snprintf(tokenizer, sizeof tokenizer, "%.*s", (int)name.n, name.p);
        snprintf(label, sizeof label, "%.*s", (int)id.n, id.p);
        if (example < 0 || !strstr(tokenizer, family)) continue;
        read_example(&g, &j, example, &a);
        name = fti_json_text(&j, fti_json_get(&j, n, "template"), &a);
        snprintf(template_name, sizeof template_name, "%.*s", (int)name.n, name.p);
        template_name[strcspn(template_name, " ")] = 0;
        if (strcmp(template_name, "qwen2_5") == 0) template_name[4] = 0;            /* the same pieces when a system is given */
        g.opt.template_name = template_name;
        g.opt.special = FTUNE_SPECIAL_PARSE;                                        /* upstream parses message content */
        CHECK_OK(ft_row_encode(&s, tok, &g.row, &g.opt, &err), err);
        for (want = fti_json_child(&j, fti_json_get(&j, n, "input_ids")); want >= 0; want = fti_json_next(&j, want), k++)
            same = same && k < s.n && s.input_ids[k] == fti_json_int(&j, want, -1);
        CHECK_MSG(same && k == s.n, "%s: input_ids: expected %d, found %d", label, k, s.n);
        want = fti_json_get(&j, n, "labels");
        CHECK_MSG(fti_json_is(&j, want, FTI_ARRAY) == (s.labels != NULL), "%s: labels", label);
        for (k = 0, want = fti_json_is(&j, want, FTI_ARRAY) ? fti_json_child(&j, want) : -1; want >= 0; want = fti_json_next(&j, want), k++)
            same = same && s.labels && k < s.n && s.labels[k] == fti_json_int(&j, want, -1);
        CHECK_MSG(same, "%s: labels", label);
        done++;
    }
    CHECK_MSG(done >= at_least, "%s: expected %d sequences, found %d", family, at_least, done);
    ft_sample_free(&s);
    fti_json_free(&j);
    fti_arena_free(&a);
    ft_tokenizer_free(tok);
    free(text);
}

int main(void)
{
    const char *tokens;
    if (ft_tokenizer_load(&bytes, "bytes", NULL, &err)) { fprintf(stderr, "%s\n", err.message); return 1; }
    CHECK(test_golden_pieces("tests/golden/pieces_slice.json") > 100);
    test_golden_pieces(test_shared("swift/golden_pieces.json"));
    test_golden_newest(test_shared("swift/golden_pieces.json"));
    test_registry_equals_file(test_shared("swift/templates.json"));
    test_swift3();
    test_edges_of_rounds();
    test_agent();
    test_named_scales();
    test_length();
    test_plain();
    test_origin();
    test_messages();
    test_registry();
    test_properties();
    test_article("tests/data/qwen_slice.tiktoken");
    test_article(test_shared("vocab/qwen/qwen.tiktoken"));
    if ((tokens = test_shared("swift/golden_tokens.json")) != NULL) {
        test_golden_tokens(tokens, test_shared("vocab/qwen/qwen.tiktoken"), "wen", 4);
        test_golden_tokens(tokens, test_shared("vocab/chatglm3/tokenizer.model"), "chatglm", 2);
        test_golden_tokens(tokens, test_shared("vocab/baichuan2/tokenizer.model"), "aichuan", 1);
    }
    ft_tokenizer_free(bytes);
    return test_end();
}
