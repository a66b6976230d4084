/* test_03_batch.c - rows in every shape, data set files, batches and packing
 *
 * Build: cc -std=c99 -O2 -I. tests/test_03_batch.c -o build/test_03_batch -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include <fcntl.h>
#include <unistd.h>

static ft_tokenizer *bytes;
static ft_row_parser *parser;
static ft_error err;

/* ---- rows ---- */

static void show(char *out, size_t cap, ft_text t)
{
    if (!t.p) snprintf(out, cap, "null");
    else snprintf(out, cap, "'%.*s'", (int)t.n, t.p);
}

/* A row as one line: system; query -> response [loss]; ... */
static const char *row_text(const char *json)
{
    static char out[4000];
    char a[800], b[800];
    ft_row row;
    size_t n;
    if (ft_row_parse(parser, json, strlen(json), "f:7", &row, &err)) return err.message;
    if (row.text.p) { show(a, sizeof a, row.text); snprintf(out, sizeof out, "text %s", a); return out; }
    show(a, sizeof a, row.system);
    n = (size_t)snprintf(out, sizeof out, "%s", a);
    for (int i = 0; i < row.n_turns; i++) {
        show(a, sizeof a, row.turns[i].query);
        show(b, sizeof b, row.turns[i].response);
        n += (size_t)snprintf(out + n, sizeof out - n, "; %s -> %s", a, b);
        if (row.turns[i].loss >= 0) n += (size_t)snprintf(out + n, sizeof out - n, " [%d]", row.turns[i].loss);
    }
    return out;
}

