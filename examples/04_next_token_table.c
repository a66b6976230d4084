/* 04_next_token_table.c - how many lessons are in one row?
 *
 * One row of n tokens asks n - 1 questions at once: after these ids, which comes next? Causal attention makes the rows
 * of the triangle below independent, so one forward pass answers all of them. Labels are stored as they stand, beside
 * the same token; they are shifted exactly once, when a row joins a batch, so that position t is asked for label t+1.
 *
 * The course article prints this very row, but its comparison lines do not fit together: prompt ids stand where
 * predictions should, and 14 and 32 have changed places. Below, prediction t meets label t+1, and the prompt's own
 * questions (-100) are not asked.
 * Build:  cc -O2 -I. examples/04_next_token_table.c -o 04_next_token_table -lm
 * Run:    ./04_next_token_table               (expected output: examples/expected/04.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>

int main(void)
{
    int32_t input_ids[] = { 34, 56, 21, 12, 45, 73, 96, 45, 32, 11 };
    int32_t labels[]    = { -100, -100, -100, -100, -100, 73, 96, 45, 32, 11 };
    int32_t predicted[] = { 17, 89, 30, 8, 121, 99, 45, 14, 11, 2 };      /* what some model says at each position */
    ft_sample row = { 0 };
    ft_batch  batch = { 0 };
    ft_error  err = { FTUNE_OK, "" };
    int right = 0;
    row.input_ids = input_ids;
    row.labels = labels;
    row.n = 10;

    if (ft_batch_add(&batch, &row, 0, 0, &err)) goto done;               /* the one place of the shift */
    printf("  t  the model has read                           asked for  it says\n");
    for (int t = 0; t < batch.N; t++) {
        printf("%3d  ", t);
        for (int k = 0; k < batch.N; k++) {
            if (k <= t) printf("%4d", (int)batch.input_ids[k]);
            else printf("   .");
        }
        if (batch.targets[t] == FTUNE_IGNORE_INDEX) printf("          -  %7d\n", (int)predicted[t]);
        else {
            int hit = predicted[t] == batch.targets[t];
            right += hit;
            printf("    %7d  %7d %s\n", (int)batch.targets[t], (int)predicted[t], hit ? "right" : "wrong");
        }
    }
    printf("\n%d questions asked, %d answered right\n", batch.n_targets, right);
    printf("labels  ");
    for (int t = 0; t < row.n; t++) printf(" %4d", (int)labels[t]);
    printf("\ntargets ");
    for (int t = 0; t < batch.N; t++) printf(" %4d", (int)batch.targets[t]);
    printf("     the same, one step to the left\n");
    /* Try it: label the whole row (pre-training). How many questions are asked now, and why not 10? */
done:
    if (err.code) fprintf(stderr, "04_next_token_table: %s\n", err.message);
    ft_batch_free(&batch);
    return err.code ? 1 : 0;
}
