/* test_09_training.c - schedule, accumulation, packing, ten golden steps, checkpoints to the bit, logs
 * Build: cc -O2 -march=native -fopenmp -I. tests/test_09_training.c -o build/test_09_training -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include "tiny_model.h"

static ft_error err;

/* Numbers of Transformers' get_scheduler, lr 1, ten updates, two of warmup. */
static void test_schedule(void)
{
    static const double expected[3][10] = {
        { 0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125 },
        { 0, 0.5, 1, 0.961939766, 0.853553391, 0.691341716, 0.5, 0.308658284, 0.146446609, 0.038060234 },
        { 0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1 } };
    ft_train_options o = ft_train_options_default();
    o.lr = 1.0f;
    for (int k = 0; k < 3; k++)
        for (int s = 0; s < 10; s++) {
            o.schedule = (ft_schedule)k;
            o.warmup = 2.0f;
            CHECK_NEAR(ft_learning_rate(&o, s, 10), expected[k][s], 1e-6, 0.0);
            o.warmup = 0.15f;                              /* ceil(1.5) = 2 */
            CHECK_NEAR(ft_learning_rate(&o, s, 10), expected[k][s], 1e-6, 0.0);
        }
    o.schedule = FTUNE_SCHEDULE_LINEAR;
    o.warmup = 0.1f;                                       /* 10 of 100, though 0.1f is more than 0.1 */
    CHECK_NEAR(ft_learning_rate(&o, 9, 100), 0.9, 1e-6, 0.0);
    CHECK_NEAR(ft_learning_rate(&o, 10, 100), 1.0, 1e-6, 0.0);
    o.warmup = 0.0f;
    CHECK_NEAR(ft_learning_rate(&o, 0, 100), 1.0, 1e-6, 0.0);
    CHECK_NEAR(ft_learning_rate(&o, 99, 100), 0.01, 1e-6, 0.0);
    CHECK_NEAR(ft_learning_rate(&o, 5, 0), 0.0, 1e-6, 0.0);
}

static ft_model *lora_model(ft_backend *be, float dropout)
{
    ft_model *m = tiny_model(be, 0, 1);
    ft_lora_config c = tiny_lora("all-linear", 3);
    c.lora_dropout = dropout;
    CHECK_OK(ft_lora_attach(m, &c, 2, &err), err);
    return m;
}

static ft_train_options quick(int batch, int accumulate, int steps)
{
    ft_train_options o = ft_train_options_default();
    o.lr = 1e-2f; o.batch = batch; o.accumulate = accumulate; o.steps = steps; o.warmup = 2; o.weight_decay = 0.1f;
    o.log_every = 1;
    return o;
}

/* One update with 8 rows in every division of the window: the same loss, norm and weights to rounding. */
static void test_accumulation(ft_backend *be)
{
    static const int lengths[8] = { 9, 2, 14, 5, 30, 3, 7, 11 }, batch[5] = { 8, 4, 2, 1, 2 };
    ft_dataset d = tiny_rows(lengths, 8, 37, 1);
    ft_progress first = { 0 }, p;
    float *values = NULL;
    for (int way = 0; way < 5; way++) {                    /* the last one: two packed rows of 48 tokens */
        ft_model *m = lora_model(be, 0.0f);
        ft_train_options o = quick(batch[way], 8 / batch[way], 2);
        ft_trainer *t = NULL;
        double diff = 0.0, size = 0.0;
        size_t n = m->priv->n_values;
        if (way == 4) { o.packing_length = 48; o.accumulate = 1; }
        o.warmup = 0.0f; o.steps = 1;
        CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
        if (!t) return;
        if (way == 4) CHECK_INT(t->n_units, 2);
        CHECK_OK(ft_trainer_step(t, &p, &err), err);
        CHECK(ft_trainer_done(t));
        CHECK_FAILS(ft_trainer_step(t, &p, &err), err, FTUNE_ERR_ARGUMENT, "all 1 steps are done");
        if (way == 0) {
            first = p;
            values = (float *)malloc(n * sizeof *values);
            memcpy(values, m->priv->grads, n * sizeof *values);
        }
        for (size_t k = 0; k < n; k++) {
            diff += ((double)values[k] - m->priv->grads[k]) * ((double)values[k] - m->priv->grads[k]);
            size += (double)values[k] * values[k];
        }
        CHECK_NEAR(p.loss, first.loss, 0.0, 1e-6);
        CHECK_NEAR(p.grad_norm, first.grad_norm, 0.0, 1e-6);
        CHECK_INT(p.targets, first.targets);
        CHECK_INT(p.tokens, d.n_tokens);
        CHECK_MSG(sqrt(diff) <= 1e-6 * sqrt(size), "%d x %d: gradients differ by %g of their length", batch[way],
                  8 / batch[way], sqrt(diff / size));
        ft_trainer_free(t);
        ft_model_free(m);
    }
    free(values);
    tiny_rows_free(&d);
}

