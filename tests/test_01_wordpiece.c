/* test_01_wordpiece.c - WordPiece: the article's sentence, the originals' ids, decoding, bad files */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "golden_rows.h"

#define SLICE "tests/data/bert_slice/tokenizer.json"

static ft_tokenizer *load(const char *path, int lowercase)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    ft_tokenizer_options opt = ft_tokenizer_options_default();
    opt.lowercase = lowercase;
    CHECK_OK(ft_tokenizer_load(&tok, path, &opt, &err), err);
    return tok;
}

static void check_ids(const ft_tokenizer *tok, const char *text, ft_special special, const int32_t *expected, size_t n_expected)
{
    ft_error err = { FTUNE_OK, "" };
    size_t n = 0;
    int32_t *ids = golden_encode(tok, ft_text_of(text), special, &n, &err);
    CHECK_MSG(ids && n == n_expected, "\"%s\": expected %d ids, found %d %s", text, (int)n_expected, (int)n, err.message);
    for (size_t i = 0; ids && i < n && i < n_expected; i++)
        CHECK_MSG(ids[i] == expected[i], "\"%s\": ids[%d]: expected %d, found %d", text, (int)i, (int)expected[i], (int)ids[i]);
    free(ids);
}

static void check_decode(const ft_tokenizer *tok, const char *text, const char *expected)
{
    ft_error err = { FTUNE_OK, "" };
    char back[256];
    size_t n = 0, m = 0;
    int32_t *ids = golden_encode(tok, ft_text_of(text), FTUNE_SPECIAL_PARSE, &n, &err);
    CHECK_OK(ft_tokenizer_decode(tok, ids, n, 1, back, sizeof back - 1, &m, &err), err);
    back[m] = 0;
    CHECK_STR(back, expected);
    free(ids);
}

/* The article's sentence with bert-base-uncased: four of its characters are in the vocabulary. The slice keeps the ids. */
static void test_article(void)
{
    static const int32_t hangzhou[] = { 101, 100, 1836, 100, 100, 100, 1802, 1863, 102 };
    static const int32_t cls[] = { 101, 102 };
    ft_tokenizer *tok = load(SLICE, -1);
    ft_error err;
    size_t n;
    if (!tok) return;
    check_ids(tok, "\xE6\x9D\xAD\xE5\xB7\x9E\xE6\x98\xAF\xE4\xB8\xAA\xE5\xA5\xBD\xE5\x9C\xB0\xE6\x96\xB9", FTUNE_ADD_SPECIAL, hangzhou, 9);
    check_ids(tok, "[CLS][SEP]", FTUNE_SPECIAL_PARSE, cls, 2);
    CHECK_INT(ft_tokenizer_attribute(tok, "unk_token_id"), 100);
    CHECK_INT(ft_tokenizer_attribute(tok, "pad_token_id"), 0);
    CHECK_INT(ft_token_id(tok, "[MASK]", 6), 103);
    CHECK_FAILS(ft_tokenizer_encode(tok, "a [SEP]", 7, FTUNE_SPECIAL_REFUSE, NULL, 0, &n, &err), err, FTUNE_ERR_SPECIAL, "[SEP]");
    CHECK_FAILS(ft_tokenizer_encode(tok, "a\xFF", 2, 0, NULL, 0, &n, &err), err, FTUNE_ERR_UTF8, "byte 1");
    check_decode(tok, "Hello, world!", "hello, world!");
    check_decode(tok, "How are  you? I am fine.", "how are you? i am fine.");
    check_decode(tok, "unaffordable tokenization isn't a caf\xC3\xA9", "unaffordable tokenization isn ' t a cafe");
    ft_tokenizer_free(tok);
}