static void test_shapes(void)
{
    static const char *const cases[][2] = {
        /* messages */
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", "null; 'a' -> 'b'" },
        { "{\"id\":3,\"messages\":[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"user\",\"content\":\"a\"}]}", "''; 'a' -> null" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\"loss\":false},"
          "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\",\"loss\":1}]}", "null; 'a' -> 'b' [0]; 'c' -> 'd' [1]" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}", "null; 'ab' -> null" },
        { "{\"messages\":\"[{\\\"role\\\":\\\"user\\\",\\\"content\\\":\\\"x\\\\ny\\\"}]\"}", "null; 'x\ny' -> null" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"system\":\"s\"}", "'s'; 'a' -> null" },
        { "{\"messages\":[{\"role\":\"system\",\"content\":\"t\"},{\"role\":\"user\",\"content\":\"a\"}],\"system\":\"s\"}", "'t'; 'a' -> null" },
        { "{\"Messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"}]}", "null; 'a' -> ''" },
        /* ShareGPT and its kin */
        { "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}],\"system\":\"\",\"tools\":\"\"}", "''; 'a' -> 'b'" },
        { "{\"conversations\":[{\"from\":\"user\",\"value\":\"a\"},{\"from\":\"bot\",\"value\":\"b\"}],\"tools\":\"[]\"}", "null; 'a' -> 'b'" },
        { "{\"conversation\":[{\"human\":\"a\",\"assistant\":\"b\"},{\"human\":\"c\",\"assistant\":\"d\"}]}", "null; 'a' -> 'b'; 'c' -> 'd'" },
        { "{\"conversation\":[{\"human\":\"a\"}],\"system_prompt\":\"s\"}", "'s'; 'a' -> null" },
        /* Alpaca */
        { "{\"instruction\":\"i\",\"input\":\"n\",\"output\":\"o\"}", "null; 'i\nn' -> 'o'" },
        { "{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\",\"system\":\"s\"}", "'s'; 'i' -> 'o'" },
        { "{\"instruction\":\"\",\"input\":\"n\",\"output\":\"o\"}", "null; 'n' -> 'o'" },
        { "{\"instruction\":\"i\",\"output\":\"o\",\"history\":[[\"q\",\"a\"]]}", "null; 'q' -> 'a'; 'i' -> 'o'" },
        /* query, response and their other names */
        { "{\"query\":\"q\",\"response\":\"r\"}", "null; 'q' -> 'r'" },
        { "{\"response\":\"r\"}", "null; null -> 'r'" },
        { "{\"query\":\"q\"}", "null; 'q' -> null" },
        { "{\"query\":\"q\",\"response\":null}", "null; 'q' -> null" },
        { "{\"query\":null,\"response\":\"\"}", "null; null -> ''" },
        { "{\"QUESTION\":\"q\",\"Answer\":\"r\",\"solution\":null}", "null; 'q' -> 'r'" },
        { "{\"problem\":\"q\",\"answers\":[\"r\",\"s\"]}", "null; 'q' -> 'r'" },
        { "{\"input\":\"q\",\"target\":\"r\"}", "null; 'q' -> 'r'" },
        { "{\"question\":\"q\",\"text\":\"r\"}", "null; 'q' -> 'r'" },
        { "{\"answer\":\"x\",\"response\":\"r\",\"query\":\"q\",\"prompt\":\"y\"}", "null; 'q' -> 'r'" },
        { "{\"query\":\"q\",\"response\":\"r\",\"history\":[[\"a\",\"b\"],[null,\"c\"],[\"\",null]]}", "null; 'a' -> 'b'; null -> 'c'; '' -> null; 'q' -> 'r'" },
        { "{\"query\":\"q\",\"response\":\"r\",\"history\":\"[[\\\"a\\\",\\\"b\\\"]]\"}", "null; 'a' -> 'b'; 'q' -> 'r'" },
        { "{\"query\":\"q\",\"response\":\"r\",\"history\":[]}", "null; 'q' -> 'r'" },
        { "{\"query\":null,\"history\":[[\"q\",\"r\"]]}", "null; 'q' -> 'r'; null -> null" },
        { "{\"query\":\"q\",\"response\":\"r\",\"history\":null,\"system\":null}", "null; 'q' -> 'r'" },
        { "{\"query\":\"q\",\"query\":\"p\",\"response\":\"r\"}", "null; 'p' -> 'r'" },                      /* the last one holds */
        { "{\"query\":\"q\",\"response\":\"r\",\"response\":null}", "null; 'q' -> null" },
        { "{\"prompt\":\"p\",\"completion\":\"c\"}", "null; 'p' -> 'c'" },
        { "{\"prompt\":[{\"role\":\"user\",\"content\":\"p\"}],\"completion\":[{\"role\":\"assistant\",\"content\":\"c\"}]}", "null; 'p' -> 'c'" },
        { "{\"text\":\"t\"}", "text 't'" },
        { "{\"text\":\"\"}", "text ''" },
        { " {\"query\":\"\\ud83d\\ude31 \\ud800 \\u0041\"} ", "null; '\xF0\x9F\x98\xB1 \xEF\xBF\xBD A' -> null" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_MSG(strcmp(row_text(cases[i][0]), cases[i][1]) == 0, "%s: expected %s, found %s", cases[i][0], cases[i][1], row_text(cases[i][0]));
    {                                                                       /* U+0000 is text like any other */
        ft_row row;
        const char *zero = "{\"query\":\"a\\u0000b\"}";
        CHECK_OK(ft_row_parse(parser, zero, strlen(zero), "f", &row, &err), err);
        CHECK(row.turns[0].query.n == 3 && memcmp(row.turns[0].query.p, "a\0b", 3) == 0);
    }
    {                                                                       /* an answer's own weight; 0: it is not learnt */
        ft_row row;
        const char *own = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\"loss_scale\":2.5},"
            "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\",\"loss\":true,\"loss_scale\":0},"
            "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\",\"loss_scale\":null}]}";
        ft_sample s = { 0 };
        ft_batch b = { 0 };
        CHECK_OK(ft_row_parse(parser, own, strlen(own), "f", &row, &err), err);
        CHECK(row.turns[0].loss_scale == 2.5f && row.turns[0].loss == -1 && row.turns[1].loss == 0 && row.turns[2].loss == -1);
        CHECK_OK(ft_row_encode(&s, bytes, &row, NULL, &err), err);
        CHECK_OK(ft_batch_add(&b, &s, 0, 0, &err), err);
        for (int i = 0; i < b.N; i++)
            if (b.targets[i] == 'b' + 16) CHECK(b.weights[i] == 2.5f);      /* where the position that predicts it stands */
            else CHECK(b.weights[i] == 1.0f);
        ft_batch_free(&b);
        ft_sample_free(&s);
    }
}

