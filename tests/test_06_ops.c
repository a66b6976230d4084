/* test_06_ops.c - chapters >>5 and >>6: each op against plain loops, finite differences and PyTorch
 *
 * Build:  gcc -std=c99 -O3 -march=native -fopenmp -g -Wall -Wextra -I. tests/test_06_ops.c -o build/test_06_ops -lm
 * Golden numbers: tests/golden/ops.txt, made by tests/golden/make_ops.py (versions in its first line). Inputs are not
 * stored: both sides compute them with the same integer formula, see fill(). */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static const int odd[] = { 1, 2, 3, 5, 17 };
enum { N_ODD = 5 };
static ft_rng rng;
static ft_error err;

static ft_backend *cpu(int threads)
{
    ft_backend *be = NULL;
    CHECK_OK(ft_backend_cpu(&be, threads, &err), err);
    return be;
}
static float *zeros(size_t n) { return (float *)calloc(n + 1, sizeof(float)); }
static float *noise(size_t n)
{
    float *x = zeros(n);
    for (size_t i = 0; i < n; i++) x[i] = ft_rng_uniform(&rng) * 2.0f - 1.0f;
    return x;
}
static ft_tensor tensor2(const char *name, float *data, int rows, int cols)
{
    ft_tensor t = { name, FTUNE_F32, cols ? 2 : 1, { rows, cols ? cols : 1, 1, 1 }, data, NULL, NULL, 0 };
    return t;
}
static double weighted(const float *y, const float *w, size_t n)
{
    double s = 0.0;
    for (size_t i = 0; i < n; i++) s += (double)y[i] * w[i];
    return s;
}

/* ---- matmul against the triple loop ----------------------------------------------------------------------------- */

static void reference(int tA, int tB, int M, int N, int K, float alpha, const float *A, int lda, const float *B,
                      int ldb,
                      float beta, double *C)
{
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double s = 0.0;
            for (int k = 0; k < K; k++)
                s += (double)(tA ? A[(size_t)k * lda + i] : A[(size_t)i * lda + k]) *
                     (tB ? B[(size_t)j * ldb + k] : B[(size_t)k * ldb + j]);
            C[(size_t)i * N + j] = alpha * s + (beta != 0.0f ? beta * C[(size_t)i * N + j] : 0.0);
        }
}

static void matmul_case(ft_backend *be, int M, int N, int K, int tA, int tB, float alpha, float beta, int pad)
{
    int lda = (tA ? M : K) + pad, ldb = (tB ? K : N) + pad, ldc = N + pad, bad = -1;
    float *A = noise((size_t)lda * (tA ? K : M)), *B = noise((size_t)ldb * (tB ? N : K)), *C = noise((size_t)ldc * M);
    float *before = zeros((size_t)ldc * M);
    double *expected = (double *)calloc((size_t)M * N + 1, sizeof(double)), limit = 1e-6 * (sqrt((double)K) + 4.0);
    memcpy(before, C, (size_t)ldc * M * sizeof *C);
    for (int i = 0; i < M; i++) for (int j = 0; j < N; j++) {
        expected[(size_t)i * N + j] = C[(size_t)i * ldc + j];
        if (beta == 0.0f) C[(size_t)i * ldc + j] = NAN;     /* beta 0 must not read what was there */
    }
    reference(tA, tB, M, N, K, alpha, A, lda, B, ldb, beta, expected);
    CHECK_OK(ft_matmul(be, tA, tB, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc, &err), err);
    for (int i = 0; i < M && bad < 0; i++)
        for (int j = 0; j < ldc && bad < 0; j++) {
            double want = j < N ? expected[(size_t)i * N + j] : before[(size_t)i * ldc + j];
            if (!(fabs(C[(size_t)i * ldc + j] - want) <= limit)) bad = i * ldc + j;
        }
    CHECK_MSG(bad < 0, "matmul M %d N %d K %d trans %d%d alpha %g beta %g: element %d: expected %g, found %g", M, N,
              K, tA, tB,
              alpha, beta, bad, bad % ldc < N ? expected[(size_t)(bad / ldc) * N + bad % ldc] : before[bad], C[bad]);
    free(A); free(B); free(C); free(before); free(expected);
}

static void test_matmul(void)
{
    static const int edge[] = { 1, 2, 3, 5, 7, 8, 13, 14, 15, 16, 17, 28, 31, 32, 33, 47, 65, 100 };
    ft_backend *be = cpu(2);
    for (int tA = 0; tA < 2; tA++) for (int tB = 0; tB < 2; tB++) {
        for (int i = 0; i < 60; i++)
            matmul_case(be, edge[ft_rng_below(&rng, 18)], edge[ft_rng_below(&rng, 18)], edge[ft_rng_below(&rng, 18)],
                        tA, tB,
                        i % 3 ? 1.0f : -0.5f, i % 2 ? 0.0f : i % 4 ? 1.0f : 0.7f, i % 5);
        matmul_case(be, 29, 70, FTI_KC + 5, tA, tB, 1.0f, 0.0f, 3);     /* crosses every block border */
        matmul_case(be, FTI_MC + 3, 35, 40, tA, tB, 2.0f, 1.0f, 0);
        matmul_case(be, 3, 50, 2 * FTI_KC + 1, tA, tB, 1.0f, 1.0f, 1);
        matmul_case(be, 2 * FTI_MC + 5, FTI_NC + 37, FTI_KC + 3, tA, tB, 1.0f, 0.5f, 1);    /* finds panels packed */
        matmul_case(be, 4, 5, 0, tA, tB, 1.0f, 0.5f, 2);                /* an empty sum is 0 */
    }
    CHECK_FAILS(ft_matmul(be, 0, 0, 2, 2, 5, 1, NULL, 4, NULL, 2, 0, NULL, 2, &err), err, FTUNE_ERR_ARGUMENT, "lda 4");
    ft_backend_free(be);
}

/* ---- finite differences ----------------------------------------------------------------------------------------- */

/* dx against (loss(x + h) - loss(x - h)) / 2h. f32 sums leave about 1e-6 of the loss, over 2h: 1e-4; h^2 adds as
 * much. */