/* loss_scale, end to end: an update's loss is 1/n sum_i w_i nll_i over its n targets, and its gradient the sum of the
 * gradients of each target alone, w_i/n each. A row without weights counts with 1. */
static void test_loss_scale(ft_backend *be)
{
    static const int lengths[3] = { 9, 6, 14 };
    ft_dataset d = tiny_rows(lengths, 3, 37, 8);
    ft_model *m = lora_model(be, 0.0f), *one = lora_model(be, 0.0f);
    ft_train_options o = quick(2, 2, 1);
    ft_trainer *t = NULL;
    ft_progress p = { 0 };
    ft_rng rng;
    double sum = 0.0, diff = 0.0, size = 0.0;
    int targets = 0;
    ft_rng_seed(&rng, 5);
    o.max_grad_norm = 0.0f;
    for (int r = 0; r < 3; r += 2) {
        ft_sample *s = &d.samples[r];
        s->loss_scale = (float *)malloc((size_t)s->n * sizeof *s->loss_scale);
        for (int k = 0; k < s->n; k++)
            s->loss_scale[k] = s->labels[k] == FTUNE_IGNORE_INDEX ? 0.0f : 0.25f * (float)(1 + ft_rng_below(&rng, 12));
    }
    CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
    CHECK_OK(ft_trainer_step(t, &p, &err), err);
    ft_model_zero_grad(one);
    for (int r = 0; r < 3; r++) for (int k = 1; k < d.samples[r].n; k++) targets += d.samples[r].labels[k] >= 0;
    CHECK_INT(p.targets, targets);
    for (int r = 0; r < 3; r++)
        for (int k = 1; k < d.samples[r].n; k++) {
            ft_sample alone = d.samples[r];
            int32_t labels[16];
            float w = alone.loss_scale ? alone.loss_scale[k] : 1.0f;
            ft_batch b = { 0 };
            ft_loss loss = { 0 };
            if (alone.labels[k] < 0) continue;
            for (int i = 0; i < alone.n; i++) labels[i] = i == k ? alone.labels[k] : FTUNE_IGNORE_INDEX;
            alone.labels = labels;
            alone.loss_scale = NULL;
            CHECK_OK(ft_batch_add(&b, &alone, 0, 0, &err), err);
            CHECK_OK(ft_model_step(one, &b, w / (float)targets, 0, &loss, &err), err);
            sum += w * loss.sum;
            ft_batch_free(&b);
        }
    for (size_t k = 0; k < m->priv->n_values; k++) {
        diff += pow((double)one->priv->grads[k] - m->priv->grads[k], 2);
        size += pow((double)one->priv->grads[k], 2);
    }
    CHECK_NEAR(p.loss, sum / targets, 0.0, 1e-6);
    CHECK_MSG(sqrt(diff) <= 1e-6 * sqrt(size), "gradients differ by %g of their length", sqrt(diff / size));
    ft_trainer_free(t);
    ft_model_free(m);
    ft_model_free(one);
    free(d.samples[0].loss_scale);
    free(d.samples[2].loss_scale);
    tiny_rows_free(&d);
}