static void test_refused_rows(void)
{
    static const struct { const char *json; ft_status code; const char *text; } cases[] = {
        { "", FTUNE_ERR_FORMAT, "f:7" },
        { "[]", FTUNE_ERR_FORMAT, "f:7: row: expected an object" },
        { "{\"query\":\"q\",}", FTUNE_ERR_FORMAT, "f:7" },
        { "{\"query\":NaN}", FTUNE_ERR_FORMAT, "f:7" },
        { "{'query':'q'}", FTUNE_ERR_FORMAT, "f:7" },
        { "{\"query\":\"q\"} // note", FTUNE_ERR_FORMAT, "f:7" },
        { "{\"query\":\"\xff\"}", FTUNE_ERR_UTF8, "f:7" },
        { "{}", FTUNE_ERR_FORMAT, "f:7: expected messages, conversations, query" },
        { "{\"foo\":\"a\"}", FTUNE_ERR_FORMAT, "found none of them" },
        { "{\"query\":3}", FTUNE_ERR_FORMAT, "f:7: query: expected text, found a number" },
        { "{\"Output\":{}}", FTUNE_ERR_FORMAT, "f:7: output: expected text, found an object" },
        { "{\"query\":\"q\",\"response\":[]}", FTUNE_ERR_FORMAT, "response: expected text, found a list" },
        { "{\"question\":\"q\",\"prompt\":\"p\",\"answer\":\"r\"}", FTUNE_ERR_FORMAT, "found \"question\" and \"prompt\"" },
        { "{\"question\":\"q\",\"input\":\"p\",\"answer\":\"r\"}", FTUNE_ERR_FORMAT, "found \"question\" and \"input\"" },
        { "{\"query\":\"q\",\"answer\":\"a\",\"output\":\"b\"}", FTUNE_ERR_FORMAT, "found \"answer\" and \"output\"" },
        { "{\"system\":1,\"query\":\"q\"}", FTUNE_ERR_FORMAT, "f:7: system: expected text, found a number" },
        { "{\"messages\":3}", FTUNE_ERR_FORMAT, "f:7: messages: expected a list, found a number" },
        { "{\"messages\":[]}", FTUNE_ERR_FORMAT, "at least one user message" },
        { "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"}]}", FTUNE_ERR_FORMAT, "at least one user message" },
        { "{\"messages\":[3]}", FTUNE_ERR_FORMAT, "f:7: messages[0]: expected an object" },
        { "{\"messages\":[{\"content\":\"a\"}]}", FTUNE_ERR_FORMAT, "messages[0]: expected a \"role\"" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", FTUNE_ERR_FORMAT, "messages[0].content: expected text, found null" },
        { "{\"messages\":[{\"role\":\"user\"}]}", FTUNE_ERR_FORMAT, "messages[0].content: expected text, found nothing" },
        { "{\"messages\":[{\"role\":\"User\",\"content\":\"a\"}]}", FTUNE_ERR_FORMAT, "f:7: messages[0]: expected the role system" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]}", FTUNE_ERR_FORMAT, "messages[1]: expected assistant" },
        { "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}", FTUNE_ERR_FORMAT, "messages[0]: expected user" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"system\",\"content\":\"b\"}]}", FTUNE_ERR_FORMAT, "messages[1]: expected the one system" },
        { "{\"messages\":[{\"role\":\"tool\",\"content\":\"a\"}]}", FTUNE_ERR_UNSUPPORTED, "tool messages" },
        { "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}]}", FTUNE_ERR_UNSUPPORTED, "messages[0]: tool messages" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}", FTUNE_ERR_UNSUPPORTED, "messages[0].content: a part other" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}", FTUNE_ERR_FORMAT, "expected parts {" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"loss\":\"yes\"}]}", FTUNE_ERR_FORMAT, "\"loss\" to be true or false" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"loss_scale\":\"2\"}]}", FTUNE_ERR_FORMAT, "messages[0]: expected \"loss_scale\" to be a number" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"loss_scale\":-1}]}", FTUNE_ERR_FORMAT, "\"loss_scale\" to be a number, 0 or above" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"loss_scale\":1e300}]}", FTUNE_ERR_FORMAT, "\"loss_scale\" to be a number" },
        { "{\"messages\":\"[\"}", FTUNE_ERR_FORMAT, "f:7: messages (JSON in a text)" },
        { "{\"messages\":\"\"}", FTUNE_ERR_FORMAT, "at least one user message" },
        { "{\"query\":\"q\",\"history\":[[\"a\"]]}", FTUNE_ERR_FORMAT, "f:7: history[0]: expected a pair" },
        { "{\"query\":\"q\",\"history\":[[\"a\",2]]}", FTUNE_ERR_FORMAT, "history[0]: expected text, found a number" },
        { "{\"query\":\"q\",\"history\":{}}", FTUNE_ERR_FORMAT, "history: expected a list, found an object" },
        { "{\"query\":\"q\",\"tools\":[{\"name\":\"f\"}]}", FTUNE_ERR_UNSUPPORTED, "tools[0]: tools are not supported" },
        { "{\"query\":\"q\",\"tools\":\"[{}]\"}", FTUNE_ERR_UNSUPPORTED, "tools are not supported" },
        { "{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}", FTUNE_ERR_UNSUPPORTED, "preference pairs" },
        { "{\"conversation\":[{\"human\":\"a\",\"assistant\":null}]}", FTUNE_ERR_FORMAT, "conversation[0]: expected text, found null" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ft_row row;
        err.message[0] = 0;
        CHECK_FAILS(ft_row_parse(parser, cases[i].json, strlen(cases[i].json), "f:7", &row, &err), err, cases[i].code, cases[i].text);
    }
}