typedef double (*loss_fn)(void *user);
static void check_gradient(const char *name, loss_fn loss, void *user, float *x, const float *dx, size_t n)
{
    const float h = 1e-2f;
    for (size_t i = 0; i < n; i += 1 + n / 97) {
        float was = x[i];
        double up, down, slope;
        x[i] = was + h; up = loss(user);
        x[i] = was - h; down = loss(user);
        x[i] = was;
        slope = (up - down) / ((double)(was + h) - (double)(was - h));
        if (!(fabs(slope - dx[i]) <= 3e-3 + 1e-2 * fabs(slope))) {
            CHECK_MSG(0, "%s[%d]: slope of the loss %g, gradient %g", name, (int)i, slope, dx[i]);
            return;
        }
    }
    CHECK(1);
}

typedef struct linear_case {
    ft_backend *be; ft_linear l; int N; uint64_t seed;
    float *x, *y, *w, *xa, *dx;
} linear_case;
static double linear_loss(void *user)
{
    linear_case *c = (linear_case *)user;
    c->be->linear_forward(c->be, c->y, c->xa, c->x, &c->l, c->N, c->seed);
    return weighted(c->y, c->w, (size_t)c->N * c->l.out);
}
static linear_case linear_new(ft_backend *be, int N, int in, int out, int parts, int R, float dropout, int full)
{
    linear_case c;
    memset(&c, 0, sizeof c);
    c.be = be; c.N = N; c.seed = dropout > 0 ? 99 : 0;
    c.l.n_parts = parts; c.l.in = in;
    for (int i = 0; i < parts; i++) {
        ft_proj *p = &c.l.part[i];
        p->name = i ? "k_proj" : "q_proj"; p->in = in; p->out = out + i; p->R = i == 1 ? 0 : R;
        p->scaling = 1.5f; p->dropout = dropout;
        p->weight = tensor2("weight", noise((size_t)in * p->out), p->out, in);
        if (i != 2) p->bias = tensor2("bias", noise((size_t)p->out), p->out, 0);
        p->lora_A = noise((size_t)R * in); p->lora_B = noise((size_t)R * p->out);
        p->dlora_A = zeros((size_t)R * in); p->dlora_B = zeros((size_t)R * p->out);
        if (full) { p->dweight = zeros((size_t)in * p->out); p->dbias = zeros((size_t)p->out); }
        c.l.out += p->out;
    }
    c.x = noise((size_t)N * in); c.dx = zeros((size_t)N * in);
    c.y = zeros((size_t)N * c.l.out); c.w = noise((size_t)N * c.l.out); c.xa = zeros((size_t)N * 3 * R);
    return c;
}
static void linear_free(linear_case *c)
{
    c->be->release_linear(c->be, &c->l);
    for (int i = 0; i < c->l.n_parts; i++) {
        ft_proj *p = &c->l.part[i];
        free(p->weight.data); free(p->bias.data); free(p->lora_A); free(p->lora_B);
        free(p->dlora_A); free(p->dlora_B); free(p->dweight); free(p->dbias);
    }
    free(c->x); free(c->y); free(c->w); free(c->xa); free(c->dx);
}

static void test_linear_gradients(void)
{
    ft_backend *be = cpu(2);
    for (int i = 0; i < N_ODD; i++) for (int j = 0; j < N_ODD; j++) for (int kind = 0; kind < 3; kind++) {
        linear_case c = linear_new(be, odd[i], odd[j], odd[(i + j) % N_ODD], kind + 1, kind ? 3 : 0,
                                   kind == 2 ? 0.3f : 0.0f, 1);
        linear_loss(&c);
        be->linear_backward(be, c.dx, c.w, c.x, c.xa, &c.l, c.N, c.seed);
        check_gradient("linear dx", linear_loss, &c, c.x, c.dx, (size_t)c.N * c.l.in);
        for (int p = 0; p < c.l.n_parts; p++) {
            ft_proj *q = &c.l.part[p];
            check_gradient("linear dweight", linear_loss, &c, (float *)q->weight.data, q->dweight,
                           (size_t)q->in * q->out);
            if (q->bias.data) check_gradient("linear dbias", linear_loss, &c, (float *)q->bias.data, q->dbias,
                                             (size_t)q->out);
            check_gradient("linear dlora_A", linear_loss, &c, q->lora_A, q->dlora_A, (size_t)q->R * q->in);
            check_gradient("linear dlora_B", linear_loss, &c, q->lora_B, q->dlora_B, (size_t)q->R * q->out);
        }
        linear_free(&c);
    }
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
}

/* Larger than one block in every direction, packed or not, against plain loops. */
static void test_linear_large(void)
{
    enum { N = 20, IN = 2 * FTI_KC + 50, OUT = 75 };
    ft_backend *be = cpu(2);
    linear_case c = linear_new(be, N, IN, OUT, 3, 5, 0.0f, 0);
    for (int packed = 0; packed < 2; packed++) {
        int at = 0, bad = -1;
        linear_loss(&c);
        for (int i = 0; i < 3; at += c.l.part[i++].out) {
            const ft_proj *p = &c.l.part[i];
            const float *W = (const float *)p->weight.data, *bias = (const float *)p->bias.data;
            for (int n = 0; n < N; n++) for (int o = 0; o < p->out; o++) {
                double y = bias ? bias[o] : 0.0, found = c.y[(size_t)n * c.l.out + at + o];
                for (int k = 0; k < IN; k++) {
                    double w = W[(size_t)o * IN + k];
                    for (int r = 0; r < p->R; r++)
                        w += (double)p->scaling * p->lora_B[o * p->R + r] * p->lora_A[r * IN + k];
                    y += w * c.x[(size_t)n * IN + k];
                }
                if (!(fabs(y - found) <= 1e-4) && bad < 0) {
                    bad = n * c.l.out + at + o;
                    CHECK_MSG(0, "linear, packed %d: y[%d, %d]: expected %g, found %g", packed, n, at + o, y, found);
                }
            }
        }
        CHECK(bad < 0);
        be->prepare_linear(be, &c.l, 1);
    }
    linear_free(&c);
    ft_backend_free(be);
}

