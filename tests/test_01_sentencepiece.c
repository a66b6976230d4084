/* test_01_sentencepiece.c - SentencePiece models and the tokenizer.json forms of them: ids, decoding, bad files
 *
 * tests/data/spm_*.model and tests/golden/sentencepiece.jsonl come from tests/make_tokenizer_slices.py. */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "golden_rows.h"

static ft_tokenizer *load(const char *path)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    return tok;
}

static void check_ids(const ft_tokenizer *tok, const char *text, ft_special special, const int32_t *expected, size_t n_expected)
{
    ft_error err = { FTUNE_OK, "" };
    size_t n = 0;
    int32_t *ids = tok ? golden_encode(tok, ft_text_of(text), special, &n, &err) : NULL;
    CHECK_MSG(ids && n == n_expected, "\"%s\": expected %d ids, found %d %s", text, (int)n_expected, (int)n, err.message);
    for (size_t i = 0; ids && i < n && i < n_expected; i++)
        CHECK_MSG(ids[i] == expected[i], "\"%s\": ids[%d]: expected %d, found %d", text, (int)i, (int)expected[i], (int)ids[i]);
    free(ids);
}

static void test_small_models(void)
{
    static const char *const name[] = { "spm_bpe", "spm_unigram", "spm_suffix" };
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "tests/data/%s.model", name[i]);
        ft_tokenizer *tok = load(path);
        if (tok) golden_file(tok, "tests/golden/sentencepiece.jsonl", FTUNE_SPECIAL_AS_TEXT, name[i]);
        ft_tokenizer_free(tok);
    }
}

/* Control pieces are text unless parsed; bos goes in front; bytes that make no character come out as U+FFFD. */
static void test_control(void)
{
    static const int32_t parsed[] = { 1, 2, 3 }, bos[] = { 1 };
    int32_t broken[] = { 0, 0 };
    ft_tokenizer *tok = load("tests/data/spm_bpe.model");
    ft_error err;
    char back[32];
    size_t n;
    if (!tok) return;
    check_ids(tok, "<s></s><sep>", FTUNE_SPECIAL_PARSE, parsed, 3);
    check_ids(tok, "", FTUNE_ADD_SPECIAL, bos, 1);
    CHECK_FAILS(ft_tokenizer_encode(tok, "a</s>", 5, FTUNE_SPECIAL_REFUSE, NULL, 0, &n, &err), err, FTUNE_ERR_SPECIAL, "</s>");
    CHECK_INT(ft_tokenizer_attribute(tok, "bos_token_id"), 1);
    CHECK_INT(ft_tokenizer_attribute(tok, "eos_token_id"), 2);
    CHECK_INT(ft_tokenizer_attribute(tok, "unk_token_id"), 0);
    CHECK_INT(ft_tokenizer_attribute(tok, "pad_token_id"), -1);
    broken[0] = ft_token_id(tok, "<0xE4>", 6);
    CHECK_OK(ft_tokenizer_decode(tok, broken, 1, 0, back, sizeof back, &n, &err), err);
    CHECK(n == 3 && !memcmp(back, "\xEF\xBF\xBD", 3));
    ft_tokenizer_free(tok);
}

/* Llama 2's tokenizer.json in small: merges in their order, bytes for what is no piece, U+2581 in front. */
static void test_json_bpe(void)
{
    static const char head[] = "{\"added_tokens\":[" TEST_ADDED("0", "<unk>") "," TEST_ADDED("1", "<s>") "],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xE2\x96\x81\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"}]},\"pre_tokenizer\":null,"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}},"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},"
        "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"<s>\":1";
    static const char tail[] = ",\"\xE2\x96\x81\":258,\"a\":259,\"b\":260,\"ab\":261,\"\xE2\x96\x81""a\":262,\"aa\":263,\"\xE2\x96\x81""ab\":264},"
        "\"merges\":[\"a b\",[\"\xE2\x96\x81\",\"a\"],\"a a\",\"\xE2\x96\x81 ab\"]}}";
    static const int32_t abaab[] = { 264, 259, 261 }, unknown[] = { 1, 262, 258, 2 + 0xC3, 2 + 0xA9 };
    char text[16384], back[64];
    size_t n = (size_t)snprintf(text, sizeof text, "%s", head), m = 0;
    const char *path = test_tmp("sp_llama.json");
    ft_error err = { FTUNE_OK, "" };
    for (int b = 0; b < 256; b++) n += (size_t)snprintf(text + n, sizeof text - n, ",\"<0x%02X>\":%d", (unsigned)b, b + 2);
    n += (size_t)snprintf(text + n, sizeof text - n, "%s", tail);
    CHECK(test_write(path, text, n));
    ft_tokenizer *tok = load(path);
    if (!tok) return;
    check_ids(tok, "abaab", 0, abaab, 3);
    check_ids(tok, "a \xC3\xA9", FTUNE_ADD_SPECIAL, unknown, 5);
    CHECK_OK(ft_tokenizer_decode(tok, unknown + 1, 4, 0, back, sizeof back - 1, &m, &err), err);
    back[m] = 0;
    CHECK_STR(back, "a \xC3\xA9");
    ft_tokenizer_free(tok);
    hostile_file(path, 1);
}

