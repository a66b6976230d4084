/* test_01_huggingface.c - tokenizer.json as Hugging Face tokenizers reads it: offsets, what ids are shown as, odd corners
 *
 * tests/golden/huggingface.jsonl comes from tests/golden/make_huggingface.py. */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

enum { AROUND = FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL };
static const char path[] = "build/tmp/huggingface.json";

static void check_stream(const ft_tokenizer *tok, const int32_t *ids, size_t n, ft_text decoded, int line)
{
    char parts[4096];
    size_t k = 0;
    ft_stream s;
    ft_stream_init(&s, tok, 0);
    for (size_t i = 0; i < n; i++) k += ft_stream_push(&s, ids[i], parts + k, sizeof parts - k).n;
    k += ft_stream_finish(&s, parts + k, sizeof parts - k).n;
    CHECK_MSG(k == decoded.n && !memcmp(parts, decoded.p, k), "row %d: id by id: expected \"%.*s\", found \"%.*s\"", line, (int)decoded.n, decoded.p, (int)k, parts);
}

static void check_row(const ft_tokenizer *tok, const fti_json *row, int line)
{
    fti_arena a = { NULL };
    ft_error err = { FTUNE_OK, "" };
    ft_text text = fti_json_text(row, fti_json_get(row, 0, "text"), &a), decoded = fti_json_text(row, fti_json_get(row, 0, "decoded"), &a);
    int id = fti_json_child(row, fti_json_get(row, 0, "ids")), at = fti_json_child(row, fti_json_get(row, 0, "offsets"));
    int name = fti_json_child(row, fti_json_get(row, 0, "shown"));
    int32_t ids[256], first[256];
    ft_span span[256];
    char back[4096], spelled[256];
    size_t n = 0, m = 0, i = 0, k, bytes;
    CHECK_OK(ft_tokenizer_encode_spans(tok, text.p, text.n, AROUND, NULL, 0, ids, span, 256, &n, &err), err);
    for (; id >= 0; i++, id = fti_json_next(row, id), at = fti_json_next(row, at), name = fti_json_next(row, name)) {
        int begin = fti_json_child(row, at);
        ft_span x = { (size_t)fti_json_int(row, begin, 0), (size_t)fti_json_int(row, fti_json_next(row, begin), 0) };
        ft_text shown = fti_json_text(row, name, &a), found = ft_token_bytes(tok, ids[i]);
        CHECK_MSG(i < n && ids[i] == fti_json_int(row, id, -1), "row %d: ids[%d]: expected %d, found %d", line, (int)i, (int)fti_json_int(row, id, -1), (int)ids[i]);
        CHECK_MSG(span[i].begin == x.begin && span[i].end == x.end, "row %d: offsets[%d]: expected %d-%d, found %d-%d", line, (int)i, (int)x.begin,
                  (int)x.end, (int)span[i].begin, (int)span[i].end);
        if (tok->family == &fti_family_bpe && (tok->spelled || !fti_added_find(tok, ids[i]))) { shown.n = fti_spelled(shown.p, shown.n, spelled); shown.p = spelled; }
        CHECK_MSG(found.p && found.n == shown.n && !memcmp(found.p, shown.p, shown.n), "row %d: token %d: expected \"%.*s\", found \"%.*s\"", line,
                  (int)ids[i], (int)shown.n, shown.p, (int)found.n, found.p);
    }
    CHECK_INT(n, i);
    CHECK_OK(ft_tokenizer_encode(tok, text.p, text.n, AROUND, first, 256, &m, &err), err);
    CHECK_MSG(m == n && !memcmp(first, ids, n * sizeof *ids), "row %d: other ids without offsets", line);
    CHECK_OK(ft_tokenizer_decode(tok, ids, n, 0, back, sizeof back, &m, &err), err);
    CHECK_MSG(m == decoded.n && !memcmp(back, decoded.p, m), "row %d: decode: expected \"%.*s\", found \"%.*s\"", line, (int)decoded.n, decoded.p, (int)m, back);
    check_stream(tok, ids, n, decoded, line);
    for (size_t most = 0; most <= n + 1; most++) {            /* the beginning of it */
        CHECK_OK(ft_tokenizer_encode_first(tok, text.p, text.n, FTUNE_SPECIAL_PARSE, most, first, &k, &bytes, &err), err);
        CHECK(k <= most && bytes <= text.n && (k < n || bytes == text.n));
        CHECK_MSG(!memcmp(first, ids + tok->n_before, k * sizeof *ids), "row %d: the first %d: other ids", line, (int)most);
    }
    fti_arena_free(&a);
}

