/* ftune_cuda.cu - the op table of ftune.h on an NVIDIA GPU: the same model, another machine
 *
 * The model in ftune.h is written once, over struct ft_backend. This file fills that table with CUDA kernels and cuBLAS
 * calls and contains nothing else: no model, no training loop. Read chapters >>5 and >>6 of ftune.h first; each op here
 * has its formula there, and tests/test_cuda.c compares the two tables op by op.
 *
 *     nvcc -O3 -std=c++17 -c ftune_cuda.cu                       (CUDA toolkit 11.8 or newer)
 *     cc -DFTUNE_CUDA program.c ftune_cuda.o -lcublas -lcudart -lm
 *
 * This is the plain version: activations in f32, one kernel an op, matmuls by cuBLAS in f32 (TF32 off, so that numbers
 * agree with the CPU). Every sum has a fixed order, so results repeat to the bit on the same device. */
#define FTUNE_CUDA
#include "ftune.h"

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS 256                     /* of a block, everywhere below */

struct cuda_state {
    cudaStream_t   stream;
    cublasHandle_t blas;
    float         *scratch; size_t scratch_bytes;   /* grows, never shrinks: logits of a chunk, widened weights */
    double        *partial;                         /* sums of blocks for sum_squares */
};

static cuda_state *state_of(ft_backend *be) { return (cuda_state *)be->state; }

static void latch(ft_backend *be, const char *format, ...)
{
    if (be->error.code) return;
    va_list args;
    va_start(args, format);
    be->error.code = FTUNE_ERR_BACKEND;
    vsnprintf(be->error.message, sizeof be->error.message, format, args);
    va_end(args);
}
static bool check(ft_backend *be, cudaError_t e, const char *what)
{
    if (e != cudaSuccess) latch(be, "cuda: %s: %s", what, cudaGetErrorString(e));
    return e == cudaSuccess;
}
/* After each launch: a bad configuration shows at once, a fault inside the kernel at the next sync. */
static void launched(ft_backend *be, const char *what) { check(be, cudaGetLastError(), what); }
static unsigned blocks_for(size_t n) { return (unsigned)((n + THREADS - 1) / THREADS); }

/* ---- memory ---- */

static void *cuda_alloc(ft_backend *be, size_t bytes)
{
    void *p = NULL;
    if (be->error.code) return NULL;
    if (!check(be, cudaMalloc(&p, bytes ? bytes : 1), "allocation")) return NULL;
    check(be, cudaMemsetAsync(p, 0, bytes, state_of(be)->stream), "clearing new memory");
    return p;
}
static void cuda_release(ft_backend *be, void *p) { (void)be; cudaFree(p); }
static void cuda_upload(ft_backend *be, void *dst, const void *host, size_t bytes)
{
    if (be->error.code) return;
    check(be, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, state_of(be)->stream), "upload");
    check(be, cudaStreamSynchronize(state_of(be)->stream), "upload");   /* the caller may reuse host at once */
}
static void cuda_download(ft_backend *be, void *host, const void *src, size_t bytes)
{
    if (be->error.code) return;
    check(be, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, state_of(be)->stream), "download");
    check(be, cudaStreamSynchronize(state_of(be)->stream), "download");
}
static void cuda_copy(ft_backend *be, void *dst, const void *src, size_t bytes)
{
    if (!be->error.code) check(be, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, state_of(be)->stream), "copy");
}
static void cuda_zero(ft_backend *be, void *p, size_t bytes)
{
    if (!be->error.code) check(be, cudaMemsetAsync(p, 0, bytes, state_of(be)->stream), "zero");
}
static void cuda_sync(ft_backend *be)
{
    if (!be->error.code) check(be, cudaStreamSynchronize(state_of(be)->stream), "sync");
}
static float *scratch(ft_backend *be, size_t count)
{
    cuda_state *s = state_of(be);
    size_t bytes = count * sizeof(float);
    if (bytes > s->scratch_bytes) {
        cuda_sync(be);
        cudaFree(s->scratch);
        s->scratch = NULL; s->scratch_bytes = 0;
        if (!check(be, cudaMalloc(&s->scratch, bytes), "scratch memory")) return NULL;
        s->scratch_bytes = bytes;
    }
    return s->scratch;
}

/* ---- weights of any float type, read as f32 ---- */

__device__ static float element(const void *p, int dtype, size_t i)
{
    if (dtype == FTUNE_BF16) return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
    if (dtype == FTUNE_F16)  return __half2float(((const __half *)p)[i]);
    return ((const float *)p)[i];
}
__global__ static void widen_kernel(float *y, const void *w, int dtype, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = element(w, dtype, i);
}

/* Sum over the block, the same order every time; all threads get it. */
template <typename T> __device__ static T block_sum(T v)
{
    __shared__ T part[THREADS / 32];
    __syncthreads();                                  /* part may still be read from the sum before */
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < THREADS / 32; w++) v += part[w];
    return v;
}
__device__ static float block_max(float v)
{
    __shared__ float part[THREADS / 32];
    __syncthreads();
    for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int w = 1; w < THREADS / 32; w++) v = fmaxf(v, part[w]);
    return v;
}

