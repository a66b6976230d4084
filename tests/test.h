/* test.h - the few lines every test file needs
 *
 * A test file includes ftune.h with FTUNE_IMPLEMENTATION, then this, and ends its main with: return test_end();
 * A failed check prints file, line, what was expected and what was found, and the run goes on. The last line printed is
 * "N passed, N failed, N skipped"; the exit status is 1 when anything failed. */
#ifndef TEST_H
#define TEST_H
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_passed, test_failed, test_skipped;

#define TEST_NOTE(ok, ...) do { \
        if (ok) test_passed++; \
        else { test_failed++; fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); } \
    } while (0)

#define CHECK(condition)       TEST_NOTE((condition), "expected %s", #condition)
/* the same with an explanation: CHECK_MSG(n == 3, "row %d: expected 3 ids, found %d", i, n) */
#define CHECK_MSG(condition, ...) TEST_NOTE((condition), __VA_ARGS__)
#define CHECK_INT(found, expected) do { \
        long long f_ = (long long)(found), e_ = (long long)(expected); \
        TEST_NOTE(f_ == e_, "%s: expected %lld, found %lld", #found, e_, f_); \
    } while (0)
#define CHECK_STR(found, expected) do { \
        const char *f_ = (found), *e_ = (expected); \
        TEST_NOTE(f_ && strcmp(f_, e_) == 0, "%s: expected \"%s\", found \"%s\"", #found, e_, f_ ? f_ : "(null)"); \
    } while (0)
/* |found - expected| <= absolute + relative * |expected| */
#define CHECK_NEAR(found, expected, absolute, relative) do { \
        double f_ = (found), e_ = (expected); \
        TEST_NOTE(fabs(f_ - e_) <= (absolute) + (relative) * fabs(e_), "%s: expected %.9g, found %.9g", #found, e_, f_); \
    } while (0)
/* call returns FTUNE_OK, else the library's own message is shown; err is an ft_error */
#define CHECK_OK(call, err)    TEST_NOTE((call) == 0, "%s: %s", #call, (err).message)
/* call fails with this code and its message holds this text */
#define CHECK_FAILS(call, err, expected_code, text) do { \
        int c_ = (int)(call); \
        TEST_NOTE(c_ == (int)(expected_code) && strstr((err).message, (text)), \
                  "%s: expected error %d with \"%s\", found %d \"%s\"", #call, (int)(expected_code), (text), c_, (err).message); \
    } while (0)

/* Not run, and why: test_skip("vocab/qwen/qwen.tiktoken is not in $FTUNE_SHARED"); */
static inline void test_skip(const char *why) { test_skipped++; printf("SKIP %s\n", why); }

/* $FTUNE_SHARED (default ../shared) + "/" + name; NULL after a SKIP line when the file is not there. Static buffer. */
static inline const char *test_shared(const char *name)
{
    static char path[8][1024];
    static int turn;
    char *p = path[turn++ & 7];
    const char *base = getenv("FTUNE_SHARED");
    FILE *f;
    snprintf(p, sizeof path[0], "%s/%s", base && *base ? base : "../shared", name);
    if ((f = fopen(p, "rb")) != NULL) { fclose(f); return p; }
    test_skipped++;
    printf("SKIP %s is not on this machine (set FTUNE_SHARED)\n", p);
    return NULL;
}

/* A scratch directory of this test's own under build/tmp (make creates it): "build/tmp/NAME". Static buffer. */
static inline const char *test_tmp(const char *name)
{
    static char path[8][1024];
    static int turn;
    char *p = path[turn++ & 7];
    snprintf(p, sizeof path[0], "build/tmp/%s", name);
    return p;
}

/* A whole file, 0-terminated, malloc'ed; NULL when it cannot be read. */
static inline char *test_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *p = NULL;
    long size;
    if (!f) return NULL;
    if (!fseek(f, 0, SEEK_END) && (size = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET)
        && (p = (char *)malloc((size_t)size + 1)) != NULL) {
        *n = fread(p, 1, (size_t)size, f);
        p[*n] = 0;
    }
    fclose(f);
    return p;
}

static inline int test_write(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    size_t done = f ? fwrite(data, 1, n, f) : 0;
    return f && fclose(f) == 0 && done == n;
}

static inline int test_end(void)
{
    printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    return test_failed != 0;
}
/* What tokenizer.json has to say of an added token, here a control token, and of ByteLevel. */
#define TEST_ADDED(id, content) "{\"id\":" id ",\"content\":\"" content "\",\"single_word\":false,\"lstrip\":false," \
    "\"rstrip\":false,\"normalized\":false,\"special\":true}"
#define TEST_BYTE_LEVEL(prefix) "{\"type\":\"ByteLevel\",\"add_prefix_space\":" prefix ",\"trim_offsets\":true,\"use_regex\":true}"

#endif