/* Every prefix and every byte changed: parse, and encode what parses. Sanitizers watch. */
static void test_mutations(void)
{
    static const char *const rich[] = {
        "{\"id\":[1,{\"x\":null}],\"system\":\"s\\u00e9\\n\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\\\"\"}]},"
        "{\"role\":\"assistant\",\"content\":\"\\ud83d\\ude31 \xE6\x9D\xAD\",\"loss\":true},{\"from\":\"human\",\"value\":\"Action:\"},"
        "{\"from\":\"gpt\",\"value\":\"Thought: x\\nAction: y\\nObservation: z\"}],\"tools\":\"[]\"}",
        "{\"instruction\":\"do {{ROUND0}}\",\"input\":\"it\",\"output\":\"Next: b\",\"history\":\"[[\\\"q\\\",\\\"\\\\u0041\\\"],[null,\\\"c\\\"]]\"}",
        "{\"conversation\":[{\"human\":\"a\",\"assistant\":\"b\"}],\"system_prompt\":null}" };
    static const unsigned char values[] = { 0, 0x22, 0x5c, 0x7b, 0x7d, 0x5b, 0x5d, 0x2c, 0x80, 0xe6, 0xff, 0x0a, 0x30 };
    ft_chat_options o = ft_chat_options_default();
    ft_sample s = { 0 };
    ft_row row;
    int parsed = 0, silent = 0;
    o.loss_scale = "agent";
    o.swift = 2;
    for (size_t r = 0; r < sizeof rich / sizeof *rich; r++) {
        size_t n = strlen(rich[r]);
        CHECK_OK(ft_row_parse(parser, rich[r], n, "f", &row, &err), err);
        for (size_t i = 0; i <= n + n * sizeof values; i++) {
            size_t at = i <= n ? 0 : (i - n - 1) % n, len = i <= n ? i : n;
            char *copy = (char *)malloc(len ? len : 1);                     /* exact size: a read beyond is seen */
            if (len) memcpy(copy, rich[r], len);
            if (i > n) copy[at] = (char)values[(i - n - 1) / n];
            err.message[0] = 0;
            if (ft_row_parse(parser, copy, len, "f", &row, &err)) silent += !err.message[0];
            else {
                parsed++;
                if (ft_row_encode(&s, bytes, &row, &o, &err)) silent += !err.message[0];
            }
            free(copy);
        }
    }
    CHECK(parsed > 100);
    CHECK_INT(silent, 0);
    ft_sample_free(&s);
}

static void test_mutated_files(void)
{
    static const char *const file[] = {
        "[{\"query\":\"a\",\"response\":\"]}\"} ,\n{\"text\":\"\\\"}\"}]\n", "\xEF\xBB\xBF{\"text\":\"a\"}\r\n\n{\"query\":\"b\",\"answer\":\"c\"}" };
    static const char values[] = { 0, '"', '{', '}', ']', ',', '\\', '\n', (char)0xFF };
    const char *path = test_tmp("mutated.json");
    int loaded = 0, silent = 0, fd = test_write(path, "", 0) ? open(path, O_RDWR) : -1;
    CHECK(fd >= 0);
    for (size_t f = 0; fd >= 0 && f < 2; f++) {
        size_t n = strlen(file[f]);
        for (size_t i = 0; i <= n + n * (sizeof values + 1); i++) {
            size_t at = i <= n ? 0 : (i - n - 1) % n, k = i <= n ? 0 : (i - n - 1) / n, len = i <= n ? i : n;
            char copy[100];
            ft_dataset d;
            memcpy(copy, file[f], n);
            if (i > n) copy[at] = k < sizeof values ? values[k] : (char)(copy[at] ^ 1);
            silent += pwrite(fd, copy, len, 0) != (ssize_t)len || ftruncate(fd, (off_t)len) != 0;
            err.message[0] = 0;
            if (ft_dataset_load(&d, path, bytes, NULL, 0, &err)) silent += !err.message[0];
            else loaded++;
            ft_dataset_free(&d);
        }
    }
    CHECK(loaded > 100);
    CHECK_INT(silent, 0);
    if (fd >= 0) close(fd);
}