/* ---- embedding ---- */

__global__ static void embedding_forward_kernel(float *y, const int32_t *ids, const void *w, int dtype, size_t n, int C)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = element(w, dtype, (size_t)ids[i / C] * C + i % C);
}
static void cuda_embedding_forward(ft_backend *be, ft_act *y, const int32_t *ids, const ft_tensor *w, int N, int C)
{
    size_t n = (size_t)N * C;
    if (be->error.code || !n) return;
    embedding_forward_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)y, ids, w->data, w->dtype, n, C);
    launched(be, "embedding_forward");
}
/* One thread owns a column and walks the tokens in order: two tokens with the same id never race. */
__global__ static void embedding_backward_kernel(float *dw, const int32_t *ids, const float *dy, int N, int C)
{
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= C) return;
    for (int n = 0; n < N; n++) dw[(size_t)ids[n] * C + c] += dy[(size_t)n * C + c];
}
static void cuda_embedding_backward(ft_backend *be, float *dw, const int32_t *ids, const ft_act *dy, int N, int C, int V)
{
    (void)V;
    if (be->error.code || !N) return;
    embedding_backward_kernel<<<blocks_for(C), THREADS, 0, state_of(be)->stream>>>(dw, ids, (const float *)dy, N, C);
    launched(be, "embedding_backward");
}

/* ---- linear ---- */

/* Row-major C[M,N] = alpha op(A) op(B) + beta C by column-major cuBLAS: it computes the transpose, C^T = op(B)^T op(A)^T. */
static void gemm(ft_backend *be, int transA, int transB, int M, int N, int K, float alpha, const float *A, int lda,
                 const float *B, int ldb, float beta, float *C, int ldc)
{
    if (be->error.code || !M || !N) return;
    cublasStatus_t st = cublasSgemm(state_of(be)->blas, transB ? CUBLAS_OP_T : CUBLAS_OP_N, transA ? CUBLAS_OP_T : CUBLAS_OP_N,
                                    N, M, K, &alpha, B, ldb, A, lda, &beta, C, ldc);
    if (st != CUBLAS_STATUS_SUCCESS) latch(be, "cublas: sgemm %d x %d x %d failed with status %d", M, N, K, (int)st);
}
/* element() reads three types; codes with scales (I8, NF4) are refused before it would misread them. */
static bool readable(ft_backend *be, const ft_proj *p)
{
    ft_dtype t = p->weight.dtype;
    if (t == FTUNE_F32 || t == FTUNE_BF16 || t == FTUNE_F16) return true;
    latch(be, "%s: expected a weight of F32, BF16 or F16, found %s", p->name ? p->name : "linear", ft_dtype_name(t));
    return false;
}
/* W of a projection in f32: itself, the copy that prepare_linear made, or scratch. */
static const float *wide_weight(ft_backend *be, const ft_linear *l, int part)
{
    const ft_tensor *w = &l->part[part].weight;
    size_t n = (size_t)l->part[part].in * l->part[part].out;
    if (w->dtype == FTUNE_F32) return (const float *)w->data;
    if (!readable(be, &l->part[part])) return NULL;
    if (l->packed) {
        const float *p = (const float *)l->packed;
        for (int i = 0; i < part; i++) p += (size_t)l->part[i].in * l->part[i].out;
        return p;
    }
    float *p = scratch(be, n);
    if (!p) return NULL;
    widen_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>(p, w->data, w->dtype, n);
    launched(be, "widen");
    return p;
}
static void cuda_prepare_linear(ft_backend *be, ft_linear *l, int frozen)
{
    size_t total = 0, at = 0;
    bool narrow = false;
    for (int i = 0; i < l->n_parts; i++) {
        const ft_tensor *w = &l->part[i].weight;
        readable(be, &l->part[i]);
        narrow = narrow || w->dtype != FTUNE_F32;
        total += (size_t)l->part[i].in * l->part[i].out;
    }
    if (!narrow || !frozen || l->packed || be->error.code) return;
    float *p = (float *)cuda_alloc(be, total * sizeof(float));
    if (!p) return;
    for (int i = 0; i < l->n_parts; i++) {
        size_t n = (size_t)l->part[i].in * l->part[i].out;
        widen_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>(p + at, l->part[i].weight.data, l->part[i].weight.dtype, n);
        at += n;
    }
    launched(be, "prepare_linear");
    l->packed = p;
}
static void cuda_release_linear(ft_backend *be, ft_linear *l) { cuda_release(be, l->packed); l->packed = NULL; }

