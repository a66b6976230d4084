/* 03_label_mask.c - which tokens teach the model?
 *
 * Beside each token stands the label the loss will see. Only what the assistant says keeps its id, and the end marker
 * with it, or the model would never learn to stop. The rest is -100. First the course article's own row, then two
 * rounds under the rules of its time and of today: in 2024 the end of the first answer was not learnt.
 * Build:  cc -O2 -I. examples/03_label_mask.c -o 03_label_mask -lm
 * Run:    ./03_label_mask               (expected output: examples/expected/03.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>

static void print_ids(const char *name, const int32_t *ids, int n)
{
    printf("%s [", name);
    for (int t = 0; t < n; t++) printf("%s%d", t ? ", " : "", (int)ids[t]);
    printf("]\n");
}

/* The text of a token in quotes, newlines written as \n. */
static void print_token(const ft_tokenizer *tok, int32_t id)
{
    ft_text text = ft_token_bytes(tok, id);
    int     width = 0;
    putchar('"');
    for (size_t k = 0; k < text.n; k++) {
        if (text.p[k] == '\n') { printf("\\n"); width++; }
        else putchar(text.p[k]);
        width++;
    }
    printf("\"%*s", width < 14 ? 14 - width : 0, "");
}

int main(void)
{
    static const ft_message one[] = { { "user", "How are you?" }, { "assistant", "I am fine" } };
    static const ft_message two[] = { { "user", "How are you?" }, { "assistant", "I am fine" },
                                      { "user", "How are you?" }, { "assistant", "I am fine" } };
    static const char *FROM[] = { "bos", "system", "prompt", "response", "chat_sep", "suffix", "text" };
    ft_chat_options old = ft_chat_options_default(), now;
    ft_tokenizer *tok = NULL;
    ft_sample a = { 0 }, b = { 0 };
    ft_error  err = { FTUNE_OK, "" };

    if (ft_tokenizer_load(&tok, "tests/data/qwen_slice.tiktoken", NULL, &err)) goto done;
    old.template_name = "qwen";
    old.swift = 2;                              /* ms-swift v2.0.5, the article's time */
    now = old;
    now.swift = 3;                              /* the newest rules, and ftune's default */

    if (ft_chat_encode(&a, tok, one, 2, &old, &err)) goto done;
    print_ids("input_ids:", a.input_ids, a.n);
    print_ids("labels:   ", a.labels, a.n);
    printf("\n  #  token               id   label  piece\n");
    for (int t = 0; t < a.n; t++) {
        printf("%3d  ", t);
        print_token(tok, a.input_ids[t]);
        printf(" %6d  %6d  %s\n", (int)a.input_ids[t], (int)a.labels[t], FROM[a.origin[t]]);
    }

    if (ft_chat_encode(&a, tok, two, 4, &old, &err) || ft_chat_encode(&b, tok, two, 4, &now, &err)) goto done;
    printf("\nTwo rounds: where the rules of 2024 and of today differ\n");
    for (int t = 0; t < a.n && t < b.n; t++)
        if (a.labels[t] != b.labels[t]) {
            printf("%3d  ", t);
            print_token(tok, a.input_ids[t]);
            printf(" 2024: %6d   today: %6d\n", (int)a.labels[t], (int)b.labels[t]);
        }
    /* Try it: now.loss_scale = "last_round". How many labels survive? */
done:
    if (err.code) fprintf(stderr, "03_label_mask: %s\n", err.message);
    ft_sample_free(&a);
    ft_sample_free(&b);
    ft_tokenizer_free(tok);
    return err.code ? 1 : 0;
}