/* T5's tokenizer.json in small: words, each with U+2581 in front; the cheapest way; unknown runs are one token. */
static void test_json_unigram(void)
{
    static const char text[] = "{\"added_tokens\":[" TEST_ADDED("1", "</s>") "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
        "\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"add_prefix_space\":true}]},"
        "\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"add_prefix_space\":true},"
        "\"model\":{\"unk_id\":0,\"vocab\":[[\"<unk>\",0.0],[\"</s>\",0.0],[\"\xE2\x96\x81\",-2.5],[\"\xE2\x96\x81""a\",-3.0],[\"b\",-4.0],[\"ab\",-1.5]]}}";
    static const int32_t words[] = { 2, 5, 3, 2, 0, 2, 5, 4 }, as_text[] = { 2, 0 };
    const char *path = test_tmp("sp_t5.json");
    CHECK(test_write(path, text, sizeof text - 1));
    ft_tokenizer *tok = load(path);
    if (!tok) return;
    check_ids(tok, " ab  a\tzzz abb", 0, words, 8);
    check_ids(tok, "</s>", 0, as_text, 2);
    check_ids(tok, "</s>", FTUNE_SPECIAL_PARSE, (const int32_t[]){ 1 }, 1);
    ft_tokenizer_free(tok);
    hostile_file(path, 1);
}

static void test_refused(void)
{
    static const struct { const char *bytes; size_t n; const char *message; } bad[] = {
        { "\n\x05\n\x03""abc", 7, "UNKNOWN" },                                    /* one piece, no unknown */
        { "\n\x07\n\x03""abc\x18\x02\x12\x02\x18\x04", 13, "model_type" },      /* CHAR */
        { "\n\x03\n\x01", 4, "cut off" },
        { "\n\x04\x10\x01\x18\x02", 6, "piece 0" },                                /* no text */
        { "\n\x05\n\x01""a\x18\x02\x0B\x01\x02", 10, "such message" },            /* a group */
        { "\n\x05\n\x01""a\x18\x02\x1A\x06\x12\x04\xFF\xFF\xFF\xFF", 15, "precompiled_charsmap" },
    };
    const char *path = test_tmp("sp_bad.model");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        CHECK(test_write(path, bad[i].bytes, bad[i].n));
        CHECK_MSG(ft_tokenizer_load(&tok, path, NULL, &err) && strstr(err.message, bad[i].message), "bad model %d: expected \"%s\", found \"%s\"",
                  (int)i, bad[i].message, err.message);
        ft_tokenizer_free(tok);
    }
}

static void test_golden(void)
{
    enum { PARSE = FTUNE_SPECIAL_PARSE, AROUND = FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL };
    static const struct { const char *vocab, *golden; ft_special special; } set[] = {
        { "vocab/llama2/tokenizer.model", "golden/llama2.jsonl", 0 },
        { "vocab/mistral/tokenizer.model.v1", "golden/mistral-v1.jsonl", 0 },
        { "vocab/mistral/mistral_instruct_tokenizer_240323.model.v3", "golden/mistral-v3.jsonl", 0 },
        { "vocab/chatglm3/tokenizer.model", "golden/chatglm3.jsonl", 0 },
        { "vocab/baichuan2/tokenizer.model", "golden/baichuan2.jsonl", 0 },
        { "vocab/internlm2/tokenizer.model", "golden/internlm2.jsonl", 0 },
        { "vocab/xlnet/spiece.model", "golden/xlnet.jsonl", 0 },
        { "vocab/sentencepiece-test/test_model.model", "golden/spm-test-unigram.jsonl", 0 },
        { "vocab/sentencepiece-test/test_ja_model.model", "golden/spm-test-ja.jsonl", 0 },
        { "vocab/sentencepiece-test/nmt.vocab.joint.spm", "golden/nmt-joint.jsonl", 0 },
        { "vocab/t5-small/tokenizer.json", "golden/t5-small.jsonl", PARSE },
        { "vocab/t5-small/tokenizer.json", "golden/t5-small.special.jsonl", AROUND },
        { "vocab/phi-3/tokenizer.json", "golden/phi-3.jsonl", PARSE },
    };
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
        const char *vocab = test_shared(set[i].vocab), *golden = vocab ? test_shared(set[i].golden) : NULL;
        ft_tokenizer *tok = golden ? load(vocab) : NULL;
        if (tok) golden_file(tok, golden, set[i].special, NULL);
        ft_tokenizer_free(tok);
    }
}