__global__ static void add_bias_kernel(float *y, const void *bias, int dtype, int N, int O, int stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < (size_t)N * O) y[i / O * stride + i % O] += element(bias, dtype, i % O);
}
__global__ static void bias_backward_kernel(float *dbias, const float *dy, int N, int O, int stride)
{
    int o = blockIdx.x * THREADS + threadIdx.x;
    if (o >= O) return;
    float s = 0;
    for (int n = 0; n < N; n++) s += dy[(size_t)n * stride + o];
    dbias[o] += s;
}
/* Dropout by a hash of (seed, part, row, column), so backward makes the same mask without storing it. */
__device__ static unsigned mix32(unsigned h)
{
    h ^= h >> 16; h *= 0x85ebca6bu; h ^= h >> 13; h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}
__global__ static void dropout_kernel(float *y, const float *x, size_t n, int C, float p, uint64_t seed, int part, int add)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    unsigned row = mix32((unsigned)seed ^ mix32((unsigned)(seed >> 32) + 3u * (unsigned)(i / C) + (unsigned)part));
    float v = mix32(row + (unsigned)(i % C)) >= (unsigned)((double)p * 4294967296.0) ? x[i] / (1.0f - p) : 0.0f;
    y[i] = add ? y[i] + v : v;
}
static void dropout(ft_backend *be, float *y, const float *x, int N, int C, float p, uint64_t seed, int part, int add)
{
    size_t n = (size_t)N * C;
    if (be->error.code || !n) return;
    dropout_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>(y, x, n, C, p, seed, part, add);
    launched(be, "dropout");
}
static int rank_sum(const ft_linear *l)
{
    int sum = 0;
    for (int i = 0; i < l->n_parts; i++) sum += l->part[i].R;
    return sum;
}
static void cuda_linear_forward(ft_backend *be, ft_act *y_, ft_act *xa_, const ft_act *x_, const ft_linear *l, int N, uint64_t seed)
{
    float *y = (float *)y_, *xa = (float *)xa_, *own = NULL;
    const float *x = (const float *)x_;
    int sum_R = rank_sum(l), column = 0, rank = 0;
    if (be->error.code || !N) return;
    if (sum_R && !xa) xa = own = (float *)cuda_alloc(be, (size_t)N * sum_R * sizeof(float));
    for (int i = 0; i < l->n_parts && !be->error.code; i++) {
        const ft_proj *p = &l->part[i];
        const float *w = wide_weight(be, l, i);
        if (!w) break;
        gemm(be, 0, 1, N, p->out, p->in, 1, x, l->in, w, p->in, 0, y + column, l->out);
        if (p->bias.data && !be->error.code) {
            add_bias_kernel<<<blocks_for((size_t)N * p->out), THREADS, 0, state_of(be)->stream>>>
                (y + column, p->bias.data, p->bias.dtype, N, p->out, l->out);
            launched(be, "bias");
        }
        if (p->R) {
            float *dropped = seed && p->dropout > 0 ? (float *)cuda_alloc(be, (size_t)N * l->in * sizeof(float)) : NULL;
            if (dropped) dropout(be, dropped, x, N, l->in, p->dropout, seed, i, 0);
            gemm(be, 0, 1, N, p->R, p->in, 1, dropped ? dropped : x, l->in, p->lora_A, p->in, 0, xa + rank, sum_R);
            gemm(be, 0, 1, N, p->out, p->R, p->scaling, xa + rank, sum_R, p->lora_B, p->R, 1, y + column, l->out);
            cuda_release(be, dropped);
        }
        rank += p->R;
        column += p->out;
    }
    cuda_release(be, own);
}
static void cuda_linear_backward(ft_backend *be, ft_act *dx_, const ft_act *dy_, const ft_act *x_, const ft_act *xa_,
                                 const ft_linear *l, int N, uint64_t seed)
{
    float *dx = (float *)dx_;
    const float *dy = (const float *)dy_, *x = (const float *)x_, *xa = (const float *)xa_;
    int sum_R = rank_sum(l), column = 0, rank = 0;
    if (be->error.code || !N) return;
    for (int i = 0; i < l->n_parts && !be->error.code; i++) {
        const ft_proj *p = &l->part[i];
        const float *dyp = dy + column;
        if (dx) {
            const float *w = wide_weight(be, l, i);
            if (!w) break;
            gemm(be, 0, 0, N, p->in, p->out, 1, dyp, l->out, w, p->in, 1, dx, l->in);
        }
        if (p->dweight) gemm(be, 1, 0, p->out, p->in, N, 1, dyp, l->out, x, l->in, 1, p->dweight, p->in);
        if (p->dbias && !be->error.code) {
            bias_backward_kernel<<<blocks_for(p->out), THREADS, 0, state_of(be)->stream>>>(p->dbias, dyp, N, p->out, l->out);
            launched(be, "bias_backward");
        }
        if (p->R && (p->dlora_A || p->dlora_B || dx)) {
            bool drops = seed && p->dropout > 0;
            float *t = (float *)cuda_alloc(be, (size_t)N * p->R * sizeof(float));          /* s dy B */
            float *wide = drops ? (float *)cuda_alloc(be, (size_t)N * l->in * sizeof(float)) : NULL;
            gemm(be, 0, 0, N, p->R, p->out, p->scaling, dyp, l->out, p->lora_B, p->R, 0, t, p->R);
            if (p->dlora_B) gemm(be, 1, 0, p->out, p->R, N, p->scaling, dyp, l->out, xa + rank, sum_R, 1, p->dlora_B, p->R);
            if (drops) dropout(be, wide, x, N, l->in, p->dropout, seed, i, 0);
            if (p->dlora_A) gemm(be, 1, 0, p->R, p->in, N, 1, t, p->R, drops ? wide : x, l->in, 1, p->dlora_A, p->in);
            if (dx && !drops) gemm(be, 0, 0, N, p->in, p->R, 1, t, p->R, p->lora_A, p->in, 1, dx, l->in);
            if (dx && drops) {
                gemm(be, 0, 0, N, p->in, p->R, 1, t, p->R, p->lora_A, p->in, 0, wide, l->in);
                dropout(be, dx, wide, N, l->in, p->dropout, seed, i, 1);
            }
            cuda_release(be, t);
            cuda_release(be, wide);
        }
        rank += p->R;
        column += p->out;
    }
}