static void check_memory(void)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[64];
    ft_span span[64];
    size_t n = 0;
    TEST_EVERY_FAILURE(ft_tokenizer_load(&tok, path, NULL, &err), ft_tokenizer_free(tok));
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    for (ft_special special = 0; special < 2; special++)
        TEST_EVERY_FAILURE(ft_tokenizer_encode_spans(tok, "ab xab", 6, special, NULL, 0, ids, span, 64, &n, &err), (void)0);
    ft_tokenizer_free(tok);
}

static void test_rows(void)
{
    size_t n = 0;
    char *data = test_read("tests/golden/huggingface.jsonl", &n), *p = data, *stop;
    int line = 1;
    CHECK(data != NULL);
    for (; data && p < data + n && (stop = (char *)memchr(p, '\n', (size_t)(data + n - p))) != NULL; p = stop + 1, line++) {
        fti_json row = { 0 };
        ft_error err = { FTUNE_OK, "" };
        ft_tokenizer *tok = NULL, *again = NULL;
        CHECK_OK(fti_json_parse(&row, p, (size_t)(stop - p), "huggingface.jsonl", &err), err);
        const fti_json_node *file = &row.node[fti_json_get(&row, 0, "file")];
        CHECK(test_write(path, row.text + file->start, file->len));
        CHECK_MSG(!ft_tokenizer_load(&tok, path, NULL, &err), "row %d: %s", line, err.message);
        if (tok) check_row(tok, &row, line);
        if (tok && tok->family == &fti_family_bpe) {          /* the same once more, as it is saved */
            CHECK_OK(ft_tokenizer_save(tok, "build/tmp/huggingface_saved", &err), err);
            CHECK_OK(ft_tokenizer_load(&again, "build/tmp/huggingface_saved", NULL, &err), err);
            if (again) check_row(again, &row, line);
        }
        ft_tokenizer_free(again);
        ft_tokenizer_free(tok);
        if (line % 6 == 1) check_memory();
        fti_json_free(&row);
    }
    CHECK(line > 80);
    free(data);
}

/* ---- where we do otherwise, and why ---- */

static ft_tokenizer *load_made(const char *parts, const char *model, const char *refused)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    char text[8192];
    int n = snprintf(text, sizeof text, "{%s\"model\": {%s}}", parts, model);
    CHECK(test_write(path, text, (size_t)n));
    if (refused) CHECK_FAILS(ft_tokenizer_load(&tok, path, NULL, &err), err, FTUNE_ERR_UNSUPPORTED, refused);
    else CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    return tok;
}

#define ADDED(id, content, normalized, special) "{\"id\": " id ", \"content\": \"" content "\", \"single_word\": false, \"lstrip\": false, " \
    "\"rstrip\": false, \"normalized\": " normalized ", \"special\": " special "}"
#define LEVEL "\"pre_tokenizer\": " TEST_BYTE_LEVEL("false") ","

/* Text that is no control token does not become one, though merges and ignore_merges would make it: its bytes stay. */
static void test_no_injection(void)
{
    static const char *const model[] = {
        "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"aba\": 3}, \"merges\": [\"a b\", \"ab a\"]",
        "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"aba\": 3}, \"merges\": [], \"ignore_merges\": true" };
    static char many[200000];
    memset(many, 'b', sizeof many);
    memcpy(many + 100000, "ab ", 3);
    for (int k = 0; k < 2; k++) {
        ft_tokenizer *tok = load_made("\"added_tokens\": [" ADDED("2", "ab", "false", "true") "]," LEVEL, model[k], NULL);
        ft_error err = { FTUNE_OK, "" };
        int32_t ids[16], *long_ids = (int32_t *)malloc(sizeof many * sizeof *long_ids);
        size_t n = 0, wrong = 0;
        for (int call = 0; tok && call < 6; call++) {         /* nor after it was parsed as one */
            CHECK_OK(ft_tokenizer_encode(tok, "aab", 3, call & 1 ? FTUNE_SPECIAL_PARSE : 0, ids, 16, &n, &err), err);
            CHECK(call & 1 ? n == 2 && ids[0] == 0 && ids[1] == 2 : n == 3 && ids[0] == 0 && ids[1] == 0 && ids[2] == 1);
        }
        if (tok) CHECK_OK(ft_tokenizer_encode(tok, "aba", 3, 0, ids, 16, &n, &err), err);
        CHECK(n == 1 && ids[0] == 3);                         /* a word that goes on is another word */
        if (tok) CHECK_OK(ft_tokenizer_encode_threads(tok, many, sizeof many, 0, 4, long_ids, sizeof many, &n, &err), err);
        for (size_t i = 0; tok && i < n; i++) wrong += long_ids[i] == 2;
        CHECK_INT(wrong, 0);
        free(long_ids);
        ft_tokenizer_free(tok);
    }
}

/* Control tokens are left out of decoded text whatever their normal form is; an added token that normalizers leave nothing
 * of is refused. */
