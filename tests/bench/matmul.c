/* matmul.c - ft_matmul beside OpenBLAS's sgemm, in one process, in turn
 *
 * Build:  gcc -std=c99 -O3 -march=native -fopenmp -I. tests/bench/matmul.c -o build/bench_matmul -lopenblas -lm
 * Run:    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE build/bench_matmul [threads]
 *
 * Every shape is checked against sgemm before it is timed. A line shows GFLOP/s of the median of 9 rounds (of several
 * calls where a call is short) for sgemm and for ft_matmul, and their ratio; "packed" is the linear op with frozen
 * weights, packed once by prepare_linear: what a LoRA run uses for y = x W^T.
 *
 * Both sides get the same turn: a rest, one call that is not timed, then the calls that are. By default OpenBLAS's
 * workers spin long after a call; whoever is timed then finds a core taken, and its threads share the other one: half
 * the speed, now and then, from something that a program with one matmul library does not have. So the program starts
 * itself again with OPENBLAS_THREAD_TIMEOUT=4 (they sleep soon) and OMP_WAIT_POLICY=passive (ours too). */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <cblas.h>

enum { ROUNDS = 9 };
typedef struct shape { const char *what; int M, N, K, tA, tB; } shape;

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *t) { qsort(t, ROUNDS, sizeof *t, by_size); return t[ROUNDS / 2]; }

static void rest(void) { struct timespec t = { 0, 40000000 }; nanosleep(&t, NULL); }
static void fail(const ft_error *err) { fprintf(stderr, "matmul: %s\n", err->message); exit(1); }
static float *numbers(size_t n, ft_rng *rng)
{
    float *x = (float *)malloc((n + 1) * sizeof *x);
    if (!x) { fprintf(stderr, "matmul: no memory\n"); exit(1); }
    for (size_t i = 0; i < n; i++) x[i] = rng ? ft_rng_uniform(rng) - 0.5f : 0.0f;
    return x;
}

static double compare(const shape *s, const float *C, const float *D)
{
    double worst = 0.0;
    for (size_t i = 0; i < (size_t)s->M * s->N; i++) if (!(fabs(C[i] - D[i]) <= worst)) worst = fabs(C[i] - D[i]);
    if (!(worst < 1e-6 * s->K + 1e-5)) {
        fprintf(stderr, "matmul: %d %d %d: results differ by %g, no speed is reported\n", s->M, s->N, s->K, worst);
        exit(1);
    }
    return worst;
}

/* one line; returns the ratio */
static double bench(ft_backend *be, const shape *s, ft_rng *rng)
{
    int M = s->M, N = s->N, K = s->K, lda = s->tA ? M : K, ldb = s->tB ? K : N, repeat;
    float *A = numbers((size_t)M * K, rng), *B = numbers((size_t)K * N, rng);
    float *C = numbers((size_t)M * N, NULL), *D = numbers((size_t)M * N, NULL);
    double blas[ROUNDS], ours[ROUNDS], packed[ROUNDS], flop = 2.0 * M * N * K, x, y, z = 0.0;
    ft_linear l;
    ft_error err = { FTUNE_OK, "" };
    memset(&l, 0, sizeof l);
    l.n_parts = 1; l.in = l.part[0].in = K; l.out = l.part[0].out = N;
    if (s->tB && !s->tA) {
        ft_tensor w = { "weight", FTUNE_F32, 2, { N, K, 1, 1 }, B, NULL, NULL, 0 };
        l.part[0].weight = w;
        be->prepare_linear(be, &l, 1);
    }
    repeat = (int)(3e7 / flop) + 1;
    for (int r = -1; r < ROUNDS; r++) {                     /* round -1 is checked */
        double t0 = 0.0, t1 = 0.0, t2 = 0.0, t3;
        rest();
        for (int i = -1; i < repeat; i++) {                 /* call -1 wakes the threads */
            if (i == 0) t0 = fti_now();
            cblas_sgemm(CblasRowMajor, s->tA ? CblasTrans : CblasNoTrans, s->tB ? CblasTrans : CblasNoTrans, M, N, K,
                        1.0f, A, lda, B, ldb, 0.0f, D, N);
        }
        t3 = fti_now() - t0;
        rest();
        for (int i = -1; i < repeat; i++) {
            if (i == 0) t1 = fti_now();
            if (ft_matmul(be, s->tA, s->tB, M, N, K, 1.0f, A, lda, B, ldb, 0.0f, C, N, &err)) fail(&err);
        }
        t2 = fti_now();
        if (r < 0) compare(s, C, D);
        else { blas[r] = t3; ours[r] = t2 - t1; }
        t2 = fti_now();
        if (l.packed) for (int i = 0; i < repeat; i++) be->linear_forward(be, C, NULL, A, &l, M, 0);
        if (be->error.code) fail(&be->error);
        if (r < 0) compare(s, C, D);
        else packed[r] = fti_now() - t2;
    }
    x = median(blas); y = median(ours);
    printf("%-26s %5d %6d %5d  %c%c %9.1f %9.1f   %5.2f", s->what, M, N, K, s->tA ? 'T' : 'N', s->tB ? 'T' : 'N',
           flop * repeat / x * 1e-9, flop * repeat / y * 1e-9, x / y);
    if (l.packed) { z = median(packed); printf(" %9.1f   %5.2f", flop * repeat / z * 1e-9, x / z); }
    printf("\n");
    fflush(stdout);
    be->release_linear(be, &l);
    free(A); free(B); free(C); free(D);
    return x / y;
}

