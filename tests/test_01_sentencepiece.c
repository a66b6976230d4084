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
    static const char head[] = "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":1,\"content\":\"<s>\",\"special\":true}],"
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
    static const char text[] = "{\"added_tokens\":[{\"id\":1,\"content\":\"</s>\",\"special\":true}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
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
    static const char added[] = "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":1,\"content\":\"<s>\",\"special\":true},"
        "{\"id\":2,\"content\":\"</s>\",\"special\":true}],\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
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
    static const char *const model[] = { "tests/data/spm_bpe.model", "tests/data/spm_unigram.model", "tests/data/spm_suffix.model" };
    for (int m = 0; m < 3; m++) {
        ft_tokenizer *tok = load(model[m]);
        ft_error err;
        for (size_t i = 0; tok && i < sizeof unit / sizeof *unit; i++) {
            size_t len = strlen(unit[i]), n = 0;
            char *text = (char *)malloc(300000 * len);
            for (size_t k = 0; k < 300000; k++) memcpy(text + k * len, unit[i], len);
            double t = fti_now();
            CHECK_OK(ft_tokenizer_encode(tok, text, 300000 * len, 0, NULL, 0, &n, &err), err);
            t = fti_now() - t;
            CHECK_MSG(t < 1, "%s: 300000 of \"%s\": expected well under a second, found %.2f s", model[m], unit[i], t);
            free(text);
        }
        ft_tokenizer_free(tok);
    }
}

/* Memory runs out at the 1st, 2nd, 3rd .. allocation of loading and of encoding: an error, and nothing left behind. */
static void test_no_memory(void)
{
    static const char *const path[] = { "tests/data/spm_bpe.model", "tests/data/spm_unigram.model", "tests/data/spm_suffix.model",
                                        "tests/data/bert_slice/tokenizer.json", "build/tmp/sp_llama.json", "build/tmp/sp_t5.json" };
    static const char text[] = "the cat sat on  the mat \xC3\xA9 \xE6\x9D\xAD\xE5\xB7\x9E haaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for (size_t i = 0; i < sizeof path / sizeof *path; i++) {
        ft_tokenizer *tok = NULL;
        ft_error err = { FTUNE_OK, "" };
        int32_t ids[200];
        ft_span span[200];
        size_t n;
        TEST_EVERY_FAILURE(ft_tokenizer_load(&tok, path[i], NULL, &err), ft_tokenizer_free(tok));
        if (ft_tokenizer_load(&tok, path[i], NULL, &err)) continue;
        TEST_EVERY_FAILURE(ft_tokenizer_encode_spans(tok, text, sizeof text - 1, 0, NULL, 0, ids, span, 200, &n, &err), (void)0);
        ft_tokenizer_free(tok);
    }
}

int main(void)
{
    const char *path;
    test_small_models();
    test_control();
    test_json_bpe();
    test_json_unigram();
    test_refused();
    test_golden();
    test_llama2_hf();
    test_chatglm3();
    test_linear();
    test_no_memory();
    hostile_file("tests/data/spm_bpe.model", 1);
    hostile_file("tests/data/spm_unigram.model", 1);
    hostile_file("tests/data/spm_suffix.model", 1);
    if ((path = test_shared("vocab/sentencepiece-test/test_model.model")) != NULL) hostile_file(path, 1499);
    return test_end();
}
