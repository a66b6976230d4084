/* test_01_models.c - the models, decoders and post-processors of tokenizer.json in small: ids, text, saving, bad files
 *
 * tests/golden/models.jsonl comes from tests/golden/make_models.py. */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "golden_rows.h"

enum { AROUND = FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL };

/* Shown id by id, the text is the same. */
static void check_stream(const ft_tokenizer *tok, const int32_t *ids, size_t n, int line)
{
    char whole[8192], parts[8192];
    size_t m = 0, k = 0;
    ft_stream s;
    ft_error err = { FTUNE_OK, "" };
    ft_stream_init(&s, tok, 1);
    for (size_t i = 0; i < n; i++) k += ft_stream_push(&s, ids[i], parts + k, sizeof parts - k).n;
    k += ft_stream_finish(&s, parts + k, sizeof parts - k).n;
    CHECK_OK(ft_tokenizer_decode(tok, ids, n, 1, whole, sizeof whole, &m, &err), err);
    CHECK_MSG(k == m && !memcmp(whole, parts, m) && !s.failed, "row %d: id by id: expected \"%.*s\", found \"%.*s\"", line, (int)m, whole, (int)k, parts);
}

/* What is saved and loaded again gives the same row. */
static void check_save(const ft_tokenizer *tok, const fti_json *row, int line)
{
    static const char dir[] = "build/tmp/models_saved";
    ft_tokenizer *again = NULL;
    ft_error err = { FTUNE_OK, "" };
    ft_status status = ft_tokenizer_save(tok, dir, &err);
    if (tok->family != &fti_family_bpe) { CHECK_INT(status, FTUNE_ERR_UNSUPPORTED); return; }
    CHECK_OK(status, err);
    CHECK_OK(ft_tokenizer_load(&again, dir, NULL, &err), err);
    if (again) golden_row(again, row, AROUND, "saved", line);
    ft_tokenizer_free(again);
}

static void check_memory(const char *path, ft_text text)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[1500];
    ft_span span[1500];
    char back[8000], out[1024];
    size_t n = 0, m = 0;
    ft_stream s;
    TEST_EVERY_FAILURE(ft_tokenizer_load(&tok, path, NULL, &err), ft_tokenizer_free(tok));
    if (ft_tokenizer_load(&tok, path, NULL, &err)) return;
    TEST_EVERY_FAILURE(ft_tokenizer_encode_spans(tok, text.p, text.n, AROUND, NULL, 0, ids, span, 1500, &n, &err), (void)0);
    TEST_EVERY_FAILURE(ft_tokenizer_decode(tok, ids, n, 0, back, sizeof back, &m, &err), (void)0);
    for (int fail = 1; fail < 200; fail++) {
        ft_stream_init(&s, tok, 0);
        test_calls = 0;
        test_fail_at = fail;
        for (size_t i = 0; i < n && i < 20; i++) ft_stream_push(&s, ids[i], out, sizeof out);
        ft_stream_finish(&s, out, sizeof out);
        test_fail_at = 0;
    }
    if (tok->family == &fti_family_bpe) TEST_EVERY_FAILURE(ft_tokenizer_save(tok, "build/tmp/models_saved", &err), (void)0);
    ft_tokenizer_free(tok);
}

