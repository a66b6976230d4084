/* 08_lora_by_hand.c - why can two thin matrices stand in for a big one?
 *
 * LoRA (Hu et al. 2021, arXiv:2106.09685) leaves W alone and learns a correction of low rank:  W' = W + s * B A,
 * A [R, in], B [out, R], s = alpha / R. Below, the world has changed W by something of rank 2. Plain gradient descent
 * on A and B alone finds it with R = 2; with R = 1 it finds the better half and stays there. Then the correction is
 * added into W, and the two thin matrices are no longer needed.
 * Build:  cc -O2 -I. examples/08_lora_by_hand.c -o 08_lora_by_hand -lm
 * Run:    ./08_lora_by_hand               (expected output: examples/expected/08.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { OUT = 4, IN = 6, MAX_R = 2 };

/* Mean squared distance between W + s B A and the goal; dA and dB, if wanted. */
static double distance(const float *W, const float *goal, const float *A, const float *B, int R, float s,
                       float *dA, float *dB)
{
    double sum = 0;
    if (dA) memset(dA, 0, sizeof(float) * MAX_R * IN);
    if (dB) memset(dB, 0, sizeof(float) * OUT * MAX_R);
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++) {
            float off = W[o * IN + i] - goal[o * IN + i];
            for (int r = 0; r < R; r++) off += s * B[o * R + r] * A[r * IN + i];
            sum += (double)off * off;
            for (int r = 0; r < R && dA; r++) {
                dA[r * IN + i] += s * off * B[o * R + r];         /* B = 0 at first: A has to wait one step */
                dB[o * R + r]  += s * off * A[r * IN + i];
            }
        }
    return sum / (OUT * IN);
}

int main(void)
{
    float W[OUT * IN], goal[OUT * IN], A[MAX_R * IN], B[OUT * MAX_R], dA[MAX_R * IN], dB[OUT * MAX_R];
    static const float change_B[OUT * 2] = { 1, 0,  -1, 1,  0, 2,  1, 1 };
    static const float change_A[2 * IN]  = { 1, 0, -1, 0, 1, 0,   0, 1, 0, 1, 0, -1 };
    static const struct { const char *name; int in, out; } real[] = {
        { "Qwen2.5-0.5B q_proj", 896, 896 }, { "Qwen2.5-0.5B v_proj", 896, 128 }, { "Llama-7B q_proj", 4096, 4096 } };
    ft_backend *be = NULL;
    ft_error    err = { FTUNE_OK, "" };
    ft_rng      rng;

    if (ft_backend_cpu(&be, 1, &err)) goto done;
    ft_rng_seed(&rng, 3);
    for (int k = 0; k < OUT * IN; k++) goal[k] = W[k] = ft_rng_normal(&rng);
    /* goal = W + 1 * change_B change_A, with the one function every matrix product goes through */
    if (ft_matmul(be, 0, 0, OUT, IN, 2, 1.0f, change_B, 2, change_A, IN, 1.0f, goal, IN, &err)) goto done;

    for (int R = 1; R <= MAX_R; R++) {
        const float s = 16.0f / 8.0f, lr = 0.02f;
        printf("R = %d: %d numbers to learn instead of %d\n", R, R * (IN + OUT), IN * OUT);
        printf("  step    distance from the goal\n");
        for (int k = 0; k < R * IN; k++) A[k] = (2 * ft_rng_uniform(&rng) - 1) / sqrtf(IN);
        memset(B, 0, sizeof B);
        for (int step = 0; step <= 1000; step++) {
            double d = distance(W, goal, A, B, R, s, dA, dB);
            if (step == 0 || step == 10 || step == 100 || step == 1000) printf("  %4d    %.3f\n", step, d);
            for (int k = 0; k < R * IN; k++)  A[k] -= lr * dA[k];
            for (int k = 0; k < OUT * R; k++) B[k] -= lr * dB[k];
        }
        if (R == MAX_R) {       /* merge: W += s B A */
            if (ft_matmul(be, 0, 0, OUT, IN, R, s, B, R, A, IN, 1.0f, W, IN, &err)) goto done;
            printf("merged: W itself is now %.3f from the goal, without A and B\n",
                   distance(W, goal, A, B, 0, s, NULL, NULL));
        }
        putchar('\n');
    }
    printf("In real models, R = 8:\n");
    for (int k = 0; k < 3; k++) {
        double whole = (double)real[k].in * real[k].out, thin = 8.0 * (real[k].in + real[k].out);
        printf("  %-20s %9.0f -> %6.0f numbers (%.2f %%)\n", real[k].name, whole, thin, 100 * thin / whole);
    }
    /* Try it: start with A = 0 as well as B = 0. Nothing ever moves: why? */
done:
    if (err.code) fprintf(stderr, "08_lora_by_hand: %s\n", err.message);
    ft_backend_free(be);
    return err.code ? 1 : 0;
}