/* ---- rmsnorm: a block a row ---- */

__global__ static void rmsnorm_forward_kernel(float *y, float *rstd, const float *x, const void *w, int dtype, float eps, int C)
{
    size_t row = (size_t)blockIdx.x * C;
    float s = 0;
    for (int c = threadIdx.x; c < C; c += THREADS) s += x[row + c] * x[row + c];
    float r = rsqrtf(block_sum(s) / C + eps);
    if (rstd && threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (int c = threadIdx.x; c < C; c += THREADS) y[row + c] = x[row + c] * r * element(w, dtype, c);
}
static void cuda_rmsnorm_forward(ft_backend *be, ft_act *y, float *rstd, const ft_act *x, const ft_tensor *w, float eps, int N, int C)
{
    if (be->error.code || !N) return;
    rmsnorm_forward_kernel<<<N, THREADS, 0, state_of(be)->stream>>>((float *)y, rstd, (const float *)x, w->data, w->dtype, eps, C);
    launched(be, "rmsnorm_forward");
}
/* dx += r (w dy - x r^2 mean(w dy x)) */
__global__ static void rmsnorm_backward_kernel(float *dx, const float *dy, const float *x, const float *rstd, const void *w, int dtype, int C)
{
    size_t row = (size_t)blockIdx.x * C;
    float r = rstd[blockIdx.x], s = 0;
    for (int c = threadIdx.x; c < C; c += THREADS) s += dy[row + c] * element(w, dtype, c) * x[row + c];
    float m = block_sum(s) / C * r * r;
    for (int c = threadIdx.x; c < C; c += THREADS) dx[row + c] += r * (dy[row + c] * element(w, dtype, c) - x[row + c] * m);
}
__global__ static void rmsnorm_weight_kernel(float *dw, const float *dy, const float *x, const float *rstd, int N, int C)
{
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= C) return;
    float s = 0;
    for (int n = 0; n < N; n++) s += dy[(size_t)n * C + c] * x[(size_t)n * C + c] * rstd[n];
    dw[c] += s;
}
static void cuda_rmsnorm_backward(ft_backend *be, ft_act *dx, float *dw, const ft_act *dy, const ft_act *x, const float *rstd,
                                  const ft_tensor *w, int N, int C)
{
    if (be->error.code || !N) return;
    if (dx) rmsnorm_backward_kernel<<<N, THREADS, 0, state_of(be)->stream>>>
        ((float *)dx, (const float *)dy, (const float *)x, rstd, w->data, w->dtype, C);
    if (dw) rmsnorm_weight_kernel<<<blocks_for(C), THREADS, 0, state_of(be)->stream>>>(dw, (const float *)dy, (const float *)x, rstd, N, C);
    launched(be, "rmsnorm_backward");
}

/* ---- rope ---- */

__global__ static void rope_kernel(float *x, const int32_t *position_ids, const float *cos_sin, size_t n, int n_heads, int D,
                                   int stride, int inverse)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    int half = D / 2, k = (int)(i % half), head = (int)(i / half % n_heads);
    size_t token = i / half / n_heads;
    float *p = x + token * stride + (size_t)head * D;
    const float *cs = cos_sin + (size_t)position_ids[token] * D;
    float c = cs[k], s = inverse ? -cs[half + k] : cs[half + k], a = p[k], b = p[k + half];
    p[k] = a * c - b * s;
    p[k + half] = b * c + a * s;
}
static void cuda_rope(ft_backend *be, ft_act *x, const int32_t *position_ids, const float *cos_sin, int N, int n_heads, int D,
                      int stride, int inverse)
{
    size_t n = (size_t)N * n_heads * (D / 2);
    if (be->error.code || !n) return;
    rope_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)x, position_ids, cos_sin, n, n_heads, D, stride, inverse);
    launched(be, "rope");
}