typedef struct op_case {                                   /* one struct for the small ops */
    ft_backend *be; int op, N, C;
    float *x, *y, *w, *rstd, *table; ft_tensor gain; int32_t *ids;
} op_case;
static double rmsnorm_loss(void *user)
{
    op_case *c = (op_case *)user;
    c->be->rmsnorm_forward(c->be, c->y, c->rstd, c->x, &c->gain, 1e-5f, c->N, c->C);
    return weighted(c->y, c->w, (size_t)c->N * c->C);
}
static double silu_loss(void *user)
{
    op_case *c = (op_case *)user;
    c->be->silu_mul_forward(c->be, c->y, c->x, c->N, c->C);
    return weighted(c->y, c->w, (size_t)c->N * c->C);
}
static double rope_loss(void *user)
{
    op_case *c = (op_case *)user;
    memcpy(c->y, c->x, (size_t)c->N * c->C * 3 * sizeof(float));
    c->be->rope(c->be, c->y, c->ids, c->table, c->N, 2, c->C, 3 * c->C, 0);      /* the third head stays as it is */
    return weighted(c->y, c->w, (size_t)c->N * c->C * 3);
}
static double embedding_loss(void *user)
{
    op_case *c = (op_case *)user;
    c->be->embedding_forward(c->be, c->y, c->ids, &c->gain, c->N, c->C);
    return weighted(c->y, c->w, (size_t)c->N * c->C);
}

static void test_small_op_gradients(void)
{
    ft_backend *be = cpu(2);
    for (int i = 0; i < N_ODD; i++) for (int j = 0; j < N_ODD; j++) {
        int N = odd[i], C = odd[j], V = 5;
        size_t n = (size_t)N * C;
        op_case c = { be, 0, N, C, noise(3 * n), zeros(3 * n), noise(3 * n), zeros((size_t)N), NULL,
                      tensor2("norm", noise((size_t)C), C, 0), (int32_t *)calloc((size_t)N, sizeof(int32_t)) };
        float *dx = zeros(3 * n), *dw = zeros((size_t)C), *table;
        for (int k = 0; k < N; k++) c.ids[k] = (int32_t)ft_rng_below(&rng, 5);
        for (size_t k = 0; k < 3 * n; k++) c.x[k] += c.x[k] < 0.0f ? -0.5f : 0.5f;    /* rmsnorm bends at 0 */

        rmsnorm_loss(&c);
        be->rmsnorm_backward(be, dx, dw, c.w, c.x, c.rstd, &c.gain, N, C);
        check_gradient("rmsnorm dx", rmsnorm_loss, &c, c.x, dx, n);
        check_gradient("rmsnorm dw", rmsnorm_loss, &c, (float *)c.gain.data, dw, (size_t)C);

        be->silu_mul_backward(be, dx, c.w, c.x, N, C);
        check_gradient("silu_mul", silu_loss, &c, c.x, dx, 2 * n);
        be->silu_mul_forward(be, c.y, c.x, N, C);
        memcpy(c.y, c.x, 2 * n * sizeof(float));
        be->silu_mul_backward(be, c.y, c.w, c.y, N, C);    /* in place */
        CHECK(memcmp(c.y, dx, 2 * n * sizeof(float)) == 0);

        if (C % 2 == 0) {
            c.table = noise((size_t)V * C);
            for (int p = 0; p < V * C; p++) c.table[p] = p % C < C / 2 ? cosf((float)(p / C)) : sinf((float)(p / C));
            memcpy(dx, c.w, 3 * n * sizeof(float));
            be->rope(be, dx, c.ids, c.table, N, 2, C, 3 * C, 1);
            check_gradient("rope", rope_loss, &c, c.x, dx, 3 * n);
            free(c.table);
        }
        table = noise((size_t)V * C);
        free(c.gain.data); c.gain = tensor2("embed_tokens", table, V, C);
        free(dx); dx = zeros((size_t)V * C);
        be->embedding_backward(be, dx, c.ids, c.w, N, C, V);
        check_gradient("embedding dw", embedding_loss, &c, table, dx, (size_t)V * C);
        free(c.x); free(c.y); free(c.w); free(c.rstd); free(c.gain.data); free(c.ids); free(dx); free(dw);
    }
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
}

typedef struct attention_case {
    ft_backend *be; ft_attention a; float *q, *k, *v, *o, *w, *lse;
} attention_case;
static double attention_loss(void *user)
{
    attention_case *c = (attention_case *)user;
    c->be->attention_forward(c->be, c->o, c->lse, c->q, c->k, c->v, &c->a);
    return weighted(c->o, c->w, (size_t)c->a.N * c->a.H * c->a.D);
}
/* q, k, v side by side as the model has them; rows of the batch of the given length */
static attention_case attention_new(ft_backend *be, int N, int H, int K, int D, int row_length)
{
    attention_case c;
    int width = (H + 2 * K) * D;
    int32_t *start = (int32_t *)calloc((size_t)N, sizeof *start);
    for (int i = 0; i < N; i++) start[i] = i / row_length * row_length;
    memset(&c, 0, sizeof c);
    c.be = be;
    c.a.N = c.a.n_keys = N; c.a.H = H; c.a.K = K; c.a.D = D;
    c.a.q_stride = c.a.kv_stride = width; c.a.o_stride = H * D;
    c.a.scale = 1.0f / sqrtf((float)D); c.a.row_start = start;
    c.q = noise((size_t)N * width); c.k = c.q + H * D; c.v = c.k + K * D;
    c.o = zeros((size_t)N * H * D); c.w = noise((size_t)N * H * D); c.lse = zeros((size_t)N * H);
    return c;
}
static void attention_free(attention_case *c)
{
    free((void *)c->a.row_start); free(c->q); free(c->o); free(c->w); free(c->lse);
}
/* the table, plainly, in double */
static void attention_reference(const attention_case *c, double *o)
{
    const ft_attention *a = &c->a;
    double *p = (double *)calloc((size_t)a->n_keys, sizeof *p);
    for (int i = 0; i < a->N; i++) for (int h = 0; h < a->H; h++) {
        int g = h / (a->H / a->K), end = a->key_end ? a->key_end[i] : a->q0 + i + 1;
        double sum = 0.0, *oi = o + ((size_t)i * a->H + h) * a->D;
        for (int j = a->row_start[i]; j < end; j++) {
            p[j] = 0.0;
            for (int d = 0; d < a->D; d++)
                p[j] += (double)c->q[(size_t)i * a->q_stride + h * a->D + d] *
                        c->k[(size_t)j * a->kv_stride + g * a->D + d];
            p[j] = exp(p[j] * a->scale); sum += p[j];
        }
        for (int d = 0; d < a->D; d++) oi[d] = 0.0;
        for (int j = a->row_start[i]; j < end; j++)
            for (int d = 0; d < a->D; d++) oi[d] += p[j] / sum * c->v[(size_t)j * a->kv_stride + g * a->D + d];
    }
    free(p);
}
static void attention_compare(const char *what, const attention_case *c)
{
    size_t n = (size_t)c->a.N * c->a.H * c->a.D, bad = n;
    double *o = (double *)calloc(n, sizeof *o);
    attention_reference(c, o);
    for (size_t i = n; i-- > 0; ) if (!(fabs(o[i] - c->o[i]) <= 2e-6)) bad = i;
    CHECK_MSG(bad == n, "%s: N %d H %d K %d D %d: o[%d]: expected %g, found %g", what, c->a.N, c->a.H, c->a.K, c->a.D,
              (int)bad,
              bad < n ? o[bad] : 0, bad < n ? c->o[bad] : 0);
    free(o);
}