/* ---- files ---- */

static ft_status load_text(ft_dataset *d, const char *name, const char *content, size_t n, const ft_chat_options *o, int strict)
{
    const char *path = test_tmp(name);
    if (!test_write(path, content, n)) { CHECK_MSG(0, "cannot write %s", path); return FTUNE_ERR_IO; }
    return ft_dataset_load(d, path, bytes, o, strict, &err);
}

#define LITERAL(s) (s), sizeof (s) - 1
#define ROW(q, r) "{\"query\":\"" q "\",\"response\":\"" r "\"}"

static void test_files(void)
{
    static const struct { const char *name, *content; int rows, kept; } cases[] = {
        { "a.jsonl", ROW("a", "b") "\n" ROW("c", "d") "\n", 2, 2 },
        { "b.jsonl", "\xEF\xBB\xBF" ROW("a", "b") "\r\n\r\n   \r\n" ROW("c", "d"), 2, 2 },     /* BOM, CRLF, blank lines, no newline */
        { "c.json", "[" ROW("a", "b") ",\n" ROW("c", "d") "]", 2, 2 },
        { "d.json", "\xEF\xBB\xBF \n[ " ROW("a", "]}") " , " ROW("c", "\\\"}") " ] \n", 2, 2 },
        { "e.json", "[\n{\n\"query\": \"a\",\n\"response\": \"b\"\n}\n]", 1, 1 },
        { "f.jsonl", ROW("a", "b"), 1, 1 },                                                    /* content decides, not the name */
        { "g.data", "[" ROW("a", "b") "]", 1, 1 },
        { "h.txt", "[first] line\n\n{second}\r\nthird", 3, 3 },
    };
    ft_dataset d;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_OK(load_text(&d, cases[i].name, cases[i].content, strlen(cases[i].content), NULL, 1), err);
        CHECK_MSG(d.n_rows == cases[i].rows && d.n == cases[i].kept, "%s: found %d rows, %d kept", cases[i].name, d.n_rows, d.n);
        CHECK(d.fingerprint != 0);
        ft_dataset_free(&d);
    }
    CHECK_OK(load_text(&d, "i.txt", "ab\n", 3, NULL, 1), err);
    CHECK_INT(d.samples[0].n, 4);                                          /* bos a b eos */
    CHECK_INT((int)d.n_targets, 3);
    CHECK_INT((int)d.n_tokens, 4);
    ft_dataset_free(&d);
}

static void test_counts(void)
{
    static const char content[] =
        ROW("a", "b") "\n"
        ROW("a", "b") "\n"                                                  /* repeated: counted and kept */
        "{\"query\":\"a\"\n"                                                /* line 3: refused */
        ROW("a", "") "\n"                                                   /* the end marker is a target */
        "{\"query\":\"no answer\"}\n"                                       /* no target */
        ROW("long", "0123456789012345678901234567890123456789") "\n";
    ft_chat_options o = ft_chat_options_default();
    ft_dataset d;
    o.template_name = "telechat";
    o.max_length = 40;
    CHECK_OK(load_text(&d, "counts.jsonl", content, sizeof content - 1, &o, 0), err);
    CHECK_INT(d.n_rows, 6);
    CHECK_INT(d.n, 3);
    CHECK_INT(d.n_repeated, 1);
    CHECK_INT(d.n_refused, 1);
    CHECK_INT(d.n_no_target, 1);
    CHECK_INT(d.n_too_long, 1);
    CHECK_INT(d.n_truncated, 0);
    CHECK(strstr(d.first_refused.message, "counts.jsonl:3") != NULL);
    ft_dataset_free(&d);
    o.truncation = FTUNE_TRUNCATE_RIGHT;
    CHECK_OK(load_text(&d, "counts.jsonl", content, sizeof content - 1, &o, 0), err);
    CHECK(d.n == 4 && d.n_too_long == 0 && d.n_truncated == 1 && d.samples[3].n == 40);
    ft_dataset_free(&d);
    o.max_length = 9;                                                       /* cut before the answer */
    CHECK_FAILS(load_text(&d, "counts.jsonl", content, sizeof content - 1, &o, 0), err, FTUNE_ERR_NO_LABELS, "6 rows: 1 refused, 0 too long, 5 without a target");
    CHECK(d.n == 0 && d.samples == NULL && d.n_rows == 6);
    CHECK_FAILS(load_text(&d, "counts.jsonl", content, sizeof content - 1, NULL, 1), err, FTUNE_ERR_FORMAT, "counts.jsonl:3");
    CHECK_INT(d.n_rows, 3);
    o.max_length = 0;
    o.template_name = "nope";
    CHECK_FAILS(load_text(&d, "counts.jsonl", content, sizeof content - 1, &o, 0), err, FTUNE_ERR_NOT_FOUND, "nope");
    CHECK_FAILS(load_text(&d, "bad.jsonl", "hello\n", 6, NULL, 0), err, FTUNE_ERR_FORMAT, "bad.jsonl:1: expected '{'");
    CHECK_FAILS(load_text(&d, "bad.json", LITERAL("[" ROW("a", "b") ",]"), NULL, 0), err, FTUNE_ERR_FORMAT, "bad.json:1");
    CHECK_FAILS(load_text(&d, "bad.json", LITERAL("[" ROW("a", "b")), NULL, 0), err, FTUNE_ERR_FORMAT, "bad.json:1");
    CHECK_FAILS(load_text(&d, "empty.jsonl", "", 0, NULL, 0), err, FTUNE_ERR_NO_LABELS, "0 rows");
    CHECK_FAILS(load_text(&d, "bad.txt", "ok\n\xff\n", 5, NULL, 1), err, FTUNE_ERR_UTF8, "bad.txt:2");
    CHECK_FAILS(ft_dataset_load(&d, "build/tmp/no-such-file", bytes, NULL, 0, &err), err, FTUNE_ERR_IO, "no-such-file");
    ft_dataset_free(&d);
    ft_dataset_free(NULL);
}

