/* 10_train_file.c - did it learn the task, or only the rows?
 *
 * A data set is a file of conversations; a part of it stays out of training and is only asked. Loss and accuracy are
 * measured on both, before and after. On its own rows the model soon does well; what counts is the other column, and
 * where the two part, it has begun to learn rows by heart.
 * Build:  cc -O2 -I. examples/10_train_file.c -o 10_train_file -lm
 * Run:    ./10_train_file               (expected output: examples/expected/10.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>
#include <string.h>

static const char *TRAIN = "examples/data/chat_train.jsonl", *HELD_OUT = "examples/data/test/patterns.jsonl";

static ft_config small(int vocab_size)
{
    ft_config c;
    memset(&c, 0, sizeof c);
    strcpy(c.model_type, "qwen2");
    c.vocab_size = vocab_size;
    c.hidden_size = 64;          c.intermediate_size = 128;  c.num_hidden_layers = 2;
    c.num_attention_heads = 4;   c.num_key_value_heads = 2;  c.head_dim = 16;
    c.max_position_embeddings = 256;
    c.rms_norm_eps = 1e-6f;      c.rope_theta = 10000;       c.qkv_bias = 1;
    c.tie_word_embeddings = 1;   c.bos_token_id = c.pad_token_id = -1;
    return c;
}

static ft_status measure(ft_model *m, const ft_dataset *train, const ft_dataset *held_out, int step, ft_error *err)
{
    ft_evaluation a, b;
    if (ft_evaluate(m, train, 32, &a, err) || ft_evaluate(m, held_out, 32, &b, err)) return err->code;
    printf("%5d       %4.1f  %6.0f %%       %4.1f  %6.0f %%\n", step, a.loss, 100 * a.accuracy, b.loss,
           100 * b.accuracy);
    return FTUNE_OK;
}

int main(void)
{
    ft_config        c = small(256 + 16);
    ft_chat_options  chat = ft_chat_options_default();
    ft_train_options o = ft_train_options_default();
    ft_backend   *be = NULL;
    ft_model     *m = NULL;
    ft_tokenizer *tok = NULL;
    ft_trainer   *t = NULL;
    ft_dataset    train, held_out;
    ft_error      err = { FTUNE_OK, "" };

    memset(&train, 0, sizeof train);
    memset(&held_out, 0, sizeof held_out);
    chat.template_name = "default-generation";
    chat.max_length = c.max_position_embeddings;
    if (ft_backend_cpu(&be, 1, &err) || ft_model_init(&m, &c, 1, be, &err) || ft_model_unfreeze(m, &err)) goto done;
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err)) goto done;
    if (ft_dataset_load(&train, TRAIN, tok, &chat, 1, &err)) goto done;          /* 1: a broken row is an error */
    if (ft_dataset_load(&held_out, HELD_OUT, tok, &chat, 1, &err)) goto done;
    printf("%s: %d rows, %lld tokens, %lld of them targets\n", TRAIN, train.n, (long long)train.n_tokens,
           (long long)train.n_targets);
    printf("%s: %d rows\n\n", HELD_OUT, held_out.n);

    o.lr = 0.004f;
    o.batch = 16;
    o.steps = 150;
    o.warmup = 0.1f;                /* a tenth of the steps to get going */
    if (ft_trainer_new(&t, m, &train, NULL, &o, &err)) goto done;
    printf(" step   rows it trains on     rows it never sees\n        loss  right bytes     loss  right bytes\n");
    if (measure(m, &train, &held_out, 0, &err)) goto done;
    while (!ft_trainer_done(t)) {
        ft_progress p;
        if (ft_trainer_step(t, &p, &err)) goto done;
        if (p.step % 50 == 0 && measure(m, &train, &held_out, (int)p.step, &err)) goto done;
    }
    printf("\nMost bytes are right, but an answer is right only if all its bytes are. make run does it in earnest.\n");
    /* Try it: a training file of only the first 20 rows (head -n 20). Which column gets better, which worse? */
done:
    if (err.code) fprintf(stderr, "10_train_file: %s\n", err.message);
    ft_trainer_free(t);
    ft_dataset_free(&train);
    ft_dataset_free(&held_out);
    ft_tokenizer_free(tok);
    ft_model_free(m);
    ft_backend_free(be);
    return err.code ? 1 : 0;
}
