/* test_10_generate.c - the cache against recomputing everything, batches against one by one, choosing an id
 * Build: cc -O2 -march=native -fopenmp -I. tests/test_10_generate.c -o build/test_10_generate -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "tiny_model.h"

static ft_error err;

/* Greedy without a cache: the whole text again for every id. */
static int slowly(ft_model *m, const int32_t *ids, int n, int32_t *out, int cap)
{
    int V = m->config.vocab_size, k = 0;
    int32_t text[256];
    memcpy(text, ids, (size_t)n * 4);
    for (; k < cap; k++) {
        ft_sample s;
        ft_batch b;
        float *z = (float *)malloc((size_t)(n + k) * (size_t)V * sizeof *z);
        memset(&s, 0, sizeof s);
        memset(&b, 0, sizeof b);
        s.input_ids = text; s.n = n + k;
        CHECK_OK(ft_batch_add(&b, &s, 0, 0, &err), err);
        CHECK_OK(ft_model_logits(m, &b, z, &err), err);
        text[n + k] = out[k] = fti_argmax(z + (size_t)(n + k - 1) * (size_t)V, V);
        free(z);
        ft_batch_free(&b);
    }
    return k;
}

static void test_cache(ft_backend *be)
{
    int32_t prompts[70][24], expected[70][40], out[70 * 40];
    const int32_t *ids[70];
    int n[70], n_out[70];
    ft_generate_options o = ft_generate_options_default();
    ft_rng rng;
    ft_rng_seed(&rng, 3);
    o.max_new_tokens = 40;
    for (int k = 0; k < 2; k++) {
        ft_model *m = tiny_model(be, k, !k);
        ft_lora_config c = tiny_lora("all-linear", 2);
        CHECK_OK(ft_lora_attach(m, &c, 1, &err), err);
        tiny_stir(m, 9, 0.1f);
        for (int p = 0; p < 70; p++) {
            n[p] = 1 + p % 23;
            ids[p] = prompts[p];
            for (int i = 0; i < n[p]; i++) prompts[p][i] = (int32_t)ft_rng_below(&rng, 37);
            if (p < 8 || p > 66) slowly(m, prompts[p], n[p], expected[p], 40);
        }
        for (int p = 0; p < 8; p++) {
            CHECK_OK(ft_generate(m, prompts[p], n[p], &o, out, 40, n_out, &err), err);
            CHECK_INT(n_out[0], 40);
            CHECK_MSG(memcmp(out, expected[p], 160) == 0, "prompt %d: with the cache other ids than without", p);
        }
        CHECK_OK(ft_generate_batch(m, ids, n, 70, &o, out, 40, n_out, &err), err);
        for (int p = 0; p < 70; p++)
            if (p < 8 || p > 66)
                CHECK_MSG(memcmp(out + 40 * p, expected[p], 160) == 0, "prompt %d: in a batch other ids than alone", p);
        ft_model_free(m);
    }
}

static int seen[64], n_seen, stop_after;
static int on_token(void *user, int32_t id)
{
    (void)user;
    seen[n_seen++] = (int)id;
    return n_seen == stop_after;
}

static void test_stopping(ft_backend *be)
{
    ft_model *m = tiny_model(be, 0, 1);
    const int32_t prompt[5] = { 3, 14, 15, 9, 2 };
    int32_t all[20], out[20], stop[2];
    int n, first;
    ft_generate_options o = ft_generate_options_default();
    CHECK_OK(ft_generate(m, prompt, 5, &o, all, 20, &n, &err), err);
    CHECK_INT(n, 20);                                          /* cap is smaller than max_new_tokens */
    stop[0] = 36; stop[1] = all[7];
    for (first = 0; all[first] != stop[1] && all[first] != 36; first++) {}
    o.stop_ids = stop; o.n_stop = 2;
    CHECK_OK(ft_generate(m, prompt, 5, &o, out, 20, &n, &err), err);
    CHECK_INT(n, first);
    CHECK(memcmp(out, all, (size_t)n * 4) == 0);
    o.n_stop = 0; o.on_token = on_token; stop_after = 3; n_seen = 0;
    CHECK_OK(ft_generate(m, prompt, 5, &o, out, 20, &n, &err), err);
    CHECK_INT(n, 3);
    for (int i = 0; i < 3; i++) CHECK_INT(seen[i], all[i]);
    o.on_token = NULL; o.max_new_tokens = 0;
    CHECK_OK(ft_generate(m, prompt, 5, &o, out, 20, &n, &err), err);
    CHECK_INT(n, 0);
    o.max_new_tokens = 5;
    CHECK_FAILS(ft_generate(m, prompt, 0, &o, out, 20, &n, &err), err, FTUNE_ERR_ARGUMENT, "prompt 0 is empty");
    stop[0] = 99; o.n_stop = 1;
    CHECK_FAILS(ft_generate(m, prompt, 5, &o, out, 20, &n, &err), err, FTUNE_ERR_ARGUMENT, "stop id 99");
    o.n_stop = 0;
    CHECK_OK(ft_generate(m, prompt, 5, &o, out, 20, &n, &err), err);
    TEST_EVERY_FAILURE(ft_generate(m, prompt, 5, &o, out, 20, &n, NULL), (void)0);
    o.temperature = -1.0f;
    CHECK_FAILS(ft_generate(m, prompt, 5, &o, out, 20, &n, &err), err, FTUNE_ERR_ARGUMENT, "temperature -1");
    o.temperature = 0.0f;
    all[0] = 37;
    CHECK_FAILS(ft_generate(m, all, 1, &o, out, 20, &n, &err), err, FTUNE_ERR_ARGUMENT, "37");
    ft_model_free(m);
}