/* A line of several MB, and a file of which every byte is changed. */
static void test_large_and_broken_files(void)
{
    static const char list[] = "[" ROW("a", "b") ",\n {\"messages\": [{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}]\n";
    size_t n = (size_t)3 << 20, i;
    char *big = (char *)malloc(n + 64);
    ft_dataset d;
    int silent = 0;
    n = (size_t)snprintf(big, 64, "{\"text\":\"") + n;
    memset(big + 9, 'x', n - 9);
    memcpy(big + n, "\"}", 3);
    CHECK_OK(load_text(&d, "big.jsonl", big, n + 2, NULL, 1), err);
    CHECK(d.n == 1 && d.samples && d.samples[0].n == 2 + (3 << 20));
    ft_dataset_free(&d);
    free(big);
    for (i = 0; i < 2 * sizeof list; i++) {
        char copy[sizeof list];
        size_t len = i < sizeof list ? i : sizeof list - 1;
        memcpy(copy, list, sizeof list);
        if (i >= sizeof list) copy[(i - sizeof list) % (sizeof list - 1)] ^= 0x20;
        err.message[0] = 0;
        if (load_text(&d, "mutant.json", copy, len, NULL, 0)) silent += !err.message[0];
        ft_dataset_free(&d);
    }
    CHECK_INT(silent, 0);
}

/* ---- batches ---- */

static ft_sample sample_of(const char *q, const char *r, const ft_chat_options *o)
{
    ft_sample s = { 0 };
    ft_message m[] = { { "user", q }, { "assistant", r } };
    CHECK_OK(ft_chat_encode(&s, bytes, m, r ? 2 : 1, o, &err), err);
    return s;
}