/* Llama 2 as Hugging Face has it is phi-3's file with three added tokens and <s> in front. */
static void test_llama2_hf(void)
{
    static const char added[] = "\"added_tokens\":[" TEST_ADDED("0", "<unk>") "," TEST_ADDED("1", "<s>") ","
        TEST_ADDED("2", "</s>") "],\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
        "{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\","
        "\"ids\":[1],\"tokens\":[\"<s>\"]}}},\"x\":[";
    const char *phi = test_shared("vocab/phi-3/tokenizer.json"), *path = test_tmp("sp_llama2_hf.json"), *golden, *in, *out;
    size_t n = 0;
    char *text = phi ? test_read(phi, &n) : NULL, *list, *post, *all;
    if (!text) return;
    list = strstr(text, "\"added_tokens\": [");
    post = strstr(text, "\"post_processor\"");
    CHECK(list && post);
    if (list && post) {
        size_t before = (size_t)(list - text);
        memcpy(post, "\"unused_process\"", 16);
        all = (char *)malloc(n + sizeof added);
        memcpy(all, text, before);
        memcpy(all + before, added, sizeof added - 1);
        memcpy(all + before + sizeof added - 1, list + 17, n - before - 17);
        CHECK(test_write(path, all, n - 17 + sizeof added - 1));
        free(all);
        ft_tokenizer *tok = load(path);
        if (tok && (golden = test_shared("golden/llama2-hf.jsonl")) != NULL) golden_file(tok, golden, FTUNE_SPECIAL_PARSE, NULL);
        if (tok && (golden = test_shared("golden/llama2-hf.special.jsonl")) != NULL)
            golden_file(tok, golden, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL, NULL);
        in = test_shared("vocab/llama.cpp/ggml-vocab-llama-spm.gguf.inp");
        out = test_shared("vocab/llama.cpp/ggml-vocab-llama-spm.gguf.out");
        if (tok && in && out) golden_llama_cpp(tok, in, out);
        ft_tokenizer_free(tok);
    }
    free(text);
    in = test_shared("vocab/llama.cpp/ggml-vocab-phi-3.gguf.inp");
    out = test_shared("vocab/llama.cpp/ggml-vocab-phi-3.gguf.out");
    ft_tokenizer *tok = load(phi);
    if (tok && in && out) golden_llama_cpp(tok, in, out);
    ft_tokenizer_free(tok);
}

/* Every normalizer and pre-tokenizer of tokenizer.json against the original: the first row holds the model, see
 * tests/golden/make_steps.py. */
static void test_steps(void)
{
    size_t n = 0;
    char *data = test_read("tests/golden/steps.jsonl", &n), *p = data, *stop;
    const char *path = test_tmp("sp_steps.json");
    fti_json head = { 0 };
    int line = 1;
    golden_sorts_marks = 1;
    CHECK(data != NULL);
    for (; data && p < data + n && (stop = (char *)memchr(p, '\n', (size_t)(data + n - p))) != NULL; p = stop + 1, line++) {
        static const char *const part[] = { "model", "decoder", "normalizer", "pre_tokenizer" };
        fti_json row = { 0 };
        fti_buf file = { NULL, 0, 0, 0 };
        ft_error err = { FTUNE_OK, "" };
        CHECK_OK(fti_json_parse(line == 1 ? &head : &row, p, (size_t)(stop - p), "steps.jsonl", &err), err);
        if (line == 1) continue;
        for (int i = 0; i < 4; i++) {
            const fti_json *j = i < 2 ? &head : &row;
            const fti_json_node *node = &j->node[fti_json_get(j, 0, part[i])];
            fti_buf_fmt(&file, "%s\"%s\": %.*s", i ? ", " : "{", part[i], (int)node->len, j->text + node->start);
        }
        fti_buf_str(&file, "}");
        CHECK(!file.failed && test_write(path, file.p, file.n));
        ft_tokenizer *tok = load(path);
        if (tok) golden_row(tok, &row, 0, "steps.jsonl", line);
        ft_tokenizer_free(tok);
        fti_buf_free(&file);
        fti_json_free(&row);
    }
    golden_sorts_marks = 0;
    CHECK(line > 80);
    fti_json_free(&head);
    free(data);
}

