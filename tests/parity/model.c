/* model.c - what test_model_parity.py asks of ftune: logits, gradients, training steps, for rows in a small binary file
 *
 *     model MODEL ADAPTER|- ROWS OUT logits            OUT/logits.bin: f32 [tokens, V], rows end to end
 *     model MODEL ADAPTER|full ROWS OUT grads          OUT/grads.safetensors of the mean loss; prints the loss
 *     model MODEL ADAPTER|full ROWS OUT steps N LR WD  N updates of AdamW, all rows each time, constant lr; prints
 *                                                      every loss; OUT gets the adapter or the model
 *     model CONFIG - - OUT init                        OUT: a random model, and OUT/adapter: a random adapter on it
 *     model MODEL ADAPTER - OUT merge                  OUT: the merged model
 * ROWS: int32 n_rows, then for each row n, n ids, n labels. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>

static int read_rows(const char *path, ft_dataset *d)
{
    FILE *f = fopen(path, "rb");
    int32_t n;
    memset(d, 0, sizeof *d);
    if (!f || fread(&n, 4, 1, f) != 1) return 0;
    d->n = d->n_rows = n;
    d->samples = (ft_sample *)calloc((size_t)n, sizeof *d->samples);
    for (int i = 0; i < n; i++) {
        ft_sample *s = &d->samples[i];
        int32_t len;
        if (fread(&len, 4, 1, f) != 1) return 0;
        s->n = s->cap = len;
        s->input_ids = (int32_t *)malloc((size_t)len * 4);
        s->labels = (int32_t *)malloc((size_t)len * 4);
        if (fread(s->input_ids, 4, (size_t)len, f) != (size_t)len || fread(s->labels, 4, (size_t)len, f) != (size_t)len)
            return 0;
    }
    fclose(f);
    return 1;
}

static ft_status batch_of(ft_batch *b, const ft_dataset *d, ft_error *err)
{
    ft_status st = FTUNE_OK;
    for (int i = 0; !st && i < d->n; i++) st = ft_batch_add(b, &d->samples[i], 0, 0, err);
    return st;
}

static ft_status write_logits(ft_model *m, const ft_dataset *d, const char *out, ft_error *err)
{
    ft_batch b = { 0 };
    char path[1024];
    float *z;
    FILE *f;
    ft_status st = batch_of(&b, d, err);
    if (st) return st;
    z = (float *)malloc((size_t)b.N * (size_t)m->config.vocab_size * sizeof *z);
    if ((st = ft_model_logits(m, &b, z, err))) return st;
    snprintf(path, sizeof path, "%s/logits.bin", out);
    f = fopen(path, "wb");
    fwrite(z, sizeof *z, (size_t)b.N * (size_t)m->config.vocab_size, f);
    fclose(f);
    free(z);
    ft_batch_free(&b);
    return FTUNE_OK;
}

static ft_status write_grads(ft_model *m, const ft_dataset *d, const char *out, ft_error *err)
{
    ft_batch b = { 0 };
    ft_loss loss = { 0 };
    const ft_param *p;
    int n = ft_model_params(m, &p);
    ft_tensor *t = (ft_tensor *)calloc((size_t)n, sizeof *t);
    char path[1024];
    ft_status st = batch_of(&b, d, err);
    if (st) return st;
    ft_model_zero_grad(m);
    if ((st = ft_model_step(m, &b, 1.0f / (float)b.n_targets, 0, &loss, err))) return st;
    printf("%.9g\n", loss.sum / loss.n);
    for (int i = 0; i < n; i++) {
        t[i].name = p[i].name; t[i].dtype = FTUNE_F32; t[i].rank = p[i].rank;
        memcpy(t[i].shape, p[i].shape, sizeof t[i].shape);
        t[i].data = p[i].grad;
    }
    snprintf(path, sizeof path, "%s/grads.safetensors", out);
    st = ft_weights_save(path, t, n, err);
    free(t);
    ft_batch_free(&b);
    return st;
}

static ft_status steps(ft_model *m, const ft_dataset *d, const char *out, int n, float lr, float decay, ft_error *err)
{
    ft_train_options o = ft_train_options_default();
    ft_trainer *t = NULL;
    ft_progress p;
    ft_status st;
    o.lr = lr; o.schedule = FTUNE_SCHEDULE_CONSTANT; o.batch = d->n; o.steps = n; o.shuffle = 0; o.weight_decay = decay;
    st = ft_trainer_new(&t, m, d, NULL, &o, err);
    while (!st && !ft_trainer_done(t))
        if (!(st = ft_trainer_step(t, &p, err))) printf("%.9g %.9g\n", p.loss, p.grad_norm);
    ft_trainer_free(t);
    if (!st) st = m->has_lora ? ft_lora_save(m, out, err) : ft_model_save(m, out, FTUNE_F32, err);
    return st;
}

static ft_status init(const char *config, const char *out, ft_backend *be, ft_error *err)
{
    ft_config c;
    ft_model *m = NULL;
    ft_lora_config l = ft_lora_config_default();
    char dir[1024];
    ft_status st = ft_config_load(&c, config, err);
    strcpy(l.target_modules, "all-linear");
    l.r = 4;
    snprintf(dir, sizeof dir, "%s/adapter", out);
    if (!st) st = ft_model_init(&m, &c, 7, be, err);
    if (!st) st = ft_model_save(m, out, FTUNE_F32, err);
    if (!st) st = ft_lora_attach(m, &l, 9, err);
    for (int i = 0, n = st ? 0 : ft_model_params(m, NULL); i < n; i++) {        /* B random too, so that it matters */
        const ft_param *p;
        ft_model_params(m, &p);
        ft_rng rng;
        ft_rng_seed(&rng, (uint64_t)i + 100);
        for (int k = 0; k < p[i].shape[0] * p[i].shape[1]; k++) p[i].value[k] += 0.05f * ft_rng_normal(&rng);
    }
    if (!st) st = ft_lora_save(m, dir, err);
    ft_model_free(m);
    return st;
}