static void test_batch(void)
{
    ft_chat_options o = ft_chat_options_default();
    ft_sample a, b, weighted, question;
    ft_batch packed = { 0 }, padded = { 0 };
    int same = 1;
    o.template_name = "telechat";
    a = sample_of("How are you?", "I am fine", &o);
    b = sample_of("Hi", "Yo", &o);
    question = sample_of("Hi", NULL, &o);
    o.want_loss_scale = 1;
    weighted = sample_of("Hi", "Yo", &o);
    CHECK_OK(ft_batch_add(&packed, &a, 0, 0, &err), err);
    CHECK_OK(ft_batch_add(&packed, &b, 0, 0, &err), err);
    CHECK(packed.N == a.n + b.n && packed.n_rows == 2 && packed.weights == NULL);
    for (int i = 0; i < a.n; i++) {                                         /* the one shift */
        int32_t target = i + 1 < a.n ? a.labels[i + 1] : FTUNE_IGNORE_INDEX;
        same = same && packed.input_ids[i] == a.input_ids[i] && packed.targets[i] == target && packed.position_ids[i] == i && packed.row_start[i] == 0;
    }
    CHECK(same);
    for (int i = 0; i < b.n; i++)
        same = same && packed.position_ids[a.n + i] == i && packed.row_start[a.n + i] == a.n && packed.input_ids[a.n + i] == b.input_ids[i];
    CHECK(same);
    CHECK_INT(packed.targets[a.n - 1], FTUNE_IGNORE_INDEX);                 /* no row predicts the next row */
    CHECK_INT(packed.n_targets, 9 + 6 + 2 + 6);
    CHECK_OK(ft_batch_add(&padded, &b, a.n, 99, &err), err);                /* padded: the same targets and nothing more */
    CHECK_OK(ft_batch_add(&padded, &a, a.n, 99, &err), err);
    CHECK(padded.N == 2 * a.n && padded.n_targets == packed.n_targets);
    for (int i = b.n; i < a.n; i++)
        same = same && padded.input_ids[i] == 99 && padded.targets[i] == FTUNE_IGNORE_INDEX && padded.position_ids[i] == 0 && padded.row_start[i] == 0;
    CHECK(same);
    CHECK_INT(padded.targets[b.n - 1], FTUNE_IGNORE_INDEX);
    CHECK_INT(padded.row_start[a.n], a.n);
    ft_batch_clear(&padded);
    CHECK(padded.N == 0 && padded.n_targets == 0 && padded.n_rows == 0);
    CHECK_OK(ft_batch_add(&padded, &b, 0, 0, &err), err);                   /* weights appear with the first row that has them */
    CHECK_OK(ft_batch_add(&padded, &weighted, 0, 0, &err), err);
    CHECK(padded.weights != NULL);
    for (int i = 0; i < padded.N; i++) same = same && (padded.targets[i] == FTUNE_IGNORE_INDEX || padded.weights[i] == 1.0f);
    CHECK(same);
    CHECK_OK(ft_batch_add(&padded, &question, 0, 0, &err), err);            /* a question alone: no targets, no error */
    CHECK_INT(padded.n_rows, 3);
    for (int i = 0; i < b.n; i++) b.labels[i] = FTUNE_IGNORE_INDEX;
    b.labels[0] = b.input_ids[0];                                           /* nothing predicts position 0 */
    CHECK_FAILS(ft_batch_add(&padded, &b, 0, 0, &err), err, FTUNE_ERR_NO_LABELS, "found none");
    b.dropped = 1;
    CHECK_FAILS(ft_batch_add(&padded, &b, 0, 0, &err), err, FTUNE_ERR_ARGUMENT, "dropped");
    ft_sample_free(&a);
    ft_sample_free(&b);
    ft_sample_free(&weighted);
    ft_sample_free(&question);
    ft_batch_free(&packed);
    ft_batch_free(&padded);
    ft_batch_free(NULL);
}

/* Best fit done the slow way, for comparison: bins and the room in each. */
static int slow_pack(const int *length, int n, int max, int *bin)
{
    int *room = (int *)malloc((size_t)n * sizeof *room), *done = (int *)calloc((size_t)n, sizeof *done), bins = 0;
    for (int k = 0; k < n; k++) {
        int item = -1, best = -1;
        for (int i = 0; i < n; i++) if (!done[i] && (item < 0 || length[i] > length[item])) item = i;
        for (int b = 0; b < bins; b++) if (room[b] >= length[item] && (best < 0 || room[b] < room[best])) best = b;
        if (best < 0) { best = bins++; room[best] = max; }
        room[best] -= length[item];
        bin[item] = best;
        done[item] = 1;
    }
    free(room);
    free(done);
    return bins;
}

