/* test_cuda.c - the CUDA op table against the CPU's, op by op, on odd shapes and on a whole tiny model.
 * Without -DFTUNE_CUDA (make test) it is skipped; `make test-cuda` builds it with nvcc's object and runs it on a GPU. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

#ifdef FTUNE_CUDA
/* One buffer on both machines, with the same random numbers. */
typedef struct pair { float *host[2]; void *at[2]; size_t n; } pair;
static ft_backend *machine[2];                      /* CPU, GPU */
static ft_rng rng;

static pair pair_of(size_t n, float size)
{
    pair p = { { NULL, NULL }, { NULL, NULL }, n };
    for (int b = 0; b < 2; b++) {
        p.host[b] = (float *)malloc(n * 4);
        p.at[b] = machine[b]->alloc(machine[b], n * 4);
    }
    for (size_t i = 0; i < n; i++) p.host[0][i] = size * ft_rng_normal(&rng);
    for (int b = 0; b < 2; b++) machine[b]->upload(machine[b], p.at[b], p.host[0], n * 4);
    return p;
}
static void pair_ints(pair *p, const int32_t *x, size_t n)
{
    for (int b = 0; b < 2; b++) machine[b]->upload(machine[b], p->at[b], x, n * 4);
}
static void pair_free(pair *p)
{
    for (int b = 0; b < 2; b++) { machine[b]->release(machine[b], p->at[b]); free(p->host[b]); }
}
/* The largest difference over the largest value: f32 sums in another order stay below 1e-4. */
static void compare(const char *what, pair *p)
{
    double worst = 0, size = 1e-6;
    for (int b = 0; b < 2; b++) machine[b]->download(machine[b], p->host[b], p->at[b], p->n * 4);
    for (size_t i = 0; i < p->n; i++) {
        size = fmax(size, fabs((double)p->host[0][i]));
        worst = fmax(worst, fabs((double)p->host[0][i] - p->host[1][i]));
    }
    CHECK_MSG(worst <= 1e-4 * size, "%s: largest difference %.3g of values up to %.3g", what, worst, size);
    for (int b = 0; b < 2; b++)
        CHECK_MSG(machine[b]->error.code == FTUNE_OK, "%s on %s: %s", what, machine[b]->name, machine[b]->error.message);
}
static ft_tensor tensor_of(const char *name, void *data, int rows, int columns)
{
    ft_tensor t = { name, FTUNE_F32, columns ? 2 : 1, { rows, columns, 0, 0 }, data, NULL, NULL, 0 };
    return t;
}

static void test_linear(int N, int in, const int *out, int parts, int R, float dropout)
{
    int total = 0, ranks = 0;
    for (int i = 0; i < parts; i++) { total += out[i]; ranks += R; }
    pair x = pair_of((size_t)N * in, 1), y = pair_of((size_t)N * total, 1), xa = pair_of((size_t)N * ranks + 1, 1);
    pair dx = pair_of((size_t)N * in, 1), dy = pair_of((size_t)N * total, 1), w[3], bias[3], A[3], B[3], dA[3], dB[3], dw[3], db[3];
    ft_linear l[2];
    memset(l, 0, sizeof l);
    for (int i = 0; i < parts; i++) {
        w[i] = pair_of((size_t)out[i] * in, 0.3f); bias[i] = pair_of((size_t)out[i], 1);
        A[i] = pair_of((size_t)R * in, 0.3f); B[i] = pair_of((size_t)R * out[i], 0.3f);
        dA[i] = pair_of((size_t)R * in, 1); dB[i] = pair_of((size_t)R * out[i], 1);
        dw[i] = pair_of((size_t)out[i] * in, 1); db[i] = pair_of((size_t)out[i], 1);
        for (int b = 0; b < 2; b++) {
            ft_proj *p = &l[b].part[i];
            p->name = "p"; p->in = in; p->out = out[i]; p->R = R; p->scaling = 1.7f; p->dropout = dropout;
            p->weight = tensor_of("w", w[i].at[b], out[i], in); p->bias = tensor_of("b", bias[i].at[b], out[i], 0);
            p->lora_A = (float *)A[i].at[b]; p->lora_B = (float *)B[i].at[b];
            p->dlora_A = (float *)dA[i].at[b]; p->dlora_B = (float *)dB[i].at[b];
            p->dweight = (float *)dw[i].at[b]; p->dbias = (float *)db[i].at[b];
        }
    }
    for (int b = 0; b < 2; b++) {
        l[b].n_parts = parts; l[b].in = in; l[b].out = total;
        machine[b]->prepare_linear(machine[b], &l[b], 0);
        machine[b]->linear_forward(machine[b], y.at[b], xa.at[b], x.at[b], &l[b], N, 77);
        machine[b]->linear_backward(machine[b], dx.at[b], dy.at[b], x.at[b], xa.at[b], &l[b], N, 77);
        machine[b]->release_linear(machine[b], &l[b]);
    }
    compare("linear y", &y); compare("linear dx", &dx);
    for (int i = 0; i < parts; i++) {
        compare("linear dlora_A", &dA[i]); compare("linear dlora_B", &dB[i]); compare("linear dweight", &dw[i]); compare("linear dbias", &db[i]);
        pair_free(&w[i]); pair_free(&bias[i]); pair_free(&A[i]); pair_free(&B[i]);
        pair_free(&dA[i]); pair_free(&dB[i]); pair_free(&dw[i]); pair_free(&db[i]);
    }
    pair_free(&x); pair_free(&y); pair_free(&xa); pair_free(&dx); pair_free(&dy);
}