int main(int argc, char **argv)
{
    static const shape shapes[] = {
        { "square", 1024, 1024, 1024, 0, 0 }, { "", 1024, 1024, 1024, 0, 1 },
        { "", 1024, 1024, 1024, 1, 0 },       { "", 1024, 1024, 1024, 1, 1 },
        { "square", 2048, 2048, 2048, 0, 0 }, { "", 2048, 2048, 2048, 0, 1 },
        { "", 2048, 2048, 2048, 1, 0 },       { "", 2048, 2048, 2048, 1, 1 },
        { "y = x W^T, q|k|v", 64, 1152, 896, 0, 1 },  { "  256 tokens", 256, 1152, 896, 0, 1 },
        { "  512 tokens", 512, 1152, 896, 0, 1 },
        { "y = x W^T, gate|up", 64, 9728, 896, 0, 1 }, { "  256 tokens", 256, 9728, 896, 0, 1 },
        { "y = x W^T, down", 64, 896, 4864, 0, 1 },    { "  512 tokens", 512, 896, 4864, 0, 1 },
        { "dx = dy W, up", 64, 896, 4864, 0, 0 },      { "  256 tokens", 256, 896, 4864, 0, 0 },
        { "dx = dy W, down", 512, 4864, 896, 0, 0 },
        { "dW = dy^T x, up", 4864, 896, 256, 1, 0 },
        { "decode, one token", 1, 4864, 896, 0, 1 },   { "  four tokens", 4, 4864, 896, 0, 1 },
        { "x A^T, rank 8", 512, 8, 896, 0, 1 },        { "(xA^T) B^T", 512, 896, 8, 0, 1 },
        { "dA = t^T x", 8, 896, 512, 1, 0 },
        { "a tiny model", 200, 128, 128, 0, 1 },       { "", 200, 512, 128, 0, 0 },
        { "odd", 37, 61, 53, 0, 0 },                   { "odd", 101, 103, 107, 0, 1 }
    };
    int threads = argc > 1 ? atoi(argv[1]) : 0, n = (int)(sizeof shapes / sizeof *shapes);
    ft_backend *be = NULL;
    ft_error err = { FTUNE_OK, "" };
    ft_rng rng;
    double worst = 1e9;
    if (!getenv("OPENBLAS_THREAD_TIMEOUT")) {                 /* read before main: begin again with it */
        setenv("OPENBLAS_THREAD_TIMEOUT", "4", 1);
        setenv("OMP_WAIT_POLICY", "passive", 0);
        execvp(argv[0], argv);
    }
    ft_rng_seed(&rng, 1);
    if (ft_backend_cpu(&be, threads, &err)) fail(&err);
    openblas_set_num_threads(be->threads);
    printf("%s %s\n%s, core %s, %d thread%s; compiler %s; %d lanes\n", argv[0], threads ? argv[1] : "",
           openblas_get_config(),
           openblas_get_corename(), be->threads, be->threads > 1 ? "s" : "", __VERSION__, (int)FTI_LANES);
    printf("%-26s %5s %6s %5s  %2s %9s %9s   %5s %9s   %5s\n", "", "M", "N", "K", "", "sgemm", "ftune", "ratio",
           "packed", "ratio");
    for (int i = 0; i < n; i++) {
        double ratio = bench(be, &shapes[i], &rng);
        if (i < 8 && ratio < worst) worst = ratio;
    }
    printf("smallest ratio of the squares: %.2f (at least 0.80 is asked, 1.00 the aim)\n", worst);
    ft_backend_free(be);
    return 0;
}