static void test_attention(void)
{
    ft_backend *be = cpu(2);
    for (int i = 0; i < N_ODD; i++) for (int j = 0; j < N_ODD; j++) for (int kind = 0; kind < 3; kind++) {
        int K = kind == 2 ? 2 : 1, H = kind == 0 ? 1 : kind == 1 ? 3 : 4, N = odd[i], D = odd[j];
        attention_case c = attention_new(be, N, H, K, D, kind == 1 ? 100 : 3);
        size_t n = (size_t)N * c.a.q_stride;
        float *d = noise(n);                                /* dq, dk, dv are overwritten: rubbish before */
        attention_loss(&c);
        attention_compare("attention", &c);
        be->attention_backward(be, d, d + H * D, d + (H + K) * D, c.w, c.o, c.lse, c.q, c.k, c.v, &c.a);
        check_gradient("attention dq, dk, dv", attention_loss, &c, c.q, d, n);
        free(d); attention_free(&c);
    }
    {   /* long rows: several blocks of queries and keys, rows that begin inside a block */
        attention_case c = attention_new(be, 391, 6, 2, 33, 170);
        size_t n = (size_t)391 * c.a.q_stride;
        float *d = zeros(n), *last = zeros(6 * 33);
        attention_loss(&c);
        attention_compare("attention of long rows", &c);
        memcpy(last, c.o + (size_t)390 * 6 * 33, 6 * 33 * sizeof(float));
        be->attention_backward(be, d, d + 6 * 33, d + 8 * 33, c.w, c.o, c.lse, c.q, c.k, c.v, &c.a);
        check_gradient("attention of long rows", attention_loss, &c, c.q, d, n);
        {   /* one new token against a cache: the last query alone */
            int32_t start = c.a.row_start[390];
            attention_case one = c;
            one.a.N = 1; one.a.q0 = 390; one.a.row_start = &start; one.q = c.q + (size_t)390 * c.a.q_stride;
            be->attention_forward(be, c.o, NULL, one.q, c.k, c.v, &one.a);
            one.o = c.o;
            attention_compare("attention of one token", &one);
            for (int e = 0; e < 6 * 33; e++)
                if (fabsf(last[e] - c.o[e]) > 1e-6f) { CHECK_MSG(0, "decode %d: expected %g, found %g", e, last[e],
                                                                 c.o[e]); break; }
        }
        {   /* three sequences in one cache, one token each */
            int32_t start[3] = { 0, 100, 250 }, end[3] = { 37, 240, 391 };
            attention_case three = c;
            three.a.N = 3; three.a.row_start = start; three.a.key_end = end;
            be->attention_forward(be, three.o, three.lse, three.q, three.k, three.v, &three.a);
            attention_compare("attention of three sequences", &three);
        }
        free(d); free(last); attention_free(&c);
    }
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
}

typedef struct head_case {
    ft_backend *be; ft_linear l; int M; float *h, *dh, *logprob, *weight; int32_t *targets; uint8_t *correct;
} head_case;
static double head_loss(void *user)
{
    head_case *c = (head_case *)user;
    double s = 0.0;
    c->be->lm_head_loss(c->be, c->logprob, c->correct, NULL, c->h, c->targets, c->weight, 0.0f, &c->l, c->M);
    for (int m = 0; m < c->M; m++) s -= 0.25 * c->logprob[m] * (c->weight ? c->weight[m] : 1.0f);
    return s;
}

