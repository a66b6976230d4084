/* test_08_quantize.c - weights in 16, 8 and 4 bits, and full training with a part frozen
 * Golden numbers: tests/golden/quant.txt, made by tests/golden/make_quant.py with bitsandbytes.
 * Build: cc -O2 -march=native -fopenmp -I. -Itests tests/test_08_quantize.c -o build/test_08_quantize -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "tiny_model.h"

static ft_error err;

/* ---- codes, scales and levels are those of bitsandbytes ---- */

static float *weight(int rows, int cols, long long salt)       /* as in make_quant.py */
{
    float *x = (float *)malloc((size_t)rows * cols * sizeof *x);
    for (long long i = 0; i < (long long)rows * cols; i++) {
        long long h = (i * 7919 + salt * 104729 + (i * i % 1009) * 31) % 2001;
        float f = ((float)h - 1000.0f) / 1000.0f;
        x[i] = f * f * f * 0.1f;
    }
    return x;
}

static void golden(const char *name, const void *found, int is_code, size_t n, double relative)
{
    size_t size = 0, worst = 0, wrong = 0;
    char *file = test_read("tests/golden/quant.txt", &size), key[64], *p;
    snprintf(key, sizeof key, "\n%s %d ", name, (int)n);
    p = file ? strstr(file, key) : NULL;
    CHECK_MSG(p != NULL, "tests/golden/quant.txt: expected %s of %d", name, (int)n);
    if (p) p += strlen(key) + (size_t)is_code;
    for (size_t i = 0; p && i < n; i++) {
        if (is_code) {
            unsigned byte = 0;
            sscanf(p + 2 * i, "%2x", &byte);
            wrong += byte != ((const uint8_t *)found)[i];
        } else {
            double v = strtod(p, &p), f = ((const float *)found)[i];
            if (!(fabs(f - v) <= relative * fabs(v))) { worst = i; wrong++; }
        }
    }
    CHECK_MSG(!wrong, "%s: %d of %d numbers differ, such as [%d]", name, (int)wrong, (int)n, (int)worst);
    free(file);
}

typedef struct quantised { ft_tensor t; char *memory; float *absmax; } quantised;

/* Through the plain functions, in one go. */
static quantised quantise(const float *x, int rows, int cols, ft_dtype type, int double_quant)
{
    quantised q = { fti_tensor_of("w", 2, rows, cols), NULL, NULL };
    size_t n = (size_t)rows * (size_t)cols, blocks = (n + 63) / 64;
    q.t.dtype = type;
    q.memory = (char *)calloc(fti_tensor_place(&q.t, NULL, double_quant), 1);
    fti_tensor_place(&q.t, q.memory, double_quant);
    q.absmax = (float *)malloc((blocks + (size_t)rows) * sizeof(float));
    if (type == FTUNE_I8) fti_quantise_i8((int8_t *)q.t.data, (float *)(uintptr_t)q.t.scale, x, rows, cols);
    else fti_quantise_nf4((uint8_t *)q.t.data, q.absmax, x, n);
    if (type == FTUNE_NF4 && double_quant)
        q.t.scale_offset = fti_quantise_scales((uint8_t *)(uintptr_t)q.t.scale_code, (float *)(uintptr_t)q.t.scale, q.absmax, blocks);
    else if (type == FTUNE_NF4) memcpy((void *)(uintptr_t)q.t.scale, q.absmax, blocks * sizeof(float));
    return q;
}
static float *back(const quantised *q)
{
    size_t n = ft_tensor_count(&q->t), cols = (size_t)q->t.shape[1];
    float *y = (float *)malloc(n * sizeof *y);
    for (size_t r = 0; r < (size_t)q->t.shape[0]; r++) fti_dequantise(y + r * cols, &q->t, r * cols, (int)cols);
    return y;
}
static void quantised_free(quantised *q) { free(q->memory); free(q->absmax); }

