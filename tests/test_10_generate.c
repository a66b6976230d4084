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

int main(void)
{
    ft_backend *be = tiny_backend(2);
    test_cache(be);
    test_stopping(be);
    test_sampling();
    test_seed(be);
    test_answer(be);
    ft_backend_free(be);
    return test_end();
}
