/* test_01_threads.c - one loaded tokenizer, many threads: the same results as one thread alone
 *
 * Every thread encodes, decodes and streams the same texts with the same const tokenizer, each beginning with another
 * text. `make tsan` runs this under ThreadSanitizer, which sees what no comparison shows: a write that all of them share. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"
#include <pthread.h>

enum { THREADS = 4, TEXTS = 6, ROUNDS = 2 };

typedef struct work { const ft_tokenizer *tok; fti_buf text[TEXTS], alone[TEXTS]; } work;
typedef struct worker { const work *w; int first, different; } worker;

/* All that the tokenizer says about a text, as bytes, one after the other. */
static void results(const ft_tokenizer *tok, const fti_buf *text, fti_buf *out)
{
    size_t cap = 4 * text->n + 64, n = 0, n_first = 0, n_bytes = 0;
    int32_t *ids = (int32_t *)malloc(cap * sizeof *ids);
    ft_span *at = (ft_span *)malloc(cap * sizeof *at);
    char *back = (char *)malloc(16 * cap), shown[4096];
    const ft_special special[] = { FTUNE_SPECIAL_AS_TEXT, FTUNE_SPECIAL_PARSE | FTUNE_ADD_SPECIAL };
    ft_stream s;
    for (int k = 0; k < 2; k++) {
        if (ft_tokenizer_encode_spans(tok, text->p, text->n, special[k], NULL, 0, ids, at, cap, &n, NULL)) break;
        fti_buf_add(out, (const char *)ids, n * sizeof *ids);
        fti_buf_add(out, (const char *)at, n * sizeof *at);
        if (ft_tokenizer_encode_threads(tok, text->p, text->n, special[k], 2, ids, cap, &n, NULL)) break;
        fti_buf_add(out, (const char *)ids, n * sizeof *ids);
        if (ft_tokenizer_encode_first(tok, text->p, text->n, special[k], n / 2, ids, &n_first, &n_bytes, NULL)) break;
        fti_buf_add(out, (const char *)&n_bytes, sizeof n_bytes);
        if (ft_tokenizer_encode(tok, text->p, text->n, special[k], ids, cap, &n, NULL)) break;
        ft_stream_init(&s, tok, k);
        for (size_t i = 0; i < n; i++) {
            ft_text piece = ft_stream_push(&s, ids[i], shown, sizeof shown);
            fti_buf_add(out, piece.p, piece.n);
        }
        if (ft_tokenizer_decode(tok, ids, n, k, back, 16 * cap, &n, NULL)) break;
        fti_buf_add(out, back, n);
    }
    free(ids);
    free(at);
    free(back);
}

static void *run(void *p)
{
    worker *me = (worker *)p;
    for (int k = 0; k < TEXTS * ROUNDS; k++) {
        int i = (me->first + k) % TEXTS;
        const fti_buf *alone = &me->w->alone[i];
        fti_buf out = { NULL, 0, 0, 0 };
        results(me->w->tok, &me->w->text[i], &out);
        me->different += out.failed || out.n != alone->n || (out.n && memcmp(out.p, alone->p, out.n));
        fti_buf_free(&out);
    }
    return NULL;
}

/* Words, a long run, many scripts and marks out of order, control tokens, nothing, and lines of this file. */
static void make_texts(work *w)
{
    size_t n = 0;
    char *file = test_read("tests/test_01_threads.c", &n);
    fti_buf_str(&w->text[0], "The quick brown fox doesn't jump over 12345 lazy dogs:  naive \xC3\xA9t\xC3\xA9s, cafe\xCC\x81s.\n\n\tEnd ");
    for (int i = 0; i < 3000; i++) fti_buf_str(&w->text[1], "ab");
    for (int i = 0; i < 40; i++)
        fti_buf_str(&w->text[2], "\xE4\xBD\xA0\xE5\xA5\xBD \xD0\xBF\xD1\x80\xD0\xB8 \xE3\x81\x8B\xE3\x82\x99 a\xCC\xA3\xCC\x81 "
                    "\xEF\xBC\xA1\xEF\xBC\xA2 \xEF\xAC\x81 \xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD \xE1\x84\x80\xE1\x85\xA1 \xE2\x96\x81x");
    fti_buf_str(&w->text[3], "<|im_start|>user\n<s>[CLS] hi </s><|im_end|> <extra_id_0> [MASK]<|endoftext|>");
    if (file) fti_buf_add(&w->text[5], file, n);
    free(file);
}

static void check(const char *name, const ft_tokenizer *tok)
{
    work w = { tok, { { NULL, 0, 0, 0 } }, { { NULL, 0, 0, 0 } } };
    worker me[THREADS];
    pthread_t thread[THREADS];
    int started = 0, different = 0;
    make_texts(&w);
    for (int i = 0; i < TEXTS; i++) results(tok, &w.text[i], &w.alone[i]);
    CHECK(w.alone[0].n > 0 && w.alone[5].n > w.text[5].n);
    for (; started < THREADS; started++) {
        me[started].w = &w;
        me[started].first = started;
        me[started].different = 0;
        if (pthread_create(&thread[started], NULL, run, &me[started])) break;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(thread[i], NULL);
        different += me[i].different;
    }
    CHECK_MSG(started == THREADS && !different, "%s: expected %d threads with the results of one, found %d with %d others",
              name, THREADS, started, different);
    for (int i = 0; i < TEXTS; i++) { fti_buf_free(&w.text[i]); fti_buf_free(&w.alone[i]); }
}

static void check_file(const char *path)
{
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    ft_tokenizer_options opt = ft_tokenizer_options_default();
    if (!path) return;
    if (strstr(path, "slice.tiktoken")) opt.splitter = "qwen";
    CHECK_OK(ft_tokenizer_load(&tok, path, &opt, &err), err);
    if (tok) check(path, tok);
    ft_tokenizer_free(tok);
}

/* A vocabulary made here. */
static void check_trained(void)
{
    static const char *const special[] = { "<|im_start|>", "<|im_end|>" };
    ft_tokenizer_train_options opt = ft_tokenizer_train_options_default();
    ft_tokenizer *tok = NULL;
    ft_error err = { FTUNE_OK, "" };
    size_t n = 0;
    char *text = test_read("tests/test_01_threads.c", &n);
    const char *texts[1];
    texts[0] = text;
    opt.vocab_size = 600;
    opt.special = special;
    opt.n_special = 2;
    CHECK_OK(ft_tokenizer_train(&tok, texts, &n, text != NULL, &opt, &err), err);
    if (tok) check("trained", tok);
    ft_tokenizer_free(tok);
    free(text);
}

int main(void)
{
    static const char *const here[] = { "bytes", "tests/data/qwen_slice.tiktoken", "tests/data/bert_slice",
                                        "tests/data/spm_bpe.model", "tests/data/spm_unigram.model",
                                        "tests/data/spm_suffix.model" };
    static const char *const shared[] = { "vocab/gpt2/vocab.json", "vocab/llama3/tokenizer.model",
                                          "vocab/bert-base-uncased/vocab.txt", "vocab/t5-small/tokenizer.json",
                                          "vocab/phi-3/tokenizer.json", "vocab/llama2/tokenizer.model", "vocab/xlnet/spiece.model",
                                          "vocab/sentencepiece-test/nmt.vocab.joint.spm" };
    for (size_t i = 0; i < sizeof here / sizeof *here; i++) check_file(here[i]);
    check_trained();
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) check_file(test_shared(shared[i]));
    return test_end();
}