/* Where each token came from, through lower-casing, dropped accents and dropped controls. */
static void test_spans(void)
{
    static const char text[] = "H\xC3\xA9llo\x01, caf\x65\xCC\x81 \xE5\xB7\x9E!";
    ft_tokenizer *tok = load(SLICE, -1);
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[16];
    ft_span span[16];
    size_t n = 0;
    if (!tok) return;
    CHECK_OK(ft_tokenizer_encode_spans(tok, text, sizeof text - 1, 0, NULL, 0, ids, span, 16, &n, &err), err);
    CHECK_INT(n, 5);
    CHECK(span[0].begin == 0 && span[0].end == 6);            /* hello */
    CHECK(span[1].begin == 7 && span[1].end == 8);            /* , after the control character */
    CHECK(span[2].begin == 9 && span[2].end >= 13);           /* cafe, its mark may or may not belong to it */
    CHECK(span[3].begin == 16 && span[3].end == 19);
    CHECK(span[4].begin == 19 && span[4].end == 20);
    ft_tokenizer_free(tok);
}

/* vocab.txt: the switch for lower case, a word of more than 100 characters, CRLF ends. */
static void test_vocab_txt(void)
{
    static const char cased[] = "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nHello\r\nhello\r\n##o\r\na\r\n##a\r\n";
    static const char uncased[] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nh\n##e\n!\n";
    static const int32_t c1[] = { 4, 5, 6 }, u1[] = { 5, 8 }, u2[] = { 2, 6, 3 }, unk[] = { 1 };
    char longest[102];
    char *path = (char *)test_tmp("wp_vocab.txt");
    ft_tokenizer *tok;
    CHECK(test_write(path, cased, sizeof cased - 1));
    if ((tok = load(path, -1)) != NULL) {
        check_ids(tok, "Hello helloo", 0, c1, 3);
        memset(longest, 'a', 101);
        longest[101] = 0;
        check_ids(tok, longest, 0, unk, 1);
        longest[100] = 0;
        CHECK_INT(ft_tokenizer_attribute(tok, "cls_token_id"), 2);
    }
    ft_tokenizer_free(tok);
    if ((tok = load(path, 1)) != NULL) check_ids(tok, "HELLOO", 0, c1 + 1, 2);
    ft_tokenizer_free(tok);
    CHECK(test_write(path, uncased, sizeof uncased - 1));
    if ((tok = load(path, -1)) != NULL) {
        check_ids(tok, "H\xC3\xA9LLO!", 0, u1, 2);              /* accents go with the case */
        check_ids(tok, "h", FTUNE_ADD_SPECIAL, u2, 3);
        check_ids(tok, "x\xC3\xA9", 0, unk, 1);
    }
    ft_tokenizer_free(tok);
    if ((tok = load(path, 0)) != NULL) check_ids(tok, "HELLO", 0, unk, 1);
    ft_tokenizer_free(tok);
}

static void test_refused(void)
{
    static const struct { const char *text; ft_status code; const char *message; } bad[] = {
        { "hello\nworld\n", FTUNE_ERR_FORMAT, "[UNK]" },
        { "[UNK]\na\xFF\n", FTUNE_ERR_FORMAT, "wp_bad: line 2: expected a tokenizer" },
        { "[UNK]\na\xFF\n", FTUNE_ERR_FORMAT, "found 0xFF at byte 7" },
        { "\xEF\xBB\xBF[UNK]\na\n", FTUNE_ERR_FORMAT, "byte 0: expected a tokenizer, found a byte order mark" },
        { "\xEF\xBB\xBF{}", FTUNE_ERR_FORMAT, "byte order mark" },
        { "\n\nIQ== 0\nIg== 1\n", FTUNE_ERR_FORMAT, "line 1: expected base64" },
        { "\xEF\xBB\xBFIQ== 0\nIg== 1\n", FTUNE_ERR_FORMAT, "byte order mark" },
#define WORDPIECE(most, vocab) "{\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"[UNK]\",\"continuing_subword_prefix\":\"##\"," \
        "\"max_input_chars_per_word\":" most ",\"vocab\":{" vocab "}},\"pre_tokenizer\":{\"type\":"
        { WORDPIECE("100", "\"a\":0") "\"BertPreTokenizer\"}}", FTUNE_ERR_FORMAT, "unknown words" },
        { WORDPIECE("100", "\"[UNK]\":0") "\"Blanks\"}}", FTUNE_ERR_UNSUPPORTED, "Blanks" },
        { WORDPIECE("100", "\"[UNK]\":-1") "\"BertPreTokenizer\"}}", FTUNE_ERR_FORMAT, "id" },
        { WORDPIECE("1000000", "\"[UNK]\":0") "\"BertPreTokenizer\"}}", FTUNE_ERR_UNSUPPORTED, "max_input_chars_per_word" },
    };
    const char *path = test_tmp("wp_bad");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        CHECK(test_write(path, bad[i].text, strlen(bad[i].text)));
        CHECK_FAILS(ft_tokenizer_load(&tok, path, NULL, &err), err, bad[i].code, bad[i].message);
        ft_tokenizer_free(tok);
    }
}