/* Bytes that make no character. SentencePiece: one U+FFFD for each of them; tokenizer.json: for each of the whole run. */
static void test_bytes(void)
{
    static const unsigned char run[] = { 0xE4, 0xBD, 0x41, 0xC3, 0xA9, 0xFF };
    static const char *const expected[] = { "\xEF\xBF\xBD\xEF\xBF\xBD" "A\xC3\xA9\xEF\xBF\xBD",
        "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD" };
    for (int i = 0; i < 2; i++) {
        ft_tokenizer *tok = load(i ? "build/tmp/sp_llama.json" : "tests/data/spm_bpe.model");
        int32_t ids[6];
        char back[64], name[8];
        size_t n = 0;
        ft_error err = { FTUNE_OK, "" };
        for (int k = 0; k < 6 && tok; k++) {
            snprintf(name, sizeof name, "<0x%02X>", run[k]);
            ids[k] = ft_token_id(tok, name, 6);
        }
        if (tok) CHECK_OK(ft_tokenizer_decode(tok, ids, 6, 0, back, sizeof back, &n, &err), err);
        CHECK_MSG(n == strlen(expected[i]) && !memcmp(back, expected[i], n), "bytes %d: found \"%.*s\"", i, (int)n, back);
        ft_tokenizer_free(tok);
    }
}

/* spm_bpe with the rules of spm_unigram as its denormaliser: what it decodes is rewritten by them. */
static void test_denormalizer(void)
{
    size_t n = 0, m = 0, n_other = 0;
    char *data = test_read("tests/data/spm_bpe.model", &n), *other = test_read("tests/data/spm_unigram.model", &n_other);
    char *all, back[32], name[8];
    fti_proto c = fti_proto_of(other, n_other), spec;
    ft_text rules = { NULL, 0 };
    ft_error err = { FTUNE_OK, "" };
    int32_t ids[3];
    while (fti_proto_next(&c) > 0)
        if (c.field == 3)
            for (spec = fti_proto_of(c.bytes.p, c.bytes.n); fti_proto_next(&spec) > 0; ) if (spec.field == 2) rules = spec.bytes;
    CHECK(rules.n > 1000 && rules.n < 1 << 21);
    all = (char *)malloc(n + rules.n + 32);
    memcpy(all, data, n);
    {
        const char head[] = { 0x2A, (char)((rules.n + 10) | 128), (char)((rules.n + 10) >> 7 | 128), (char)((rules.n + 10) >> 14),
                              0x12, (char)(rules.n | 128), (char)(rules.n >> 7 | 128), (char)(rules.n >> 14) };
        static const char tail[] = { 0x18, 0, 0x20, 0, 0x28, 0 };        /* no prefix, nothing squeezed, spaces stay */
        memcpy(all + n, head, 8);
        memcpy(all + n + 8, rules.p, rules.n);
        memcpy(all + n + 8 + rules.n, tail, 6);
    }
    CHECK(test_write(test_tmp("sp_denormal.model"), all, n + rules.n + 14));
    ft_tokenizer *tok = load(test_tmp("sp_denormal.model"));
    for (int k = 0; k < 3 && tok; k++) {
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)(unsigned char)"\xEF\xAC\x81"[k]);
        ids[k] = ft_token_id(tok, name, 6);
    }
    if (tok) CHECK_OK(ft_tokenizer_decode(tok, ids, 3, 0, back, sizeof back, &m, &err), err);
    CHECK_MSG(m == 2 && !memcmp(back, "fi", 2), "expected the ligature to come out as fi, found \"%.*s\"", (int)m, back);
    ft_tokenizer_free(tok);
    free(data);
    free(other);
    free(all);
}

/* One id at a time comes to the same text as all at once: where a second table rewrites it ("Th" -> "H") what may be the
 * beginning of a rule waits; spaces in front go, however many; of a run of bytes that is no character each is U+FFFD. */