static void test_lm_head(void)
{
    ft_backend *be = cpu(2);
    for (int i = 0; i < N_ODD; i++) for (int j = 0; j < N_ODD; j++) {
        int M = odd[i] == 17 ? 600 : odd[i], C = odd[j], V = 11 + i;      /* 600 rows: more than one chunk */
        head_case c;
        memset(&c, 0, sizeof c);
        c.be = be; c.M = M; c.l.n_parts = 1; c.l.in = C; c.l.out = V;
        c.l.part[0].name = "lm_head"; c.l.part[0].in = C; c.l.part[0].out = V;
        c.l.part[0].weight = tensor2("lm_head.weight", noise((size_t)V * C), V, C);
        c.l.part[0].dweight = zeros((size_t)V * C);
        c.h = noise((size_t)M * C); c.dh = zeros((size_t)M * C);
        c.logprob = zeros((size_t)M); c.weight = j % 2 ? noise((size_t)M) : NULL;
        c.targets = (int32_t *)calloc((size_t)M, sizeof(int32_t)); c.correct = (uint8_t *)calloc((size_t)M, 1);
        for (int m = 0; m < M; m++) c.targets[m] = m % 4 == 3 ? FTUNE_IGNORE_INDEX : (int32_t)ft_rng_below(&rng,
                                                                                                           (uint64_t)V);
        head_loss(&c);
        for (int m = 0; m < M; m++) {                       /* log p and argmax, plainly */
            double sum = 0.0, z_target = 0.0, top = -1e9; int best = 0;
            for (int v = 0; v < V; v++) {
                double z = 0.0;
                for (int k = 0; k < C; k++) z += (double)c.h[m * C + k] * ((float *)c.l.part[0].weight.data)[v * C + k];
                sum += exp(z);
                if (z > top) { top = z; best = v; }
                if (v == c.targets[m]) z_target = z;
            }
            if (c.targets[m] < 0) { z_target = log(sum); best = -1; }       /* ignored: log p 0, never correct */
            if (!(fabs(c.logprob[m] - (z_target - log(sum))) <= 2e-6) ||
                c.correct[m] != (c.targets[m] >= 0 && best == c.targets[m])) {
                CHECK_MSG(0, "lm_head row %d: expected log p %g, argmax %d; found %g, correct %d", m,
                          z_target - log(sum),
                          best, c.logprob[m], c.correct[m]);
                break;
            }
        }
        be->lm_head_loss(be, NULL, NULL, c.dh, c.h, c.targets, c.weight, 0.25f, &c.l, M);
        check_gradient("lm_head dh", head_loss, &c, c.h, c.dh, (size_t)M * C);
        check_gradient("lm_head dweight", head_loss, &c, (float *)c.l.part[0].weight.data, c.l.part[0].dweight,
                       (size_t)V * C);
        free(c.l.part[0].weight.data); free(c.l.part[0].dweight); free(c.h); free(c.dh); free(c.logprob);
        free(c.weight);
        free(c.targets); free(c.correct);
    }
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
}

/* ---- PyTorch's numbers ------------------------------------------------------------------------------------------ */

static float *fill(size_t n, int salt, float factor)        /* the formula of make_ops.py */
{
    float *x = zeros(n);
    for (size_t i = 0; i < n; i++)
        x[i] = factor * (((float)((i * 7919 + (size_t)salt * 104729 + i * i % 1009 * 31) % 2001) - 1000.0f) / 1000.0f);
    return x;
}

/* f32 against double: 1e-5 of the number, or of the tensor's size where a number is a small difference of large ones */
static void golden(const char *file, const char *name, const float *x, size_t n)
{
    char key[64];
    const char *p = file;
    double size = 0.0, *want = (double *)calloc(n + 1, sizeof *want);
    size_t bad = n;
    snprintf(key, sizeof key, "\n%s ", name);
    p = p ? strstr(p, key) : NULL;
    CHECK_MSG(p && (size_t)strtol(p + strlen(key), (char **)(void *)&p, 10) == n,
              "golden/ops.txt: expected %s of %d numbers", name, (int)n);
    if (p) {
        for (size_t i = 0; i < n; i++) {
            want[i] = strtod(p, (char **)(void *)&p);
            size += want[i] * want[i] / (double)n;
        }
        size = sqrt(size);
        for (size_t i = n; i-- > 0; ) if (!(fabs(x[i] - want[i]) <= 1e-5 * (fabs(want[i]) + 0.3 * size))) bad = i;
        CHECK_MSG(bad == n, "%s[%d]: PyTorch has %.9g, found %.9g", name, (int)bad, want[bad], x[bad < n ? bad : 0]);
    }
    free(want);
}

