/* 12_merge.c - what is in the files, and is it the same model afterwards?
 *
 * Three claims about saving, each put to the test. A run that was interrupted and resumed equals one that was not, bit
 * for bit. An adapter loaded again gives the same logits. And adding the adapter into the weights (merging) gives a
 * plain model that answers the same, up to rounding, and no longer needs it.
 * Build:  cc -O2 -I. examples/12_merge.c -o 12_merge -lm
 * Run:    ./12_merge               (expected output: examples/expected/12.txt; writes build/merge_example/) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { V = 64, T = 10 };
static const char *BASE = "build/merge_example/base", *ADAPTER = "build/merge_example/adapter";
static const char *MERGED = "build/merge_example/merged", *HALFWAY = "build/merge_example/checkpoint-10";

static ft_status make_base(ft_backend *be, ft_error *err)
{
    ft_config c;
    ft_model *m = NULL;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = V;            c.hidden_size = 32;         c.intermediate_size = 64;  c.num_hidden_layers = 2;
    c.num_attention_heads = 4;   c.num_key_value_heads = 2;  c.head_dim = 8;            c.max_position_embeddings = 64;
    c.rms_norm_eps = 1e-6f;      c.rope_theta = 10000;       c.qkv_bias = 1;
    c.bos_token_id = c.pad_token_id = -1;
    if (!ft_model_init(&m, &c, 2, be, err)) ft_model_save(m, BASE, FTUNE_F32, err);
    ft_model_free(m);
    return err->code;
}

/* Twenty updates; with stop, ten, a checkpoint, everything thrown away, and ten more from the checkpoint. */
static ft_status train(ft_backend *be, const ft_dataset *d, int stop, const char *out, float *logits, const ft_batch *b,
                       ft_error *err)
{
    ft_train_options o = ft_train_options_default();
    ft_lora_config   lora = ft_lora_config_default();
    ft_model   *m = NULL;
    ft_trainer *t = NULL;
    o.lr = 0.02f; o.batch = 1; o.steps = 20;
    strcpy(lora.target_modules, "all-linear");
    for (int part = 0; part < 1 + stop && !err->code; part++) {
        if (ft_model_load(&m, BASE, be, err) || ft_lora_attach(m, &lora, 4, err)) break;
        if (ft_trainer_new(&t, m, d, NULL, &o, err)) break;
        if (part == 1 && ft_trainer_resume(t, HALFWAY, err)) break;
        for (int k = 0; k < (stop ? 10 : 20) && !err->code; k++) {
            ft_progress p;
            if (!ft_trainer_step(t, &p, err) && (p.step == 1 || p.step % 10 == 0))
                printf("  %s step %2d: loss %.2f\n", stop ? "interrupted" : "in one go  ", (int)p.step, p.loss);
        }
        if (stop && part == 0 && !err->code) ft_trainer_save(t, HALFWAY, err);
        if (part == stop && !err->code && !ft_model_logits(m, b, logits, err)) ft_lora_save(m, out, err);
        ft_trainer_free(t);
        ft_model_free(m);
        t = NULL;
        m = NULL;
    }
    ft_trainer_free(t);
    ft_model_free(m);
    return err->code;
}

static double difference(const float *a, const float *b)
{
    double most = 0;
    for (int k = 0; k < T * V; k++) most = fmax(most, fabs((double)a[k] - b[k]));
    return most;
}

int main(void)
{
    static int32_t ids[2][T] = { { 3, 1, 4, 1, 5, 9, 2, 6, 5, 3 }, { 2, 7, 1, 8, 2, 8, 1, 8, 2, 8 } };
    static float   base[T * V], once[T * V], resumed[T * V], loaded[T * V], merged[T * V], alone[T * V];
    ft_sample   s[2];
    ft_dataset  d;
    ft_batch    b = { 0 };
    ft_backend *be = NULL;
    ft_model   *m = NULL, *plain = NULL;
    ft_error    err = { FTUNE_OK, "" };

    memset(s, 0, sizeof s);
    memset(&d, 0, sizeof d);
    for (int i = 0; i < 2; i++) { s[i].input_ids = s[i].labels = ids[i]; s[i].n = T; }
    d.samples = s;
    d.n = 2;
    if (ft_backend_cpu(&be, 1, &err) || make_base(be, &err) || ft_batch_add(&b, &s[0], 0, 0, &err)) goto done;

    printf("1. interrupted, saved and resumed, against in one go\n");
    if (train(be, &d, 0, ADAPTER, once, &b, &err) || train(be, &d, 1, ADAPTER, resumed, &b, &err)) goto done;
    printf("  same bits: %s\n", memcmp(once, resumed, sizeof once) == 0 ? "yes" : "NO");

    printf("2. the adapter, loaded again\n");
    if (ft_model_load(&m, BASE, be, &err) || ft_model_logits(m, &b, base, &err)) goto done;
    if (ft_lora_load(m, ADAPTER, &err) || ft_model_logits(m, &b, loaded, &err)) goto done;
    printf("  same bits as when it was saved: %s; logits changed by up to %.1f against the base\n",
           memcmp(resumed, loaded, sizeof loaded) == 0 ? "yes" : "NO", difference(loaded, base));

    printf("3. merged: W += scaling * B A\n");
    if (ft_lora_merge(m, &err) || ft_model_logits(m, &b, merged, &err)) goto done;
    if (ft_model_save(m, MERGED, FTUNE_F32, &err) || ft_model_load(&plain, MERGED, be, &err)) goto done;
    if (ft_model_logits(plain, &b, alone, &err)) goto done;
    printf("  base + adapter against merged: within 1e-4: %s\n", difference(loaded, merged) < 1e-4 ? "yes" : "NO");
    printf("  merged, saved, loaded without it: within 1e-4: %s\n", difference(loaded, alone) < 1e-4 ? "yes" : "NO");
    if (ft_lora_unmerge(m, &err) || ft_model_logits(m, &b, merged, &err)) goto done;
    printf("  unmerged again: same bits as before: %s\n", memcmp(loaded, merged, sizeof loaded) == 0 ? "yes" : "NO");
    /* Try it: save the merged model as FTUNE_BF16. How far are the logits now, and is it the adapter's fault? */
done:
    if (err.code) fprintf(stderr, "12_merge: %s\n", err.message);
    ft_batch_free(&b);
    ft_model_free(m);
    ft_model_free(plain);
    ft_backend_free(be);
    return err.code ? 1 : 0;
}