static void test_golden(void)
{
    static const struct { const char *name; int rows, cols, salt; } shape[2] = { { "large", 130, 129, 1 }, { "small", 7, 33, 2 } };
    char name[64];
    golden("levels", fti_nf4, 0, 16, 1e-7);
    for (int i = 0; i < 2; i++) {
        int rows = shape[i].rows, cols = shape[i].cols;
        size_t n = (size_t)rows * cols, blocks = (n + 63) / 64;
        float *x = weight(rows, cols, shape[i].salt), *y;
        for (int d = 0; d < 2; d++) {
            quantised q = quantise(x, rows, cols, FTUNE_NF4, d);
#define NAME(end) (snprintf(name, sizeof name, "%s_" end, shape[i].name), name)
            golden(NAME("code"), q.t.data, 1, (n + 1) / 2, 0);
            if (!d) golden(NAME("absmax"), q.t.scale, 0, blocks, 1e-8);         /* 9 digits are the whole float */
            if (d) {
                golden("map", q.t.scale, 0, 256, 1e-8);
                golden(NAME("absmax_code"), q.t.scale_code, 1, blocks, 0);
                golden(NAME("offset"), &q.t.scale_offset, 0, 1, 1e-6);      /* torch adds up in another order, in f32; */
                golden(NAME("absmax_scale"), q.t.scale + 256, 0, (blocks + 255) / 256, 5e-6);    /* what is left when */
                                                                            /* the mean goes is smaller than the mean */
            }
            y = back(&q);
            if (i) golden(d ? NAME("double_back") : NAME("back"), y, 0, n, d ? 1e-6 : 1e-8);
            free(y);
            quantised_free(&q);
        }
        free(x);
    }
    {
        float *x = weight(7, 33, 3), *y;
        quantised q = quantise(x, 7, 33, FTUNE_I8, 0);
        golden("int8_code", q.t.data, 1, 231, 0);
        golden("int8_scale", q.t.scale, 0, 7, 1e-8);
        y = back(&q);
        golden("int8_back", y, 0, 231, 2e-7);
        free(x); free(y);
        quantised_free(&q);
    }
}

/* ---- there and back ---- */

static void test_round_trip(void)
{
    static const int size[][2] = { { 1, 1 }, { 1, 63 }, { 3, 64 }, { 5, 65 }, { 17, 31 }, { 2, 200 }, { 300, 96 } };
    ft_rng rng;
    ft_rng_seed(&rng, 1);
    for (int s = 0; s < 7; s++) for (int kind = 0; kind < 3; kind++) {      /* I8, NF4, NF4 double quantised */
        int rows = size[s][0], cols = size[s][1], bad = -1, bad_part = -1;
        size_t n = (size_t)rows * cols;
        float *x = (float *)malloc(n * sizeof *x), *y, part[256];
        quantised q;
        for (size_t i = 0; i < n; i++) x[i] = 0.02f * ft_rng_normal(&rng);
        if (n > 64) memset(x, 0, 64 * sizeof *x);                           /* a block of zeros stays zero */
        q = quantise(x, rows, cols, kind ? FTUNE_NF4 : FTUNE_I8, kind == 2);
        y = back(&q);
        for (size_t i = 0; i < n; i++) {        /* half of the widest step, (1 - .696) / 2; double quantised: a little more */
            float a = kind ? q.absmax[i / 64] : q.t.scale[i / cols];
            float step = !kind ? 0.5f / 127 : 0.1520f, slack = 0.0f;
            if (kind == 2) {                    /* q.absmax is now the distance from the mean; a level is off by 1.4 % at most */
                a += q.t.scale_offset;
                slack = 0.0071f * q.t.scale[256 + i / 64 / 256] + 1e-6f;
            }
            if (!(fabsf(x[i] - y[i]) <= a * step * 1.00001f + slack)) bad = (int)i;
        }
        CHECK_MSG(bad < 0, "%d x %d, kind %d: [%d] was %g, came back as %g", rows, cols, kind, bad, x[bad < 0 ? 0 : bad],
                  y[bad < 0 ? 0 : bad]);
        if (kind != 2 && n > 64) for (int i = 0; i < 64; i++) if (kind || (i / cols < 64 / cols)) CHECK(y[i] == 0.0f);
        for (int t = 0; t < 50; t++) {                                      /* any part of a row, from odd numbers too */
            int r = (int)ft_rng_below(&rng, (uint64_t)rows), c = (int)ft_rng_below(&rng, (uint64_t)cols);
            int k = 1 + (int)ft_rng_below(&rng, (uint64_t)(cols - c));
            fti_dequantise(part, &q.t, (size_t)r * cols + c, k);
            if (memcmp(part, y + (size_t)r * cols + c, (size_t)k * sizeof *part)) bad_part = t;
        }
        CHECK_MSG(bad_part < 0, "%d x %d, kind %d: a part differs from the whole", rows, cols, kind);
        if (kind) {                                                         /* what came back is on the levels: same codes */
            quantised again = quantise(y, rows, cols, FTUNE_NF4, 0);
            size_t same = kind == 1 && !memcmp(again.t.data, q.t.data, n / 2);
            CHECK_MSG(kind == 2 || same, "%d x %d: quantising twice changed codes", rows, cols);
            quantised_free(&again);
        }
        free(x); free(y);
        quantised_free(&q);
    }
}