/* Ids drawn from known logits: the shares must be the probabilities; cut ids must never come. */
static void test_sampling(void)
{
    static const double p[6] = { 0.4, 0.25, 0.15, 0.1, 0.06, 0.04 };
    ft_generate_options o = ft_generate_options_default();
    float z[6];
    fti_choice choice[6];
    for (int way = 0; way < 6; way++) {
        double count[6] = { 0 }, expected[6], sum = 0.0;
        ft_rng rng;
        ft_rng_seed(&rng, 12);
        o.temperature = way == 1 ? 0.5f : 1.0f;
        o.top_k = way == 2 || way == 4 ? 3 : way == 5 ? 1 : 0;
        o.top_p = way == 3 ? 0.75f : way == 4 ? 0.6f : 1.0f;
        for (int i = 0; i < 6; i++) expected[i] = way == 1 ? p[i] * p[i] : p[i];
        if (way == 2 || way == 3) expected[3] = expected[4] = expected[5] = 0.0;  /* .4 + .25 + .15 reaches .75 */
        if (way == 4) for (int i = 2; i < 6; i++) expected[i] = 0.0;              /* of three: .5 + .31 reaches .6 */
        if (way == 5) for (int i = 1; i < 6; i++) expected[i] = 0.0;
        for (int i = 0; i < 6; i++) sum += expected[i];
        for (int n = 0; n < 20000; n++) {
            for (int i = 0; i < 6; i++) z[(i * 5 + 2) % 6] = (float)log(p[i]) + 3.0f;
            count[(5 * (fti_sample(z, 6, &o, &rng, choice) - 2 + 6)) % 6]++;
        }
        for (int i = 0; i < 6; i++) {
            CHECK_NEAR(count[i] / 20000.0, expected[i] / sum, 0.015, 0.0);
            if (expected[i] == 0.0) CHECK_INT(count[i], 0);
        }
    }
    { static const float tie[5] = { 1, 4, 2, 4, 4 };
      CHECK_INT(fti_argmax(tie, 5), 1); }
    { float y[4] = { 2, -2, 2, -2 };
      uint8_t mark[4] = { 0 };
      const int32_t ids[3] = { 0, 1, 0 }, more[1] = { 1 };
      fti_penalize(y, 2.0f, ids, 3, more, 1, mark);
      CHECK(y[0] == 1.0f && y[1] == -4.0f && y[2] == 2.0f && y[3] == -2.0f && !mark[0] && !mark[1]); }
}

