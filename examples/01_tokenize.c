/* 01_tokenize.c - what does a model see instead of text?
 *
 * A tokenizer cuts text into pieces of a fixed list and hands the model their numbers. The same sentence is 4 ids for
 * Qwen, whole words of Chinese. BERT's English list has only three of its seven characters: the others become [UNK]
 * and are lost, while Qwen falls back to bytes and loses nothing. Control tokens are ids that no text can spell, unless
 * the caller asks for it.
 * Build:  cc -O2 -I. examples/01_tokenize.c -o 01_tokenize -lm
 * Run:    ./01_tokenize               (expected output: examples/expected/01.txt) */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include <stdio.h>

/* Print the ids of a text and what each of them stands for. */
static ft_status show(const ft_tokenizer *tok, const char *text, ft_special special, ft_error *err)
{
    int32_t ids[64];
    size_t  n = 0;
    if (ft_tokenizer_encode(tok, text, ft_text_of(text).n, special, ids, 64, &n, err)) return err->code;
    printf("  %-18s", text);
    for (size_t i = 0; i < n; i++) printf(" %d", (int)ids[i]);
    printf("\n   ");
    for (size_t i = 0; i < n; i++) {
        ft_text bytes = ft_token_bytes(tok, ids[i]);
        printf(" [");
        for (size_t k = 0; k < bytes.n; k++) {
            unsigned char c = (unsigned char)bytes.p[k];
            int whole = (c & 0xc0) != 0x80 && c >= 0x20;      /* a stray byte of a character cannot be printed */
            if (k == 0 && !whole) { printf("byte %02x", c); break; }
            if (bytes.n == 1 && c >= 0x80) printf("byte %02x", c);
            else putchar(c);
        }
        putchar(']');
    }
    putchar('\n');
    return FTUNE_OK;
}

int main(void)
{
    ft_tokenizer *qwen = NULL, *bert = NULL, *bytes = NULL;
    ft_error err = { FTUNE_OK, "" };
    const char *city = "杭州是个好地方", *control = "<|im_end|>";

    /* A slice of each real vocabulary, with its real ids: enough for these sentences. */
    if (ft_tokenizer_load(&qwen, "tests/data/qwen_slice.tiktoken", NULL, &err)) goto done;
    if (ft_tokenizer_load(&bert, "tests/data/bert_slice/tokenizer.json", NULL, &err)) goto done;
    if (ft_tokenizer_load(&bytes, "bytes", NULL, &err)) goto done;

    puts("Qwen: byte-level BPE, whole words of Chinese");
    if (show(qwen, city, FTUNE_SPECIAL_AS_TEXT, &err)) goto done;
    puts("BERT uncased: what is not in the list is [UNK], and lost");
    if (show(bert, city, FTUNE_ADD_SPECIAL, &err)) goto done;
    puts("Qwen, a character that is not in this slice: its bytes");
    if (show(qwen, "好 \xf0\x9f\xa6\x8a", FTUNE_SPECIAL_AS_TEXT, &err)) goto done;
    puts("The byte tokenizer: id = byte + 16, nothing is ever unknown");
    if (show(bytes, "好 ok", FTUNE_SPECIAL_AS_TEXT, &err)) goto done;
    puts("A control token written by a user: plain text, or the control token itself");
    if (show(qwen, control, FTUNE_SPECIAL_AS_TEXT, &err)) goto done;
    if (show(qwen, control, FTUNE_SPECIAL_PARSE, &err)) goto done;
    /* Try it: FTUNE_SPECIAL_REFUSE for the last call. What does the message say, and who would want that? */
done:
    if (err.code) fprintf(stderr, "01_tokenize: %s\n", err.message);
    ft_tokenizer_free(qwen);
    ft_tokenizer_free(bert);
    ft_tokenizer_free(bytes);
    return err.code ? 1 : 0;
}
