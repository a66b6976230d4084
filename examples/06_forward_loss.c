/* 06_forward_loss.c - what does the loss of an untrained model mean?
 *
 * The model gives every id of the vocabulary a score (a logit); softmax makes probabilities of them; the loss is the
 * mean of -log p(target). A model that knows nothing spreads p evenly, so its loss is ln V: if training does not begin
 * there, something is wrong. A label of -100 takes a position out of the mean, and does nothing else.
 * Build:  cc -O2 -I. examples/06_forward_loss.c -o 06_forward_loss -lm
 * Run:    ./06_forward_loss               (expected output: examples/expected/06.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A whole Qwen2, only very small. */
static ft_config tiny(int vocab_size)
{
    ft_config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = vocab_size;
    c.hidden_size = 32;          c.intermediate_size = 64;   c.num_hidden_layers = 2;
    c.num_attention_heads = 4;   c.num_key_value_heads = 2;  c.head_dim = 8;
    c.max_position_embeddings = 256;
    c.rms_norm_eps = 1e-6f;      c.rope_theta = 10000;       c.qkv_bias = 1;
    c.tie_word_embeddings = 1;   c.bos_token_id = c.pad_token_id = -1;
    return c;
}

int main(void)
{
    static const ft_message chat[] = { { "user", "How are you?" }, { "assistant", "I am fine" } };
    ft_config     c = tiny(256 + 16);
    ft_backend   *be = NULL;
    ft_model     *model = NULL;
    ft_tokenizer *tok = NULL;
    ft_chat_options opt = ft_chat_options_default();
    ft_sample s = { 0 };
    ft_batch  b = { 0 };
    ft_loss   loss = { 0 };
    ft_error  err = { FTUNE_OK, "" };
    float    *logits = NULL;
    double    sum = 0;
    int       n = 0;

    if (ft_backend_cpu(&be, 1, &err) || ft_model_init(&model, &c, 1, be, &err)) goto done;
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err)) goto done;
    printf("%lld parameters, %d possible next tokens: ln V = %.2f\n\n", (long long)ft_config_parameters(&c),
           c.vocab_size, log(c.vocab_size));

    opt.template_name = "default-generation";
    if (ft_chat_encode(&s, tok, chat, 2, &opt, &err) || ft_batch_add(&b, &s, 0, 0, &err)) goto done;
    if (ft_model_step(model, &b, 0.0f, 0, &loss, &err)) goto done;                 /* dloss 0: forward only */
    printf("the library: loss %.2f over %d targets of %d tokens\n", loss.sum / loss.n, loss.n, b.N);

    /* The same by hand, from the logits [N, V]. */
    logits = malloc((size_t)b.N * (size_t)c.vocab_size * sizeof *logits);
    if (!logits || ft_model_logits(model, &b, logits, &err)) goto done;
    for (int t = 0; t < b.N; t++) {
        const float *z = logits + (size_t)t * (size_t)c.vocab_size;
        double total = 0;
        if (b.targets[t] == FTUNE_IGNORE_INDEX) continue;
        for (int v = 0; v < c.vocab_size; v++) total += exp((double)z[v]);
        sum += log(total) - (double)z[b.targets[t]];
        n++;
    }
    printf("by hand:     loss %.2f over %d targets, the same to 1e-5: %s\n\n", sum / n, n,
           fabs(sum / n - loss.sum / loss.n) < 1e-5 ? "yes" : "NO");

    /* The mask: every position asked, as in pre-training. */
    for (int t = 0; t < s.n; t++) s.labels[t] = s.input_ids[t];
    ft_batch_clear(&b);
    if (ft_batch_add(&b, &s, 0, 0, &err) || ft_model_step(model, &b, 0.0f, 0, &loss, &err)) goto done;
    printf("all tokens as labels: loss %.2f over %d targets (nobody is asked for the first token)\n", loss.sum / loss.n,
           loss.n);
    /* Try it: multiply every logit by 50 before the sum by hand: a random model that is sure of itself. Its loss? */
done:
    if (err.code) fprintf(stderr, "06_forward_loss: %s\n", err.message);
    free(logits);
    ft_batch_free(&b);
    ft_sample_free(&s);
    ft_tokenizer_free(tok);
    ft_model_free(model);
    ft_backend_free(be);
    return err.code ? 1 : 0;
}