/* ---- attention: a block for one query and head; the scores of THREADS keys at a time live in shared memory ---- */

__device__ static float dot(const float *a, const float *b, int D)
{
    float s = 0;
    for (int d = 0; d < D; d++) s += a[d] * b[d];
    return s;
}
/* Keys come in tiles; each tile rescales what the tiles before it summed (online softmax). */
__global__ static void attention_forward_kernel(float *o, float *lse, const float *q, const float *k, const float *v, ft_attention a)
{
    extern __shared__ float shared[];                 /* q [D], scores [THREADS], o [D] */
    float *sq = shared, *score = sq + a.D, *acc = score + THREADS;
    int i = blockIdx.x, h = blockIdx.y, g = h / (a.H / a.K), t = threadIdx.x;
    int begin = a.row_start[i], end = a.key_end ? a.key_end[i] : a.q0 + i + 1;
    for (int d = t; d < a.D; d += THREADS) { sq[d] = q[(size_t)i * a.q_stride + h * a.D + d]; acc[d] = 0; }
    __syncthreads();
    float top = -INFINITY, sum = 0;
    for (int j0 = begin; j0 < end; j0 += THREADS) {
        int j = j0 + t, n = min(THREADS, end - j0);
        float s = j < end ? a.scale * dot(sq, k + (size_t)j * a.kv_stride + g * a.D, a.D) : -INFINITY;
        float new_top = fmaxf(top, block_max(s)), shrink = expf(top - new_top), e = expf(s - new_top);
        sum = sum * shrink + block_sum(e);
        top = new_top;
        score[t] = e;
        __syncthreads();
        for (int d = t; d < a.D; d += THREADS) {
            float x = acc[d] * shrink;
            for (int u = 0; u < n; u++) x += score[u] * v[(size_t)(j0 + u) * a.kv_stride + g * a.D + d];
            acc[d] = x;
        }
        __syncthreads();
    }
    for (int d = t; d < a.D; d += THREADS) o[(size_t)i * a.o_stride + h * a.D + d] = acc[d] / sum;
    if (lse && t == 0) lse[(size_t)i * a.H + h] = top + logf(sum);
}
static void cuda_attention_forward(ft_backend *be, ft_act *o, float *lse, const ft_act *q, const ft_act *k, const ft_act *v,
                                   const ft_attention *a)
{
    if (be->error.code || !a->N) return;
    dim3 grid((unsigned)a->N, (unsigned)a->H);
    attention_forward_kernel<<<grid, THREADS, (2 * a->D + THREADS) * sizeof(float), state_of(be)->stream>>>
        ((float *)o, lse, (const float *)q, (const float *)k, (const float *)v, *a);
    launched(be, "attention_forward");
}
/* delta[i,h] = sum_d do[i,h,d] o[i,h,d];  ds = p (do . v - delta);  dq = scale ds k;  dk = scale ds q;  dv = p do.
 * First pass: a block a query gathers over its keys. Second pass: a block a key gathers over the queries that see it. */