static void test_streams(const char *path, int rewrites)
{
    static const char *const some[] = { "T", "t", "h", "\xE2\x96\x81", "\xE2\x96\x81T", "\xE2\x96\x81", "\xE2\x96\x81\xE2\x96\x81", "<s>", "<unk>",
        "<0xE4>", "<0xBD>", "<0xA0>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x41>", "<0xED>" };
    ft_tokenizer *tok = path ? load(path) : NULL;
    ft_rng rng;
    int different = 0, rewritten = 0;
    ft_rng_seed(&rng, 1);
    for (int row = 0; tok && row < 20000; row++) {
        int32_t ids[8];
        char whole[4096], shown[4096];
        size_t n = 1 + ft_rng_below(&rng, 8), n_whole = 0, n_shown = 0;
        ft_error err = { FTUNE_OK, "" };
        ft_stream s;
        for (size_t i = 0; i < n; i++) {
            const char *piece = some[row % 3 ? ft_rng_below(&rng, 9) : ft_rng_below(&rng, sizeof some / sizeof *some)];
            ids[i] = row % 4 == 3 && ft_rng_below(&rng, 2) ? -1 : ft_token_id(tok, piece, strlen(piece));
            while (ids[i] < 0) ids[i] = (int32_t)ft_rng_below(&rng, (uint64_t)ft_tokenizer_size(tok));
        }
        CHECK_OK(ft_tokenizer_decode(tok, ids, n, row & 1, whole, sizeof whole, &n_whole, &err), err);
        ft_stream_init(&s, tok, row & 1);
        for (size_t i = 0; i < n; i++) n_shown += ft_stream_push(&s, ids[i], shown + n_shown, 512).n;
        n_shown += ft_stream_finish(&s, shown + n_shown, 64).n;
        if (n_shown != n_whole || memcmp(shown, whole, n_whole)) {
            if (!different++) fprintf(stderr, "%s: streamed \"%.*s\", decoded \"%.*s\"\n", path, (int)n_shown, shown, (int)n_whole, whole);
        }
        rewritten += n_whole && memchr(whole, 'H', n_whole) != NULL;
    }
    CHECK_INT(different, 0);
    CHECK(!tok || !rewrites || rewritten > 20);
    ft_tokenizer_free(tok);
}

/* A file takes no more memory than 4 times its size and 1 MiB while it is loaded (DESIGN.md, section 7). */
static void test_memory(void)
{
    static const char *const file[][2] = {
        { "baichuan2/tokenizer.model", "" }, { "bert-base-cased/vocab.txt", "" }, { "bert-base-chinese/vocab.txt", "" },
        { "bert-base-uncased/vocab.txt", "" }, { "bert-base-uncased/tokenizer.json", "" }, { "chatglm3/tokenizer.model", "" },
        { "cl100k_base/cl100k_base.tiktoken", "" }, { "gpt2/vocab.json", "gpt2/merges.txt" }, { "internlm2/tokenizer.model", "" },
        { "kimi-k2/tiktoken.model", "" }, { "llama2/tokenizer.model", "" }, { "llama3/tokenizer.model", "" },
        { "mistral/mistral_instruct_tokenizer_240323.model.v3", "" }, { "mistral/tokenizer.model.v1", "" },
        { "o200k_base/o200k_base.tiktoken", "" }, { "phi-3/tokenizer.json", "" }, { "qwen/qwen.tiktoken", "" },
        { "qwen2/vocab.json", "qwen2/merges.txt" }, { "qwen2/tokenizer.qwen3.json", "" }, { "roberta-base/tokenizer.json", "" },
        { "sentencepiece-test/nmt.vocab.joint.spm", "" }, { "sentencepiece-test/test_ja_model.model", "" },
        { "sentencepiece-test/test_model.model", "" }, { "t5-small/tokenizer.json", "" }, { "xlnet/spiece.model", "" } };
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        char name[2][128];
        const char *path[2] = { NULL, NULL };
        size_t size = 0, n = 0, before;
        for (int k = 0; k < 2 && *file[i][k]; k++) {
            snprintf(name[k], sizeof name[k], "vocab/%s", file[i][k]);
            if ((path[k] = test_shared(name[k])) != NULL) free(test_read(path[k], &n));
            size += n;
        }
        if (!(path[0] = test_shared(name[0]))) continue;
        before = test_peak = test_bytes_now;
        ft_tokenizer *tok = load(path[0]);
        CHECK_MSG(test_peak - before <= 4 * size + 1048576, "%s: expected at most %.2f MB while loading, found %.2f MB", file[i][0],
                  (4 * size + 1048576) / 1e6, (test_peak - before) / 1e6);
        ft_tokenizer_free(tok);
    }
}

