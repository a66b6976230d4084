/* 11_generate.c - how does one model say different things?
 *
 * A model does not choose words, it gives each a probability; how to choose is up to us. This one has read ten
 * sentences about a cat, two colours more often than the others. Greedy choice always takes the likeliest. Sampling
 * takes each as often as the model believes in it; temperature sharpens or flattens that belief; top-k and top-p cut
 * off the unlikely tail before the draw.
 * Build:  cc -O2 -I. examples/11_generate.c -o 11_generate -lm
 * Run:    ./11_generate               (expected output: examples/expected/11.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { V = 256 + 16, SENTENCES = 10 };

static ft_config tiny(void)
{
    ft_config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = V;
    c.hidden_size = 32;          c.intermediate_size = 64;   c.num_hidden_layers = 2;
    c.num_attention_heads = 4;   c.num_key_value_heads = 2;  c.head_dim = 8;
    c.max_position_embeddings = 64;
    c.rms_norm_eps = 1e-6f;      c.rope_theta = 10000;       c.qkv_bias = 1;
    c.tie_word_embeddings = 1;   c.bos_token_id = c.pad_token_id = -1;
    return c;
}

/* What the model believes comes next, at temperature T; a bar of 1 # for 2 %. */
static ft_status believe(ft_model *m, ft_batch *b, double T, ft_error *err)
{
    static float logits[64 * V];
    const float *z = logits + (size_t)(b->N - 1) * V;
    double sum = 0;
    if (ft_model_logits(m, b, logits, err)) return err->code;
    for (int v = 0; v < V; v++) sum += exp((double)z[v] / T);
    printf("temperature %.1f\n", T);
    for (int v = 0; v < V; v++) {
        double p = exp((double)z[v] / T) / sum;
        if (p < 0.02) continue;
        printf("  %c.. %3.0f %% ", v - 16, 100 * p);
        for (int k = 0; k < (int)(p * 50 + 0.5); k++) putchar('#');
        putchar('\n');
    }
    return FTUNE_OK;
}

int main(void)
{
    static const char *colours[SENTENCES] = { "black", "black", "black", "black", "black", "white", "white", "white",
                                              "grey", "red" };
    static const struct { const char *name; float temperature, top_p; int top_k; } ways[] = {
        { "greedy", 0.0f, 1.0f, 0 }, { "sampled", 1.0f, 1.0f, 0 }, { "temperature 0.5", 0.5f, 1.0f, 0 },
        { "temperature 2, top-k 4", 2.0f, 1.0f, 4 }, { "top-p 0.7", 1.0f, 0.7f, 0 } };
    ft_config        c = tiny();
    ft_train_options o = ft_train_options_default();
    ft_chat_options  chat = ft_chat_options_default();
    ft_backend   *be = NULL;
    ft_model     *m = NULL;
    ft_tokenizer *tok = NULL;
    ft_trainer   *trainer = NULL;
    ft_sample     s[SENTENCES], asked;
    ft_dataset    d;
    ft_batch      b = { 0 };
    ft_error      err = { FTUNE_OK, "" };

    memset(s, 0, sizeof s);
    memset(&d, 0, sizeof d);
    d.samples = s;
    chat.template_name = "default-generation";
    if (ft_backend_cpu(&be, 1, &err) || ft_model_init(&m, &c, 9, be, &err) || ft_model_unfreeze(m, &err)) goto done;
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err)) goto done;
    for (; d.n < SENTENCES; d.n++) {
        ft_message row[2] = { { "user", "The cat is " }, { "assistant", colours[d.n] } };
        if (ft_chat_encode(&s[d.n], tok, row, 2, &chat, &err)) goto done;
    }
    o.lr = 0.005f;
    o.batch = SENTENCES;            /* all sentences in every step: the model sees the shares as they are */
    o.steps = 200;
    if (ft_trainer_new(&trainer, m, &d, NULL, &o, &err)) goto done;
    while (!ft_trainer_done(trainer)) {
        ft_progress p;
        if (ft_trainer_step(trainer, &p, &err)) goto done;
    }

    asked = s[0];                           /* the question only, nothing of the answer */
    asked.labels = NULL;
    for (asked.n = 0; s[0].labels[asked.n] == FTUNE_IGNORE_INDEX; ) asked.n++;
    if (ft_batch_add(&b, &asked, 0, 0, &err)) goto done;
    printf("The cat is ... (5 black, 3 white, 1 grey, 1 red)\n");
    if (believe(m, &b, 1.0, &err) || believe(m, &b, 0.5, &err) || believe(m, &b, 2.0, &err)) goto done;

    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        ft_generate_options g = ft_generate_options_default();
        ft_message question = { "user", "The cat is " };
        int32_t stop[8];
        g.max_new_tokens = 12;
        g.temperature = ways[w].temperature; g.top_k = ways[w].top_k; g.top_p = ways[w].top_p;
        g.stop_ids = stop;
        g.n_stop = ft_chat_stop_ids(tok, &chat, stop, 8);
        printf("%-24s", ways[w].name);
        for (g.seed = 1; g.seed <= 6; g.seed++) {
            char answer[200];
            if (ft_answer(m, tok, &chat, &question, 1, &g, answer, sizeof answer, &err)) goto done;
            printf(" %s", answer);
        }
        putchar('\n');
    }
    /* Try it: top_k 1 at temperature 3. What does it equal, and why? */
done:
    if (err.code) fprintf(stderr, "11_generate: %s\n", err.message);
    ft_trainer_free(trainer);
    for (int i = 0; i < SENTENCES; i++) ft_sample_free(&s[i]);
    ft_batch_free(&b);
    ft_tokenizer_free(tok);
    ft_model_free(m);
    ft_backend_free(be);
    return err.code ? 1 : 0;
}