/* tests/golden/make_model.py: ten updates of PyTorch and PEFT. */
static void test_golden(ft_backend *be)
{
    ft_weights *w = NULL;
    ft_model *m = NULL;
    ft_dataset d;
    ft_sample rows[4];
    ft_train_options o = ft_train_options_default();
    ft_trainer *t = NULL;
    CHECK_OK(ft_weights_open(&w, "tests/golden/model/expected.safetensors", &err), err);
    CHECK_OK(ft_model_load(&m, "tests/golden/model", be, &err), err);
    if (!w || !m) return;
    CHECK_OK(ft_lora_load(m, "tests/golden/model", &err), err);
    memset(&d, 0, sizeof d);
    memset(rows, 0, sizeof rows);
    d.samples = rows; d.n = 4;
    for (int i = 0; i < 8; i++) {
        char name[64];
        int32_t *ids = (int32_t *)malloc(64 * 4);
        float x[64];
        const ft_tensor *r;
        snprintf(name, sizeof name, "row%d.%s", i / 2, i % 2 ? "labels" : "input_ids");
        r = ft_weights_find(w, name);
        CHECK_OK(ft_tensor_to_f32(r, x, &err), err);
        for (int k = 0; k < r->shape[0]; k++) ids[k] = (int32_t)x[k];
        rows[i / 2].n = r->shape[0];
        if (i % 2) rows[i / 2].labels = ids;
        else rows[i / 2].input_ids = ids;
    }
    o.lr = 0.02f; o.schedule = FTUNE_SCHEDULE_CONSTANT; o.weight_decay = 0.01f; o.batch = 4; o.steps = 10;
    o.shuffle = 0;
    CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
    for (int s = 0; t && s < 10; s++) {
        ft_progress p = { 0 };
        CHECK_OK(ft_trainer_step(t, &p, &err), err);
        CHECK_NEAR(p.loss, ((const float *)ft_weights_find(w, "losses")->data)[s], 1e-4, 0.0);
        CHECK_NEAR(p.grad_norm, ((const float *)ft_weights_find(w, "norms")->data)[s], 0.0, 1e-3);
    }
    ft_trainer_free(t);
    ft_model_free(m);
    ft_weights_close(w);
    for (int i = 0; i < 4; i++) { free(rows[i].input_ids); free(rows[i].labels); }
}

static int same_file(const char *a, const char *b)
{
    size_t n = 0, k = 0;
    char *x = test_read(a, &n), *y = test_read(b, &k);
    int same = x && y && n == k && memcmp(x, y, n) == 0;
    free(x); free(y);
    return same;
}

static void remove_run(const char *dir)
{
    char path[300];
    for (int s = 0; s <= 20; s++) {
        snprintf(path, sizeof path, "%s/checkpoint-%d", dir, s);
        if (fti_is_directory(path)) fti_remove_checkpoint(path, 1, NULL);
    }
    fti_remove_checkpoint(dir, 0, NULL);
}

/* Train 9 steps of 4 epochs with dropout, packing or not, LoRA or everything; stop after `stop`, resume, finish: the
 * same files as without stopping, at any number of threads. */