/* The same for files that say much with little. */
static void test_memory_hostile(void)
{
#define WORD_LEVEL "]},\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"a\",\"vocab\":{\"a\":0}}}"
#define RX(x) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" x "\"},\"behavior\":\"Isolated\",\"invert\":false}"
    static const char cuts[] = "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[";
    static const struct { const char *head, *part, *tail; int times; const char *message; } made[] = {
        { cuts, "{\"type\":\"Whitespace\"}", WORD_LEVEL, 100000, "pre_tokenizer: expected at most 256 steps" },
        { cuts, "{\"type\":\"Whitespace\"}", WORD_LEVEL, 250, NULL },
        { cuts, RX("a{900}|b{900}"), WORD_LEVEL, 500, "256 steps" },
        { cuts, RX("a{900}|b{900}"), WORD_LEVEL, 200, "regular expressions: expected smaller ones together" },
        { cuts, RX("a{1000}"), WORD_LEVEL, 200, "smaller ones together" },
        { "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[", "{\"type\":\"Fuse\"}", WORD_LEVEL, 100000, "decoder: expected at most 256" },
        { "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[", "{\"type\":\"NFC\"}", WORD_LEVEL, 100000, "normalizer: expected at most 256" },
        { "\n", "\n", "\n", 1000000, "piece 0: expected a text" } };       /* a .model: \n and \0 by turns */
    static char word[4];
    const char *path = test_tmp("sp_hostile");
    for (size_t i = 0; i <= sizeof made / sizeof *made; i++) {
        fti_buf b = { 0 };
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        ft_status status;
        size_t size, now;
        int lines = i == sizeof made / sizeof *made, model = i + 1 == sizeof made / sizeof *made;
        if (lines) fti_buf_str(&b, "[UNK]\n");
        for (int k = 0; lines && k < 38000; k++) {             /* vocab.txt: a character of three bytes a line */
            fti_buf_add(&b, word, (size_t)fti_utf8_encode(0x1000 + (uint32_t)k, word));
            fti_buf_add(&b, "\n", 1);
        }
        for (int k = 0; !lines && k < made[i].times; k++) {
            if (model) { fti_buf_add(&b, "\n\0", 2); continue; }
            fti_buf_str(&b, k ? "," : made[i].head);
            fti_buf_str(&b, made[i].part);
        }
        if (!lines && !model) fti_buf_str(&b, made[i].tail);
        CHECK(!b.failed && test_write(path, b.p, b.n));
        size = b.n;
        fti_buf_free(&b);
        now = test_peak = test_bytes_now;
        status = ft_tokenizer_load(&tok, path, NULL, &err);
        CHECK_MSG(test_peak - now <= 4 * size + 1048576, "hostile %d: %.2f MB of memory for %.2f MB", (int)i,
                  (double)(test_peak - now) / 1e6, (double)size / 1e6);
        if (lines || !made[i].message) CHECK_OK(status, err);
        else CHECK_MSG(status && strstr(err.message, made[i].message), "hostile %d: expected \"%s\", found \"%s\"", (int)i,
                       made[i].message, err.message);
        ft_tokenizer_free(tok);
    }
}

/* A user-defined piece is cut out before the table of rules sees its text: "aa" and a mark, not a and U+00E2. A field
 * that is put behind a .model is one more piece. */
static void test_user_before_rules(void)
{
    static const char piece[] = "\n\x0B\n\x02""aa\x15\0\0\0\0\x18\x04";
    const char *from = test_shared("vocab/sentencepiece-test/test_model.model"), *path = test_tmp("user.model");
    ft_error err = { FTUNE_OK, "" };
    size_t n = 0;
    char *data = from ? test_read(from, &n) : NULL;
    if (!data) return;
    data = (char *)realloc(data, n + sizeof piece);
    memcpy(data + n, piece, sizeof piece - 1);
    CHECK(test_write(path, data, n + sizeof piece - 1));
    free(data);
    ft_tokenizer *tok = load(path);
    if (!tok) return;
    int32_t ids[8], user = ft_token_id(tok, "aa", 2);
    CHECK_OK(ft_tokenizer_encode(tok, "aa\xCC\x82", 4, 0, ids, 8, &n, &err), err);
    CHECK_INT(n, 3);
    CHECK_INT(ids[1], user);
    ft_tokenizer_free(tok);
}

/* ChatGLM3's own control tokens, which its .model lacks. */
static void test_chatglm3(void)
{
    static const int32_t start[] = { 64790, 64792 }, turn[] = { 64795, 30910, 13 };
    const char *path = test_shared("vocab/chatglm3/tokenizer.model");
    ft_tokenizer *tok = path ? load(path) : NULL;
    if (!tok) return;
    CHECK_INT(ft_tokenizer_size(tok), 64798);
    CHECK_INT(ft_tokenizer_attribute(tok, "user_token_id"), 64795);
    CHECK_INT(ft_token_id(tok, "<|observation|>", 15), 64797);
    check_ids(tok, "", FTUNE_ADD_SPECIAL, start, 2);
    check_ids(tok, "<|user|>\n", FTUNE_SPECIAL_PARSE, turn, 3);
    ft_tokenizer_free(tok);
}

