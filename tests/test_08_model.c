/* test_08_model.c - forward and backward of the whole model, adapters, files, plan
 * Build: cc -O2 -march=native -fopenmp -I. tests/test_08_model.c -o build/test_08_model -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "tiny_model.h"

static ft_error err;

static double loss_of(ft_model *m, const ft_batch *b)
{
    ft_loss loss = { 0 };
    CHECK_OK(ft_model_step(m, b, 0.0f, 0, &loss, &err), err);
    return loss.sum / loss.n;
}

/* Slope along a direction d by four points: (8 (f(e) - f(-e)) - (f(2e) - f(-2e))) / 12e, error e^4 and rounding / e. */
static double slope(ft_model *m, const ft_batch *b, float *x, const float *d, size_t n, double e)
{
    static const double at[4] = { 1, -1, 2, -2 }, weight[4] = { 8, -8, -1, 1 };
    float *x0 = (float *)malloc(n * sizeof *x0);
    double sum = 0.0;
    memcpy(x0, x, n * sizeof *x0);
    for (int k = 0; k < 4; k++) {
        for (size_t i = 0; i < n; i++) x[i] = (float)(x0[i] + at[k] * e * d[i]);
        sum += weight[k] * loss_of(m, b);
    }
    memcpy(x, x0, n * sizeof *x0);
    free(x0);
    return sum / (12.0 * e);
}

/* Every trainable tensor, along its own gradient (slope must be its length) and along a random direction. */
static void check_gradients(ft_model *m, const ft_batch *b, const char *what)
{
    const ft_param *p;
    int n = ft_model_params(m, &p);
    ft_loss loss = { 0 };
    ft_rng rng;
    double worst = 0.0;
    ft_rng_seed(&rng, 8);
    ft_model_zero_grad(m);
    CHECK_OK(ft_model_step(m, b, 1.0f / (float)b->n_targets, 0, &loss, &err), err);
    for (int i = 0; i < n; i++) {
        size_t size = (size_t)p[i].shape[0] * (size_t)(p[i].rank == 2 ? p[i].shape[1] : 1);
        float *d = (float *)malloc(size * sizeof *d);
        for (int random = 0; random < 2; random++) {
            double length = 0.0, expected = 0.0, found;
            for (size_t k = 0; k < size; k++) d[k] = random ? ft_rng_normal(&rng) : p[i].grad[k];
            for (size_t k = 0; k < size; k++) length += (double)d[k] * d[k];
            if (length == 0.0) continue;                   /* k_proj.bias: softmax does not feel a common shift */
            for (size_t k = 0; k < size; k++) d[k] = (float)(d[k] / sqrt(length));
            for (size_t k = 0; k < size; k++) expected += (double)d[k] * p[i].grad[k];
            found = slope(m, b, p[i].value, d, size, 0.008);
            if (fabs(found - expected) > worst) worst = fabs(found - expected);
            CHECK_MSG(fabs(found - expected) <= 2e-4 + 2e-3 * fabs(expected),
                      "%s: %s: slope %d expected %.7f (backward), found %.7f "
                      "(difference)", what, p[i].name, random, expected, found);
        }
        free(d);
    }
    printf("%s: %d tensors, worst difference %.1e\n", what, n, worst);
}

