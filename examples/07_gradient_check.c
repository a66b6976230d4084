/* 07_gradient_check.c - is the backward pass right?
 *
 * A gradient says how much the loss moves when one number moves. So move one number a little both ways, run only the
 * forward pass, and compare:  ( loss(w + e) - loss(w - e) ) / 2e.  It is slow, it needs no calculus, and it catches
 * every mistake a derivation can have. Here every number of a tiny model is moved; the table shows, for each tensor,
 * the number with the largest gradient.
 * Build:  cc -O2 -I. examples/07_gradient_check.c -o 07_gradient_check -lm
 * Run:    ./07_gradient_check               (expected output: examples/expected/07.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static ft_config tiny(void)
{
    ft_config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = 17;           c.hidden_size = 12;         c.intermediate_size = 20;  c.num_hidden_layers = 1;
    c.num_attention_heads = 2;   c.num_key_value_heads = 1;  c.head_dim = 6;            c.max_position_embeddings = 32;
    c.rms_norm_eps = 1e-6f;      c.rope_theta = 10000;       c.qkv_bias = 1;
    c.bos_token_id = c.pad_token_id = -1;
    return c;
}

static int count_of(const ft_param *p) { return p->shape[0] * (p->rank > 1 ? p->shape[1] : 1); }

static double loss_of(ft_model *m, const ft_batch *b, float dloss, ft_error *err)
{
    ft_loss loss = { 0 };
    if (ft_model_step(m, b, dloss, 0, &loss, err)) return 0;
    return loss.sum / loss.n;
}

int main(void)
{
    int32_t ids[]    = { 3, 1, 4, 1, 5, 9, 2, 6 };
    int32_t labels[] = { -100, -100, -100, 1, 5, 9, 2, 6 };
    ft_config   c = tiny();
    ft_backend *be = NULL;
    ft_model   *m = NULL;
    ft_sample   s = { 0 };
    ft_batch    b = { 0 };
    ft_rng      rng;
    ft_error    err = { FTUNE_OK, "" };
    const ft_param *p;
    int n, numbers = 0, wrong = 0;
    const float e = 0.01f;

    s.input_ids = ids; s.labels = labels; s.n = 8;
    if (ft_backend_cpu(&be, 1, &err) || ft_model_init(&m, &c, 7, be, &err) || ft_model_unfreeze(m, &err)) goto done;
    if (ft_batch_add(&b, &s, 0, 0, &err)) goto done;
    n = ft_model_params(m, &p);
    ft_rng_seed(&rng, 1);
    for (int i = 0; i < n; i++)          /* larger weights than a fresh model has: nothing may hide by being small */
        for (int k = 0; k < count_of(&p[i]); k++) p[i].value[k] += 0.4f * ft_rng_normal(&rng);

    ft_model_zero_grad(m);
    loss_of(m, &b, 1.0f / (float)b.n_targets, &err);             /* forward and backward: fills grad */
    printf("%-46s %9s %9s\n", "tensor", "backward", "moved");
    for (int i = 0; i < n && !err.code; i++) {
        int    count = count_of(&p[i]), big = 0;
        double at_big = 0, difference = 0, length = 0;
        for (int k = 0; k < count; k++) {
            float  w = p[i].value[k], g = p[i].grad[k];
            double up, down;
            p[i].value[k] = w + e;  up   = loss_of(m, &b, 0.0f, &err);
            p[i].value[k] = w - e;  down = loss_of(m, &b, 0.0f, &err);
            p[i].value[k] = w;
            if (fabsf(g) >= fabsf(p[i].grad[big])) { big = k; at_big = (up - down) / (2 * (double)e); }
            difference += pow((up - down) / (2 * (double)e) - g, 2);
            length     += pow(g, 2);
        }
        wrong   += !(sqrt(difference) <= 0.01 * sqrt(length) + 1e-3);      /* one per cent, and the noise of floats */
        numbers += count;
        printf("%-46s %9.2f %9.2f\n", p[i].name, (double)p[i].grad[big], at_big);
    }
    printf("\n%d numbers in %d tensors: %s\n", numbers, n, wrong ? "SOME DISAGREE" : "backward agrees with moving");
    /* Try it: e = 1. Why do they part? And e = 1e-6f? (the loss is a sum of floats) */
done:
    if (err.code) fprintf(stderr, "07_gradient_check: %s\n", err.message);
    ft_batch_free(&b);
    ft_model_free(m);
    ft_backend_free(be);
    return err.code || wrong ? 1 : 0;
}