/* ---- a linear through each type: the same numbers as its widened weights give ---- */

static void test_linear(void)
{
    static const ft_dtype type[4] = { FTUNE_BF16, FTUNE_F16, FTUNE_I8, FTUNE_NF4 };
    static const int rows[5] = { 1, 2, 3, 17, 70 };
    ft_backend *be = tiny_backend(2);
    ft_rng rng;
    enum { IN = 97, OUT = 45 };
    float w[OUT * IN], x[70 * IN], dy[70 * OUT], y[2][70 * OUT], dx[2][70 * IN];
    ft_rng_seed(&rng, 2);
    for (int i = 0; i < OUT * IN; i++) w[i] = ft_rng_normal(&rng);
    for (int i = 0; i < 70 * IN; i++) x[i] = ft_rng_normal(&rng);
    for (int i = 0; i < 70 * OUT; i++) dy[i] = ft_rng_normal(&rng);
    for (int t = 0; t < 4; t++) {
        quantised q = quantise(w, OUT, IN, t == 3 ? FTUNE_NF4 : FTUNE_I8, 1);
        float wide[OUT * IN], *z = back(&q);
        uint16_t half[OUT * IN];
        ft_linear l[2];
        for (int i = 0; i < OUT * IN; i++) half[i] = t ? fti_f32_to_f16(w[i]) : fti_f32_to_bf16(w[i]);
        if (t < 2) fti_widen(wide, half, type[t], OUT * IN); else memcpy(wide, z, sizeof wide);
        if (t < 2) { q.t.dtype = type[t]; q.t.data = half; q.t.scale = NULL; q.t.scale_code = NULL; }
        memset(l, 0, sizeof l);
        for (int k = 0; k < 2; k++) {
            l[k].n_parts = 1; l[k].in = l[k].part[0].in = IN; l[k].out = l[k].part[0].out = OUT;
            l[k].part[0].weight = q.t;
        }
        l[1].part[0].weight = fti_tensor_of("w", 2, OUT, IN);
        l[1].part[0].weight.data = wide;
        for (int n = 0; n < 5; n++) {
            be->prepare_linear(be, &l[0], n % 2);       /* codes are never packed, 16-bit numbers in their own type */
            for (int k = 0; k < 2; k++) {
                memset(dx[k], 0, sizeof dx[k]);
                be->linear_forward(be, y[k], NULL, x, &l[k], rows[n], 0);
                be->linear_backward(be, dx[k], dy, x, NULL, &l[k], rows[n], 0);
            }
            CHECK_OK(be->error.code, be->error);
            for (int i = 0; i < rows[n] * OUT; i++) if (!(fabs(y[0][i] - y[1][i]) <= 2e-4)) { CHECK_NEAR(y[0][i], y[1][i], 2e-4, 0); break; }
            CHECK_MSG(!memcmp(dx[0], dx[1], (size_t)rows[n] * IN * sizeof(float)), "%s, %d rows: dx differs", ft_dtype_name(type[t]), rows[n]);
            CHECK(t < 2 || !l[0].packed);
            be->release_linear(be, &l[0]);
        }
        free(z);
        free(q.memory); free(q.absmax);
    }
    {
        ft_linear l;                                    /* codes without scales: as a file may hold them */
        memset(&l, 0, sizeof l);
        l.n_parts = 1; l.in = l.part[0].in = 4; l.out = l.part[0].out = 2;
        l.part[0].name = "model.layers.1.mlp.up_proj"; l.part[0].weight = fti_tensor_of("w", 2, 2, 4);
        l.part[0].weight.dtype = FTUNE_I8; l.part[0].weight.data = w;
        be->prepare_linear(be, &l, 1);
        CHECK(be->error.code == FTUNE_ERR_UNSUPPORTED && strstr(be->error.message, "up_proj"));
    }
    ft_backend_free(be);
}