static void one_resume(int full, int packing, int stop)
{
    static const int lengths[7] = { 9, 4, 14, 5, 18, 3, 7 }, held_out[2] = { 8, 5 };
    static const char *const file[3] = { "optimizer.safetensors", "trainer_state.json", "" };
    ft_dataset d = tiny_rows(lengths, 7, 37, 1), e = tiny_rows(held_out, 2, 37, 2);
    char whole[100], parts[100], a[300], b[300];
    snprintf(whole, sizeof whole, "build/tmp/test_09_whole");
    snprintf(parts, sizeof parts, "build/tmp/test_09_parts");
    remove_run(whole);
    remove_run(parts);
    for (int part = 0; part < 3; part++) {                 /* whole run, first part, second part */
        ft_backend *be = tiny_backend(part == 1 ? 3 : 1);
        ft_model *m = full ? tiny_model(be, 1, 1) : lora_model(be, 0.2f);
        ft_train_options o = quick(2, 2, 9);
        ft_trainer *t = NULL;
        if (full) CHECK_OK(ft_model_unfreeze(m, &err), err);
        o.packing_length = packing;
        o.out_dir = part == 0 ? whole : parts;
        o.save_every = stop;
        o.log_every = 2;
        CHECK_OK(ft_trainer_new(&t, m, &d, &e, &o, &err), err);
        if (!t) return;
        if (part == 1) {                       /* as ft_trainer_run, but the power fails after `stop` */
            ft_progress p;
            CHECK_OK(fti_log_begin(t, &err), err);
            CHECK_OK(fti_log_eval(t, &err), err);
            for (int s = 0; s < stop + 1; s++) {
                CHECK_OK(ft_trainer_step(t, &p, &err), err);
                CHECK_OK(fti_run_after(t, &p, &err), err);
            }
        } else {
            if (part == 2) {
                CHECK_OK(ft_trainer_resume(t, parts, &err), err);
                CHECK_INT(t->step, (stop + 1) / stop * stop);
            }
            CHECK_OK(ft_trainer_run(t, &err), err);
        }
        ft_trainer_free(t);
        ft_model_free(m);
        ft_backend_free(be);
    }
    for (int k = 0; k < 3; k++) {
        const char *f = *file[k] ? file[k] : full ? "model.safetensors" : "adapter_model.safetensors";
        snprintf(a, sizeof a, "%s/checkpoint-9/%s", whole, f);
        snprintf(b, sizeof b, "%s/checkpoint-9/%s", parts, f);
        CHECK_MSG(same_file(a, b), "full %d, packing %d, stopped after %d: %s differs", full, packing, stop, f);
    }
    CHECK(same_file("build/tmp/test_09_whole/loss.svg", "build/tmp/test_09_parts/loss.svg"));
    tiny_rows_free(&d);
    tiny_rows_free(&e);
}

static void test_resume(void)
{
    one_resume(0, 0, 1);
    one_resume(0, 0, 4);
    one_resume(0, 20, 5);
    one_resume(1, 0, 3);
}

/* Each line of log.jsonl is JSON; the steps stand there once, in order, also after the resume above. */
static void test_log(void)
{
    size_t n = 0;
    char *text = test_read("build/tmp/test_09_parts/log.jsonl", &n);
    int64_t last = -1, lines = 0, evals = 0;
    CHECK(text != NULL);
    for (char *p = text; p && *p; ) {
        char *end = strchr(p, '\n');
        fti_json j;
        CHECK(end != NULL);
        if (!end) break;
        CHECK_OK(fti_json_parse(&j, p, (size_t)(end - p), "log.jsonl", &err), err);
        if (fti_json_get(&j, 0, "train_runtime") >= 0) {
            CHECK(fti_json_is(&j, fti_json_get(&j, 0, "train_loss"), FTI_NUMBER));
            CHECK(end[1] == 0);
        } else {
            int64_t step = fti_json_int(&j, fti_json_get(&j, 0, "step"), -1);
            int eval = fti_json_get(&j, 0, "eval_loss") >= 0;
            CHECK_MSG(step > last || eval, "log.jsonl: step %lld after %lld", (long long)step, (long long)last);
            if (!eval) {
                CHECK(fti_json_is(&j, fti_json_get(&j, 0, "loss"), FTI_NUMBER) && fti_json_get(&j, 0,
                                                                      "learning_rate") > 0
                      && fti_json_get(&j, 0, "grad_norm") > 0 && fti_json_get(&j, 0, "mean_token_accuracy") > 0);
                last = step;
            } else CHECK(fti_json_get(&j, 0, "eval_perplexity") > 0);
            lines++; evals += eval;
        }
        fti_json_free(&j);
        p = end + 1;
    }
    CHECK_INT(last, 9);
    CHECK_INT(evals, 6);                                   /* before, after epochs of 2 steps, at the end */
    CHECK_INT(lines - evals, 6);                           /* 1, 2, 4, 6, 8, 9 */
    free(text);
    text = test_read("build/tmp/test_09_parts/loss.svg", &n);
    CHECK(text && strncmp(text, "<svg ", 5) == 0 && strstr(text, "</svg>") && strstr(text, ">eval<"));
    free(text);
}