static void test_rows(void)
{
    size_t n = 0;
    char *data = test_read("tests/golden/models.jsonl", &n), *p = data, *stop, last[8192] = "";
    static const char path[] = "build/tmp/models.json";     /* test_tmp turns */
    int line = 1, files = 0;
    CHECK(data != NULL);
    for (; data && p < data + n && (stop = (char *)memchr(p, '\n', (size_t)(data + n - p))) != NULL; p = stop + 1, line++) {
        fti_json row = { 0 };
        fti_arena a = { NULL };
        ft_error err = { FTUNE_OK, "" };
        ft_tokenizer *tok = NULL;
        ft_text text;
        int32_t *ids;
        size_t n_ids;
        CHECK_OK(fti_json_parse(&row, p, (size_t)(stop - p), "models.jsonl", &err), err);
        const fti_json_node *file = &row.node[fti_json_get(&row, 0, "file")];
        CHECK(test_write(path, row.text + file->start, file->len));
        CHECK_MSG(!ft_tokenizer_load(&tok, path, NULL, &err), "row %d: %s", line, err.message);
        if (!tok) continue;
        golden_row(tok, &row, AROUND, "models.jsonl", line);
        text = fti_json_text(&row, fti_json_get(&row, 0, "text"), &a);
        ids = golden_encode(tok, text, AROUND, &n_ids, &err);
        if (ids) check_stream(tok, ids, n_ids, line);
        free(ids);
        check_save(tok, &row, line);
        ft_tokenizer_free(tok);
        if (text.n < 100 && (strlen(last) != file->len || memcmp(last, row.text + file->start, file->len))) {
            check_memory(path, text);
            hostile_file(path, ++files % 4 ? 7 : 1);
            snprintf(last, sizeof last, "%.*s", (int)file->len, row.text + file->start);
        }
        fti_arena_free(&a);
        fti_json_free(&row);
    }
    CHECK(line > 45 && files > 15);
    free(data);
}

/* A model, and what else the file says, in few words. */
static ft_status load_made(ft_tokenizer **tok, const char *parts, const char *model, ft_error *err)
{
    char text[4096];
    int n = snprintf(text, sizeof text, "{%s\"model\": {%s}}", parts, model);
    CHECK(test_write(test_tmp("models_made.json"), text, (size_t)n));
    return ft_tokenizer_load(tok, test_tmp("models_made.json"), NULL, err);
}

