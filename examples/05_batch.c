/* 05_batch.c - how do rows of different length travel together?
 *
 * Padding fills every row up to the longest: the machine works on tokens that mean nothing. Laying rows end to end
 * wastes nothing, if attention stops at the row's own beginning and positions restart. Packing chooses which rows share
 * a sequence of fixed length. All three give the same loss; only the work differs.
 * Build:  cc -O2 -I. examples/05_batch.c -o 05_batch -lm
 * Run:    ./05_batch               (expected output: examples/expected/05.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>
#include <string.h>

static void print_batch(const char *name, const ft_batch *b)
{
    printf("%s: %d tokens, %d targets\n  ids   ", name, b->N, b->n_targets);
    for (int t = 0; t < b->N; t++) printf(" %3d", (int)b->input_ids[t]);
    printf("\n  target");
    for (int t = 0; t < b->N; t++) {
        if (b->targets[t] == FTUNE_IGNORE_INDEX) printf("   .");
        else printf(" %3d", (int)b->targets[t]);
    }
    printf("\n  start ");
    for (int t = 0; t < b->N; t++) printf(" %3d", (int)b->row_start[t]);
    printf("\n  pos   ");
    for (int t = 0; t < b->N; t++) printf(" %3d", (int)b->position_ids[t]);
    printf("\n\n");
}

int main(void)
{
    static const char *chats[][2] = { { "1+1?", "2" }, { "Hi", "Hello!" }, { "?", "!" }, { "Why?", "Because." } };
    ft_chat_options opt = ft_chat_options_default();
    ft_tokenizer *tok = NULL;
    ft_sample  rows[4];
    ft_batch   batch = { 0 };
    ft_dataset d;
    ft_error   err = { FTUNE_OK, "" };
    int order[4] = { 0, 1, 2, 3 }, bin_of[4], n_bins = 0, longest = 0, total = 0;

    memset(rows, 0, sizeof rows);
    opt.template_name = "default-generation";   /* no markers: question, answer, eos */
    if (ft_tokenizer_load(&tok, "bytes", NULL, &err)) goto done;
    for (int i = 0; i < 4; i++) {
        ft_message chat[2] = { { "user", chats[i][0] }, { "assistant", chats[i][1] } };
        if (ft_chat_encode(&rows[i], tok, chat, 2, &opt, &err)) goto done;
        if (rows[i].n > longest) longest = rows[i].n;
        total += rows[i].n;
    }

    for (int i = 0; i < 2; i++) if (ft_batch_add(&batch, &rows[i], longest, 0, &err)) goto done;
    print_batch("padded, the first two rows", &batch);
    ft_batch_clear(&batch);
    for (int i = 0; i < 2; i++) if (ft_batch_add(&batch, &rows[i], 0, 0, &err)) goto done;
    print_batch("end to end, the same two", &batch);

    memset(&d, 0, sizeof d);
    d.samples = rows;
    d.n = 4;
    if (ft_pack(&d, order, 4, 16, bin_of, &n_bins, &err)) goto done;
    printf("packed into sequences of 16: %d of them\n", n_bins);
    for (int i = 0; i < 4; i++) printf("  row %d (%2d tokens) goes to sequence %d\n", i, rows[i].n, bin_of[i]);
    printf("\nwork for all four rows: padded %d tokens, end to end %d\n", 4 * longest, total);
    /* Try it: make one answer very long. What does padding cost now? */
done:
    if (err.code) fprintf(stderr, "05_batch: %s\n", err.message);
    for (int i = 0; i < 4; i++) ft_sample_free(&rows[i]);
    ft_batch_free(&batch);
    ft_tokenizer_free(tok);
    return err.code ? 1 : 0;
}
