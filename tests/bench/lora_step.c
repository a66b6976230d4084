/* lora_step.c - what lora_step.py asks of ftune: a model with its adapter, one batch, and one update at a time
 *
 * Build:  cc -O3 -march=native -fopenmp -shared -fPIC -I. tests/bench/lora_step.c -o build/lora_step.so -lm
 * A trainer over a data set that is exactly one batch: every update sees the same rows, unshuffled. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"

static ft_backend *be;
static ft_model   *model;
static ft_trainer *trainer;
static ft_dataset  rows;
static ft_error    err;

const char *bench_error(void) { return err.message; }

/* ids, labels [n_rows, T], of which the first lengths[i] are row i; they stay the caller's */
int bench_open(const char *dir, const char *adapter, int32_t *ids, int32_t *labels, const int32_t *lengths, int n_rows,
               int T, int threads, float lr)
{
    ft_train_options o = ft_train_options_default();
    rows.samples = (ft_sample *)calloc((size_t)n_rows, sizeof *rows.samples);
    rows.n = rows.n_rows = n_rows;
    for (int i = 0; i < n_rows; i++) {
        ft_sample *s = &rows.samples[i];
        s->n = s->cap = lengths[i]; s->input_ids = ids + (size_t)i * T; s->labels = labels + (size_t)i * T;
    }
    o.lr = lr; o.schedule = FTUNE_SCHEDULE_CONSTANT; o.batch = n_rows; o.steps = 1 << 20; o.shuffle = 0;
    if (ft_backend_cpu(&be, threads, &err) || ft_model_load(&model, dir, be, &err) ||
        ft_lora_load(model, adapter, &err)) return 1;
    return ft_trainer_new(&trainer, model, &rows, NULL, &o, &err) != FTUNE_OK;
}

/* forward, backward, clipping at 1, AdamW; the loss before the update, and the norm before clipping */
int bench_step(double *loss, double *grad_norm)
{
    ft_progress p;
    if (ft_trainer_step(trainer, &p, &err)) return 1;
    *loss = p.loss; *grad_norm = p.grad_norm;
    return 0;
}

void bench_close(void)
{
    ft_trainer_free(trainer); ft_model_free(model); ft_backend_free(be);
    free(rows.samples);
    trainer = NULL; model = NULL; be = NULL;
}