/* What would not be the same training is refused, by name. */
static void test_refused(ft_backend *be)
{
    static const int lengths[4] = { 9, 4, 14, 5 };
    static const char *const name[8] = { "lr", "batch", "seed", "schedule", "max_steps", "train_rows", "lora_r",
                                        "base_model" };
    const char *dir = "build/tmp/test_09_refused";
    ft_dataset d = tiny_rows(lengths, 4, 37, 1), other = tiny_rows(lengths, 4, 37, 9);
    ft_model *m = lora_model(be, 0.0f);
    ft_train_options o = quick(2, 1, 6);
    ft_trainer *t = NULL;
    remove_run(dir);
    CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
    CHECK_OK(ft_trainer_step(t, NULL, &err), err);
    CHECK_OK(ft_trainer_save(t, dir, &err), err);
    CHECK_OK(ft_trainer_save(t, dir, &err), err);          /* in the place of the old one */
    CHECK_OK(ft_trainer_resume(t, dir, &err), err);
    CHECK_FAILS(ft_trainer_resume(t, "build/tmp/nowhere", &err), err, FTUNE_ERR_NOT_FOUND, "neither a checkpoint");
    CHECK_FAILS(ft_trainer_save(t, "build/tmp", &err), err, FTUNE_ERR_IO, "not a checkpoint");
    ft_trainer_free(t);
    for (int k = 0; k < 8; k++) {
        ft_train_options changed = o;
        ft_lora_config c = tiny_lora("all-linear", 2);
        char expected[64];
        if (k == 0) changed.lr = 2e-2f;
        if (k == 1) changed.batch = 4;
        if (k == 2) changed.seed = 43;
        if (k == 3) changed.schedule = FTUNE_SCHEDULE_LINEAR;
        if (k == 4) changed.steps = 7;
        if (k == 6) CHECK_OK(ft_lora_attach(m, &c, 2, &err), err);
        if (k == 7) {
            c.r = 3;
            CHECK_OK(ft_lora_attach(m, &c, 2, &err), err);
            ((float *)m->norm.data)[0] += 1.0f;
        }
        CHECK_OK(ft_trainer_new(&t, m, k == 5 ? &other : &d, NULL, &changed, &err), err);
        snprintf(expected, sizeof expected, ": %s: this run has", name[k]);
        CHECK_FAILS(ft_trainer_resume(t, dir, &err), err, FTUNE_ERR_ARGUMENT, expected);
        ft_trainer_free(t);
    }
    ft_model_free(m);
    tiny_rows_free(&d);
    tiny_rows_free(&other);
}

/* A loss that is not a number: named, and no weight has moved. */
static void test_not_finite(ft_backend *be)
{
    static const int lengths[2] = { 9, 4 };
    ft_dataset d = tiny_rows(lengths, 2, 37, 1);
    ft_model *m = lora_model(be, 0.0f);
    ft_train_options o = quick(2, 1, 3);
    ft_trainer *t = NULL;
    size_t bytes = m->priv->n_values * sizeof(float), n = 0;
    float *before = (float *)malloc(bytes);
    char *text;
    o.out_dir = "build/tmp/test_09_nan";
    ((float *)m->norm.data)[2] = NAN;
    memcpy(before, m->priv->values, bytes);
    CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
    CHECK_FAILS(ft_trainer_run(t, &err), err, FTUNE_ERR_NOT_FINITE, "weights were left as they are");
    CHECK(memcmp(before, m->priv->values, bytes) == 0);
    text = test_read("build/tmp/test_09_nan/log.jsonl", &n);
    CHECK(text && strstr(text, "\"loss\": null") && strstr(text, "\"error\""));
    free(text);
    free(before);
    ft_trainer_free(t);
    ft_model_free(m);
    tiny_rows_free(&d);
}