/* ---- a model ---- */

static double loss_of(ft_model *m, const ft_batch *b)
{
    ft_loss loss = { 0 };
    CHECK_OK(ft_model_step(m, b, 0.0f, 0, &loss, &err), err);
    return loss.sum / loss.n;
}

/* A copy of m whose every weight is f32: what was narrowed, widened. */
static ft_model *widened(ft_model *m, ft_backend *be)
{
    ft_model *wide = NULL;
    CHECK_OK(ft_model_save(m, test_tmp("quantize_wide"), FTUNE_F32, &err), err);
    CHECK_OK(ft_model_load(&wide, test_tmp("quantize_wide"), be, &err), err);
    return wide;
}

static const struct { ft_dtype type; int double_quant; const char *name; } kinds[4] = {
    { FTUNE_BF16, 0, "bf16" }, { FTUNE_I8, 0, "int8" }, { FTUNE_NF4, 0, "nf4" }, { FTUNE_NF4, 1, "nf4 double quantised" } };

static size_t base_bytes(const ft_model *m)
{
    size_t n = 0;
    for (int i = 0; i < m->priv->n_slots; i++) {
        ft_tensor t = *m->priv->slot[i].tensor;
        n += fti_tensor_place(&t, NULL, t.scale_code != NULL);
    }
    return n;
}