static void test_normal_forms(void)
{
    static const char words[] = "\"type\": \"WordLevel\", \"unk_token\": \"?\", \"vocab\": {\"?\": 0, \"a\": 1}";
    ft_tokenizer *tok = load_made("\"added_tokens\": [" ADDED("2", "<S>", "true", "true") "], \"normalizer\": {\"type\": \"Lowercase\"},", words, NULL);
    ft_error err = { FTUNE_OK, "" };
    const int32_t ids[] = { 2, 1, 2 };
    char back[32];
    size_t n = 0;
    if (tok) CHECK_OK(ft_tokenizer_decode(tok, ids, 3, 1, back, sizeof back, &n, &err), err);
    CHECK(n == 1 && back[0] == 'a');
    if (tok) CHECK(ft_token_id(tok, "<S>", 3) == 2 && ft_token_id(tok, "<s>", 3) == -1);
    ft_tokenizer_free(tok);
    ft_tokenizer_free(load_made("\"added_tokens\": [" ADDED("2", "<S>", "true", "true") "], \"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\":"
                                " \"<S>\"}, \"content\": \"\"},", words, "added token 2: expected one that normalizers leave with 1 to 1024 bytes, found \"<S>\""));
}

/* Offsets stay with the text where the original's move, and the beginning of a text is one of its own. */
static void test_places(void)
{
    static const struct { const char *parts, *model, *text; int32_t ids[8]; ft_span at[8]; } row[] = {
        { "", "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": []", "?a??b", { 0, 1, -1 }, { { 1, 2 }, { 4, 5 } } },
        { "", "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]", "a?b?", { 2, -1 }, { { 0, 3 } } },
        { "", "\"type\": \"BPE\", \"continuing_subword_prefix\": \"##\", \"end_of_word_suffix\": \"|\", \"byte_fallback\": true,"
          "\"vocab\": {\"<0x23>\": 0, \"<0x61>\": 1, \"<0x7C>\": 2}, \"merges\": []", "aa", { 1, 0, 0, 1, 2, -1 }, { { 0, 1 }, { 1, 1 }, { 1, 1 }, { 1, 2 }, { 2, 2 } } } };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        ft_tokenizer *tok = load_made(row[i].parts, row[i].model, NULL);
        ft_error err = { FTUNE_OK, "" };
        int32_t ids[8];
        ft_span at[8];
        size_t n = 0, k, bytes = 0;
        if (tok) CHECK_OK(ft_tokenizer_encode_spans(tok, row[i].text, strlen(row[i].text), 0, NULL, 0, ids, at, 8, &n, &err), err);
        for (k = 0; k < n; k++)
            CHECK_MSG(ids[k] == row[i].ids[k] && at[k].begin == row[i].at[k].begin && at[k].end == row[i].at[k].end, "model %d: ids[%d]: expected %d %d-%d, found %d %d-%d", (int)i,
                      (int)k, (int)row[i].ids[k], (int)row[i].at[k].begin, (int)row[i].at[k].end, (int)ids[k], (int)at[k].begin, (int)at[k].end);
        CHECK_INT(row[i].ids[n], -1);
        if (tok) CHECK_OK(ft_tokenizer_encode_first(tok, row[i].text, strlen(row[i].text), 0, n, ids, &k, &bytes, &err), err);
        CHECK(k == n && bytes == strlen(row[i].text));
        ft_tokenizer_free(tok);
    }
}

/* A text of more ids than bytes, of which some are wanted: its last mark belongs to the letter in front of it. */
static void test_first(void)
{
    ft_tokenizer *tok = load_made("\"normalizer\": {\"type\": \"NFC\"},", "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"\xC3\xA9\": 1, \"b\": 2}, \"merges\": []", NULL);
    ft_tokenizer *longer = load_made("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \"x\"}, \"content\": \"aaaaaaaaaaaaaaaaaaaaaaaa\"},",
                                     "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": []", NULL);
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[128];
    size_t n = 0, bytes = 0;
    if (tok) CHECK_OK(ft_tokenizer_encode_first(tok, "ae\xCC\x81" "b", 5, 0, 2, ids, &n, &bytes, &err), err);
    CHECK(n == 2 && ids[1] == 1 && bytes == 4);
    for (size_t most = 0; longer && most < 100; most++) {
        CHECK_OK(ft_tokenizer_encode_first(longer, "bxbxb", 5, 0, most, ids, &n, &bytes, &err), err);
        CHECK(n == (most >= 51 ? 51 : most >= 50 ? 50 : most >= 26 ? 26 : most >= 25 ? 25 : most > 0));
        CHECK(bytes == (most >= 51 ? 5 : most >= 50 ? 4 : most >= 26 ? 3 : most >= 25 ? 2 : most > 0));
    }
    ft_tokenizer_free(tok);
    ft_tokenizer_free(longer);
}

int main(void)
{
    test_rows();
    test_no_injection();
    test_normal_forms();
    test_places();
    test_first();
    return test_end();
}