/* Same seed, same text, alone or in a batch; a high penalty forbids repeating. */
static void test_seed(ft_backend *be)
{
    ft_model *m = tiny_model(be, 0, 1);
    const int32_t prompt[3] = { 1, 2, 3 };
    int32_t a[30], b[30], two[60];
    const int32_t *ids[2] = { prompt, prompt };
    int n = 0, k = 0, lengths[2] = { 3, 3 }, n_two[2];
    ft_generate_options o = ft_generate_options_default();
    o.temperature = 1.5f; o.seed = 7;
    CHECK_OK(ft_generate(m, prompt, 3, &o, a, 30, &n, &err), err);
    CHECK_OK(ft_generate(m, prompt, 3, &o, b, 30, &k, &err), err);
    CHECK(n == k && memcmp(a, b, sizeof a) == 0);
    CHECK_OK(ft_generate_batch(m, ids, lengths, 2, &o, two, 30, n_two, &err), err);
    CHECK(memcmp(two, a, sizeof a) == 0 && memcmp(two + 30, a, sizeof a) != 0);
    o.seed = 8;
    CHECK_OK(ft_generate(m, prompt, 3, &o, b, 30, &k, &err), err);
    CHECK(memcmp(a, b, sizeof a) != 0);
    o.temperature = 0.0f; o.repetition_penalty = 1e9f;
    CHECK_OK(ft_generate(m, prompt, 3, &o, a, 12, &n, &err), err);
    for (int i = 0; i < n; i++) for (int j = 0; j < i; j++) CHECK(a[i] != a[j]);
    ft_model_free(m);
}

/* ft_answer with the byte tokenizer: its ids are bytes + 16, so a model of 272 ids can say anything. */
static void test_answer(ft_backend *be)
{
    ft_config c = tiny_config(0, 1);
    ft_model *m = NULL;
    ft_tokenizer *tok = NULL;
    ft_chat_options chat = ft_chat_options_default();
    ft_generate_options o = ft_generate_options_default();
    const ft_message ask[1] = { { "user", "Hello" } };
    char out[600] = "x", little[4];
    c.vocab_size = 290;
    CHECK_OK(ft_tokenizer_load(&tok, "bytes", NULL, &err), err);
    CHECK_OK(ft_model_init(&m, &c, 2, be, &err), err);
    o.max_new_tokens = 60; o.temperature = 2.0f;
    CHECK_OK(ft_answer(m, tok, &chat, ask, 1, &o, out, sizeof out, &err), err);
    CHECK(strlen(out) > 10 && fti_utf8_valid(out, strlen(out)) == strlen(out));
    CHECK_FAILS(ft_answer(m, tok, &chat, ask, 1, &o, little, sizeof little, &err), err, FTUNE_ERR_BUFFER_TOO_SMALL, "");
    ft_model_free(m);
    ft_tokenizer_free(tok);
}

/* A text through a stop stream, id by id; what comes out, with a bar after each piece when bars is set. */
static const char *spoken(const ft_tokenizer *tok, const int32_t *ids, size_t n, const ft_text *stop, int n_stop, int bars)
{
    static char all[4000];
    char out[1024 + FTUNE_MAX_STOP];
    ft_stop_stream s;
    size_t k = 0;
    CHECK_OK(ft_stop_stream_init(&s, tok, stop, n_stop, &err), err);
    for (size_t i = 0; i <= n && k < 2000; i++) {
        ft_text t = i < n && !s.stopped ? ft_stop_stream_push(&s, ids[i], out, sizeof out) : ft_stop_stream_finish(&s, out, sizeof out);
        CHECK(fti_utf8_valid(t.p, t.n) == t.n);
        if (t.n) memcpy(all + k, t.p, t.n);
        k += t.n;
        if (bars && t.n) all[k++] = '|';
    }
    all[k] = 0;
    return all;
}

static const char *said(const ft_tokenizer *tok, const char *text, const char *a, const char *b, int bars)
{
    const ft_text stop[2] = { ft_text_of(a), ft_text_of(b) };
    int32_t ids[500];
    size_t n = 0;
    CHECK_OK(ft_tokenizer_encode(tok, text, strlen(text), FTUNE_SPECIAL_PARSE, ids, 500, &n, &err), err);
    return spoken(tok, ids, n, stop, !a ? 0 : b ? 2 : 1, bars);
}