static void test_pack(void)
{
    enum { N = 300 };
    ft_dataset d = { 0 };
    ft_sample samples[N];
    int order[N], bin[N], again[N], length[N], slow[N], used[N], bins, bins2;
    ft_rng rng;
    memset(samples, 0, sizeof samples);
    d.samples = samples;
    d.n = N;
    for (int round = 0; round < 30; round++) {
        int max = 1 + round * round * 7, next = 0, good = 1, full = 0, full_slow = 0;
        ft_rng_seed(&rng, (uint64_t)round);
        for (int i = 0; i < N; i++) samples[i].n = 1 + (int)ft_rng_below(&rng, (uint64_t)max);
        for (int i = 0; i < N; i++) {
            order[i] = N - 1 - i;
            length[i] = samples[order[i]].n;
            used[i] = 0;
        }
        CHECK_OK(ft_pack(&d, order, N, max, bin, &bins, &err), err);
        CHECK_OK(ft_pack(&d, order, N, max, again, &bins2, &err), err);
        CHECK(bins == bins2 && memcmp(bin, again, sizeof bin) == 0);
        for (int i = 0; i < N; i++) {
            good = good && bin[i] >= 0 && bin[i] <= next && bin[i] < bins;  /* numbered as met */
            if (bin[i] == next) next++;
            used[bin[i]] += length[i];
        }
        for (int b = 0; b < bins; b++) good = good && used[b] <= max;
        CHECK_MSG(good && next == bins, "round %d", round);
        CHECK_MSG(bins == slow_pack(length, N, max, slow), "round %d: %d bins", round, bins);
        for (int b = 0; b < bins; b++) full += used[b] == max;
        memset(used, 0, sizeof used);
        for (int i = 0; i < N; i++) used[slow[i]] += length[i];
        for (int b = 0; b < bins; b++) full_slow += used[b] == max;
        CHECK_INT(full, full_slow);
    }
    samples[5].n = 100000;
    CHECK_FAILS(ft_pack(&d, order, N, 99999, bin, &bins, &err), err, FTUNE_ERR_ARGUMENT, "sample 5: expected at most 99999 tokens");
    CHECK_OK(ft_pack(&d, order, 0, 8, bin, &bins, &err), err);
    CHECK_INT(bins, 0);
    CHECK_FAILS(ft_pack(&d, order, 0, 0, bin, &bins, &err), err, FTUNE_ERR_ARGUMENT, "1 token or more");
    CHECK_OK(ft_pack(&d, order, N, 2147483647, bin, &bins, &err), err);    /* no memory of that size is asked for */
    CHECK_INT(bins, 1);
}

/* Memory may run out at any allocation: an error each time, no leak, no crash. */
static ft_status everything(const char *path)
{
    ft_dataset d = { 0 };
    ft_batch b = { 0 };
    ft_row_parser *p = NULL;
    ft_registry *r = NULL;
    ft_template t = { .name = "mine", .prefix = { "{{SYSTEM}}" }, .prompt = { "{{QUERY}}", FTUNE_IDS "7" }, .chat_sep = { "/" },
                      .suffix = { "." }, .default_system = "s" };
    ft_chat_options o = ft_chat_options_default();
    ft_sample s = { 0 };
    ft_message m[] = { { "user", "a" }, { "assistant", "b" }, { "user", "c" }, { "assistant", "d" } };
    int order[2] = { 0, 1 }, bin[2], bins;
    ft_status e = ft_registry_new(&r, &err);
    if (!e) e = ft_template_register(r, &t, &err);
    o.registry = r;
    o.template_name = "mine";
    o.want_loss_scale = 1;
    if (!e) e = ft_dataset_load(&d, path, bytes, &o, 0, &err);
    if (!e) e = ft_pack(&d, order, 2, 100, bin, &bins, &err);
    for (int i = 0; !e && i < d.n; i++) e = ft_batch_add(&b, &d.samples[i], 50, 0, &err);
    if (!e) e = ft_chat_encode(&s, bytes, m, 4, &o, &err);
    if (!e) e = ft_row_parser_new(&p, &err);
    ft_sample_free(&s);
    ft_batch_free(&b);
    ft_dataset_free(&d);
    ft_row_parser_free(p);
    ft_registry_free(r);
    return e;
}

static void test_no_memory(void)
{
    static const char content[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\\nb\"}]},{\"role\":\"assistant\",\"content\":\"c\"}]}\n"
        "{\"instruction\":\"i\",\"input\":\"n\",\"outp\\u0075t\":\"o\\t\",\"history\":\"[[\\\"q\\\",\\\"r\\\"]]\"}\n";
    const char *path = test_tmp("memory.jsonl");
    CHECK(test_write(path, content, sizeof content - 1));
    TEST_EVERY_FAILURE(everything(path), (void)0);
}

int main(void)
{
    if (ft_tokenizer_load(&bytes, "bytes", NULL, &err) || ft_row_parser_new(&parser, &err)) { fprintf(stderr, "%s\n", err.message); return 1; }
    fti_make_directory(test_tmp(""), NULL);
    test_shapes();
    test_refused_rows();
    test_mutations();
    test_mutated_files();
    test_files();
    test_counts();
    test_large_and_broken_files();
    test_batch();
    test_pack();
    test_no_memory();
    ft_row_parser_free(parser);
    ft_tokenizer_free(bytes);
    return test_end();
}