static void test_options(ft_backend *be)
{
    static const int lengths[2] = { 9, 4 };
    ft_dataset d = tiny_rows(lengths, 2, 37, 1), none;
    ft_model *m = tiny_model(be, 0, 1);
    ft_train_options o = quick(2, 1, 3);
    ft_trainer *t = NULL;
    ft_lora_config c = tiny_lora("q_proj", 2);
    memset(&none, 0, sizeof none);
    CHECK_FAILS(ft_trainer_new(&t, m, &d, NULL, &o, &err), err, FTUNE_ERR_ARGUMENT, "nothing to train");
    CHECK_OK(ft_lora_attach(m, &c, 1, &err), err);
    CHECK_FAILS(ft_trainer_new(&t, m, &none, NULL, &o, &err), err, FTUNE_ERR_NO_LABELS, "no row");
    o.batch = 0;
    CHECK_FAILS(ft_trainer_new(&t, m, &d, NULL, &o, &err), err, FTUNE_ERR_ARGUMENT, "batch 0");
    o = quick(2, 1, 0); o.epochs = 0;
    CHECK_FAILS(ft_trainer_new(&t, m, &d, NULL, &o, &err), err, FTUNE_ERR_ARGUMENT, "neither");
    o = quick(2, 1, 3); o.packing_length = 5;
    CHECK_FAILS(ft_trainer_new(&t, m, &d, NULL, &o, &err), err, FTUNE_ERR_ARGUMENT, "pack");
    o = quick(2, 1, 3); o.lr = NAN;
    CHECK_FAILS(ft_trainer_new(&t, m, &d, NULL, &o, &err), err, FTUNE_ERR_ARGUMENT, "lr");
    CHECK(t == NULL);
    ft_trainer_free(NULL);
    ft_model_free(m);
    tiny_rows_free(&d);
}

/* Every epoch shows every row once, in another order; steps are counted as Transformers counts them. */
static void test_order(ft_backend *be)
{
    static const int lengths[7] = { 3, 4, 5, 6, 7, 8, 9 };
    ft_dataset d = tiny_rows(lengths, 7, 37, 1);
    ft_model *m = lora_model(be, 0.0f);
    ft_train_options o = quick(2, 3, 0);
    ft_trainer *t = NULL;
    int first[7], differs = 0;
    o.epochs = 3;
    CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
    CHECK_INT(t->total, 6);                                /* ceil(ceil(7/2) / 3) = 2 an epoch */
    for (int epoch = 0; epoch < 3; epoch++) {
        int seen[7] = { 0 };
        CHECK_OK(fti_begin_epoch(t, epoch, &err), err);
        for (int i = 0; i < 7; i++) {
            seen[t->order[i]]++;
            if (epoch == 0) first[i] = t->order[i];
            else differs += first[i] != t->order[i];
        }
        for (int i = 0; i < 7; i++) CHECK_INT(seen[i], 1);
    }
    CHECK(differs > 3);
    CHECK_OK(fti_begin_epoch(t, 0, &err), err);
    for (int i = 0; i < 7; i++) CHECK_INT(t->order[i], first[i]);
    ft_trainer_free(t);
    ft_model_free(m);
    tiny_rows_free(&d);
}

