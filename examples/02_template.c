/* 02_template.c - how does a conversation become one sequence?
 *
 * A template writes the markers around the turns: who speaks, where an answer begins, where it ends. A model only
 * understands the markers it was trained with. The registry knows the usual ones; a new one is five lists of pieces.
 * Build:  cc -O2 -I. examples/02_template.c -o 02_template -lm
 * Run:    ./02_template               (expected output: examples/expected/02.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>

/* Called once per piece: [[ ]] around what the model will be taught to say. */
static void print_piece(void *user, const ft_piece *piece)
{
    (void)user;
    if (piece->weight > 0) printf("[[");
    for (size_t i = 0; i < piece->text.n; i++) {
        if (piece->text.p[i] == '\n') printf("\\n");
        else putchar(piece->text.p[i]);
    }
    for (int i = 0; i < piece->n_ids; i++) printf("<id %d>", (int)piece->ids[i]);
    if (piece->weight > 0) printf("]]");
}

static ft_status show(const ft_registry *registry, const char *name, const ft_row *row, int swift, ft_error *err)
{
    ft_chat_options opt = ft_chat_options_default();
    ft_tokenizer *tok = NULL;                  /* only asked for ids such as eos */
    ft_status st = ft_tokenizer_load(&tok, "bytes", NULL, err);
    opt.registry = registry;
    opt.template_name = name;
    opt.swift = swift;
    printf("%s:\n  ", name);
    if (!st) st = ft_row_pieces(tok, row, &opt, print_piece, NULL, err);
    printf("\n\n");
    ft_tokenizer_free(tok);
    return st;
}

int main(void)
{
    ft_turn turns[2];
    ft_row  row = { { NULL, 0 }, turns, 2, { NULL, 0 } };      /* system NULL: the template's default */
    ft_registry *mine = NULL;
    ft_error err = { FTUNE_OK, "" };
    const char *some[] = { "qwen", "chatml", "llama3", "yi", "chatglm3" };
    const ft_template letter = {
        .name = "letter",
        .prefix = { "{{SYSTEM}}\n" },                          /* with {{SYSTEM}}: both prefix and system_prefix */
        .prompt = { "Dear model,\n{{QUERY}}\nDear user,\n" },
        .chat_sep = { "\n--\n" },
        .suffix = { "\nYours sincerely" },
    };
    turns[0].query = ft_text_of("How are you?"); turns[0].response = ft_text_of("I am fine"); turns[0].loss = -1;
    turns[1].query = ft_text_of("Really?");      turns[1].response = ft_text_of("Yes");       turns[1].loss = -1;

    printf("%d templates are built in. What is learnt stands in [[ ]].\n\n", ft_template_count(NULL));
    for (size_t i = 0; i < sizeof some / sizeof some[0]; i++)
        if (show(NULL, some[i], &row, 2, &err)) goto done;

    if (ft_registry_new(&mine, &err) || ft_template_register(mine, &letter, &err)) goto done;
    row.system = ft_text_of("Be polite.");
    printf("Our own:\n");
    if (show(mine, "letter", &row, 2, &err)) goto done;

    /* A name nobody registered is an error that helps. */
    printf("A name with a slip: ");
    if (!ft_template_find(mine, "qwenn", &err)) printf("%s\n", err.message);
    err.code = FTUNE_OK;
    /* Try it: set row.turns[1].response.p to NULL. That is the form in which a model is asked. */
done:
    if (err.code) fprintf(stderr, "02_template: %s\n", err.message);
    ft_registry_free(mine);
    return err.code ? 1 : 0;
}
