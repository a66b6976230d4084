/* golden_rows.h - {"text": .., "ids": [..]} rows against a tokenizer; for the tokenizer tests, after ftune.h and test.h */
#ifndef GOLDEN_ROWS_H
#define GOLDEN_ROWS_H

/* ids of text; the caller frees. */
static int32_t *golden_encode(const ft_tokenizer *tok, ft_text text, ft_special special, size_t *n, ft_error *err)
{
    int32_t *ids = NULL;
    *n = 0;
    if (ft_tokenizer_encode(tok, text.p, text.n, special, NULL, 0, n, err)) return NULL;
    ids = (int32_t *)malloc((*n + 1) * sizeof *ids);
    if (ids && ft_tokenizer_encode(tok, text.p, text.n, special, ids, *n, n, err)) { free(ids); return NULL; }
    return ids;
}

/* Byte tokens of marks that a normal form sorts have spans in the order of the sorted text: set, spans need not rise. */
static int golden_sorts_marks;

/* One row of JSON; where: for messages. */
static void golden_row(const ft_tokenizer *tok, const fti_json *row, ft_special special, const char *where, int line)
{
    fti_arena a = { NULL };
    ft_error err = { FTUNE_OK, "" };
    ft_text text = fti_json_text(row, fti_json_get(row, 0, "text"), &a);
    ft_text decoded = fti_json_text(row, fti_json_get(row, 0, "decoded"), &a);
    int node = fti_json_child(row, fti_json_get(row, 0, "ids"));
    size_t n, k = 0, m = 0;
    int32_t *ids = golden_encode(tok, text, special, &n, &err);
    ft_span *span = (ft_span *)malloc((n + 1) * sizeof *span);
    int same = ids != NULL;
    for (; node >= 0; node = fti_json_next(row, node), k++)
        if (same && (k >= n || ids[k] != fti_json_int(row, node, -2))) {
            same = 0;
            CHECK_MSG(0, "%s: row %d: \"%.*s\": ids[%d]: expected %ld, found %ld", where, line, text.n < 90 ? (int)text.n : 90, text.p, (int)k,
                      (long)fti_json_int(row, node, -2), k < n ? (long)ids[k] : -1L);
        }
    CHECK_MSG(ids && k == n, "%s: row %d: expected %d ids, found %d %s", where, line, (int)k, (int)n, err.message);
    if (ids && decoded.p) {
        char *back = (char *)malloc(8 * text.n + 1000);
        CHECK_OK(ft_tokenizer_decode(tok, ids, n, 0, back, 8 * text.n + 1000, &m, &err), err);
        CHECK_MSG(m == decoded.n && !memcmp(back, decoded.p, m), "%s: row %d: decode: expected \"%.*s\", found \"%.*s\"", where, line,
                  (int)decoded.n, decoded.p, (int)m, back);
        free(back);
    }
    if (ids && span && !ft_tokenizer_encode_spans(tok, text.p, text.n, special, NULL, 0, ids, span, n, &m, &err)) {
        int ok = 1;
        for (k = 0; k < n; k++) ok &= span[k].begin <= span[k].end && span[k].end <= text.n && (!k || golden_sorts_marks || span[k - 1].begin <= span[k].begin);
        CHECK_MSG(ok, "%s: row %d: expected spans that rise inside the text", where, line);
    }
    free(ids);
    free(span);
    fti_arena_free(&a);
}

/* Every row of a .jsonl file (split at byte 0x0A alone). model: only rows with this "model", or NULL. */
static void golden_file(const ft_tokenizer *tok, const char *path, ft_special special, const char *model)
{
    size_t n = 0;
    char *data = test_read(path, &n), *p = data, *end = data + n;
    ft_error err;
    int line = 1, used = 0;
    CHECK_MSG(data != NULL, "%s: expected a file", path);
    for (; data && p < end; line++) {
        char *stop = (char *)memchr(p, '\n', (size_t)(end - p));
        fti_json row = { 0 };
        if (!stop) stop = end;
        if (fti_json_parse(&row, p, (size_t)(stop - p), path, &err)) CHECK_MSG(0, "%s", err.message);
        else if (!model || fti_json_equals(&row, fti_json_get(&row, 0, "model"), model)) { golden_row(tok, &row, special, path, line); used++; }
        fti_json_free(&row);
        p = stop + 1;
    }
    CHECK_MSG(used > 0, "%s: expected rows", path);
    free(data);
}