static void test_golden(void)
{
    static const struct { const char *vocab, *golden; int lowercase; ft_special special; } set[] = {
        { "vocab/bert-base-uncased/vocab.txt", "golden/bert-base-uncased.jsonl", -1, FTUNE_SPECIAL_PARSE },
        { "vocab/bert-base-uncased/vocab.txt", "golden/bert-base-uncased.special.jsonl", -1, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL },
        { "vocab/bert-base-uncased/tokenizer.json", "golden/bert-base-uncased.jsonl", -1, FTUNE_SPECIAL_PARSE },
        { "vocab/bert-base-uncased/tokenizer.json", "golden/bert-base-uncased.special.jsonl", -1, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL },
        { "vocab/bert-base-cased/vocab.txt", "golden/bert-base-cased.jsonl", -1, FTUNE_SPECIAL_PARSE },
        { "vocab/bert-base-cased/vocab.txt", "golden/bert-base-cased.special.jsonl", -1, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL },
        { "vocab/bert-base-chinese/vocab.txt", "golden/bert-base-chinese.jsonl", 0, FTUNE_SPECIAL_PARSE },
        { "vocab/bert-base-chinese/vocab.txt", "golden/bert-base-chinese.special.jsonl", 0, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL },
        { "vocab/bert-base-chinese/vocab.txt", "golden/bert-base-chinese-lower.jsonl", 1, FTUNE_SPECIAL_PARSE },
        { "vocab/bert-base-chinese/vocab.txt", "golden/bert-base-chinese-lower.special.jsonl", -1, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL },
    };
    const char *in = test_shared("vocab/llama.cpp/ggml-vocab-bert-bge.gguf.inp"), *out = test_shared("vocab/llama.cpp/ggml-vocab-bert-bge.gguf.out");
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
        const char *vocab = test_shared(set[i].vocab), *golden = vocab ? test_shared(set[i].golden) : NULL;
        ft_tokenizer *tok = golden ? load(vocab, set[i].lowercase) : NULL;
        if (tok) golden_file(tok, golden, set[i].special, NULL);
        if (tok && !i && in && out) golden_llama_cpp(tok, in, out);
        ft_tokenizer_free(tok);
    }
}

/* A million equal characters of any kind take about as long as a million of any other. */
static void test_linear(void)
{
    static const char *const unit[] = { "a", " ", "!", "\xE4\xB8\xAD", "\xCC\x81", "\xF0\x9F\x98\x80", "\xC3\xA9", "a ", "\x01" };
    ft_tokenizer *tok = load(SLICE, -1);
    ft_error err;
    for (size_t i = 0; tok && i < sizeof unit / sizeof *unit; i++) {
        size_t len = strlen(unit[i]), n = 0;
        char *text = (char *)malloc(1000000 * len);
        for (size_t k = 0; k < 1000000; k++) memcpy(text + k * len, unit[i], len);
        double t = fti_now();
        CHECK_OK(ft_tokenizer_encode(tok, text, 1000000 * len, 0, NULL, 0, &n, &err), err);
        t = fti_now() - t;
        CHECK_MSG(t < 2, "a million of \"%s\": expected well under a second, found %.2f s", unit[i], t);
        free(text);
    }
    ft_tokenizer_free(tok);
}