/* LoRA over a narrow base equals LoRA over the same numbers in f32: loss, gradients, and slopes of the loss. */
static void test_model(ft_backend *be)
{
    static const int lengths[3] = { 7, 2, 11 };
    ft_dataset d = tiny_rows(lengths, 3, 37, 1);
    ft_batch b = tiny_batch(&d, 0, 3, 0);
    for (int k = 0; k < 4; k++) {
        ft_model *m = tiny_model(be, 1, 0), *wide;
        ft_lora_config c = tiny_lora("all-linear", 2);
        ft_loss loss = { 0 };
        const ft_param *p, *q;
        double f32 = loss_of(m, &b), base, worst = 0.0;
        ft_plan plan;
        int n;
        CHECK_OK(ft_model_quantize(m, kinds[k].type, kinds[k].double_quant, &err), err);
        wide = widened(m, be);
        base = loss_of(m, &b);
        CHECK_NEAR(base, loss_of(wide, &b), 1e-5, 0);
        CHECK(base != f32 && fabs(base - f32) < (kinds[k].type == FTUNE_NF4 ? 0.4 : 0.05));
        CHECK_OK(ft_lora_attach(m, &c, 3, &err), err);
        CHECK_MSG(loss_of(m, &b) == base, "%s: a fresh adapter changes bits", kinds[k].name);
        CHECK_OK(ft_lora_attach(wide, &c, 3, &err), err);
        tiny_stir(m, 4, 0.2f);
        tiny_stir(wide, 4, 0.2f);
        CHECK_OK(ft_model_step(m, &b, 1.0f / (float)b.n_targets, 0, &loss, &err), err);
        CHECK_OK(ft_model_step(wide, &b, 1.0f / (float)b.n_targets, 0, &loss, &err), err);
        n = ft_model_params(m, &p);
        CHECK_INT(ft_model_params(wide, &q), n);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < p[i].shape[0] * p[i].shape[1]; j++) {
                double e = fabs((double)p[i].grad[j] - q[i].grad[j]) / (1e-4 + fabs((double)q[i].grad[j]));
                if (e > worst) worst = e;
            }
        CHECK_MSG(worst < 1e-2, "%s: gradients differ by %g from those of the widened weights", kinds[k].name, worst);
        for (int i = 0; i < n; i += 5) {                /* the gradient is the slope */
            double slope, length = 0.0;
            float *g = p[i].grad, *v = p[i].value, e = 0.004f, was[400];
            int size = p[i].shape[0] * p[i].shape[1];
            for (int j = 0; j < size; j++) { length += (double)g[j] * g[j]; was[j] = v[j]; }
            length = sqrt(length);
            if (length < 1e-3) continue;
            for (int j = 0; j < size; j++) v[j] = was[j] + e * (float)(g[j] / length);
            slope = loss_of(m, &b);
            for (int j = 0; j < size; j++) v[j] = was[j] - e * (float)(g[j] / length);
            slope = (slope - loss_of(m, &b)) / (2.0 * (double)e);
            for (int j = 0; j < size; j++) v[j] = was[j];
            CHECK_NEAR(slope, length, 1e-3, 1e-2);
        }
        if (kinds[k].double_quant || kinds[k].type != FTUNE_NF4) {
            CHECK_OK(ft_model_plan(&plan, &m->config, FTUNE_F32, kinds[k].type, &c, NULL, 16, &err), err);
            CHECK_INT(plan.weights, base_bytes(m));
            CHECK_INT(plan.packed, 0);
        }
        for (int i = 0; i <= 4 * m->config.num_hidden_layers; i++) CHECK(!fti_linear_at(m, i)->packed);
        {                                               /* merged: into the weights it was trained beside */
            double before = loss_of(m, &b);
            CHECK_OK(ft_lora_merge(m, &err), err);
            CHECK_NEAR(loss_of(m, &b), before, 2e-5, 0);
            CHECK_FAILS(ft_model_quantize(m, FTUNE_NF4, 1, &err), err, FTUNE_ERR_ARGUMENT, "merged");
            CHECK_OK(ft_lora_unmerge(m, &err), err);
            CHECK(loss_of(m, &b) == before);
        }
        ft_model_free(m);
        ft_model_free(wide);
    }
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