static void test_golden(void)
{
    size_t size;
    char *file = test_read("tests/golden/ops.txt", &size);
    ft_backend *be = cpu(2);
    CHECK_MSG(file != NULL, "expected tests/golden/ops.txt, run from the project directory");
    {
        linear_case c = linear_new(be, 7, 33, 19, 1, 4, 0.0f, 1);
        ft_proj *p = &c.l.part[0];
        float *y = zeros(7 * 19);
        free(c.x); free(p->weight.data); free(p->bias.data); free(p->lora_A); free(p->lora_B); free(c.w);
        c.x = fill(7 * 33, 1, 1); p->weight.data = fill(19 * 33, 2, 1); p->bias.data = fill(19, 3, 1);
        p->lora_A = fill(4 * 33, 4, 1); p->lora_B = fill(19 * 4, 5, 1); c.w = fill(7 * 19, 6, 1); p->scaling = 2.0f;
        linear_loss(&c);
        golden(file, "linear_y", c.y, 7 * 19);
        memcpy(y, c.y, 7 * 19 * sizeof *y);
        be->prepare_linear(be, &c.l, 1);                    /* packed once, the same numbers */
        CHECK(c.l.packed != NULL);
        linear_loss(&c);
        CHECK(memcmp(y, c.y, 7 * 19 * sizeof *y) == 0);
        be->linear_backward(be, c.dx, c.w, c.x, c.xa, &c.l, 7, 0);
        golden(file, "linear_dx", c.dx, 7 * 33); golden(file, "linear_dA", p->dlora_A, 4 * 33);
        golden(file, "linear_dB", p->dlora_B, 19 * 4); golden(file, "linear_dbias", p->dbias, 19);
        golden(file, "linear_dW", p->dweight, 19 * 33);
        linear_free(&c); free(y);
    }
    {
        float *x = fill(200, 7, 1), *w = fill(40, 8, 1), *dy = fill(200, 9, 1), *y = zeros(200), *dx = zeros(200),
            *dw = zeros(40), rstd[5];
        ft_tensor t = tensor2("norm", w, 40, 0);
        be->rmsnorm_forward(be, y, rstd, x, &t, 1e-6f, 5, 40);
        be->rmsnorm_backward(be, dx, dw, dy, x, rstd, &t, 5, 40);
        golden(file, "rmsnorm_y", y, 200); golden(file, "rmsnorm_dx", dx, 200); golden(file, "rmsnorm_dw", dw, 40);
        free(x); free(w); free(dy); free(y); free(dx); free(dw);
    }
    {
        const int32_t position[4] = { 0, 3, 17, 250 };
        float *x = fill(128, 10, 1), *dy = fill(128, 11, 1), *table = zeros(251 * 16);
        for (int p = 0; p < 251; p++) for (int k = 0; k < 8; k++) {
            double angle = p * pow(10000.0, -2.0 * k / 16.0);
            table[p * 16 + k] = (float)cos(angle); table[p * 16 + 8 + k] = (float)sin(angle);
        }
        be->rope(be, x, position, table, 4, 2, 16, 32, 0);
        be->rope(be, dy, position, table, 4, 2, 16, 32, 1);
        golden(file, "rope_y", x, 128); golden(file, "rope_dx", dy, 128);
        free(x); free(dy); free(table);
    }
    {
        const int32_t start[13] = { 0, 0, 0, 0, 0, 5, 6, 6, 6, 6, 6, 6, 6 };
        float *qkv = fill(13 * 64, 12, 1), *d_o = fill(13 * 32, 13, 1), *o = zeros(13 * 32), *d = zeros(13 * 64),
            lse[13 * 4];
        ft_attention a = { 13, 13, 0, 4, 2, 8, 64, 64, 32, 0.35355339f, start, NULL };
        be->attention_forward(be, o, lse, qkv, qkv + 32, qkv + 48, &a);
        be->attention_backward(be, d, d + 32, d + 48, d_o, o, lse, qkv, qkv + 32, qkv + 48, &a);
        golden(file, "attention_o", o, 13 * 32); golden(file, "attention_dqkv", d, 13 * 64);
        free(qkv); free(d_o); free(o); free(d);
    }
    {
        float *gu = fill(126, 14, 1), *dy = fill(63, 15, 1), *y = zeros(63), *d = zeros(126), *dg = zeros(63),
            *du = zeros(63);
        for (int i = 0; i < 126; i++) if (i % 42 < 21) gu[i] *= 4.0f;
        be->silu_mul_forward(be, y, gu, 3, 21);
        be->silu_mul_backward(be, d, dy, gu, 3, 21);
        for (int i = 0; i < 63; i++) { dg[i] = d[i / 21 * 42 + i % 21]; du[i] = d[i / 21 * 42 + 21 + i % 21]; }
        golden(file, "silu_mul_y", y, 63); golden(file, "silu_mul_dgate", dg, 63); golden(file, "silu_mul_dup", du, 63);
        free(gu); free(dy); free(y); free(d); free(dg); free(du);
    }
    {
        const int32_t ids[5] = { 3, 0, 3, 5, 3 };
        float *w = fill(60, 16, 1), *dy = fill(50, 17, 1), *y = zeros(50), *dw = zeros(60);
        ft_tensor t = tensor2("embed_tokens", w, 6, 10);
        be->embedding_forward(be, y, ids, &t, 5, 10);
        be->embedding_backward(be, dw, ids, dy, 5, 10, 6);
        golden(file, "embedding_y", y, 50); golden(file, "embedding_dw", dw, 60);
        free(w); free(dy); free(y); free(dw);
    }
    {
        const int32_t targets[6] = { 0, 36, 17, FTUNE_IGNORE_INDEX, 5, 5 };
        float *h = fill(72, 18, 1), *w = fill(444, 19, 3), *weight = fill(6, 20, 1), *dh = zeros(72),
            *dw = zeros(444), logprob[6];
        ft_linear l;
        memset(&l, 0, sizeof l);
        l.n_parts = 1; l.in = l.part[0].in = 12; l.out = l.part[0].out = 37;
        l.part[0].weight = tensor2("lm_head.weight", w, 37, 12); l.part[0].dweight = dw;
        be->lm_head_loss(be, logprob, NULL, dh, h, targets, weight, 0.5f, &l, 6);
        golden(file, "head_logprob", logprob, 6); golden(file, "head_dh", dh, 72); golden(file, "head_dW", dw, 444);
        free(h); free(w); free(weight); free(dh); free(dw);
    }
    {
        float *p = fill(9, 21, 1), m[9] = { 0 }, v[9] = { 0 };
        ft_adamw o = { 0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0 };
        for (int s = 0; s < 10; s++) {
            float *g = fill(9, 22 + s, (float)pow(10.0, s % 4 - 3));
            o.step = s + 1;
            be->adamw(be, p, g, m, v, 9, &o);
            free(g);
        }
        golden(file, "adamw_p", p, 9);
        free(p);
    }
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
    free(file);
}

/* ---- any number of threads, the same bits ----------------------------------------------------------------------- */