__global__ static void attention_dq_kernel(float *dq, float *delta, const float *d_o, const float *o, const float *lse,
                                           const float *q, const float *k, const float *v, ft_attention a)
{
    extern __shared__ float shared[];                 /* q [D], do [D], ds [THREADS], dq [D] */
    float *sq = shared, *sdo = sq + a.D, *ds = sdo + a.D, *acc = ds + THREADS;
    int i = blockIdx.x, h = blockIdx.y, g = h / (a.H / a.K), t = threadIdx.x, end = i + 1;
    float part = 0;
    for (int d = t; d < a.D; d += THREADS) {
        sq[d] = q[(size_t)i * a.q_stride + h * a.D + d];
        sdo[d] = d_o[(size_t)i * a.o_stride + h * a.D + d];
        acc[d] = 0;
        part += sdo[d] * o[(size_t)i * a.o_stride + h * a.D + d];
    }
    float mine = block_sum(part), l = lse[(size_t)i * a.H + h];
    if (t == 0) delta[(size_t)i * a.H + h] = mine;
    __syncthreads();
    for (int j0 = a.row_start[i]; j0 < end; j0 += THREADS) {
        int j = j0 + t, n = min(THREADS, end - j0);
        if (j < end) {
            const float *kj = k + (size_t)j * a.kv_stride + g * a.D, *vj = v + (size_t)j * a.kv_stride + g * a.D;
            ds[t] = expf(a.scale * dot(sq, kj, a.D) - l) * (dot(sdo, vj, a.D) - mine);
        }
        __syncthreads();
        for (int d = t; d < a.D; d += THREADS)
            for (int u = 0; u < n; u++) acc[d] += ds[u] * k[(size_t)(j0 + u) * a.kv_stride + g * a.D + d];
        __syncthreads();
    }
    for (int d = t; d < a.D; d += THREADS) dq[(size_t)i * a.q_stride + h * a.D + d] = a.scale * acc[d];
}
__global__ static void attention_dkv_kernel(float *dk, float *dv, const float *delta, const float *d_o, const float *lse,
                                            const float *q, const float *k, const float *v, ft_attention a)
{
    extern __shared__ float shared[];                 /* k [D], v [D], p [THREADS], ds [THREADS], dk [D], dv [D] */
    float *sk = shared, *sv = sk + a.D, *p = sv + a.D, *ds = p + THREADS, *acck = ds + THREADS, *accv = acck + a.D;
    int j = blockIdx.x, g = blockIdx.y, group = a.H / a.K, t = threadIdx.x, start = a.row_start[j];
    for (int d = t; d < a.D; d += THREADS) {
        sk[d] = k[(size_t)j * a.kv_stride + g * a.D + d];
        sv[d] = v[(size_t)j * a.kv_stride + g * a.D + d];
        acck[d] = accv[d] = 0;
    }
    __syncthreads();
    for (int h = g * group; h < (g + 1) * group; h++) {
        for (int i0 = j; i0 < a.N && a.row_start[i0] == start; i0 += THREADS) {
            int i = i0 + t;
            bool sees = i < a.N && a.row_start[i] == start;
            p[t] = ds[t] = 0;
            if (sees) {
                const float *doi = d_o + (size_t)i * a.o_stride + h * a.D;
                p[t] = expf(a.scale * dot(q + (size_t)i * a.q_stride + h * a.D, sk, a.D) - lse[(size_t)i * a.H + h]);
                ds[t] = p[t] * (dot(doi, sv, a.D) - delta[(size_t)i * a.H + h]);
            }
            __syncthreads();
            int n = min(THREADS, a.N - i0);
            for (int d = t; d < a.D; d += THREADS)
                for (int u = 0; u < n; u++) {
                    acck[d] += ds[u] * q[(size_t)(i0 + u) * a.q_stride + h * a.D + d];
                    accv[d] += p[u] * d_o[(size_t)(i0 + u) * a.o_stride + h * a.D + d];
                }
            __syncthreads();
        }
    }
    for (int d = t; d < a.D; d += THREADS) {
        dk[(size_t)j * a.kv_stride + g * a.D + d] = a.scale * acck[d];
        dv[(size_t)j * a.kv_stride + g * a.D + d] = accv[d];
    }
}
static void cuda_attention_backward(ft_backend *be, ft_act *dq, ft_act *dk, ft_act *dv, const ft_act *d_o, const ft_act *o,
                                    const float *lse, const ft_act *q, const ft_act *k, const ft_act *v, const ft_attention *a)
{
    if (be->error.code || !a->N) return;
    float *delta = scratch(be, (size_t)a->N * a->H);
    if (!delta) return;
    attention_dq_kernel<<<dim3((unsigned)a->N, (unsigned)a->H), THREADS, (3 * a->D + THREADS) * sizeof(float), state_of(be)->stream>>>
        ((float *)dq, delta, (const float *)d_o, (const float *)o, lse, (const float *)q, (const float *)k, (const float *)v, *a);
    attention_dkv_kernel<<<dim3((unsigned)a->N, (unsigned)a->K), THREADS, (4 * a->D + 2 * THREADS) * sizeof(float), state_of(be)->stream>>>
        ((float *)dk, (float *)dv, delta, (const float *)d_o, lse, (const float *)q, (const float *)k, (const float *)v, *a);
    launched(be, "attention_backward");
}

/* ---- silu_mul, add, gather, scatter ---- */

__global__ static void silu_mul_forward_kernel(float *y, const float *gu, size_t n, int F)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const float *row = gu + i / F * 2 * F;
    float g = row[i % F];
    y[i] = g / (1.0f + expf(-g)) * row[F + i % F];
}
static void cuda_silu_mul_forward(ft_backend *be, ft_act *y, const ft_act *gu, int N, int F)
{
    size_t n = (size_t)N * F;
    if (be->error.code || !n) return;
    silu_mul_forward_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)y, (const float *)gu, n, F);
    launched(be, "silu_mul_forward");
}
__global__ static void silu_mul_backward_kernel(float *dgu, const float *dy, const float *gu, size_t n, int F)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    size_t at = i / F * 2 * F + i % F;
    float g = gu[at], u = gu[at + F], s = 1.0f / (1.0f + expf(-g)), d = dy[i];
    dgu[at] = d * u * s * (1.0f + g * (1.0f - s));
    dgu[at + F] = d * g * s;
}
static void cuda_silu_mul_backward(ft_backend *be, ft_act *dgu, const ft_act *dy, const ft_act *gu, int N, int F)
{
    size_t n = (size_t)N * F;
    if (be->error.code || !n) return;
    silu_mul_backward_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)dgu, (const float *)dy, (const float *)gu, n, F);
    launched(be, "silu_mul_backward");
}
__global__ static void add_kernel(float *x, const float *y, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] += y[i];
}
static void cuda_add(ft_backend *be, ft_act *x, const ft_act *y, size_t n)
{
    if (be->error.code || !n) return;
    add_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)x, (const float *)y, n);
    launched(be, "add");
}
__global__ static void gather_kernel(float *y, const float *x, const int32_t *rows, size_t n, int C)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = x[(size_t)rows[i / C] * C + i % C];
}
__global__ static void scatter_kernel(float *dx, const float *dy, const int32_t *rows, size_t n, int C)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) dx[(size_t)rows[i / C] * C + i % C] += dy[i];
}
static void cuda_gather_rows(ft_backend *be, ft_act *y, const ft_act *x, const int32_t *rows, int M, int C)
{
    size_t n = (size_t)M * C;
    if (be->error.code || !n) return;
    gather_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)y, (const float *)x, rows, n, C);
    launched(be, "gather_rows");
}
static void cuda_scatter_rows(ft_backend *be, ft_act *dx, const ft_act *dy, const int32_t *rows, int M, int C)
{
    size_t n = (size_t)M * C;
    if (be->error.code || !n) return;
    scatter_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>((float *)dx, (const float *)dy, rows, n, C);
    launched(be, "scatter_rows");
}