static char vocab_txt[] = "[PAD]\n[UNK]\r\n[CLS]\n[SEP]\n[MASK]\nthe\ncaf\n##e\n\xE6\x9D\xAD\n##-\n-\n##\n\n4\n##2\na\n##a";

/* Memory runs out at the 1st, 2nd, 3rd .. allocation of loading and of encoding: an error, and nothing left behind. */
static void test_no_memory(void)
{
    static const char text[] = "[CLS] The caf\xC3\xA9 \xE6\x9D\xAD\xE5\xB7\x9E 42 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ----";
    const char *path[] = { SLICE, test_tmp("wp_memory.txt") };
    CHECK(test_write(path[1], vocab_txt, sizeof vocab_txt - 1));
    for (size_t i = 0; i < 2; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        int32_t ids[200];
        ft_span span[200];
        char back[400];
        size_t n = 0, m;
        TEST_EVERY_FAILURE(ft_tokenizer_load(&tok, path[i], NULL, &err), ft_tokenizer_free(tok));
        CHECK_OK(ft_tokenizer_load(&tok, path[i], NULL, &err), err);
        if (!tok) continue;
        TEST_EVERY_FAILURE(ft_tokenizer_encode_spans(tok, text, sizeof text - 1, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL, NULL, 0, ids, span, 200,
                                                     &n, &err), (void)0);
        CHECK(n > 8);
        TEST_EVERY_FAILURE(ft_tokenizer_decode(tok, ids, n, 1, back, sizeof back, &m, &err), (void)0);
        ft_tokenizer_free(tok);
    }
    CHECK_INT(test_alive, 0);
}

/* Marks that BERT's tables keep are sorted as in NFD: U+1D16D has class 226, U+1D165 class 216. So are those younger than
 * its general categories but not than its normal forms (U+08D4); younger still, they stay where they are (U+08D3). */
static void test_sorted_marks(void)
{
    static const char *const pair[][2] = {
        { "A\xF0\x9D\x85\xAD\xF0\x9D\x85\xA5", "a\xF0\x9D\x85\xA5\xF0\x9D\x85\xAD" },
        { "a\xF0\x9D\x85\xAD\xCC\x81\x01\xF0\x9D\x85\xA5", "a\xF0\x9D\x85\xA5\xF0\x9D\x85\xAD" },
        { "a\xF0\x9D\x85\xAD\xE0\xA3\x93\xF0\x9D\x85\xA5", "a\xF0\x9D\x85\xAD\xE0\xA3\x93\xF0\x9D\x85\xA5" } };
    fti_step s;
    memset(&s, 0, sizeof s);
    s.what = FTI_STEP_BERT;
    s.bert.clean = s.bert.cjk = s.bert.strip = s.bert.lower = 1;
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
        fti_buf out = { NULL, 0, 0, 0 };
        CHECK(fti_step_run(&s, pair[i][0], strlen(pair[i][0]), &out, NULL));
        CHECK_STR(out.p, pair[i][1]);
        CHECK(fti_bert_keeps_mark(pair[i][0], strlen(pair[i][0])));
        fti_buf_free(&out);
    }
    CHECK(!fti_bert_keeps_mark("caf\xC3\xA9 e\xCC\x81", 9));
}

int main(void)
{
    const char *vocab;
    test_article();
    test_spans();
    test_vocab_txt();
    test_refused();
    test_golden();
    test_linear();
    test_no_memory();
    hostile_file(SLICE, 1);
    hostile_bytes("vocab.txt", vocab_txt, sizeof vocab_txt - 1, 1);
    if ((vocab = test_shared("vocab/bert-base-chinese/vocab.txt")) != NULL) hostile_file(vocab, 9973);
    test_sorted_marks();
    return test_end();
}