static void test_gradients(ft_backend *be)
{
    static const int lengths[3] = { 7, 2, 11 };
    ft_dataset d = tiny_rows(lengths, 3, 37, 1);
    ft_batch b = tiny_batch(&d, 0, 3, 0);
    for (int biases = 0; biases < 2; biases++) {
        ft_model *m = tiny_model(be, biases, !biases);
        ft_lora_config c = tiny_lora("all-linear", 2);
        CHECK_OK(ft_lora_attach(m, &c, 3, &err), err);
        tiny_stir(m, 4, 0.2f);
        check_gradients(m, &b, biases ? "lora, biases, untied" : "lora, tied");
        ft_model_free(m);
        m = tiny_model(be, biases, !biases);
        CHECK_OK(ft_model_unfreeze(m, &err), err);
        check_gradients(m, &b, biases ? "full, biases, untied" : "full, tied");
        ft_model_free(m);
    }
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

static const ft_param *param(const ft_model *m, const char *part)
{
    const ft_param *p;
    int n = ft_model_params(m, &p);
    for (int i = 0; i < n; i++) if (strstr(p[i].name, part)) return &p[i];
    return NULL;
}

/* Gradients stop at the lowest adapter; those that are wanted do not change by what else is attached. */
static void test_lowest(ft_backend *be)
{
    static const char *const targets[] = {
        "down_proj", "model.layers.2.mlp.down_proj", "gate_proj", "o_proj", "model.layers.1.self_attn.v_proj",
        "q_proj,v_proj", "model.layers.2.self_attn.k_proj,model.layers.1.mlp.up_proj" };
    static const int lengths[2] = { 9, 6 };
    ft_dataset d = tiny_rows(lengths, 2, 37, 2);
    ft_batch b = tiny_batch(&d, 0, 2, 0);
    ft_model *all = tiny_model(be, 0, 1);
    ft_lora_config c = tiny_lora("all-linear", 3);
    ft_loss loss = { 0 };
    CHECK_OK(ft_lora_attach(all, &c, 3, &err), err);       /* B is zero: the function is the base */
    CHECK_OK(ft_model_step(all, &b, 1.0f, 0, &loss, &err), err);
    for (size_t t = 0; t < sizeof targets / sizeof *targets; t++) {
        ft_model *m = tiny_model(be, 0, 1);
        const ft_param *p;
        int n;
        c = tiny_lora(targets[t], 3);
        CHECK_OK(ft_lora_attach(m, &c, 4, &err), err);
        n = ft_model_params(m, &p);
        for (int i = 0; i < n; i++)
            memcpy(p[i].value, param(all, p[i].name)->value, (size_t)p[i].shape[0] * (size_t)p[i].shape[1] * 4);
        CHECK_OK(ft_model_step(m, &b, 1.0f, 0, &loss, &err), err);
        for (int i = 0; i < n; i++) {
            const ft_param *q = param(all, p[i].name);
            double diff = 0.0, size = 0.0;
            for (int k = 0; k < p[i].shape[0] * p[i].shape[1]; k++) {
                diff += fabs((double)p[i].grad[k] - q->grad[k]);
                size += fabs((double)q->grad[k]);
            }
            CHECK_MSG(diff <= 1e-5 * size, "%s: %s: gradient differs from all-linear's by %g of %g", targets[t],
                      p[i].name, diff, size);
        }
        ft_model_free(m);
    }
    ft_model_free(all);
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

static float *logits_of(ft_model *m, const ft_batch *b)
{
    float *z = (float *)calloc((size_t)b->N * (size_t)m->config.vocab_size, sizeof *z);
    CHECK_OK(ft_model_logits(m, b, z, &err), err);
    return z;
}

/* Fresh adapter: the base's bits. Merge: within rounding. Unmerge: the bits again. */
static void test_adapter(ft_backend *be)
{
    static const int lengths[2] = { 12, 5 };
    ft_dataset d = tiny_rows(lengths, 2, 37, 3);
    ft_batch b = tiny_batch(&d, 0, 2, 0);
    ft_model *m = tiny_model(be, 0, 1);
    ft_lora_config c = tiny_lora("all-linear", 4);
    size_t n = (size_t)b.N * 37;
    float *base = logits_of(m, &b), *z, *with;
    double worst = 0.0, moved = 0.0;
    CHECK_OK(ft_lora_attach(m, &c, 1, &err), err);
    z = logits_of(m, &b);
    CHECK(memcmp(base, z, n * sizeof *z) == 0);
    free(z);
    CHECK_INT(ft_model_params(m, NULL), 3 * 7 * 2);
    for (int i = 0; i < 15 * 4; i++) CHECK(fabsf(m->layers[0].qkv.part[0].lora_A[i]) <= 1.0f / sqrtf(15.0f));
    CHECK_STR(m->priv->param[0].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    tiny_stir(m, 6, 0.1f);
    with = logits_of(m, &b);
    CHECK_OK(ft_lora_merge(m, &err), err);
    z = logits_of(m, &b);
    for (size_t i = 0; i < n; i++) {
        if (fabs((double)with[i] - z[i]) > worst) worst = fabs((double)with[i] - z[i]);
        if (fabs((double)with[i] - base[i]) > moved) moved = fabs((double)with[i] - base[i]);
    }
    free(z);
    CHECK_MSG(worst <= 1e-5 && moved > 0.1, "merged: expected within 1e-5 of the adapter, found %g (the adapter moved "
              "%g)", worst, moved);
    { ft_loss loss = { 0 };
      CHECK_FAILS(ft_model_step(m, &b, 1.0f, 0, &loss, &err), err, FTUNE_ERR_ARGUMENT, "unmerge"); }
    CHECK_FAILS(ft_lora_merge(m, &err), err, FTUNE_ERR_ARGUMENT, "already");
    CHECK_FAILS(ft_lora_attach(m, &c, 1, &err), err, FTUNE_ERR_ARGUMENT, "merged");
    CHECK_OK(ft_lora_unmerge(m, &err), err);
    z = logits_of(m, &b);
    CHECK(memcmp(with, z, n * sizeof *z) == 0);
    free(z);
    CHECK_FAILS(ft_lora_unmerge(m, &err), err, FTUNE_ERR_ARGUMENT, "nothing");
    CHECK_FAILS(ft_model_unfreeze(m, &err), err, FTUNE_ERR_ARGUMENT, "adapter");
    strcpy(c.target_modules, "c_attn,wte");
    CHECK_FAILS(ft_lora_attach(m, &c, 1, &err), err, FTUNE_ERR_NOT_FOUND, "matches no module");
    strcpy(c.target_modules, "q_proj,lm_head");
    CHECK_FAILS(ft_lora_attach(m, &c, 1, &err), err, FTUNE_ERR_UNSUPPORTED, "lm_head");
    ft_model_free(m);
    free(base); free(with);
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

/* Loss and gradients of the same rows end to end, padded, and one at a time. */
static void test_batches(ft_backend *be)
{
    static const int lengths[4] = { 9, 3, 14, 2 };
    ft_dataset d = tiny_rows(lengths, 4, 37, 4);
    ft_model *m = tiny_model(be, 1, 0);
    ft_lora_config c = tiny_lora("all-linear", 2);
    const ft_param *p;
    size_t n;
    float *first;
    double sum = 0.0;
    CHECK_OK(ft_lora_attach(m, &c, 1, &err), err);
    tiny_stir(m, 2, 0.2f);
    ft_model_params(m, &p);
    n = m->priv->n_values;
    first = (float *)malloc(n * sizeof *first);
    for (int way = 0; way < 3; way++) {
        ft_loss loss = { 0 };
        double s = 0.0, diff = 0.0, size = 0.0;
        ft_model_zero_grad(m);
        for (int i = 0; i < (way == 2 ? 4 : 1); i++) {
            ft_batch b = way == 2 ? tiny_batch(&d, i, i + 1, 0) : tiny_batch(&d, 0, 4, way == 1 ? 17 : 0);
            CHECK_OK(ft_model_step(m, &b, 0.125f, 0, &loss, &err), err);
            s += loss.sum;
            ft_batch_free(&b);
        }
        if (way == 0) { sum = s; memcpy(first, m->priv->grads, n * sizeof *first); continue; }
        for (size_t k = 0; k < n; k++) {
            diff += ((double)first[k] - m->priv->grads[k]) * ((double)first[k] - m->priv->grads[k]);
            size += (double)first[k] * first[k];
        }
        CHECK_NEAR(s, sum, 0.0, 1e-6);
        CHECK_MSG(sqrt(diff) <= 1e-6 * sqrt(size), "%s: gradients differ by %g of their length", way == 1 ? "padded"
                  : "separate", sqrt(diff / size));
    }
    free(first);
    ft_model_free(m);
    tiny_rows_free(&d);
}

/* The loss of ft_model_step (pruned, in chunks) from the logits, and the log probabilities in order. */
static void test_loss(ft_backend *be)
{
    static const int lengths[3] = { 8, 100, 6 };
    ft_dataset d = tiny_rows(lengths, 3, 37, 5);
    ft_batch b = tiny_batch(&d, 0, 3, 0);
    ft_model *m = tiny_model(be, 0, 1);
    float *z = logits_of(m, &b), *logprobs = (float *)malloc((size_t)b.N * sizeof *logprobs);
    ft_loss loss = { 0 };
    double sum = 0.0;
    int n = 0, correct = 0;
    loss.logprobs = logprobs;
    b.weights = b.weights ? b.weights : NULL;
    CHECK_OK(ft_model_step(m, &b, 0.0f, 0, &loss, &err), err);
    for (int i = 0; i < b.N; i++) {
        double e = 0.0, top = z[i * 37];
        int best = 0;
        if (b.targets[i] == FTUNE_IGNORE_INDEX) continue;
        for (int v = 0; v < 37; v++) if (z[i * 37 + v] > top) { top = z[i * 37 + v]; best = v; }
        for (int v = 0; v < 37; v++) e += exp(z[i * 37 + v] - top);
        CHECK_NEAR(logprobs[n], z[i * 37 + b.targets[i]] - top - log(e), 1e-5, 0.0);
        sum -= z[i * 37 + b.targets[i]] - top - log(e);
        correct += best == b.targets[i];
        n++;
    }
    CHECK_INT(loss.n, n);
    CHECK_INT(loss.correct, correct);
    CHECK_NEAR(loss.sum, sum, 0.0, 1e-6);
    b.targets[3] = 37;
    CHECK_FAILS(ft_model_step(m, &b, 0.0f, 0, &loss, &err), err, FTUNE_ERR_ARGUMENT, "token 3");
    for (int i = 0; i < b.N; i++) b.targets[i] = FTUNE_IGNORE_INDEX;
    CHECK_FAILS(ft_model_step(m, &b, 0.0f, 0, &loss, &err), err, FTUNE_ERR_NO_LABELS, "not one target");
    CHECK_FAILS(ft_model_step(m, &b, 1.0f, 0, &loss, &err), err, FTUNE_ERR_ARGUMENT, "nothing to train");
    free(z); free(logprobs);
    ft_model_free(m);
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

/* One, two, three, five threads: the same bits of loss and gradients. Twice: the same bits. */
static void test_threads(void)
{
    static const int lengths[3] = { 40, 3, 61 }, threads[5] = { 1, 2, 3, 5, 2 };
    ft_dataset d = tiny_rows(lengths, 3, 37, 6);
    ft_batch b = tiny_batch(&d, 0, 3, 0);
    float *first = NULL;
    double sum = 0.0;
    for (int full = 0; full < 2; full++)
        for (int k = 0; k < 5; k++) {
            ft_backend *be = tiny_backend(threads[k]);
            ft_model *m = tiny_model(be, 1, 1);
            ft_lora_config c = tiny_lora("all-linear", 3);
            ft_loss loss = { 0 };
            size_t n;
            c.lora_dropout = 0.25f;
            if (full) CHECK_OK(ft_model_unfreeze(m, &err), err);
            else CHECK_OK(ft_lora_attach(m, &c, 1, &err), err);
            if (!full) tiny_stir(m, 2, 0.2f);
            CHECK_OK(ft_model_step(m, &b, 0.01f, 77, &loss, &err), err);
            n = m->priv->n_values;
            if (k == 0) {
                first = (float *)realloc(first, n * sizeof *first);
                memcpy(first, m->priv->grads, n * sizeof *first);
                sum = loss.sum;
            }
            CHECK_MSG(loss.sum == sum && memcmp(first, m->priv->grads, n * sizeof *first) == 0,
                      "%d threads, %s: not the bits of one thread (loss %.17g, expected "
                      "%.17g)", threads[k], full ? "full" : "lora", loss.sum, sum);
            ft_model_free(m);
            ft_backend_free(be);
        }
    free(first);
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

static void test_files(ft_backend *be)
{
    static const int lengths[2] = { 12, 5 };
    static const char *const name[3] = { "f32", "bf16", "f16" };
    ft_dataset d = tiny_rows(lengths, 2, 37, 3);
    ft_batch b = tiny_batch(&d, 0, 2, 0);
    size_t n = (size_t)b.N * 37;
    for (int tied = 0; tied < 2; tied++) {
        ft_model *m = tiny_model(be, 1, tied), *back = NULL;
        float *z = logits_of(m, &b), *y;
        for (int k = 0; k < 3; k++) {
            const char *dir = test_tmp("test_08_model");
            double worst = 0.0;
            CHECK_OK(ft_model_save(m, dir, (ft_dtype)(FTUNE_F32 + k), &err), err);
            CHECK_OK(ft_model_load(&back, dir, be, &err), err);
            if (!back) continue;
            y = logits_of(back, &b);
            for (size_t i = 0; i < n; i++) if (fabs((double)y[i] - z[i]) > worst) worst = fabs((double)y[i] - z[i]);
            CHECK_MSG(worst <= (k == 0 ? 0.0 : k == 1 ? 0.5 : 0.05), "saved as %s: logits moved by %g", name[k], worst);
            free(y);
            ft_model_free(back);
        }
        free(z);
        ft_model_free(m);
    }
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

static void write_adapter(const ft_tensor *t, int n)
{
    CHECK_OK(ft_weights_save("build/tmp/test_08_adapter/adapter_model.safetensors", t, n, &err), err);
}

static void test_adapter_files(ft_backend *be)
{
    const char *dir = test_tmp("test_08_adapter");
    ft_model *m = tiny_model(be, 0, 1), *other = tiny_model(be, 0, 1);
    ft_lora_config c = tiny_lora("q_proj,down_proj", 2);
    const ft_param *p, *q;
    ft_tensor t[14];
    char dotted[200];
    int n;
    CHECK_FAILS(ft_lora_save(m, dir, &err), err, FTUNE_ERR_ARGUMENT, "no adapter");
    CHECK_OK(ft_lora_attach(m, &c, 3, &err), err);
    tiny_stir(m, 5, 0.2f);
    CHECK_OK(ft_lora_save(m, dir, &err), err);
    CHECK_OK(ft_lora_load(other, dir, &err), err);
    n = ft_model_params(m, &p);
    CHECK_INT(ft_model_params(other, &q), n);
    CHECK_INT(n, 12);
    for (int i = 0; i < n; i++) {
        CHECK_STR(q[i].name, p[i].name);
        CHECK(memcmp(q[i].value, p[i].value, (size_t)p[i].shape[0] * (size_t)p[i].shape[1] * 4) == 0);
        memset(&t[i], 0, sizeof t[i]);
        t[i].name = p[i].name; t[i].rank = 2; t[i].data = p[i].value;
        memcpy(t[i].shape, p[i].shape, sizeof t[i].shape);
    }
    CHECK(other->lora.lora_alpha == 5.0f && other->lora.r == 2);
    write_adapter(t, n - 1);
    CHECK_FAILS(ft_lora_load(other, dir, &err), err, FTUNE_ERR_NOT_FOUND, "1 of 12 expected tensors are missing: "
                "base_model.model.model.layers.2.mlp.down_proj.lora_B");
    CHECK_INT(ft_model_params(other, NULL), 0);
    t[n] = t[0]; t[n].name = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight";
    write_adapter(t, n + 1);
    CHECK_FAILS(ft_lora_load(other, dir, &err), err, FTUNE_ERR_NOT_FOUND, "match nothing in this model: "
                "base_model.model.model.layers.0.self_attn.o_proj.lora_A");
    t[0].shape[0] = 1; t[0].shape[1] = 30;
    write_adapter(t, n);
    CHECK_FAILS(ft_lora_load(other, dir, &err), err, FTUNE_ERR_FORMAT, "expected [2, 15], found [1, 30]");
    t[0].shape[0] = 2; t[0].shape[1] = 15;
    snprintf(dotted, sizeof dotted, "%.*s.default.weight", (int)strlen(p[0].name) - 7, p[0].name);
    t[0].name = dotted;                                    /* as some tools write it */
    write_adapter(t, n);
    CHECK_OK(ft_lora_load(other, dir, &err), err);
    ft_model_free(m);
    ft_model_free(other);
}

static void test_bad_models(ft_backend *be)
{
    const char *dir = test_tmp("test_08_bad");
    ft_config c = tiny_config(0, 0);
    ft_model *m = NULL, *bad = NULL;
    ft_tensor t[64];
    int n = 0;
    CHECK_OK(ft_model_init(&m, &c, 1, be, &err), err);
    CHECK_OK(ft_model_save(m, dir, FTUNE_F32, &err), err);
    for (; n < m->priv->n_slots; n++) t[n] = *m->priv->slot[n].tensor;
    t[n] = t[1]; t[n].name = "model.layers.0.self_attn.q_norm.weight";
    CHECK_OK(ft_weights_save("build/tmp/test_08_bad/model.safetensors", t, n + 1, &err), err);
    CHECK_FAILS(ft_model_load(&bad, dir, be, &err), err, FTUNE_ERR_UNSUPPORTED, "q_norm");
    t[n].name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    CHECK_OK(ft_weights_save("build/tmp/test_08_bad/model.safetensors", t, n + 1, &err), err);
    CHECK_OK(ft_model_load(&bad, dir, be, &err), err);
    ft_model_free(bad);
    CHECK_OK(ft_weights_save("build/tmp/test_08_bad/model.safetensors", t + 1, n - 1, &err), err);
    CHECK_FAILS(ft_model_load(&bad, dir, be, &err), err, FTUNE_ERR_NOT_FOUND, "model.embed_tokens.weight");
    t[3].shape[0]--;
    CHECK_OK(ft_weights_save("build/tmp/test_08_bad/model.safetensors", t, n, &err), err);
    CHECK_FAILS(ft_model_load(&bad, dir, be, &err), err, FTUNE_ERR_FORMAT, "config.json expects");
    CHECK(bad == NULL);
    c.num_key_value_heads = 2;
    CHECK(ft_model_init(&bad, &c, 1, be, &err) != FTUNE_OK && bad == NULL);
    CHECK_FAILS(ft_model_init(&bad, &m->config, 1, NULL, &err), err, FTUNE_ERR_ARGUMENT, "backend");
    ft_model_free(m);
    ft_model_free(NULL);
}

/* Figures that anyone can look up. */
static void test_plan(void)
{
    ft_config c;
    ft_lora_config l = ft_lora_config_default();
    ft_plan p, q;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = 151936; c.hidden_size = 896; c.intermediate_size = 4864; c.num_hidden_layers = 24;
    c.num_attention_heads = 14; c.num_key_value_heads = 2; c.head_dim = 64; c.max_position_embeddings = 32768;
    c.rms_norm_eps = 1e-6f; c.rope_theta = 1e6; c.tie_word_embeddings = 1; c.qkv_bias = 1; c.rope_factor = 1.0f;
    strcpy(l.target_modules, "q_proj,v_proj");
    CHECK_OK(ft_model_plan(&p, &c, FTUNE_BF16, FTUNE_F32, &l, NULL, 1024, &err), err);
    CHECK_INT(p.parameters, 494032768);
    CHECK_INT(p.trainable, 540672);
    CHECK_INT(p.weights, 2 * 494032768ll);
    strcpy(l.target_modules, "all-linear");
    CHECK_OK(ft_model_plan(&p, &c, FTUNE_BF16, FTUNE_F32, &l, NULL, 1024, &err), err);
    CHECK_INT(p.trainable, 4399104);
    CHECK_INT(p.moments, 8 * 4399104);
    CHECK_OK(ft_model_plan(&q, &c, FTUNE_BF16, FTUNE_F32, NULL, NULL, 1024, &err), err);
    CHECK_INT(q.trainable, 494032768);
    CHECK_NEAR(p.flop_per_token_forward, 2.0 * 494e6, 0.0, 0.1);
    CHECK(p.flop_per_token_backward < 0.6 * q.flop_per_token_backward);
    CHECK(p.activations > 1024ll * 24 * 54000 && p.activations < 1024ll * 24 * 60000);
    CHECK(p.peak > p.weights + p.activations && q.peak > p.peak);
    CHECK_FAILS(ft_model_plan(&p, &c, FTUNE_BF16, FTUNE_F32, &l, NULL, 0, &err), err, FTUNE_ERR_ARGUMENT, "tokens_per_batch");
}

/* What PyTorch and PEFT computed: tests/golden/make_model.py. */
static void test_golden(ft_backend *be)
{
    ft_weights *w = NULL;
    ft_model *m = NULL;
    ft_dataset d;
    ft_sample rows[4];
    ft_batch b;
    ft_loss loss = { 0 };
    const ft_param *p;
    float *z;
    const ft_tensor *t;
    CHECK_OK(ft_weights_open(&w, "tests/golden/model/expected.safetensors", &err), err);
    CHECK_OK(ft_model_load(&m, "tests/golden/model", be, &err), err);
    if (!w || !m) return;
    CHECK_OK(ft_lora_load(m, "tests/golden/model", &err), err);
    memset(&d, 0, sizeof d);
    memset(rows, 0, sizeof rows);
    d.samples = rows; d.n = 4;
    for (int i = 0; i < 4; i++) {
        char name[64];
        for (int k = 0; k < 2; k++) {
            int32_t *ids;
            float x[64];
            snprintf(name, sizeof name, "row%d.%s", i, k ? "labels" : "input_ids");
            t = ft_weights_find(w, name);
            CHECK_OK(ft_tensor_to_f32(t, x, &err), err);
            rows[i].n = t->shape[0];
            ids = (int32_t *)malloc((size_t)t->shape[0] * 4);
            for (int j = 0; j < t->shape[0]; j++) ids[j] = (int32_t)x[j];
            if (k) rows[i].labels = ids;
            else rows[i].input_ids = ids;
        }
    }
    b = tiny_batch(&d, 0, 4, 0);
    z = logits_of(m, &b);
    t = ft_weights_find(w, "logits");
    CHECK_INT(t->shape[0], b.N);
    for (int i = 0; i < b.N * 43; i++) CHECK_NEAR(z[i], ((const float *)t->data)[i], 1e-4, 0.0);
    CHECK_OK(ft_model_step(m, &b, 1.0f / (float)b.n_targets, 0, &loss, &err), err);
    t = ft_weights_find(w, "losses");
    CHECK_NEAR(loss.sum / loss.n, ((const float *)t->data)[0], 1e-5, 0.0);
    for (int i = 0, n = ft_model_params(m, &p); i < n; i++) {
        char name[200];
        double diff = 0.0, size = 0.0;
        snprintf(name, sizeof name, "grad.%s", p[i].name);
        t = ft_weights_find(w, name);
        CHECK_MSG(t != NULL, "%s is not in expected.safetensors", name);
        for (int k = 0; t && k < p[i].shape[0] * p[i].shape[1]; k++) {
            double g = ((const float *)t->data)[k];
            diff += (g - p[i].grad[k]) * (g - p[i].grad[k]);
            size += g * g;
        }
        CHECK_MSG(sqrt(diff) <= 1e-4 * sqrt(size), "%s: gradient differs from PyTorch's by %g of its length",
                  p[i].name, sqrt(diff / size));
    }
    for (int i = 0; i < 4; i++) { free(rows[i].input_ids); free(rows[i].labels); }
    free(z);
    ft_batch_free(&b);
    ft_model_free(m);
    ft_weights_close(w);
}

/* Dropout: the gradient is that of the function with the same mask, so differences agree again. */
static void test_dropout(ft_backend *be)
{
    static const int lengths[2] = { 9, 6 };
    ft_dataset d = tiny_rows(lengths, 2, 37, 2);
    ft_batch b = tiny_batch(&d, 0, 2, 0);
    ft_model *m = tiny_model(be, 0, 1);
    ft_lora_config c = tiny_lora("all-linear", 3);
    ft_loss loss = { 0 };
    double plain, sum[2];
    c.lora_dropout = 0.3f;
    CHECK_OK(ft_lora_attach(m, &c, 3, &err), err);
    tiny_stir(m, 4, 0.2f);
    plain = loss_of(m, &b);
    for (uint64_t seed = 1; seed < 4; seed++) {
        const ft_param *p = param(m, "layers.1.self_attn.v_proj.lora_B");
        float old = p->value[4], g;
        ft_model_zero_grad(m);
        CHECK_OK(ft_model_step(m, &b, 1.0f, seed, &loss, &err), err);
        g = p->grad[4];
        CHECK_MSG(fabs(loss.sum / loss.n - plain) > 1e-3, "seed %d: no dropout happened", (int)seed);
        for (int k = 0; k < 2; k++) {
            p->value[4] = old + (k ? -0.01f : 0.01f);
            CHECK_OK(ft_model_step(m, &b, 0.0f, seed, &loss, &err), err);
            sum[k] = loss.sum;
        }
        p->value[4] = old;
        CHECK_NEAR((sum[0] - sum[1]) / 0.02, g, 2e-3, 1e-2);
    }
    CHECK(loss_of(m, &b) == plain);
    ft_model_free(m);
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

/* Every allocation fails once: an error, nothing lost, and the model still works where it lives on. */
static void test_no_memory(ft_backend *be)
{
    static const int lengths[2] = { 9, 6 };
    const char *dir = "build/tmp/test_08_memory";
    ft_dataset d = tiny_rows(lengths, 2, 37, 2);
    ft_batch b = tiny_batch(&d, 0, 2, 0);
    ft_config c = tiny_config(1, 0);
    ft_lora_config l = tiny_lora("all-linear", 2);
    ft_model *m = NULL;
    ft_loss loss = { 0 };
    c.num_hidden_layers = 1;
    TEST_EVERY_FAILURE(ft_model_init(&m, &c, 1, be, NULL), ft_model_free(m));
    CHECK_OK(ft_model_init(&m, &c, 1, be, &err), err);
    TEST_EVERY_FAILURE(ft_model_save(m, dir, FTUNE_BF16, NULL), (void)0);
    ft_model_free(m);
    TEST_EVERY_FAILURE(ft_model_load(&m, dir, be, NULL), ft_model_free(m));
    CHECK_OK(ft_model_load(&m, dir, be, &err), err);
    CHECK_OK(ft_lora_attach(m, &l, 1, &err), err);
    CHECK_OK(ft_lora_save(m, dir, &err), err);
    ft_model_free(m);
    for (int what = 0; what < 7; what++) {             /* some keep memory: it goes with the model */
        int e = 1;
        long before = test_alive, at = 1;
        for (; e && at < 10000; at++) {
            CHECK_OK(ft_model_load(&m, dir, be, &err), err);
            if (what > 1) CHECK_OK(ft_lora_load(m, dir, &err), err);
            test_calls = 0;
            test_fail_at = at;
            if (what == 0) e = ft_model_unfreeze(m, NULL);
            if (what == 1) e = ft_lora_attach(m, &l, 1, NULL);
            if (what == 2) e = ft_lora_load(m, dir, NULL);
            if (what == 3) e = ft_lora_save(m, dir, NULL);
            if (what == 4) e = ft_lora_merge(m, NULL);
            if (what == 5) e = ft_model_step(m, &b, 1.0f, 1, &loss, NULL);
            if (what == 6) e = ft_model_logits(m, &b, (float[15 * 37]){ 0 }, NULL);
            test_fail_at = 0;
            CHECK_MSG(e == FTUNE_OK || e == FTUNE_ERR_NO_MEMORY, "%d, allocation %ld: error %d", what, at, e);
            CHECK_OK(ft_model_step(m, &b, 0.0f, 0, &loss, &err), err);
            ft_model_free(m);
        }
        be->error.code = FTUNE_OK;
        CHECK_MSG(!e && at > 2, "%d: %ld allocations, error %d", what, at, e);
        /* the backend's scratch may stay */
        CHECK_MSG(test_alive <= before + 16, "%d: %ld allocations are lost", what, test_alive - before);
    }
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

int main(void)
{
    ft_backend *be = tiny_backend(2);
    test_golden(be);
    test_gradients(be);
    test_lowest(be);
    test_adapter(be);
    test_batches(be);
    test_loss(be);
    test_threads();
    test_files(be);
    test_adapter_files(be);
    test_bad_models(be);
    test_dropout(be);
    test_no_memory(be);
    test_plan();
    ft_backend_free(be);
    return test_end();
}