/* llama.cpp's pair: texts that end with a line of their own, and a line of ids for each. */
static void golden_llama_cpp(const ft_tokenizer *tok, const char *in_path, const char *out_path)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    size_t n_in = 0, n_out = 0, n;
    char *in = test_read(in_path, &n_in), *out = test_read(out_path, &n_out), *p = in, *q = out, *stop;
    int row = 0;
    for (; in && out && (stop = strstr(p, mark)) != NULL; p = stop + sizeof mark - 1, row++) {
        ft_text text = { p, (size_t)(stop - p) };
        ft_error err = { FTUNE_OK, "" };
        int32_t *ids = golden_encode(tok, text, FTUNE_SPECIAL_PARSE, &n, &err);
        char *line_end = strchr(q, '\n');
        size_t k = 0;
        int same = ids != NULL;
        if (line_end) *line_end = 0;
        for (char *next; ; q = next, k++) {
            long id = strtol(q, &next, 10);
            if (next == q) break;
            same = same && k < n && ids[k] == id;
        }
        CHECK_MSG(same && k == n, "%s: text %d: expected the ids of %s (%d of them), found %d", in_path, row, out_path, (int)k, (int)n);
        q = line_end ? line_end + 1 : q;
        free(ids);
    }
    CHECK_INT(row, 46);
    free(in);
    free(out);
}

/* Load a copy that ends where the memory ends, and use what loads: nothing may crash, hang or leak; whether it is
 * refused is the file's affair. */
static int hostile_load(const char *what, const char *data, size_t n)
{
    static const char text[] = "The caf\xC3\xA9 \xE6\x9D\xAD\xE5\xB7\x9E <s> 42 \xF0\x9F\x98\x80  aaaa ---- \xEF\xAC\x81 e\xCC\x81";
    ft_tokenizer_options o = ft_tokenizer_options_default();
    ft_tokenizer *tok = (ft_tokenizer *)fti_calloc(1, sizeof *tok);
    ft_error err = { FTUNE_OK, "" };
    char *copy = (char *)malloc(n ? n : 1), back[4096];
    int32_t ids[512];
    size_t k, m;
    int loaded;
    if (n) memcpy(copy, data, n);
    loaded = !fti_load_data(tok, copy, n, what, "build/tmp/none", &o, &err);
    memset(copy, 0, n);                                     /* the file is gone once it is loaded */
    free(copy);
    if (loaded && !ft_tokenizer_encode(tok, text, sizeof text - 1, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL, ids, 512, &k, &err))
        ft_tokenizer_decode(tok, ids, k, 0, back, sizeof back, &m, &err);
    ft_tokenizer_free(tok);
    if (!loaded && !err.message[0]) CHECK_MSG(0, "%s: expected a tokenizer or an error with a message", what);
    return loaded;
}

/* Every prefix, and every byte changed to four or six other values; every `step`-th when that is not 1. */
static void hostile_bytes(const char *what, char *data, size_t n, size_t step)
{
    size_t ways = n && data[0] == 0x0A ? 4 : 6;             /* in a .model line ends and quotes mean nothing */
    int failed = test_failed;
    CHECK_MSG(hostile_load(what, data, n), "%s: expected a tokenizer", what);
    for (size_t i = 0; i < n; i += step) hostile_load(what, data, i);
    for (size_t i = 0; i < n; i += step) {
        char was = data[i], other[] = { (char)(was ^ 1), (char)(was ^ 0x80), 0, (char)0xFF, '\n', '"' };
        for (size_t k = 0; k < ways; k++) {
            data[i] = other[k];
            hostile_load(what, data, n);
        }
        data[i] = was;
    }
    CHECK_MSG(test_failed == failed, "%s: every prefix and mutation", what);
}

static void hostile_file(const char *path, size_t step)
{
    size_t n = 0;
    char *data = test_read(path, &n);
    CHECK_MSG(data != NULL, "%s: expected a file", path);
    if (data) hostile_bytes(path, data, n, step);
    free(data);
}
#endif