/* From a file: what is narrowed leaves the mapping, bf16 stays in place, and training learns. */
static void test_training(ft_backend *be)
{
    static const int lengths[4] = { 9, 6, 12, 5 };
    ft_dataset d = tiny_rows(lengths, 4, 37, 3);
    const char *dir = test_tmp("quantize_base");
    ft_model *m = tiny_model(be, 0, 1);
    ft_batch b = tiny_batch(&d, 0, 4, 0);
    CHECK_OK(ft_model_save(m, dir, FTUNE_BF16, &err), err);
    ft_model_free(m);
    for (int k = 0; k < 4; k++) for (int threads = 1; threads < 3; threads++) {
        static double one;
        ft_backend *own = tiny_backend(threads);
        ft_trainer *t = NULL;
        ft_train_options o = ft_train_options_default();
        ft_lora_config c = tiny_lora("all-linear", 4);
        ft_progress progress;
        double first, last;
        const void *data;
        CHECK_OK(ft_model_load(&m, dir, own, &err), err);
        data = m->embed_tokens.data;
        CHECK_OK(ft_model_quantize(m, kinds[k].type, kinds[k].double_quant, &err), err);
        CHECK(m->embed_tokens.data == data && m->lm_head.part[0].weight.data == data);
        CHECK(m->layers[0].down.part[0].weight.dtype == kinds[k].type);
        CHECK_OK(ft_lora_attach(m, &c, 1, &err), err);
        first = loss_of(m, &b);
        o.steps = 25; o.lr = 0.02f; o.batch = 4;
        CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
        while (!ft_trainer_done(t)) CHECK_OK(ft_trainer_step(t, &progress, &err), err);
        last = loss_of(m, &b);
        CHECK_MSG(last < 0.6 * first, "%s: the loss went from %g to %g", kinds[k].name, first, last);
        if (threads == 1) one = last;
        CHECK_MSG(last == one, "%s: two threads end at %.9g, one at %.9g", kinds[k].name, last, one);
        ft_trainer_free(t);
        ft_model_free(m);
        ft_backend_free(own);
    }
    CHECK_OK(ft_model_load(&m, dir, be, &err), err);
    m->layers[1].o.part[0].weight.dtype = FTUNE_F32;    /* a NaN has no code */
    {
        float *was = (float *)m->layers[1].o.part[0].weight.data, *odd = (float *)calloc(15 * 18, sizeof *odd);
        odd[100] = NAN;
        m->layers[1].o.part[0].weight.data = odd;
        CHECK_FAILS(ft_model_quantize(m, FTUNE_NF4, 1, &err), err, FTUNE_ERR_NOT_FINITE, "model.layers.1.self_attn.o_proj.weight");
        m->layers[1].o.part[0].weight.data = was;
        free(odd);
    }
    ft_model_free(m);
    CHECK_OK(ft_model_load(&m, dir, be, &err), err);
    CHECK_FAILS(ft_model_quantize(m, FTUNE_F16, 0, &err), err, FTUNE_ERR_ARGUMENT, "F16");
    CHECK_OK(ft_model_quantize(m, FTUNE_I8, 0, &err), err);
    CHECK_FAILS(ft_model_quantize(m, FTUNE_NF4, 0, &err), err, FTUNE_ERR_ARGUMENT, "no linear layer");
    be->host_memory = 0;                                /* as if it were a GPU */
    CHECK_FAILS(ft_model_quantize(m, FTUNE_NF4, 0, &err), err, FTUNE_ERR_UNSUPPORTED, "backend cpu");
    be->host_memory = 1;
    ft_model_free(m);
    for (long at = 1, e = 1; e && at < 1000; at++) {    /* every allocation may fail */
        CHECK_OK(ft_model_load(&m, dir, be, &err), err);
        test_calls = 0;
        test_fail_at = at;
        e = ft_model_quantize(m, FTUNE_NF4, 1, NULL);
        test_fail_at = 0;
        CHECK(e == FTUNE_OK || e == FTUNE_ERR_NO_MEMORY);
        if (at % 7 == 1) loss_of(m, &b);                /* half narrowed is still a model */
        ft_model_free(m);
    }
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

/* ---- full training of a part ---- */

static const ft_param *param(const ft_model *m, const char *name)
{
    const ft_param *p;
    int n = ft_model_params(m, &p);
    for (int i = 0; i < n; i++) if (strcmp(p[i].name, name) == 0) return &p[i];
    return NULL;
}

/* Which tensors learn, how deep backward goes, how many layers keep activations; and what learns gets the gradient that
 * it gets when everything learns. */
static void test_freeze(ft_backend *be)
{
    static const struct { const char *freeze; int tied, biases, n, lowest, first; } cases[] = {
        { "model.embed_tokens", 1, 0, 37, -1, 0 },       /* layer 0's first norm learns: dx goes through linear 0 */
        { "model.embed_tokens,model.layers.0.", 1, 0, 25, 3, 1 },
        { "model.embed_tokens,model.layers.0.input_layernorm", 1, 0, 36, 0, 0 },
        { "model.embed,model.layers.0.,model.layers.1.self_attn,model.layers.1.input", 1, 0, 17, 5, 1 },
        { "model.layers.0.", 1, 0, 26, -1, 0 },
        { "model.embed_tokens,model.layers", 0, 1, 2, 11, 3 },
        { "model.embed_tokens,model.layers,model.norm", 0, 1, 1, 12, 3 },
        { "lm_head,model.layers,model.embed", 0, 1, 1, 11, 3 },
        { "0.5", 1, 0, 0, 0, 0 } };
    static const int lengths[2] = { 9, 6 };
    ft_dataset d = tiny_rows(lengths, 2, 37, 2);
    ft_batch b = tiny_batch(&d, 0, 2, 0);
    ft_loss loss = { 0 };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ft_model *all = tiny_model(be, cases[i].biases, cases[i].tied), *m = tiny_model(be, cases[i].biases, cases[i].tied);
        const ft_param *p;
        ft_plan plan;
        int64_t trained = 0;
        int n;
        CHECK_OK(ft_model_unfreeze(all, &err), err);
        CHECK_OK(ft_model_step(all, &b, 1.0f, 0, &loss, &err), err);
        CHECK_OK(ft_model_freeze(m, cases[i].freeze, &err), err);
        CHECK_OK(ft_model_unfreeze(m, &err), err);
        CHECK_OK(ft_model_step(m, &b, 1.0f, 0, &loss, &err), err);
        n = ft_model_params(m, &p);
        if (cases[i].n) {
            CHECK_INT(n, cases[i].n);
            CHECK_INT(m->priv->lowest, cases[i].lowest);
            CHECK_INT(m->priv->first, cases[i].first);
        }
        for (int k = 0; k < n; k++) {
            size_t count = (size_t)p[k].shape[0] * (size_t)(p[k].rank == 2 ? p[k].shape[1] : 1);
            const ft_param *q = param(all, p[k].name);
            double worst = 0.0, size = 0.0;
            /* a tied embedding collects two gradients only if both ends learn; here it is frozen or whole */
            for (size_t j = 0; j < count; j++) {
                worst = fmax(worst, fabs((double)p[k].grad[j] - q->grad[j]));
                size = fmax(size, fabs((double)q->grad[j]));
            }
            CHECK_MSG(worst <= 1e-5 * size + 1e-6, "freeze %s: %s: gradient differs by %g of %g", cases[i].freeze, p[k].name, worst, size);
            trained += (int64_t)count;
        }
        CHECK_OK(ft_model_plan(&plan, &m->config, FTUNE_F32, FTUNE_F32, NULL, cases[i].freeze, 15, &err), err);
        CHECK_INT(plan.trainable, trained);
        CHECK_INT(plan.weights, base_bytes(m));
        CHECK(plan.activations >= (int64_t)m->priv->block_bytes);     /* all tokens there, targets only here */
        if (cases[i].n && !cases[i].tied) {             /* the rest narrows, what learns stays f32 */
            CHECK_OK(ft_model_quantize(m, FTUNE_BF16, 0, &err), err);
            CHECK(m->norm.dtype == (m->dnorm ? FTUNE_F32 : FTUNE_BF16));
            CHECK(m->embed_tokens.dtype == FTUNE_BF16);
            CHECK_OK(ft_model_step(m, &b, 1.0f, 0, &loss, &err), err);
        }
        ft_model_free(m);
        ft_model_free(all);
    }
    {
        ft_model *m = tiny_model(be, 0, 1);
        CHECK_FAILS(ft_model_freeze(m, "model.embed_tokens,model.layers.7.", &err), err, FTUNE_ERR_NOT_FOUND, "model.layers.7.");
        CHECK_FAILS(ft_model_freeze(m, "lm_head", &err), err, FTUNE_ERR_NOT_FOUND, "tied");
        CHECK_FAILS(ft_model_freeze(m, "0.0001", &err), err, FTUNE_ERR_NOT_FOUND, "embed_tokens");
        CHECK_FAILS(ft_model_freeze(m, "1.5", &err), err, FTUNE_ERR_NOT_FOUND, "1.5");
        CHECK_FAILS(ft_model_freeze(m, "", &err), err, FTUNE_ERR_NOT_FOUND, "begins");
        CHECK_OK(ft_model_freeze(m, "model.", &err), err);
        CHECK_FAILS(ft_model_unfreeze(m, &err), err, FTUNE_ERR_ARGUMENT, "every tensor is frozen");
        CHECK_OK(ft_model_freeze(m, "model.layers.", &err), err);          /* the last call counts */
        CHECK_OK(ft_model_unfreeze(m, &err), err);
        CHECK_INT(ft_model_params(m, NULL), 2);
        CHECK_FAILS(ft_model_freeze(m, "model.norm", &err), err, FTUNE_ERR_ARGUMENT, "being trained");
        ft_model_free(m);
    }
    ft_batch_free(&b);
    tiny_rows_free(&d);
}