/* Every op on sizes that threads cut in different places; all results in one array. */
static size_t all_ops(int threads, float **out)
{
    enum { N = 403, C = 340, F = 410, V = 501, D = 34, H = 4, K = 2 };    /* enough for all threads */
    ft_backend *be = cpu(threads);
    size_t n = 0, room = 0;
    float *all = NULL;
    ft_rng_seed(&rng, 77);
#define KEEP(p, count) do { \
        if (n + (count) > room) all = (float *)realloc(all, (room = 2 * room + (count)) * sizeof *all); \
        memcpy(all + n, (p), (count) * sizeof *all); n += (count); \
    } while (0)
    {
        linear_case c = linear_new(be, N, C, F, 3, 8, 0.1f, 1);
        for (int pass = 0; pass < 2; pass++) {
            linear_loss(&c);
            be->linear_backward(be, c.dx, c.w, c.x, c.xa, &c.l, N, c.seed);
            KEEP(c.y, (size_t)N * c.l.out); KEEP(c.dx, (size_t)N * C); KEEP(c.xa, (size_t)N * 16);
            for (int p = 0; p < 3; p++) {
                ft_proj *q = &c.l.part[p];
                KEEP(q->dweight, (size_t)C * q->out); KEEP(q->dbias, (size_t)q->out);
                KEEP(q->dlora_A, (size_t)q->R * C); KEEP(q->dlora_B, (size_t)q->R * q->out);
            }
            be->prepare_linear(be, &c.l, 1);
        }
        linear_free(&c);
    }
    {
        attention_case c = attention_new(be, 211, H, K, D, 90);
        size_t width = (size_t)c.a.q_stride * 211;
        float *d = zeros(width);
        attention_loss(&c);
        be->attention_backward(be, d, d + H * D, d + (H + K) * D, c.w, c.o, c.lse, c.q, c.k, c.v, &c.a);
        KEEP(c.o, (size_t)211 * H * D); KEEP(c.lse, (size_t)211 * H); KEEP(d, width);
        free(d); attention_free(&c);
    }
    {
        size_t big = (size_t)N * 2 * F;
        float *x = noise(big), *y = noise(big), *d = zeros(big), *w = noise((size_t)V * C), *dw = zeros((size_t)V * C);
        float rstd[N], logprob[N];
        int32_t ids[N];
        double norm;
        ft_tensor gain = tensor2("norm", w, C, 0), embed = tensor2("embed_tokens", w, V, C);
        ft_adamw o = { 0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 3 };
        ft_linear l;
        for (int i = 0; i < N; i++) ids[i] = (int32_t)ft_rng_below(&rng, 40);
        be->rmsnorm_forward(be, d, rstd, x, &gain, 1e-5f, N, C);     KEEP(d, (size_t)N * C);
        be->rmsnorm_backward(be, d, dw, y, x, rstd, &gain, N, C);    KEEP(d, (size_t)N * C); KEEP(dw, (size_t)C);
        be->silu_mul_forward(be, d, x, N, F);                        KEEP(d, (size_t)N * F);
        be->silu_mul_backward(be, d, y, x, N, F);                    KEEP(d, big);
        be->embedding_forward(be, d, ids, &embed, N, C);             KEEP(d, (size_t)N * C);
        be->embedding_backward(be, dw, ids, x, N, C, V);             KEEP(dw, (size_t)V * C);
        be->rope(be, x, ids, w, N, 10, D, C, 0);                     KEEP(x, (size_t)N * C);
        be->add(be, x, y, big); be->scale(be, x, 0.7f, big);         KEEP(x, big);
        norm = be->sum_squares(be, x, big);                          KEEP(&norm, sizeof norm / sizeof *x);
        be->gather_rows(be, d, x, ids, N, C);                        KEEP(d, (size_t)N * C);
        be->adamw(be, x, y, d, dw, 500, &o);                         KEEP(x, 500); KEEP(dw, 500);
        memset(&l, 0, sizeof l);
        l.n_parts = 1; l.in = l.part[0].in = C; l.out = l.part[0].out = V; l.part[0].weight = embed;
        l.part[0].dweight = dw;
        be->lm_head_loss(be, logprob, NULL, d, y, ids, NULL, 0.1f, &l, N);
        KEEP(logprob, N); KEEP(d, (size_t)N * C); KEEP(dw, (size_t)V * C);
        free(x); free(y); free(d); free(w); free(dw);
    }
#undef KEEP
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
    *out = all;
    return n;
}