int main(int argc, char **argv)
{
    ft_error err = { FTUNE_OK, "" };
    ft_backend *be = NULL;
    ft_model *m = NULL;
    ft_dataset d;
    ft_status st;
    const char *what = argc > 5 ? argv[5] : "";
    if (argc < 6) { fprintf(stderr, "usage: see the top of model.c\n"); return 2; }
    st = ft_backend_cpu(&be, 0, &err);
    if (!st && strcmp(what, "init") == 0) { st = init(argv[1], argv[4], be, &err); goto done; }
    if (!st) st = ft_model_load(&m, argv[1], be, &err);
    if (!st && strcmp(argv[2], "full") == 0) st = ft_model_unfreeze(m, &err);
    else if (!st && strcmp(argv[2], "-") != 0) st = ft_lora_load(m, argv[2], &err);
    if (st) goto done;
    if (strcmp(what, "merge") == 0) {
        if (!(st = ft_lora_merge(m, &err))) st = ft_model_save(m, argv[4], FTUNE_F32, &err);
        goto done;
    }
    if (!read_rows(argv[3], &d)) { fprintf(stderr, "%s: cannot be read\n", argv[3]); return 1; }
    if (strcmp(what, "logits") == 0) st = write_logits(m, &d, argv[4], &err);
    else if (strcmp(what, "grads") == 0) st = write_grads(m, &d, argv[4], &err);
    else if (argc > 8) st = steps(m, &d, argv[4], atoi(argv[6]), (float)atof(argv[7]), (float)atof(argv[8]), &err);
done:
    if (st) fprintf(stderr, "model: %s\n", err.message);
    ft_model_free(m);
    ft_backend_free(be);
    return st != FTUNE_OK;
}