static void test_linear(void)
{
    static const char *const unit[] = { "a", " ", "-", ".", "\xE4\xB8\xAD", "\xCC\x81", "\xF0\x9F\x98\x80", "ha", "a ", "<user>", "\xE2\x91\xA0" };
    static const char *const model[] = { "tests/data/spm_bpe.model", "tests/data/spm_unigram.model", "tests/data/spm_suffix.model",
                                         "build/tmp/sp_llama.json", "build/tmp/sp_t5.json", "build/tmp/sp_steps.json" };
    for (size_t m = 0; m < sizeof model / sizeof *model; m++) {
        ft_tokenizer *tok = load(model[m]);
        ft_error err;
        for (size_t i = 0; tok && i < sizeof unit / sizeof *unit; i++) {
            size_t len = strlen(unit[i]), n = 0, times = m < 3 ? 300000 : 100000;
            char *text = (char *)malloc(times * len);
            for (size_t k = 0; k < times; k++) memcpy(text + k * len, unit[i], len);
            double t = fti_now();
            CHECK_OK(ft_tokenizer_encode(tok, text, times * len, 0, NULL, 0, &n, &err), err);
            t = fti_now() - t;
            CHECK_MSG(t < 1, "%s: %d of \"%s\": expected well under a second, found %.2f s", model[m], (int)times, unit[i], t);
            free(text);
        }
        ft_tokenizer_free(tok);
    }
}

/* Long runs of few characters: the same ids symbol by symbol (where pieces may come apart again there are no rounds), and
 * whether there is room for symbols and links where the ids will stand or not. */
static void test_long_runs(const char *path)
{
    static const char *const unit[] = { "a", " ", "-", "0", "=", "the", "\n", "\xE2\x96\x81", "\xD0\xB0", "\xE3\x80\x80", "\xF0\x9F\x98\x80", "ab" };
    enum { CAP = 20000 };
    static char text[CAP];
    static int32_t ids[3][3 * CAP];
    ft_tokenizer *tok = path ? load(path) : NULL;
    ft_error err;
    ft_rng rng;
    ft_rng_seed(&rng, 7);
    for (int round = 0; tok && round < 200; round++) {
        fti_sp *m = (fti_sp *)tok->model;
        size_t len = 0, n[3] = { 0, 0, 0 };
        int kinds = 1 + (int)ft_rng_below(&rng, 3), first = (int)ft_rng_below(&rng, sizeof unit / sizeof *unit);
        for (int i = 0; i < 6; i++) {
            const char *u = unit[(first + (int)ft_rng_below(&rng, kinds)) % (int)(sizeof unit / sizeof *unit)];
            for (size_t k = ft_rng_below(&rng, i % 2 ? 700 : 30); k-- > 0 && len + strlen(u) < CAP; len += strlen(u)) memcpy(text + len, u, strlen(u));
        }
        CHECK_OK(ft_tokenizer_encode(tok, text, len, FTUNE_SPECIAL_AS_TEXT, ids[0], 3 * CAP, &n[0], &err), err);
        CHECK_OK(ft_tokenizer_encode(tok, text, len, FTUNE_SPECIAL_AS_TEXT, ids[1], n[0], &n[1], &err), err);
        if (!m->json && !m->unigram) m->unused++;
        CHECK_OK(ft_tokenizer_encode(tok, text, len, FTUNE_SPECIAL_AS_TEXT, ids[2], 3 * CAP, &n[2], &err), err);
        if (!m->json && !m->unigram) m->unused--;
        for (int k = 1; k < 3; k++)
            CHECK_MSG(n[0] == n[k] && !memcmp(ids[0], ids[k], n[0] * sizeof **ids), "%s: round %d: other ids, %d", path, round, k);
    }
    ft_tokenizer_free(tok);
}

/* Memory runs out at the 1st, 2nd, 3rd .. allocation of loading and of encoding: an error, and nothing left behind. */
static void test_no_memory(void)
{
    static const char *const path[] = { "tests/data/spm_bpe.model", "tests/data/spm_unigram.model", "tests/data/spm_suffix.model",
                                        "tests/data/bert_slice/tokenizer.json", "build/tmp/sp_llama.json", "build/tmp/sp_t5.json",
                                        "build/tmp/sp_steps.json", "build/tmp/sp_denormal.model" };
    static char many[600];
    static const char text[] = "the cat sat on  the mat \xC3\xA9 \xE6\x9D\xAD\xE5\xB7\x9E haaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for (size_t i = 0; i < sizeof path / sizeof *path; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        int32_t ids[200];
        ft_span span[200];
        char back[2000];
        size_t n, m_back;
        TEST_EVERY_FAILURE(ft_tokenizer_load(&tok, path[i], NULL, &err), ft_tokenizer_free(tok));
        if (ft_tokenizer_load(&tok, path[i], NULL, &err)) continue;
        TEST_EVERY_FAILURE(ft_tokenizer_encode(tok, (char *)memset(many, 'a', sizeof many), sizeof many, 0, NULL, 0, &n, &err), (void)0);
        TEST_EVERY_FAILURE(ft_tokenizer_encode_spans(tok, text, sizeof text - 1, 0, NULL, 0, ids, span, 200, &n, &err), (void)0);
        for (size_t k = 0, m = n; k < m; k++) if (k % 3 == 0 && ft_token_id(tok, "<0xE4>", 6) >= 0) ids[k] = ft_token_id(tok, "<0xE4>", 6);
        TEST_EVERY_FAILURE(ft_tokenizer_decode(tok, ids, n, 0, back, sizeof back, &m_back, &err), (void)0);
        ft_tokenizer_free(tok);
    }
}