static void test_threads(void)
{
    static const int counts[] = { 2, 3, 5 };
    float *one, *many;
    size_t n = all_ops(1, &one);
    for (int i = 0; i < 3; i++) {
        size_t m = all_ops(counts[i], &many), bad = 0;
        while (bad < n && bad < m && memcmp(one + bad, many + bad, sizeof *one) == 0) bad++;
        CHECK_MSG(m == n && bad == n, "%d threads: number %d of %d: expected %.9g, found %.9g", counts[i], (int)bad,
                  (int)n,
                  one[bad < n ? bad : 0], many[bad < n ? bad : 0]);
        free(many);
    }
    free(one);
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

static void test_exp(void)
{
    double worst = 0.0;
    for (float x = -86.8f; x < 88.7f; x += 0.00037f) {
        double e = exp((double)x), ulp = ldexp(1.0, ilogb(e) - 23), off = fabs(fti_exp(x) - e) / ulp;
        if (off > worst) worst = off;
    }
    CHECK_MSG(worst < 2.0, "fti_exp: expected within 2 units in the last place, found %g", worst);
    CHECK(fti_exp(0.0f) == 1.0f && fti_exp(-0.0f) == 1.0f);
    CHECK(fti_exp(-INFINITY) == 0.0f && fti_exp(-1000.0f) == 0.0f && fti_exp(1000.0f) == INFINITY &&
          fti_exp(INFINITY) == INFINITY);
    CHECK(isnan(fti_exp(NAN)));
}

/* bf16 and f16 weights at odd addresses: the same bits as the widened f32 */
static void test_dtypes(void)
{
    enum { N = 9, IN = 45, OUT = 37 };
    ft_backend *be = cpu(2);
    for (int half = 0; half < 2; half++) {
        linear_case c = linear_new(be, N, IN, OUT, 1, 0, 0.0f, 0);
        ft_tensor *w = &c.l.part[0].weight;
        float *wide = (float *)w->data, *y = zeros(N * OUT), *dx = zeros(N * IN), e[IN], f[IN];
        char *raw = (char *)malloc(2 * IN * OUT + 1);
        const int32_t id = 36;
        for (int i = 0; i < IN * OUT; i++) {
            uint16_t h = half ? fti_f32_to_f16(i % 7 ? wide[i] : wide[i] * 1e-6f) : fti_f32_to_bf16(wide[i]);
            wide[i] = half ? fti_f16_to_f32(h) : fti_bf16_to_f32(h);
            memcpy(raw + 1 + 2 * i, &h, 2);
        }
        linear_loss(&c);
        be->linear_backward(be, c.dx, c.w, c.x, NULL, &c.l, N, 0);
        be->embedding_forward(be, e, &id, w, 1, IN);
        memcpy(y, c.y, N * OUT * sizeof *y); memcpy(dx, c.dx, N * IN * sizeof *dx);
        w->data = raw + 1; w->dtype = half ? FTUNE_F16 : FTUNE_BF16;
        for (int packed = 0; packed < 2; packed++) {
            memset(c.dx, 0, N * IN * sizeof *dx);
            linear_loss(&c);
            be->linear_backward(be, c.dx, c.w, c.x, NULL, &c.l, N, 0);
            CHECK_MSG(memcmp(y, c.y, N * OUT * sizeof *y) == 0, "%s, packed %d: y differs from f32",
                      ft_dtype_name(w->dtype), packed);
            CHECK_MSG(memcmp(dx, c.dx, N * IN * sizeof *dx) == 0, "%s, packed %d: dx differs from f32",
                      ft_dtype_name(w->dtype), packed);
            be->prepare_linear(be, &c.l, 1);
        }
        be->embedding_forward(be, f, &id, w, 1, IN);
        CHECK(memcmp(e, f, sizeof e) == 0);
        w->data = wide; w->dtype = FTUNE_F32;
        linear_free(&c); free(y); free(dx); free(raw);
    }
    {
        const uint16_t h[6] = { 0x7c00, 0xfc00, 0x7e00, 0x0001, 0x8000, 0x7bff };    /* f16 at its ends */
        float x[6];
        fti_widen(x, h, FTUNE_F16, 6);
        CHECK(x[0] == INFINITY && x[1] == -INFINITY && isnan(x[2]) && x[3] == 5.9604645e-8f && x[4] == 0.0f &&
              signbit(x[4]) && x[5] == 65504.0f);
    }
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
}

static void test_lora(void)
{
    ft_backend *be = cpu(2);
    linear_case c = linear_new(be, 40, 64, 50, 3, 4, 0.0f, 0);
    size_t n = (size_t)40 * c.l.out, zero = 0;
    float *base = zeros(n), *x, *y;
    int rank[3];
    for (int p = 0; p < 3; p++) {                           /* fresh adapters change no bit */
        memset(c.l.part[p].lora_B, 0, (size_t)c.l.part[p].R * c.l.part[p].out * sizeof(float));
        rank[p] = c.l.part[p].R; c.l.part[p].R = 0;
    }
    linear_loss(&c);
    memcpy(base, c.y, n * sizeof *base);
    for (int p = 0; p < 3; p++) c.l.part[p].R = rank[p];
    linear_loss(&c);
    CHECK(memcmp(base, c.y, n * sizeof *base) == 0);
    for (int p = 0; p < 3; p++) if (rank[p]) c.l.part[p].lora_B[7] = 0.5f;
    linear_loss(&c);
    memcpy(base, c.y, n * sizeof *base);
    be->linear_forward(be, c.y, NULL, c.x, &c.l, 40, 0);    /* xa need not be kept */
    CHECK(memcmp(base, c.y, n * sizeof *base) == 0);
    linear_free(&c); free(base);
    x = zeros(100000); y = zeros(100000);                   /* dropout: the share, the scale,
        another seed another mask */
    for (int i = 0; i < 100000; i++) x[i] = 1.0f;
    fti_dropout(be, y, x, 1000, 100, 0.2f, 5, 0, 0);
    for (int i = 0; i < 100000; i++) {
        zero += y[i] == 0.0f;
        if (y[i] != 0.0f && y[i] != 1.25f) { CHECK_NEAR(y[i], 1.25, 0, 1e-6); break; }
    }
    CHECK_NEAR((double)zero / 1e5, 0.2, 0.006, 0);          /* 5 standard deviations */
    fti_dropout(be, x, x, 1000, 100, 0.2f, 6, 0, 0);
    zero = 0;
    for (int i = 0; i < 100000; i++) zero += (x[i] == 0.0f) == (y[i] == 0.0f);
    CHECK_NEAR((double)zero / 1e5, 0.2 * 0.2 + 0.8 * 0.8, 0.01, 0);
    free(x); free(y);
    CHECK_OK(be->error.code, be->error);
    ft_backend_free(be);
}

static ft_status failing_pass(void)
{
    ft_backend *be = NULL;
    ft_status s = ft_backend_cpu(&be, 2, &err);
    float x[64] = { 1 }, y[64], z[64] = { 0 };
    int32_t target = 3;
    ft_tensor w = tensor2("model.norm.weight", x, 8, 0);
    ft_linear l;
    if (s) return s;
    memset(&l, 0, sizeof l);
    l.n_parts = 1; l.in = l.part[0].in = 8; l.out = l.part[0].out = 8; l.part[0].weight = tensor2("w", x, 8, 8);
    be->prepare_linear(be, &l, 1);
    be->linear_forward(be, y, NULL, x, &l, 8, 0);
    be->rmsnorm_forward(be, y, z, x, &w, 1e-5f, 8, 8);
    be->lm_head_loss(be, y, NULL, z, x, &target, NULL, 1.0f, &l, 1);
    s = be->error.code;
    if (s) { y[0] = 42.0f; be->add(be, y, x, 8); CHECK(y[0] == 42.0f); }     /* latched: nothing runs any more */
    be->release_linear(be, &l);
    ft_backend_free(be);
    return s;
}

static void test_table(void)
{
    ft_backend *be = cpu(0), half;
    float x[8] = { 0 };
    ft_linear l;
    ft_tensor w = tensor2("model.norm.weight", x, 7, 0);
    CHECK_OK(ft_backend_check(be, &err), err);
    half = *be; half.rope = NULL;
    CHECK_FAILS(ft_backend_check(&half, &err), err, FTUNE_ERR_BACKEND, "rope");
    half = *be; half.attention_backward = NULL; half.scale = NULL;
    CHECK_FAILS(ft_backend_check(&half, &err), err, FTUNE_ERR_BACKEND, "attention_backward");
    memset(&l, 0, sizeof l);
    l.n_parts = 1; l.in = l.part[0].in = 4; l.out = l.part[0].out = 2;
    l.part[0].name = "model.layers.3.mlp.up_proj"; l.part[0].weight = tensor2("w", x, 4, 2);
    be->prepare_linear(be, &l, 1);
    CHECK(be->error.code == FTUNE_ERR_FORMAT && strstr(be->error.message, "model.layers.3.mlp.up_proj"));
    be->rmsnorm_forward(be, x, x, x, &w, 1e-5f, 1, 8);     /* the first failure stays */
    CHECK(be->error.code == FTUNE_ERR_FORMAT && strstr(be->error.message, "up_proj"));
    be->error.code = FTUNE_OK;
    be->rmsnorm_forward(be, x, x, x, &w, 1e-5f, 1, 8);
    CHECK(be->error.code == FTUNE_ERR_FORMAT && strstr(be->error.message, "model.norm.weight"));
    ft_backend_free(be);
    ft_backend_free(NULL);
    TEST_EVERY_FAILURE(failing_pass(), (void)0);
}

int main(void)
{
    ft_rng_seed(&rng, 6);
    test_exp();
    test_table();
    test_matmul();
    test_linear_gradients();
    test_linear_large();
    test_small_op_gradients();
    test_attention();
    test_lm_head();
    test_golden();
    test_dtypes();
    test_lora();
    test_threads();
    return test_end();
}