#define AB "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"##b\": 3}, \"merges\": [\"a b\"]"
static void test_refused(void)
{
    static const struct { const char *parts, *model, *message; } bad[] = {
        { "", "\"type\": \"Words\", \"vocab\": {}", "BPE WordPiece WordLevel Unigram, found Words" },
        { "", "", "model" },
        { "", AB ", \"dropout\": 0.1", "a matter of chance" },
        { "", AB ", \"continuing_subword_prefix\": \"##\"", "merges[0]" },       /* a + b without two bytes is no token */
        { "", "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": [\"a b\"], \"end_of_word_suffix\": \"</w>\"", "no \"ab\"" },
        { "", AB ", \"end_of_word_suffix\": \"1234567890123456789012345678901234567890123456789012345678901\"", "60 bytes" },
        { "", "\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": {}", "a list" },
        { "", "\"type\": \"WordLevel\", \"unk_token\": \"a\", \"vocab\": [1]", "vocab: expected an object" },
        { "\"decoder\": {\"type\": \"Magic\"},", AB, "BPEDecoder CTC Sequence, found Magic" },
        { "\"decoder\": {\"type\": \"Strip\", \"content\": \"\", \"start\": 1, \"stop\": 0},", AB, "content: expected one character" },
        { "\"decoder\": {\"type\": \"BPEDecoder\"},", AB, "a string" },
        { "\"decoder\": {\"type\": \"CTC\", \"pad_token\": \"a\"},", AB, "a string" },
        { "\"decoder\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"(a\"}, \"content\": \"\"},", AB, "regular expression" },
        { "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [], \"pair\": [], \"special_tokens\": {}},", AB, "once" },
        { "\"post_processor\": {\"type\": \"Magic\"},", AB, "BertProcessing Sequence, found Magic" },
        { "\"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"a\", \"type_id\": 0}},"
          " {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [], \"special_tokens\": {\"a\": {\"id\": \"a\", \"ids\": [0], \"tokens\": [\"a\"]}}},"
          " {\"type\": \"BertProcessing\", \"cls\": [\"a\", 0], \"sep\": [\"b\", 1]}]},", AB, "behind TemplateProcessing" },
        { "\"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"a\", \"type_id\": 0}},"
          " {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [], \"special_tokens\": {\"a\": {\"id\": \"a\", \"ids\": [], \"tokens\": []}}},"
          " {\"type\": \"BertProcessing\", \"cls\": [\"a\", 0], \"sep\": [\"b\", 1]}]},", AB, "behind TemplateProcessing" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        CHECK_MSG(load_made(&tok, bad[i].parts, bad[i].model, &err) && strstr(err.message, bad[i].message), "bad model %d: expected \"%s\", found \"%s\"",
                  (int)i, bad[i].message, err.message);
        ft_tokenizer_free(tok);
    }
}

/* What Hugging Face tokenizers refuses is refused here: no default stands in for a field that is wrong or missing. */
static void test_fields(void)
{
    static const struct { const char *parts, *model, *message; } bad[] = {
        { "\"version\": \"2.0\",", AB, "version: expected 1.0, found 2.0" },
        { "\"version\": 1.0,", AB, "version: expected a string, found 1.0" },
        { "\"added_tokens\": null,", AB, "added_tokens: expected a list, found null" },
        { "\"normalizer\": {\"type\": \"Sequence\"},",
          AB, "normalizer: Sequence: normalizers: expected a list, found nothing" },
        { "\"normalizer\": {\"type\": \"Sequence\", \"pretokenizers\": []},",
          AB, "normalizers: expected a list, found nothing" },
        { "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": null},",
          AB, "normalizers: expected a list, found null" },
        { "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [null]},",
          AB, "normalizer: expected an object, found null" },
        { "\"normalizer\": \"NFC\",", AB, "normalizer: expected an object, found NFC" },
        { "\"normalizer\": {\"type\": \"NFC\", \"type\": \"NFD\"},",
          AB, "normalizer: type: expected it once, found NFD" },
        { "\"normalizer\": {\"type\": \"Prepend\", \"prepend\": 59},",
          AB, "normalizer: Prepend: prepend: expected a string, found 59" },
        { "\"normalizer\": {\"type\": \"Replace\", \"content\": \"\", \"pattern\": {\"String\": \"a\", \"Regex\": \"b\"}},",
          AB, "Replace: pattern: expected {\"String\"" },
        { "\"normalizer\": {\"type\": \"Replace\", \"content\": \"\", \"pattern\": \"a\"},",
          AB, "Replace: pattern: expected {\"String\"" },
        { "\"normalizer\": {\"type\": \"BertNormalizer\", \"clean_text\": true, \"handle_chinese_chars\": true, \"strip_accents\": \"no\", \"lowercase\": true},",
          AB, "strip_accents: expected true or false, found no" },
        { "\"normalizer\": {\"type\": \"BertNormalizer\", \"clean_text\": true, \"handle_chinese_chars\": true, \"lowercase\": null},",
          AB, "lowercase: expected true or false, found null" },
        { "\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"\"},", AB, "base64" },
        { "\"decoder\": {\"type\": \"Sequence\", \"normalizers\": []},",
          AB, "decoder: Sequence: decoders: expected a list, found nothing" },
        { "\"post_processor\": {\"type\": \"Sequence\"},",
          AB, "post_processor: Sequence: processors: expected a list, found nothing" },
        { "\"decoder\": {\"type\": \"Strip\", \"content\": \"ab\", \"start\": 1, \"stop\": 0},",
          AB, "content: expected one character, found ab" },
        { "\"decoder\": {\"type\": \"Strip\", \"content\": \"a\", \"start\": -1, \"stop\": 0},",
          AB, "start: expected a whole number from 0 on, found -1" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"invert\": false},",
          AB, "Split: behavior: expected Isolated" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Removed\"},",
          AB, "Split: invert: expected true or false, found nothing" },
        { "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Removed\", \"invert\": \"true\"},",
          AB, "invert: expected true or false, found true" },
        { "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": \"true\", \"trim_offsets\": true},",
          AB, "add_prefix_space: expected true or false" },
        { "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"trim_offsets\": true},",
          AB, "add_prefix_space: expected true or false, found nothing" },
        { "\"pre_tokenizer\": {\"type\": \"CharDelimiterSplit\", \"delimiter\": \"ab\"},",
          AB, "delimiter: expected one character, found ab" },
        { "\"pre_tokenizer\": {\"type\": \"CharDelimiterSplit\", \"delimiter\": \"\"},",
          AB, "delimiter: expected one character, found " },
        { "\"pre_tokenizer\": {\"type\": \"FixedLength\", \"length\": \"3\"},", AB, "length: expected a whole number" },
        { "\"pre_tokenizer\": {\"type\": \"FixedLength\", \"length\": 2.5},", AB, "found 2.5" },
        { "\"pre_tokenizer\": {\"type\": \"Digits\"},",
          AB, "individual_digits: expected true or false, found nothing" },
        { "\"pre_tokenizer\": {\"type\": \"Metaspace\"},", AB, "replacement: expected one character, found nothing" },
        { "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", \"add_prefix_space\": false, \"prepend_scheme\": \"first\"},",
          AB, "prepend_scheme: expected never" },
        { "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", \"prepend_scheme\": null},",
          AB, "expected always, first or never, found null" },
        { "\"post_processor\": {\"type\": \"BertProcessing\", \"sep\": [\"a\", 0, 1], \"cls\": [\"a\", 0]},",
          AB, "sep: expected [token, id]" },
        { "\"x\": \"\\ud800\",", AB, "found \\ud800 alone" },
        { "\"x\": \"\\udc00\\ud800\",", AB, "found \\udc00 alone" },
        { "", AB ", \"dropout\": \"0.5\"", "dropout: expected a number, found 0.5" },
        { "", AB ", \"dropout\": true", "dropout" },
        { "", AB ", \"fuse_unk\": \"true\"", "fuse_unk: expected true or false" },
        { "", AB ", \"byte_fallback\": 1", "byte_fallback: expected true or false, found 1" },
        { "", AB ", \"ignore_merges\": \"yes\"", "ignore_merges" },
        { "", AB ", \"unk_token\": 5", "unk_token: expected a string, found 5" },
        { "", AB ", \"continuing_subword_prefix\": 3", "continuing_subword_prefix: expected a string, found 3" },
        { "", "\"type\": 3, \"vocab\": {\"a\": 0}, \"merges\": []", "model: type: expected a string, found 3" },
        { "", "\"type\": \"BPE\", \"vocab\": {\"a\": 0.0}, \"merges\": []", "an id from 0" },
        { "", "\"type\": \"BPE\", \"vocab\": {\"a\": 1e0}, \"merges\": []", "found 1e0" },
        { "", "\"type\": \"Unigram\", \"unk_id\": 0, \"vocab\": [[\"a\", 1, 2]]", "[piece, score]" },
        { "", "\"type\": \"Unigram\", \"unk_id\": 0.5, \"vocab\": [[\"a\", 1]]",
          "unk_id: expected a whole number from 0 on, found 0.5" },
        { "", "\"type\": \"WordPiece\", \"unk_token\": \"a\", \"continuing_subword_prefix\": \"\", \"max_input_chars_per_word\": \"5\", \"vocab\": {\"a\": 0}",
          "max_input_chars_per_word: expected a whole number from 0 on, found 5" },
        { "", "\"type\": \"WordLevel\", \"vocab\": {\"a\": 0}", "unk_token: expected a string, found nothing" } };
    static const char digits[] = "\"version\": \"1.0\", \"pre_tokenizer\": {\"type\": \"Digits\", \"individual_digits\": false, "
        "\"behavior\": \"Removed\"},";
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[8];
    size_t n = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_MSG(load_made(&tok, bad[i].parts, bad[i].model, &err) && strstr(err.message, bad[i].message)
                  && strstr(err.message, "models_made.json"), "bad field %d: expected \"%s\", found \"%s\"",
                  (int)i, bad[i].message, err.message);
        ft_tokenizer_free(tok);
        tok = NULL;
    }
    CHECK_FAILS(load_made(&tok, "\n\n\"decoder\":\n{\"type\": \"Strip\"},", AB, &err), err, FTUNE_ERR_FORMAT,
                ":4: decoder: Strip: content: expected one character, found nothing");
    CHECK_OK(load_made(&tok, digits, "\"type\": \"WordLevel\", \"unk_token\": \"?\", \"vocab\": {\"?\": 0, \"12\": 1}", &err), err);
    if (tok) CHECK_OK(ft_tokenizer_encode(tok, "a12", 3, 0, ids, 8, &n, &err), err);
    CHECK(n == 2 && ids[0] == 0 && ids[1] == 1);              /* only Split and Punctuation have a behavior */
    ft_tokenizer_free(tok);
}

/* One flag of an added token missing or of another type. */
static void test_added_fields(void)
{
    static const char *const flag[] = { "single_word", "lstrip", "rstrip", "normalized", "special" };
    for (int i = 0; i < 10; i++) {
        char parts[300] = "\"added_tokens\": [{\"id\": 4, \"content\": \"c\"", message[64];
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        for (int k = 0; k < 5; k++) {
            size_t n = strlen(parts);
            if (k != i % 5 || i >= 5)
                snprintf(parts + n, sizeof parts - n, ", \"%s\": %s", flag[k], k == i % 5 ? "\"true\"" : "true");
        }
        strcat(parts, "}],");
        snprintf(message, sizeof message, "added_tokens[0]: %s: expected true or false", flag[i % 5]);
        CHECK_FAILS(load_made(&tok, parts, AB, &err), err, FTUNE_ERR_FORMAT, message);
        ft_tokenizer_free(tok);
    }
}

/* The longest added token at each place, against trying them all. */
static void test_added_search(void)
{
    char token[60][12], text[200];
    ft_rng rng;
    ft_rng_seed(&rng, 5);
    for (int round = 0; round < 300; round++) {
        fti_added_set set = { 0 };
        int letters = 1 + (int)ft_rng_below(&rng, 3), n = 1 + (int)ft_rng_below(&rng, 60);
        for (int i = 0; i < n; i++) {
            fti_added a = { token[i], 1 + (uint32_t)ft_rng_below(&rng, 10), i, 0, 0, 0, 0, 0 };
            for (uint32_t k = 0; k < a.n; k++) token[i][k] = "a\xFF\0"[ft_rng_below(&rng, (uint32_t)letters)];
            CHECK(fti_push(set.at, a));
        }
        for (size_t k = 0; k < sizeof text; k++) text[k] = "a\xFF\0"[ft_rng_below(&rng, (uint32_t)letters)];
        fti_added_index(&set);
        for (size_t at = 0; at < sizeof text; at++) {
            const fti_added *found = fti_added_at(&set, text + at, text + sizeof text);
            size_t best = 0;
            for (int i = 0; i < n; i++)
                if (set.at[i].n > best && set.at[i].n <= sizeof text - at && !memcmp(set.at[i].p, text + at, set.at[i].n))
                    best = set.at[i].n;
            if ((found ? found->n : 0) != best || (found && memcmp(found->p, text + at, best)))
                CHECK_MSG(0, "round %d, byte %d: expected a token of %d bytes, found %d", round, (int)at, (int)best,
                          found ? (int)found->n : 0);
        }
        arrfree(set.at);
    }
}

/* Tokens that a text of one letter would be compared with at every place: refused, or done in time. */
static void test_long_tokens(void)
{
    static const struct { const char *head, *tail; int n; const char *message; } made[] = {
        { "{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"?\",\"vocab\":{\"?\":0}},\"added_tokens\":[{\"single_word\":false,"
          "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true,\"id\":1,\"content\":\"", "b\"}]}", 20000,
          "added token 1: expected at most 1024 bytes, found 20001" },
        { "{\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"?\",\"vocab\":{\"?\":0}},\"added_tokens\":[{\"single_word\":false,"
          "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true,\"id\":1,\"content\":\"", "b\"}]}", 1023, NULL },
        { "{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",0],[\"", "\",0]]}}", 20000, "pieces of at most 1024 bytes" },
        { "{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",0],[\"", "\",0]]}}", 1024, NULL } };
    const char *path = test_tmp("models_long.json");
    char *text = (char *)malloc(300000);
    CHECK(text != NULL);
    if (text) memset(text, 'a', 300000);
    for (size_t i = 0; text && i < sizeof made / sizeof *made; i++) {
        fti_buf b = { 0 };
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        ft_status status;
        size_t n = 0;
        double t;
        fti_buf_str(&b, made[i].head);
        fti_buf_add(&b, text, (size_t)made[i].n);
        fti_buf_str(&b, made[i].tail);
        CHECK(!b.failed && test_write(path, b.p, b.n));
        fti_buf_free(&b);
        status = ft_tokenizer_load(&tok, path, NULL, &err);
        if (made[i].message) CHECK_MSG(status && strstr(err.message, made[i].message), "expected \"%s\", found \"%s\"", made[i].message, err.message);
        else CHECK_OK(status, err);
        t = fti_now();
        if (tok) CHECK_OK(ft_tokenizer_encode(tok, text, 300000, FTUNE_SPECIAL_PARSE, NULL, 0, &n, &err), err);
        t = fti_now() - t;
        CHECK_MSG(t < 3, "a long token: expected about a second at most, found %.2f s", t);
        ft_tokenizer_free(tok);
    }
    free(text);
}

/* Where Hugging Face panics or is odd, our rule. */
static void test_own_rules(void)
{
    static const char strip[] = "\"decoder\": {\"type\": \"Strip\", \"content\": \"a\", \"start\": 2, \"stop\": 2},";
    static const char empty[] = "\"decoder\": {\"type\": \"BPEDecoder\", \"suffix\": \"\"},";
    static const char twice[] = "\"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": \"BertProcessing\", \"cls\": [\"a\", 0],"
        " \"sep\": [\"a\", 0]}, {\"type\": \"BertProcessing\", \"cls\": [\"b\", 1], \"sep\": [\"b\", 1]}]},";
    static const char unknown[] = "\"added_tokens\": [" TEST_ADDED("1", "ab") "],";
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[8], three[] = { 0, 2, 0 };
    char back[32];
    size_t n = 0, m = 0;
    CHECK_OK(load_made(&tok, strip, AB, &err), err);          /* "a" from both sides: nothing is left, once */
    if (tok) CHECK_OK(ft_tokenizer_decode(tok, three, 3, 0, back, sizeof back, &m, &err), err);
    CHECK(m == 1 && back[0] == 'b');
    ft_tokenizer_free(tok);
    CHECK_OK(load_made(&tok, empty, AB, &err), err);          /* an empty suffix is nowhere */
    if (tok) CHECK_OK(ft_tokenizer_decode(tok, three, 3, 0, back, sizeof back, &m, &err), err);
    CHECK(m == 4 && !memcmp(back, "aaba", 4));
    ft_tokenizer_free(tok);
    CHECK_OK(load_made(&tok, twice, AB, &err), err);          /* the later one stands outside */
    if (tok) CHECK_OK(ft_tokenizer_encode(tok, "ab", 2, AROUND, ids, 8, &n, &err), err);
    CHECK(n == 5 && ids[0] == 1 && ids[1] == 0 && ids[2] == 2 && ids[3] == 0 && ids[4] == 1);
    ft_tokenizer_free(tok);
    CHECK_OK(load_made(&tok, unknown, "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"ab\": 1, \"b\": 2}, \"merges\": [\"a b\"]", &err), err);
    if (tok) CHECK_OK(ft_tokenizer_encode(tok, "ab", 2, 0, ids, 8, &n, &err), err);
    CHECK(n == 2 && ids[0] == 0 && ids[1] == 2);              /* text does not join to a control token */
    ft_tokenizer_free(tok);
    CHECK_OK(load_made(&tok, "", "\"type\": \"WordLevel\", \"vocab\": {\"a\": 0}, \"unk_token\": \"[UNK]\"", &err), err);
    if (tok) CHECK_FAILS(ft_tokenizer_encode(tok, "b", 1, 0, ids, 8, &n, &err), err, FTUNE_ERR_NOT_FOUND, "\"b\"");
    ft_tokenizer_free(tok);
    CHECK_OK(load_made(&tok, "", "\"type\": \"Unigram\", \"unk_id\": null, \"vocab\": [[\"a\", -1], [\"aba\", -1]]", &err), err);
    if (tok) CHECK_OK(ft_tokenizer_encode(tok, "abaa", 4, 0, ids, 8, &n, &err), err);
    CHECK(n == 2 && ids[0] == 1 && ids[1] == 0);
    if (tok) CHECK_FAILS(ft_tokenizer_encode(tok, "aab", 3, 0, ids, 8, &n, &err), err, FTUNE_ERR_NOT_FOUND, "\"b\"");
    ft_tokenizer_free(tok);
}

/* Bytes stand for a character with its affixes: more ids than bytes, in words of any length. */
static void test_long_words_in_bytes(void)
{
    enum { N = 1500 };
    static const char *const model = "\"type\": \"BPE\", \"continuing_subword_prefix\": \"##\", \"byte_fallback\": true,"
        "\"vocab\": {\"<0x23>\": 0, \"<0x61>\": 1}, \"merges\": []";
    static char text[N];
    static int32_t ids[3 * N + 16];
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    memset(text, 'a', N);
    CHECK_OK(load_made(&tok, "", model, &err), err);
    for (size_t n = 1; tok && n <= N; n = n * 3 + 1) {
        size_t got, wrong = 0;
        CHECK_OK(ft_tokenizer_encode(tok, text, n, FTUNE_SPECIAL_AS_TEXT, ids, 3 * n, &got, &err), err);
        CHECK_INT(got, 3 * n - 2);
        for (size_t i = 0; i < got; i++) wrong += ids[i] != (i % 3 == 0);
        CHECK_INT(wrong, 0);
    }
    ft_tokenizer_free(tok);
}

#define CONTROL(id, text) "{\"id\": " #id ", \"content\": \"" text "\", \"special\": true, \"single_word\": true, \"lstrip\": false, " \
    "\"rstrip\": false, \"normalized\": false}"
#define LOWER "\"normalizer\": {\"type\": \"Lowercase\"}, \"pre_tokenizer\": {\"type\": \"WhitespaceSplit\"},"

/* Text that comes to a control token by the model: only where control tokens are parsed, whatever was encoded before. */
static void test_two_modes(void)
{
    static const struct { const char *parts, *model, *text; int32_t as_text[6], parsed[6]; } row[] = {
        { "\"added_tokens\": [" CONTROL(1, "the") "," CONTROL(2, "##se") "]," LOWER, "\"type\": \"WordPiece\", \"unk_token\": \"?\", \"max_input_chars_per_word\": 9, \"continuing_subword_prefix\": \"##\","
          "\"vocab\": {\"?\": 0, \"the\": 1, \"##se\": 2, \"t\": 3, \"##he\": 4, \"##s\": 5, \"##e\": 6}",
          "THE these ", { 3, 4, 3, 4, 5, 6 }, { 1, 1, 2, -1 } },
        { "\"added_tokens\": [" CONTROL(1, "ab") "," CONTROL(2, "c") "]," LOWER, "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"ab\": 1, \"c\": 2, \"b\": 3, \"?\": 4},"
          "\"unk_token\": \"?\", \"merges\": [\"a b\"]", "AB aab C ", { 0, 3, 0, 0, 3, 4 }, { 1, 0, 1, 2, -1 } },
        { "\"added_tokens\": [" CONTROL(1, "ab|") "]," LOWER, "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"ab|\": 1, \"c|\": 2, \"b|\": 3},"
          "\"end_of_word_suffix\": \"|\", \"merges\": [\"a b|\"]", "ab C aab ", { 0, 3, 2, 0, 0, 3 }, { 1, 2, 0, 1, -1 } },
        { "\"added_tokens\": [" CONTROL(1, "ab") "," CONTROL(2, "c") "]," LOWER, "\"type\": \"Unigram\", \"unk_id\": 4,"
          "\"vocab\": [[\"a\", -3], [\"ab\", -1], [\"c\", -1], [\"b\", -3], [\"?\", 0]]", "AB aab C ", { 0, 3, 0, 0, 3, 4 }, { 1, 0, 1, 2, -1 } },
        { "\"added_tokens\": [" CONTROL(1, "ab") "]," LOWER, "\"type\": \"WordLevel\", \"vocab\": {\"?\": 0, \"ab\": 1}, \"unk_token\": \"?\"",
          "AB aab ", { 0, 0, -1 }, { 1, 0, -1 } } };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        char text[1000] = "";
        int32_t ids[1000];
        while (strlen(text) + 20 < sizeof text) strcat(text, row[i].text);
        CHECK_OK(load_made(&tok, row[i].parts, row[i].model, &err), err);
        for (int call = 0; tok && call < 6; call++) {
            const int32_t *expected = call & 1 ? row[i].parsed : row[i].as_text;
            size_t n = 0, k = 0, bad = 0, width = 0;
            while (width < 6 && expected[width] >= 0) width++;
            CHECK_OK(ft_tokenizer_encode(tok, text, strlen(text), call & 1 ? FTUNE_SPECIAL_PARSE : call & 2 ? FTUNE_SPECIAL_REFUSE : 0, ids, 1000, &n, &err), err);
            for (; k < n; k++) bad += ids[k] != expected[k % width];
            CHECK_MSG(!bad && n == strlen(text) / strlen(row[i].text) * width, "model %d, call %d: expected %d %d .., found %d %d .. (%d, %d of them wrong)", (int)i, call,
                      (int)expected[0], (int)expected[1], (int)ids[0], (int)ids[1], (int)n, (int)bad);
        }
        if (tok) {                                            /* with a range that stays text all of it does */
            ft_span plain = { 0, 1 };
            size_t n = 0;
            CHECK_OK(ft_tokenizer_encode_spans(tok, text, strlen(text), FTUNE_SPECIAL_PARSE, &plain, 1, ids, NULL, 1000, &n, &err), err);
            CHECK_INT(ids[0], row[i].as_text[0]);
        }
        ft_tokenizer_free(tok);
    }
}

/* A million equal characters, and words that joining goes back in: time in proportion. */
static void test_linear(void)
{
    static const char *const unit[] = { "a", "b", "ab", "x", "abc", "\xC3\xA9" };
    static const char *const model[] = { AB, AB ", \"unk_token\": \"a\"", AB ", \"end_of_word_suffix\": \"\"",
        "\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"aa\": 1, \"aaa\": 2, \"b\": 3}, \"merges\": [\"aa a\", \"a aa\", \"a a\"], \"unk_token\": \"b\"" };
    for (size_t k = 0; k < sizeof model / sizeof *model; k++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        CHECK_OK(load_made(&tok, "", model[k], &err), err);
        for (size_t i = 0; tok && i < sizeof unit / sizeof *unit; i++) {
            size_t len = strlen(unit[i]), n = 0, times = 1000000;
            char *text = (char *)malloc(times * len);
            for (size_t t = 0; t < times; t++) memcpy(text + t * len, unit[i], len);
            double t = fti_now();
            CHECK_OK(ft_tokenizer_encode(tok, text, times * len, 0, NULL, 0, &n, &err), err);
            t = fti_now() - t;
            CHECK_MSG(t < 3, "model %d: a million of \"%s\": expected about a second at most, found %.2f s", (int)k, unit[i], t);
            free(text);
        }
        ft_tokenizer_free(tok);
    }
}

int main(void)
{
    test_rows();
    test_refused();
    test_fields();
    test_added_fields();
    test_added_search();
    test_long_tokens();
    test_own_rules();
    test_long_words_in_bytes();
    test_two_modes();
    test_linear();
    return test_end();
}