/* Frozen weights do not move, and a resumed run with a part frozen is the run that never stopped. */
static void test_freeze_resume(ft_backend *be)
{
    static const int lengths[4] = { 9, 6, 12, 5 };
    ft_dataset d = tiny_rows(lengths, 4, 37, 3);
    ft_model *m = tiny_model(be, 0, 0);
    ft_train_options o = ft_train_options_default();
    const char *base = test_tmp("freeze_base"), *dir = test_tmp("freeze_checkpoint");
    float *end[2] = { NULL, NULL };
    size_t n = 0;
    CHECK_OK(ft_model_save(m, base, FTUNE_BF16, &err), err);
    ft_model_free(m);
    o.steps = 6; o.batch = 2; o.lr = 0.01f;
    for (int resumed = 0; resumed < 2; resumed++) {
        ft_trainer *t = NULL;
        ft_progress progress;
        CHECK_OK(ft_model_load(&m, base, be, &err), err);
        CHECK_OK(ft_model_freeze(m, "model.embed_tokens,model.layers.1.", &err), err);
        CHECK_OK(ft_model_unfreeze(m, &err), err);
        CHECK(m->embed_tokens.dtype == FTUNE_BF16 && !m->dembed_tokens && m->weights);
        CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
        if (resumed) CHECK_OK(ft_trainer_resume(t, dir, &err), err);
        for (int s = 0; !ft_trainer_done(t); s++) {
            CHECK_OK(ft_trainer_step(t, &progress, &err), err);
            if (!resumed && s == 2) CHECK_OK(ft_trainer_save(t, dir, &err), err);
        }
        n = m->priv->n_values;
        end[resumed] = (float *)malloc(n * sizeof(float));
        memcpy(end[resumed], m->priv->values, n * sizeof(float));
        ft_trainer_free(t);
        ft_model_free(m);
    }
    CHECK(!memcmp(end[0], end[1], n * sizeof(float)));
    {                                                   /* frozen otherwise: another run */
        ft_trainer *t = NULL;
        CHECK_OK(ft_model_load(&m, base, be, &err), err);
        CHECK_OK(ft_model_freeze(m, "model.embed_tokens", &err), err);
        CHECK_OK(ft_model_unfreeze(m, &err), err);
        CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
        CHECK_FAILS(ft_trainer_resume(t, dir, &err), err, FTUNE_ERR_ARGUMENT, "base_model");
        ft_trainer_free(t);
        ft_model_free(m);
    }
    free(end[0]); free(end[1]);
    tiny_rows_free(&d);
}

int main(void)
{
    ft_backend *be = tiny_backend(2);
    test_golden();
    test_round_trip();
    test_linear();
    test_model(be);
    test_training(be);
    test_freeze(be);
    test_freeze_resume(be);
    ft_backend_free(be);
    return test_end();
}
