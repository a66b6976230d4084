/* test_alloc.h - an allocator that counts blocks and bytes and, when told, fails. Include it before ftune.h.
 *
 * TEST_EVERY_FAILURE(call, undo): runs call with the 1st, 2nd, 3rd ... allocation failing until it succeeds. Each
 * failed run must return FTUNE_ERR_NO_MEMORY and leave nothing allocated; the run that succeeds is undone, and then
 * nothing may be left either. */
#ifndef TEST_ALLOC_H
#define TEST_ALLOC_H
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L         /* as ftune.h does, had it come first */
#endif
#include <stddef.h>
#include <stdlib.h>

static long test_alive, test_fail_at, test_calls;   /* test_fail_at 0: never */
static size_t test_bytes_now, test_peak;            /* what is allocated, and the most that was at any moment */

/* The size stands in front of each block. A block that moves is counted twice while it does. */
enum { TEST_HEAD = 16 };

static int test_refuse(void) { return ++test_calls == test_fail_at; }

static void test_count(size_t more)
{
    test_bytes_now += more;
    if (test_bytes_now > test_peak) test_peak = test_bytes_now;
}

static void *test_realloc(void *old, size_t n)
{
    size_t was = old ? *(size_t *)(void *)((char *)old - TEST_HEAD) : 0;
    char *p = test_refuse() || n > (size_t)-1 - TEST_HEAD ? NULL : (char *)realloc(old ? (char *)old - TEST_HEAD : NULL, n + TEST_HEAD);
    if (!p) return NULL;
    test_alive += !old;
    test_count(n);
    test_bytes_now -= was;
    *(size_t *)(void *)p = n;
    return p + TEST_HEAD;
}

static void *test_malloc(size_t n) { return test_realloc(NULL, n); }

static void test_free(void *p)
{
    test_alive -= p != NULL;
    if (!p) return;
    test_bytes_now -= *(size_t *)(void *)((char *)p - TEST_HEAD);
    free((char *)p - TEST_HEAD);
}

#define FTUNE_MALLOC(n)     test_malloc(n)
#define FTUNE_REALLOC(p, n) test_realloc(p, n)
#define FTUNE_FREE(p)       test_free(p)

#define TEST_EVERY_FAILURE(call, undo) do { \
        long before_ = test_alive, at_ = 1; \
        int e_ = 1; \
        for (; e_ && at_ < 100000; at_++) { \
            test_calls = 0; \
            test_fail_at = at_; \
            e_ = (int)(call); \
            test_fail_at = 0; \
            if (!e_) { undo; } \
            CHECK_MSG(!e_ || e_ == FTUNE_ERR_NO_MEMORY, "%s: allocation %ld fails: expected %d, found %d", \
                      #call, at_, (int)FTUNE_ERR_NO_MEMORY, e_); \
            CHECK_MSG(test_alive == before_, "%s: allocation %ld fails: %ld blocks left", \
                      #call, at_, test_alive - before_); \
        } \
        CHECK_MSG(!e_, "%s: expected it to succeed at last, found %d", #call, e_); \
    } while (0)
#endif