static void test_attention(int N, int H, int K, int D)
{
    int stride = (H + 2 * K) * D;
    pair qkv = pair_of((size_t)N * stride, 1), o = pair_of((size_t)N * H * D, 1), lse = pair_of((size_t)N * H, 1);
    pair d_o = pair_of((size_t)N * H * D, 1), dqkv = pair_of((size_t)N * stride, 1), start = pair_of((size_t)N, 1);
    int32_t *s = (int32_t *)malloc((size_t)N * 4);
    for (int i = 0; i < N; i++) s[i] = i < N / 3 ? 0 : N / 3;
    pair_ints(&start, s, (size_t)N);
    for (int b = 0; b < 2; b++) {
        ft_attention a = { N, N, 0, H, K, D, stride, stride, H * D, 1.0f / sqrtf((float)D), (const int32_t *)start.at[b], NULL };
        float *q = (float *)qkv.at[b], *dq = (float *)dqkv.at[b];
        machine[b]->attention_forward(machine[b], o.at[b], (float *)lse.at[b], q, q + H * D, q + (H + K) * D, &a);
        machine[b]->attention_backward(machine[b], dq, dq + H * D, dq + (H + K) * D, d_o.at[b], o.at[b], (float *)lse.at[b],
                                       q, q + H * D, q + (H + K) * D, &a);
    }
    compare("attention o", &o); compare("attention lse", &lse); compare("attention dqkv", &dqkv);
    free(s);
    pair_free(&qkv); pair_free(&o); pair_free(&lse); pair_free(&d_o); pair_free(&dqkv); pair_free(&start);
}

static void test_rows(int N, int C, int F)
{
    pair x = pair_of((size_t)N * C, 1), y = pair_of((size_t)N * C, 1), w = pair_of((size_t)C, 1), rstd = pair_of((size_t)N, 1);
    pair dx = pair_of((size_t)N * C, 1), dw = pair_of((size_t)C, 1), gu = pair_of((size_t)N * 2 * F, 1), s = pair_of((size_t)N * F, 1);
    pair dgu = pair_of((size_t)N * 2 * F, 1), table = pair_of((size_t)5 * C, 1), dtable = pair_of((size_t)5 * C, 1), ids = pair_of((size_t)N, 1);
    pair m = pair_of((size_t)N * C, 0.1f), v = pair_of((size_t)N * C, 0);
    int32_t *id = (int32_t *)malloc((size_t)N * 4);
    for (int i = 0; i < N; i++) id[i] = (i * 7 + 3) % 5;
    pair_ints(&ids, id, (size_t)N);
    for (int b = 0; b < 2; b++) {
        ft_backend *be = machine[b];
        ft_tensor tw = tensor_of("w", w.at[b], C, 0), te = tensor_of("e", table.at[b], 5, C);
        ft_adamw o = { 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, 3 };
        be->rmsnorm_forward(be, y.at[b], (float *)rstd.at[b], x.at[b], &tw, 1e-6f, N, C);
        be->rmsnorm_backward(be, dx.at[b], (float *)dw.at[b], y.at[b], x.at[b], (float *)rstd.at[b], &tw, N, C);
        be->silu_mul_forward(be, s.at[b], gu.at[b], N, F);
        be->silu_mul_backward(be, dgu.at[b], s.at[b], gu.at[b], N, F);
        be->embedding_backward(be, (float *)dtable.at[b], (const int32_t *)ids.at[b], x.at[b], N, C, 5);
        be->adamw(be, (float *)dx.at[b], (const float *)x.at[b], (float *)m.at[b], (float *)v.at[b], (size_t)N * C, &o);
        be->embedding_forward(be, x.at[b], (const int32_t *)ids.at[b], &te, N, C);
        be->add(be, y.at[b], x.at[b], (size_t)N * C);
    }
    compare("rmsnorm y + embedding", &y); compare("rmsnorm dx, adamw", &dx); compare("rmsnorm dw", &dw);
    compare("silu_mul y", &s); compare("silu_mul dgu", &dgu); compare("embedding dw", &dtable); compare("adamw m", &m); compare("adamw v", &v);
    CHECK_NEAR(machine[1]->sum_squares(machine[1], (float *)gu.at[1], gu.n), machine[0]->sum_squares(machine[0], (float *)gu.at[0], gu.n), 0, 1e-9);
    free(id);
    pair_free(&x); pair_free(&y); pair_free(&w); pair_free(&rstd); pair_free(&dx); pair_free(&dw); pair_free(&gu); pair_free(&s);
    pair_free(&dgu); pair_free(&table); pair_free(&dtable); pair_free(&ids); pair_free(&m); pair_free(&v);
}