/* A model learns four rows by heart, with the adapter and with every weight; evaluation agrees with the loss. */
static void test_learns(ft_backend *be)
{
    static const int lengths[4] = { 9, 7, 12, 6 };
    ft_dataset d = tiny_rows(lengths, 4, 37, 1);
    for (int full = 0; full < 2; full++) {
        ft_model *m = full ? tiny_model(be, 0, 0) : lora_model(be, 0.0f);
        ft_train_options o = quick(4, 1, 60);
        ft_trainer *t = NULL;
        ft_progress p = { 0 };
        ft_evaluation before, after;
        double first = 0.0;
        if (full) CHECK_OK(ft_model_unfreeze(m, &err), err);
        o.schedule = FTUNE_SCHEDULE_CONSTANT; o.weight_decay = 0.0f;
        if (!full) o.lr = 5e-2f;
        CHECK_OK(ft_evaluate(m, &d, 3, &before, &err), err);
        CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
        while (!ft_trainer_done(t)) {
            CHECK_OK(ft_trainer_step(t, &p, &err), err);
            if (p.step == 1) first = p.loss;
        }
        CHECK_OK(ft_evaluate(m, &d, 1, &after, &err), err);
        CHECK_NEAR(first, before.loss, 0.0, 1e-5);
        CHECK_NEAR(after.perplexity, exp(after.loss), 0.0, 1e-9);
        CHECK_MSG(before.loss > 3.0 && after.loss < 0.8 && after.accuracy > 0.9,
                  "full %d: loss %g -> %g, accuracy %g", full, before.loss, after.loss, after.accuracy);
        CHECK_NEAR(p.epoch, 60.0, 1e-9, 0.0);
        ft_trainer_free(t);
        ft_model_free(m);
    }
    tiny_rows_free(&d);
}

/* Every allocation of a run fails once. */
static ft_status whole_run(ft_model *m, const ft_dataset *d, const char *resume)
{
    ft_train_options o = quick(2, 1, 2);
    ft_trainer *t = NULL;
    ft_status st;
    o.packing_length = 20;
    o.out_dir = "build/tmp/test_09_memory";
    st = ft_trainer_new(&t, m, d, d, &o, NULL);
    if (!st && resume) st = ft_trainer_resume(t, resume, NULL);
    if (!st) st = ft_trainer_run(t, NULL);
    ft_trainer_free(t);
    return st;
}

static void test_no_memory(void)
{
    static const int lengths[3] = { 9, 4, 14 };
    ft_dataset d = tiny_rows(lengths, 3, 37, 1);
    ft_backend *be = tiny_backend(1);
    ft_model *m = lora_model(be, 0.1f);
    CHECK_INT(whole_run(m, &d, NULL), FTUNE_OK);           /* what the model and the backend keep is there now */
    TEST_EVERY_FAILURE(whole_run(m, &d, NULL), (void)0);
    TEST_EVERY_FAILURE(whole_run(m, &d, "build/tmp/test_09_memory"), (void)0);
    ft_model_free(m);
    ft_backend_free(be);
    tiny_rows_free(&d);
}

/* After the first update of an epoch nothing is allocated any more. */
static void test_no_allocation(ft_backend *be)
{
    static const int lengths[7] = { 9, 4, 14, 5, 18, 3, 7 };
    ft_dataset d = tiny_rows(lengths, 7, 37, 1);
    ft_model *m = lora_model(be, 0.2f);
    ft_train_options o = quick(3, 2, 6);
    ft_trainer *t = NULL;
    ft_progress p;
    CHECK_OK(ft_trainer_new(&t, m, &d, NULL, &o, &err), err);
    for (int s = 0; s < 6; s++) {
        CHECK_OK(ft_trainer_step(t, &p, &err), err);
        if (s % 2) CHECK_MSG(test_calls == 0, "step %d: %ld allocations", s + 1, test_calls);
        test_calls = 0;
    }
    ft_trainer_free(t);
    ft_model_free(m);
    tiny_rows_free(&d);
}

int main(void)
{
    ft_backend *be = tiny_backend(2);
    test_schedule();
    test_order(be);
    test_options(be);
    test_accumulation(be);
    test_loss_scale(be);
    test_golden(be);
    test_learns(be);
    test_not_finite(be);
    test_refused(be);
    test_resume();
    test_log();
    test_no_memory();
    test_no_allocation(be);
    ft_backend_free(be);
    return test_end();
}