static void test_stop_texts(void)
{
    static const char *const letter[] = { "a", "b", "\n", "\xC3\xA9", "\xC3\xA8", "\xE6\x9D\xAD" };
    static char longest[FTUNE_MAX_STOP + 2];
    ft_tokenizer *tok = NULL, *bpe = NULL;
    ft_stop_stream s;
    ft_text stop[3];
    ft_rng rng;
    int stopped = 0;
    CHECK_OK(ft_tokenizer_load(&tok, "bytes", NULL, &err), err);
    CHECK_STR(said(tok, "Yes.\n\nUser", "\n\n", NULL, 0), "Yes.");
    CHECK_STR(said(tok, "Yes.\nNo.\n", "\n\n", NULL, 0), "Yes.\nNo.\n");       /* given free at the end */
    CHECK_STR(said(tok, "a<<</s>b", "</s>", NULL, 1), "a|<|<|");                   /* not a byte too early or too late */
    CHECK_STR(said(tok, "aabaabaac", "aabaac", NULL, 0), "aab");                   /* begins again within itself */
    CHECK_STR(said(tok, "xaby", "abc", "b", 0), "xa");
    CHECK_STR(said(tok, "xabcy", "bc", "abc", 0), "x");                            /* both end here: the longer one */
    CHECK_STR(said(tok, "h\xC3\xA9!", "\xC3\xA8", NULL, 1), "h|\xC3\xA9|!|");        /* a shared first byte */
    CHECK_STR(said(tok, "h\xC3\xA9!", NULL, NULL, 0), "h\xC3\xA9!");
    {                                                                              /* an incomplete character at the end */
        static const int32_t ids[] = { 'a' + 16, '<' + 16, 0xC3 + 16 };
        stop[0] = ft_text_of("</s>");
        CHECK_STR(spoken(tok, ids, 3, stop, 1, 0), "a<\xEF\xBF\xBD");
    }
    ft_rng_seed(&rng, 4);
    for (int round = 0; round < 20000; round++) {                                  /* against looking at the whole text each time */
        char text[80] = "", want[3][20] = { "", "", "" };
        int n_stop = 1 + (int)ft_rng_below(&rng, 3), letters = 2 + (int)ft_rng_below(&rng, 5);
        size_t cut = 0, end = 0;
        int32_t ids[80];
        for (int i = (int)ft_rng_below(&rng, 20); i > 0; i--) strcat(text, letter[ft_rng_below(&rng, (uint64_t)letters)]);
        for (int k = 0; k < n_stop; k++) {
            for (int i = 1 + (int)ft_rng_below(&rng, 4); i > 0; i--) strcat(want[k], letter[ft_rng_below(&rng, (uint64_t)letters)]);
            stop[k] = ft_text_of(want[k]);
        }
        for (; text[end]; cut = ++end) {
            size_t most = 0;
            for (int k = 0; k < n_stop; k++)
                if (stop[k].n <= end + 1 && stop[k].n > most && !memcmp(text + end + 1 - stop[k].n, stop[k].p, stop[k].n)) most = stop[k].n;
            if (most) { cut = end + 1 - most; stopped++; break; }
        }
        for (size_t i = 0; text[i]; i++) ids[i] = (unsigned char)text[i] + 16;
        {
            const char *found = spoken(tok, ids, strlen(text), stop, n_stop, 0);
            CHECK_MSG(strlen(found) == cut && !memcmp(found, text, cut), "%s until %s: expected %d bytes, found %s", text, want[0], (int)cut, found);
        }
    }
    CHECK(stopped > 5000 && stopped < 19000);
    memset(longest, 'x', sizeof longest - 1);
    stop[0] = ft_text_of(longest); stop[0].n = FTUNE_MAX_STOP;
    CHECK_OK(ft_stop_stream_init(&s, tok, stop, 1, &err), err);
    stop[0].n++;
    CHECK_FAILS(ft_stop_stream_init(&s, tok, stop, 1, &err), err, FTUNE_ERR_ARGUMENT, "stop text 0: expected 1 to 256");
    stop[0] = ft_text_of("");
    CHECK_FAILS(ft_stop_stream_init(&s, tok, stop, 1, &err), err, FTUNE_ERR_ARGUMENT, "found 0 bytes");
    stop[0] = ft_text_of("a"); stop[1] = ft_text_of("\xA9");
    CHECK_FAILS(ft_stop_stream_init(&s, tok, stop, 2, &err), err, FTUNE_ERR_ARGUMENT, "stop text 1");
    CHECK_OK(ft_tokenizer_load(&bpe, "tests/data/qwen_slice.tiktoken", &(ft_tokenizer_options){ .splitter = "qwen", .lowercase = -1 }, &err), err);
    CHECK_STR(said(bpe, "a\n<|im_end|>b", "\n<|im_end|>", NULL, 0), "a");            /* half text, half control token */
    CHECK_STR(said(bpe, "a\n<|im_end|>b", "\n<|endoftext|>", NULL, 0), "a\nb");      /* which is never shown */
    ft_tokenizer_free(bpe);
    ft_tokenizer_free(tok);
}