/* The whole model: loss and every adapter gradient of the same rows on both. */
static void test_model(void)
{
    ft_config c;
    ft_error err = { FTUNE_OK, "" };
    ft_lora_config lora = ft_lora_config_default();
    ft_model *m[2] = { NULL, NULL };
    ft_batch batch = { 0 };
    int32_t ids[40], labels[40];
    ft_sample s = { 0 };
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = 101; c.hidden_size = 48; c.intermediate_size = 80; c.num_hidden_layers = 2; c.num_attention_heads = 6;
    c.num_key_value_heads = 2; c.head_dim = 8; c.max_position_embeddings = 64; c.rms_norm_eps = 1e-6f; c.rope_theta = 1e4;
    c.qkv_bias = 1; c.rope_factor = 1; c.bos_token_id = c.pad_token_id = -1;
    strcpy(lora.target_modules, "all-linear");
    for (int i = 0; i < 40; i++) { ids[i] = (i * 31 + 5) % 101; labels[i] = i % 3 ? ids[i] : FTUNE_IGNORE_INDEX; }
    s.input_ids = ids; s.labels = labels; s.n = 40;
    CHECK_OK(ft_batch_add(&batch, &s, 0, 0, &err), err);
    ft_loss loss[2] = { { 0, 0, 0, NULL }, { 0, 0, 0, NULL } };
    for (int b = 0; b < 2; b++) {
        CHECK_OK(ft_model_init(&m[b], &c, 7, machine[b], &err), err);
        CHECK_OK(ft_lora_attach(m[b], &lora, 9, &err), err);
        CHECK_OK(ft_model_step(m[b], &batch, 1.0f / (float)batch.n_targets, 0, &loss[b], &err), err);
    }
    CHECK_NEAR(loss[1].sum, loss[0].sum, 0, 1e-5);
    const ft_param *p[2];
    int n = ft_model_params(m[0], &p[0]);
    CHECK_INT(ft_model_params(m[1], &p[1]), n);
    for (int i = 0; i < n; i++) {
        size_t count = 1;
        for (int d = 0; d < p[0][i].rank; d++) count *= (size_t)p[0][i].shape[d];
        float *g = (float *)malloc(count * 4);
        double diff = 0, norm = 1e-12;
        machine[1]->download(machine[1], g, p[1][i].grad, count * 4);
        for (size_t k = 0; k < count; k++) {
            diff += ((double)g[k] - p[0][i].grad[k]) * ((double)g[k] - p[0][i].grad[k]);
            norm += (double)p[0][i].grad[k] * p[0][i].grad[k];
        }
        CHECK_MSG(sqrt(diff) <= 1e-4 * sqrt(norm), "%s: relative difference %.3g", p[0][i].name, sqrt(diff / norm));
        free(g);
    }
    for (int b = 0; b < 2; b++) ft_model_free(m[b]);
    ft_batch_free(&batch);
}

int main(void)
{
    ft_error err = { FTUNE_OK, "" };
    const int one[] = { 17 }, three[] = { 24, 8, 8 }, two[] = { 33, 33 };
    ft_rng_seed(&rng, 1);
    CHECK_OK(ft_backend_cpu(&machine[0], 0, &err), err);
    CHECK_OK(ft_backend_cuda(&machine[1], 0, &err), err);
    if (!machine[0] || !machine[1]) return test_end();
    test_linear(5, 13, one, 1, 3, 0); test_linear(33, 24, three, 3, 2, 0.3f); test_linear(700, 64, two, 2, 8, 0);
    test_attention(1, 2, 1, 8); test_attention(37, 6, 2, 16); test_attention(600, 4, 4, 64);
    test_rows(1, 3, 5); test_rows(77, 130, 65);
    test_model();
    ft_backend_free(machine[0]);
    ft_backend_free(machine[1]);
    return test_end();
}
#else
int main(void) { test_skip("CUDA against CPU: run `make test-cuda` on a machine with an NVIDIA GPU"); return test_end(); }
#endif