/* ---- lm_head and cross-entropy: the logits of CHUNK rows at a time; the gradient replaces them in place ---- */

#define CHUNK 512
__global__ static void cross_entropy_kernel(float *z, float *logprob, uint8_t *correct, const int32_t *targets,
                                            const float *weight, float dloss, int V)
{
    int row = blockIdx.x, target = targets[row];
    z += (size_t)row * V;
    if (target < 0) {                                 /* FTUNE_IGNORE_INDEX */
        if (logprob && threadIdx.x == 0) logprob[row] = 0;
        if (correct && threadIdx.x == 0) correct[row] = 0;
        for (int v = threadIdx.x; v < V; v += THREADS) z[v] = 0;
        return;
    }
    float top = -INFINITY, sum = 0, at_target = z[target];
    for (int v = threadIdx.x; v < V; v += THREADS) top = fmaxf(top, z[v]);
    top = block_max(top);
    int before = 0;                                   /* the lowest id wins a tie: is an equal one below the target? */
    for (int v = threadIdx.x; v < V; v += THREADS) { sum += expf(z[v] - top); before += z[v] == top && v < target; }
    sum = block_sum(sum);
    before = block_sum(before);
    float lse = top + logf(sum), scale = dloss * (weight ? weight[row] : 1.0f);
    if (threadIdx.x == 0) {
        if (logprob) logprob[row] = at_target - lse;
        if (correct) correct[row] = at_target == top && before == 0;
    }
    for (int v = threadIdx.x; v < V; v += THREADS) z[v] = scale * (expf(z[v] - lse) - (v == target));
}
static void cuda_lm_head_loss(ft_backend *be, float *logprob, uint8_t *correct, ft_act *dh_, const ft_act *h_, const int32_t *targets,
                              const float *weight, float dloss, const ft_linear *head, int M)
{
    float *dh = (float *)dh_;
    const float *h = (const float *)h_;
    int V = head->out, C = head->in, R = rank_sum(head);
    bool learns = dh || (dloss != 0 && (head->part[0].dweight || head->part[0].dbias || R));
    if (be->error.code || !M) return;
    float *z = (float *)cuda_alloc(be, (size_t)(M < CHUNK ? M : CHUNK) * V * sizeof(float));
    float *xa = R ? (float *)cuda_alloc(be, (size_t)CHUNK * R * sizeof(float)) : NULL;
    for (int m0 = 0; m0 < M && !be->error.code; m0 += CHUNK) {
        int m = M - m0 < CHUNK ? M - m0 : CHUNK;
        const float *rows = h + (size_t)m0 * C;
        cuda_linear_forward(be, z, xa, rows, head, m, 0);
        if (be->error.code) break;
        cross_entropy_kernel<<<m, THREADS, 0, state_of(be)->stream>>>(z, logprob ? logprob + m0 : NULL,
            correct ? correct + m0 : NULL, targets + m0, weight ? weight + m0 : NULL, dloss, V);
        launched(be, "cross_entropy");
        if (learns) cuda_linear_backward(be, dh ? dh + (size_t)m0 * C : NULL, z, rows, xa, head, m, 0);
    }
    cuda_release(be, z);
    cuda_release(be, xa);
}

/* ---- optimiser ---- */