/* What ends an answer: an id, a text, or both, by template and tokenizer. */
static void test_end_marks(ft_backend *be)
{
    static const struct { const char *suffix, *text; int id; } cases[] = {
        { "<|im_end|>", "", 151645 }, { "<|im_end|>\n", "", 151645 }, { " \n", " \n", 715 }, { "\n\n", "\n\n", 271 },
        { "</s>", "</s>", -1 }, { " </s>\n", "</s>", -1 }, { FTUNE_IDS "7", "", 7 }, { FTUNE_IDS "7 8", "", -1 } };
    ft_tokenizer *tok = NULL, *bytes = NULL;
    ft_registry *r = NULL;
    ft_chat_options chat = ft_chat_options_default();
    ft_generate_options o = ft_generate_options_default();
    const ft_message ask[1] = { { "user", "Hello" } };
    ft_config c = tiny_config(0, 1);
    ft_model *m = NULL;
    char name[20], whole[600], out[600], mark[4] = "";
    int32_t none = 0;
    size_t at;
    CHECK_OK(ft_tokenizer_load(&tok, "tests/data/qwen_slice.tiktoken", &(ft_tokenizer_options){ .splitter = "qwen", .lowercase = -1 }, &err), err);
    CHECK_OK(ft_tokenizer_load(&bytes, "bytes", NULL, &err), err);
    CHECK_OK(ft_registry_new(&r, &err), err);
    chat.registry = r;
    chat.template_name = name;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ft_template t = { .name = name, .prompt = { "{{QUERY}}" }, .suffix = { cases[i].suffix }, .single_round = 1 };
        int32_t ids[4], id;
        int n, found = -1;
        ft_text text;
        snprintf(name, sizeof name, "mark%d", (int)i);
        CHECK_OK(ft_template_register(r, &t, &err), err);
        n = ft_chat_stop_ids(tok, &chat, ids, 4);
        id = ft_tokenizer_attribute(tok, "eos_token_id");
        for (int k = 0; k < n; k++) if (ids[k] != id || id == cases[i].id) found = (int)ids[k];
        text = ft_chat_stop_text(tok, &chat);
        if (cases[i].id != 271 && cases[i].id != 715) CHECK_INT(found, cases[i].id);    /* in the slice they may be two tokens */
        CHECK_MSG(text.n == strlen(cases[i].text) && !memcmp(text.p ? text.p : "", cases[i].text, text.n), "suffix %d: text of %d bytes", (int)i, (int)text.n);
    }
    c.vocab_size = 290;                                                /* the byte tokenizer knows 272 of them */
    CHECK_OK(ft_model_init(&m, &c, 2, be, &err), err);
    o.max_new_tokens = 200; o.temperature = 2.0f;
    strcpy(name, "mark4");
    CHECK_OK(ft_answer(m, bytes, &chat, ask, 1, &o, whole, sizeof whole, &err), err);
    for (at = 20; whole[at] && !(whole[at] > ' ' && whole[at + 1] > ' ' && whole[at + 1] != whole[at]); at++) {}
    CHECK(whole[at] != 0);
    if (whole[at]) {                                                   /* two letters of the answer as the end mark */
        ft_template t = { .name = "two", .prompt = { "{{QUERY}}" }, .suffix = { mark }, .single_round = 1 };
        memcpy(mark, whole + at, 2);
        strcpy(name, "two");
        CHECK_OK(ft_template_register(r, &t, &err), err);
        CHECK_OK(ft_answer(m, bytes, &chat, ask, 1, &o, out, sizeof out, &err), err);
        at = (size_t)(strstr(whole, mark) - whole);
        CHECK_MSG(strlen(out) == at && !memcmp(out, whole, at), "until %s: expected %d bytes of %s, found %s", mark, (int)at, whole, out);
        o.stop_ids = &none;                                            /* its own: what ends an answer is not looked up */
        o.max_new_tokens = 20;
        TEST_EVERY_FAILURE(ft_answer(m, bytes, &chat, ask, 1, &o, out, sizeof out, NULL), (void)0);
    }
    ft_model_free(m);
    ft_registry_free(r);
    ft_tokenizer_free(tok);
    ft_tokenizer_free(bytes);
}

int main(void)
{
    ft_backend *be = tiny_backend(2);
    test_cache(be);
    test_stopping(be);
    test_sampling();
    test_seed(be);
    test_answer(be);
    test_stop_texts();
    test_end_marks(be);
    ft_backend_free(be);
    return test_end();
}
