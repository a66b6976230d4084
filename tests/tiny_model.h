/* tiny_model.h - small odd models and rows that the tests of >>8, >>9 and >>10 share; after ftune.h and test.h */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

/* Every size different and odd where it may be, so that no mix-up of two of them goes unseen. */
static inline ft_config tiny_config(int biases, int tied)
{
    ft_config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, biases ? "llama" : "qwen2");
    c.vocab_size = 37; c.hidden_size = 15; c.intermediate_size = 21; c.num_hidden_layers = 3;
    c.num_attention_heads = 3; c.num_key_value_heads = 1; c.head_dim = 6; c.max_position_embeddings = 256;
    c.rms_norm_eps = 1e-6f; c.rope_theta = 100.0; c.tie_word_embeddings = tied;
    c.qkv_bias = 1; c.o_bias = c.mlp_bias = biases;
    c.rope_factor = 1.0f;
    c.bos_token_id = c.pad_token_id = -1;
    c.dtype = FTUNE_F32;
    return c;
}

/* Weights as large as those of a trained model; what ft_model_init gives is so small that attention stays flat. */
static inline ft_model *tiny_model(ft_backend *be, int biases, int tied)
{
    ft_config c = tiny_config(biases, tied);
    ft_model *m = NULL;
    ft_error err = { FTUNE_OK, "" };
    CHECK_OK(ft_model_init(&m, &c, 5, be, &err), err);
    if (!m) exit(1);
    for (int i = 0; i < m->priv->n_slots; i++) {
        ft_tensor *t = m->priv->slot[i].tensor;
        ft_rng rng;
        float *x = (float *)t->data;
        ft_rng_seed(&rng, 1000 + (uint64_t)i);
        for (size_t k = 0; k < ft_tensor_count(t); k++)
            x[k] = (m->priv->slot[i].is_norm ? 1.0f : 0.0f) + 0.3f * ft_rng_normal(&rng);
    }
    return m;
}

static inline ft_lora_config tiny_lora(const char *targets, int r)
{
    ft_lora_config c = ft_lora_config_default();
    c.r = r; c.lora_alpha = 5.0f;
    strcpy(c.target_modules, targets);
    return c;
}

/* Trainable numbers moved away from where they began: lora_B is no longer zero. */
static inline void tiny_stir(ft_model *m, uint64_t seed, float size)
{
    const ft_param *p;
    int n = ft_model_params(m, &p);
    ft_rng rng;
    ft_rng_seed(&rng, seed);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < p[i].shape[0] * (p[i].rank == 2 ? p[i].shape[1] : 1); k++)
            p[i].value[k] += size * ft_rng_normal(&rng);
}

/* Rows of the given lengths; about the first third of each is prompt. Free with tiny_rows_free. */
static inline ft_dataset tiny_rows(const int *lengths, int n, int vocab, uint64_t seed)
{
    ft_dataset d;
    ft_rng rng;
    memset(&d, 0, sizeof d);
    ft_rng_seed(&rng, seed);
    d.n = d.n_rows = n;
    d.samples = (ft_sample *)calloc((size_t)n, sizeof *d.samples);
    for (int i = 0; i < n; i++) {
        ft_sample *s = &d.samples[i];
        s->n = s->cap = lengths[i];
        s->input_ids = (int32_t *)malloc((size_t)s->n * 4);
        s->labels = (int32_t *)malloc((size_t)s->n * 4);
        for (int k = 0; k < s->n; k++) {
            s->input_ids[k] = (int32_t)ft_rng_below(&rng, (uint64_t)vocab);
            s->labels[k] = k * 3 < s->n || k % 7 == 5 ? FTUNE_IGNORE_INDEX : s->input_ids[k];
        }
        s->labels[s->n - 1] = s->input_ids[s->n - 1];
        d.n_tokens += s->n;
    }
    return d;
}

static inline void tiny_rows_free(ft_dataset *d)
{
    for (int i = 0; i < d->n; i++) { free(d->samples[i].input_ids); free(d->samples[i].labels); }
    free(d->samples);
}

static inline ft_batch tiny_batch(const ft_dataset *d, int from, int to, int pad_to)
{
    ft_batch b;
    ft_error err = { FTUNE_OK, "" };
    memset(&b, 0, sizeof b);
    for (int i = from; i < to; i++) CHECK_OK(ft_batch_add(&b, &d->samples[i], pad_to, 3, &err), err);
    return b;
}

static inline ft_backend *tiny_backend(int threads)
{
    ft_backend *be = NULL;
    ft_error err = { FTUNE_OK, "" };
    CHECK_OK(ft_backend_cpu(&be, threads, &err), err);
    if (!be) exit(1);
    return be;
}
#endif
