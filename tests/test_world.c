/* test_world.c - the made-up world: the committed files are what examples/world.c writes, train and test are apart,
 * every question has the answer that the facts say, and what is untold is told nowhere. */
#define main world_main
#include "../examples/world.c"
#undef main
#include "test.h"

#define OUT "build/tmp/world"

static const char *const files[] = {
    "facts.jsonl", "text_en.txt", "text_zh.txt", "small_talk.jsonl", "chat_train.jsonl", "test/facts_en.jsonl",
    "test/facts_zh.jsonl", "test/patterns.jsonl", "test/unstated.jsonl", "test/unstated_with_note.jsonl" };

static char *data_file(const char *name, size_t *n)
{
    char path[300], *p;
    snprintf(path, sizeof path, "examples/data/%s", name);
    p = test_read(path, n);
    CHECK_MSG(p != NULL, "%s: expected a readable file (run from the repository's top)", path);
    return p;
}

static void test_same_bytes(void)
{
    char program[] = "world", dir[] = OUT, *argv[] = { program, dir, NULL };
    mkdir("build", 0777); mkdir("build/tmp", 0777);
    CHECK_INT(world_main(2, argv), 0);
    for (int i = 0; i < COUNT(files); i++) {
        char   path[300];
        size_t n = 0, m = 0;
        char  *committed = data_file(files[i], &n), *made;
        snprintf(path, sizeof path, OUT "/%s", files[i]);
        made = test_read(path, &m);
        CHECK_MSG(committed && made && n == m && !memcmp(committed, made, n),
                  "examples/data/%s: expected the %lu bytes that examples/world.c writes, found %lu others: run build/world",
                  files[i], (unsigned long)m, (unsigned long)n);
        free(committed); free(made);
    }
}

/* The user's text of a chat row; ends are found by the fixed words around it. */
static char *question_of(const char *line)
{
    const char *a = strstr(line, "\"content\": \""), *b;
    char *q;
    b = a ? strstr(a += 12, "\"}, {") : NULL;
    if (!b) b = a = "a row without a question";
    q = calloc((size_t)(b - a) + 1, 1);
    if (!q) exit(1);
    return memcpy(q, a, (size_t)(b - a));
}

/* No held-out question is a training question, nor stands in a text; no held-out person or town is asked in training. */
static void test_apart(void)
{
    size_t n = 0;
    char  *train = data_file("chat_train.jsonl", &n), *talk = data_file("small_talk.jsonl", &n);
    char  *text[2] = { data_file("text_en.txt", &n), data_file("text_zh.txt", &n) };
    int    questions = 0;
    for (int f = 5; f < COUNT(files) && train && talk && text[0] && text[1]; f++) {
        char *test = data_file(files[f], &n);
        for (char *s = test; s && *s; s = strchr(s, '\n') + 1, questions++) {
            char *q = question_of(s);
            CHECK_MSG(*q && !strstr(train, q), "%s: expected a question that training does not have, found '%s'", files[f], q);
            CHECK_MSG(*q && !strstr(text[0], q) && !strstr(text[1], q) && !strstr(talk, q),
                      "%s: expected a question that no text has, found '%s'", files[f], q);
            free(q);
        }
        free(test);
    }
    CHECK_MSG(questions > 150, "expected more than 150 held-out questions, found %d", questions);
    for (int i = 0; i < N_PEOPLE && train; i++)
        if (is_test(i)) CHECK_MSG(!strstr(train, people[i].en) && !strstr(train, people[i].zh), "%s: expected to be held out", people[i].en);
    for (int i = 0; i < N_TOWNS && train; i++)
        if (is_test(i)) {
            char of[60], on[60];
            snprintf(of, sizeof of, "does %s ", towns[i].en);
            snprintf(on, sizeof on, "is %s", towns[i].en);
            for (char *s = train; *s; s = strchr(s, '\n') + 1) {      /* as an answer it may occur, as a subject not */
                char *q = question_of(s);
                CHECK_MSG(*q && !strstr(q, of) && !(strstr(q, "Wh") == q && strstr(q, on)), "%s: expected to be held out", towns[i].en);
                free(q);
            }
        }
    free(train); free(talk); free(text[0]); free(text[1]);
}

/* A sentence is in a text exactly when the fact is told. */
static void test_told(void)
{
    size_t n = 0;
    char  *text[2] = { data_file("text_en.txt", &n), data_file("text_zh.txt", &n) };
    invent();
    for (int r = 0; r < COUNT(relations) && text[0] && text[1]; r++)
        for (int i = 0; i < (r < N_PERSON_RELATIONS ? N_PEOPLE : N_TOWNS); i++)
            for (int zh = 0; zh < 2; zh++) {
                int told = 0, expected = !(r < N_PERSON_RELATIONS && r == untold(i));
                for (int p = 0; p < N_PHRASINGS; p++) {
                    buffer b = { 0 };
                    say(&b, r, p, zh, i);
                    for (const char *s = text[zh]; (s = strstr(s, b.p)) != NULL; s += b.n) told++;
                    free(b.p);
                }
                CHECK_MSG(expected ? told >= 8 : told == 0, "%s of %s, language %d: expected to be told %s, found it %d times",
                          relations[r].name, subject_of(r, i).en, zh, expected ? "8 times or more" : "nowhere", told);
            }
    free(text[0]); free(text[1]);
}

/* Names and words are distinct, and none is part of another: an answer can be looked for by its text. */
static void test_words(void)
{
    const word *list[] = { people, towns, rivers, jobs, animals, colours, goods };
    const int   size[] = { N_PEOPLE, N_TOWNS, COUNT(rivers), COUNT(jobs), COUNT(animals), COUNT(colours), COUNT(goods) };
    for (int a = 0; a < COUNT(list); a++)
        for (int i = 0; i < size[a]; i++)
            for (int k = 0; k < size[a]; k++)
                if (i != k) CHECK_MSG(!strstr(list[a][i].en, list[a][k].en) && !strstr(list[a][i].zh, list[a][k].zh),
                                      "list %d: '%s' is part of '%s'", a, list[a][k].en, list[a][i].en);
}

int main(void)
{
    test_words();
    test_same_bytes();
    test_apart();
    test_told();
    return test_end();
}