/* Words met before: the same ids as where offsets are asked for, which nothing remembers; and each id has its place. */
static void test_words_again(const char *path)
{
    static const char *const word[] = { "the", " ", " hello", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80", "aa", " world", ".", "\xE2\x96\x81",
                                        " internationalization", "\xCF\x80", " 1234", "<sep>", "\n" };
    enum { CAP = 8192 };
    static char text[CAP];
    static int32_t ids[2][CAP];
    static ft_span at[CAP];
    ft_tokenizer *tok = path ? load(path) : NULL;
    ft_error err = { FTUNE_OK, "" };
    ft_rng rng;
    ft_rng_seed(&rng, 5);
    for (int round = 0; tok && round < 50; round++) {
        size_t len = 0, n[2] = { 0, 0 };
        for (int i = 0; i < 200; i++) {
            const char *w = word[ft_rng_below(&rng, sizeof word / sizeof *word)];
            memcpy(text + len, w, strlen(w));
            len += strlen(w);
        }
        CHECK_OK(ft_tokenizer_encode(tok, text, len, FTUNE_SPECIAL_AS_TEXT, ids[0], CAP, &n[0], &err), err);
        CHECK_OK(ft_tokenizer_encode_spans(tok, text, len, FTUNE_SPECIAL_AS_TEXT, NULL, 0, ids[1], at, CAP, &n[1], &err), err);
        CHECK_MSG(n[0] == n[1] && !memcmp(ids[0], ids[1], n[0] * sizeof **ids), "%s: round %d: other ids with offsets", path, round);
        for (size_t i = 1; i < n[1]; i++) CHECK(at[i - 1].begin <= at[i].begin && at[i].begin <= at[i].end && at[i].end <= len);
    }
    ft_tokenizer_free(tok);
}

int main(void)
{
    static const char *const bpe[] = { "vocab/llama2/tokenizer.model", "vocab/baichuan2/tokenizer.model", "vocab/internlm2/tokenizer.model",
                                       "vocab/phi-3/tokenizer.json" };
    const char *path;
    test_small_models();
    test_control();
    test_json_bpe();
    test_json_unigram();
    test_refused();
    test_golden();
    test_llama2_hf();
    test_steps();
    test_bytes();
    test_denormalizer();
    test_streams(test_shared("vocab/sentencepiece-test/nmt.vocab.joint.spm"), 1);
    test_streams(test_shared("vocab/sentencepiece-test/test_model.model"), 0);
    test_streams(test_shared("vocab/llama2/tokenizer.model"), 0);
    test_streams("tests/data/spm_unigram.model", 0);
    test_streams("tests/data/spm_bpe.model", 0);
    test_streams("tests/data/spm_suffix.model", 0);
    test_memory();
    test_memory_hostile();
    test_chatglm3();
    test_user_before_rules();
    test_linear();
    test_words_again("tests/data/spm_bpe.model");
    test_words_again("tests/data/spm_suffix.model");
    for (int i = 0; i < 4; i++) test_words_again(test_shared(bpe[i]));
    for (int i = 0; i < 4; i++) test_long_runs(test_shared(bpe[i]));
    test_long_runs("tests/data/spm_bpe.model");
    test_long_runs("tests/data/spm_unigram.model");
    test_long_runs(test_shared("vocab/t5-small/tokenizer.json"));
    test_long_runs(test_shared("vocab/xlnet/spiece.model"));
    test_no_memory();
    hostile_file("tests/data/spm_bpe.model", 1);
    hostile_file("tests/data/spm_unigram.model", 1);
    hostile_file("tests/data/spm_suffix.model", 1);
    if ((path = test_shared("vocab/sentencepiece-test/test_model.model")) != NULL) hostile_file(path, 1499);
    return test_end();
}
