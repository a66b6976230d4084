/* 09_train_one_sentence.c - can the model learn one answer by heart?
 *
 * The smallest training there is, and the first thing to try when a big one fails: one row, over and over. The loss
 * must fall from ln V to nearly nothing, and the model must then say the sentence. If it cannot, no data set will help.
 * Build:  cc -O2 -I. examples/09_train_one_sentence.c -o 09_train_one_sentence -lm
 * Run:    ./09_train_one_sentence               (expected output: examples/expected/09.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>
#include <string.h>

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

static ft_status ask(ft_model *m, const ft_tokenizer *tok, const ft_chat_options *chat, const char *question,
                     ft_error *err)
{
    ft_generate_options g = ft_generate_options_default();
    ft_message message = { "user", question };
    int32_t stop[8];
    char    answer[400];
    g.max_new_tokens = 40;
    g.stop_ids = stop;
    g.n_stop = ft_chat_stop_ids(tok, chat, stop, 8);
    if (ft_answer(m, tok, chat, &message, 1, &g, answer, sizeof answer, err)) return err->code;
    printf("  %s -> %s\n", question, answer);
    return FTUNE_OK;
}

int main(void)
{
    static const ft_message row[] = { { "user", "How are you?" }, { "assistant", "I am fine, 谢谢!" } };
    ft_config       c = tiny(256 + 16);
    ft_chat_options chat = ft_chat_options_default();
    ft_train_options train = ft_train_options_default();
    ft_backend   *be = NULL;
    ft_model     *m = NULL;
    ft_tokenizer *tok = NULL;
    ft_trainer   *t = NULL;
    ft_sample     s = { 0 };
    ft_dataset    d;
    ft_error      err = { FTUNE_OK, "" };

    chat.template_name = "default-generation";
    memset(&d, 0, sizeof d);
    if (ft_backend_cpu(&be, 1, &err) || ft_model_init(&m, &c, 5, be, &err)) goto done;
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err) || ft_chat_encode(&s, tok, row, 2, &chat, &err)) goto done;
    d.samples = &s;
    d.n = 1;
    if (ft_model_unfreeze(m, &err)) goto done;          /* a random model has nothing worth keeping frozen */

    train.lr = 0.01f;
    train.steps = 60;
    train.batch = 1;
    if (ft_trainer_new(&t, m, &d, NULL, &train, &err)) goto done;
    printf(" step    loss  learning rate\n");
    while (!ft_trainer_done(t)) {
        ft_progress p;
        if (ft_trainer_step(t, &p, &err)) goto done;
        if (p.step == 1 || p.step % 10 == 0) {
            printf("%5d  %6.2f  %.4f  ", (int)p.step, p.loss, p.lr);
            for (int k = 0; k < (int)(p.loss * 8); k++) putchar('#');
            putchar('\n');
        }
    }
    printf("\nafterwards\n");
    if (ask(m, tok, &chat, "How are you?", &err)) goto done;
    if (ask(m, tok, &chat, "Who are you?", &err)) goto done;
    printf("It learnt an answer, not a language: any question gets it.\n");
    /* Try it: a second row, "Who are you?" with another answer. How many steps until it tells them apart? */
done:
    if (err.code) fprintf(stderr, "09_train_one_sentence: %s\n", err.message);
    ft_trainer_free(t);
    ft_sample_free(&s);
    ft_tokenizer_free(tok);
    ft_model_free(m);
    ft_backend_free(be);
    return err.code ? 1 : 0;
}