__global__ static void adamw_kernel(float *p, const float *g, float *m, float *v, size_t n, ft_adamw o, float c1, float c2)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    float mi = m[i] = o.beta1 * m[i] + (1.0f - o.beta1) * g[i];
    float vi = v[i] = o.beta2 * v[i] + (1.0f - o.beta2) * g[i] * g[i];
    p[i] = p[i] * (1.0f - o.lr * o.weight_decay) - o.lr * (mi * c1) / (sqrtf(vi * c2) + o.eps);
}
static void cuda_adamw(ft_backend *be, float *p, const float *g, float *m, float *v, size_t n, const ft_adamw *o)
{
    if (be->error.code || !n) return;
    float c1 = (float)(1.0 / (1.0 - pow(o->beta1, (double)o->step))), c2 = (float)(1.0 / (1.0 - pow(o->beta2, (double)o->step)));
    adamw_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>(p, g, m, v, n, *o, c1, c2);
    launched(be, "adamw");
}
#define SUM_BLOCKS 256
__global__ static void sum_squares_kernel(double *partial, const float *x, size_t n)
{
    double s = 0;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (size_t)SUM_BLOCKS * THREADS) s += (double)x[i] * x[i];
    s = block_sum(s);
    if (threadIdx.x == 0) partial[blockIdx.x] = s;
}
static double cuda_sum_squares(ft_backend *be, const float *x, size_t n)
{
    double part[SUM_BLOCKS], s = 0;
    if (be->error.code || !n) return 0;
    sum_squares_kernel<<<SUM_BLOCKS, THREADS, 0, state_of(be)->stream>>>(state_of(be)->partial, x, n);
    launched(be, "sum_squares");
    cuda_download(be, part, state_of(be)->partial, sizeof part);
    if (be->error.code) return 0;
    for (int i = 0; i < SUM_BLOCKS; i++) s += part[i];
    return s;
}
__global__ static void scale_kernel(float *x, float s, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] *= s;
}
static void cuda_scale(ft_backend *be, float *x, float s, size_t n)
{
    if (be->error.code || !n) return;
    scale_kernel<<<blocks_for(n), THREADS, 0, state_of(be)->stream>>>(x, s, n);
    launched(be, "scale");
}

/* ---- the table ---- */

static void cuda_destroy(ft_backend *be)
{
    cuda_state *s = state_of(be);
    if (s) {
        if (s->blas) cublasDestroy(s->blas);
        if (s->stream) cudaStreamDestroy(s->stream);
        cudaFree(s->scratch);
        cudaFree(s->partial);
        free(s);
    }
    free(be);
}

FTUNE_API ft_status ft_backend_cuda(ft_backend **out, int device, ft_error *err)
{
    *out = NULL;
    ft_backend *be = (ft_backend *)calloc(1, sizeof *be);
    cuda_state *s = (cuda_state *)calloc(1, sizeof *s);
    if (!be || !s) {
        free(be); free(s);
        if (err) { err->code = FTUNE_ERR_NO_MEMORY; snprintf(err->message, sizeof err->message, "cuda: no memory for the backend"); }
        return FTUNE_ERR_NO_MEMORY;
    }
    be->name = "cuda"; be->state = s; be->threads = 1; be->activation = FTUNE_F32;
    be->destroy = cuda_destroy;
    be->alloc = cuda_alloc;       be->release = cuda_release;   be->upload = cuda_upload;   be->download = cuda_download;
    be->copy = cuda_copy;         be->zero = cuda_zero;         be->sync = cuda_sync;
    be->prepare_linear = cuda_prepare_linear;           be->release_linear = cuda_release_linear;
    be->embedding_forward = cuda_embedding_forward;     be->embedding_backward = cuda_embedding_backward;
    be->linear_forward = cuda_linear_forward;           be->linear_backward = cuda_linear_backward;
    be->rmsnorm_forward = cuda_rmsnorm_forward;         be->rmsnorm_backward = cuda_rmsnorm_backward;
    be->rope = cuda_rope;
    be->attention_forward = cuda_attention_forward;     be->attention_backward = cuda_attention_backward;
    be->silu_mul_forward = cuda_silu_mul_forward;       be->silu_mul_backward = cuda_silu_mul_backward;
    be->add = cuda_add;
    be->gather_rows = cuda_gather_rows;                 be->scatter_rows = cuda_scatter_rows;
    be->lm_head_loss = cuda_lm_head_loss;
    be->adamw = cuda_adamw;       be->sum_squares = cuda_sum_squares;   be->scale = cuda_scale;

    check(be, cudaSetDevice(device), "choosing the device");
    if (!be->error.code) check(be, cudaStreamCreate(&s->stream), "stream");
    if (!be->error.code && cublasCreate(&s->blas) != CUBLAS_STATUS_SUCCESS) latch(be, "cublas: could not be started");
    if (!be->error.code) {
        cublasSetStream(s->blas, s->stream);
        cublasSetMathMode(s->blas, CUBLAS_PEDANTIC_MATH);
        check(be, cudaMalloc(&s->partial, SUM_BLOCKS * sizeof *s->partial), "allocation");
    }
    ft_status st = be->error.code ? be->error.code : ft_backend_check(be, err);
    if (be->error.code && err) *err = be->error;
    if (st == FTUNE_OK) *out = be;
    else cuda_destroy(be);
    return st;
}
