/* test_91_unicode.c - the Unicode tables: every code point by checksum, then the rules that tie them together
 *
 * The sums are those of tests/make_unicode.py --sums, which asks unicodedata2 16.0.0 and not our tables. */
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)p)[i]) * 0x100000001B3u;
    return h;
}

static void test_every_code_point(void)
{
    const uint64_t seed = 0xCBF29CE484222325u;
    uint64_t class_sum = seed, lower_sum = seed, form_sum[4] = { seed, seed, seed, seed };
    fti_buf out = {0};
    for (uint32_t c = 0; c < 0x110000; c++) {
        unsigned k = fti_cp_class(c);
        unsigned char le[2] = { (unsigned char)k, (unsigned char)(k >> 8) };
        uint32_t low[3];
        char text[4], bytes[4];
        class_sum = fnv(class_sum, le, 2);
        if (c >= 0xD800 && c < 0xE000) continue;
        low[0] = fti_cp_lower(c, low + 1);
        for (int i = 0; i < 3 && (i == 0 || low[i]); i++) lower_sum = fnv(lower_sum, bytes, (size_t)fti_utf8_encode(low[i], bytes));
        for (int f = 0; f < 4; f++) {
            out.n = 0;
            CHECK_MSG(fti_normalize(f, text, (size_t)fti_utf8_encode(c, text), &out, NULL), "U+%04X", (unsigned)c);
            test_passed--;                                /* a million small checks are not a million tests */
            form_sum[f] = fnv(form_sum[f], out.p, out.n);
        }
    }
    CHECK_MSG(class_sum == 0x3f21b3d3561893d9u, "classes: 0x%016llx", (unsigned long long)class_sum);
    CHECK_MSG(form_sum[0] == 0x23fc43766d7c2eb9u, "NFC: 0x%016llx", (unsigned long long)form_sum[0]);
    CHECK_MSG(form_sum[1] == 0x2d0c150ba0b45aadu, "NFD: 0x%016llx", (unsigned long long)form_sum[1]);
    CHECK_MSG(form_sum[2] == 0xce5c3baf69409e9cu, "NFKC: 0x%016llx", (unsigned long long)form_sum[2]);
    CHECK_MSG(form_sum[3] == 0xc5ac6e2aec50b7adu, "NFKD: 0x%016llx", (unsigned long long)form_sum[3]);
    CHECK_MSG(lower_sum == 0x54834f05a5deb90eu, "lower case: 0x%016llx", (unsigned long long)lower_sum);
    fti_buf_free(&out);
}

static void check_form(int form, const char *text, const char *expected)
{
    fti_buf out = {0};
    uint32_t *origin = NULL;
    CHECK(fti_normalize(form, text, strlen(text), &out, &origin));
    CHECK_MSG(out.n == strlen(expected) && (!out.n || !memcmp(out.p, expected, out.n)), "form %d of \"%s\": expected \"%s\", found \"%.*s\"",
              form, text, expected, (int)out.n, out.n ? out.p : "");
    CHECK_INT(arrlen(origin), out.n);
    for (size_t i = 1; i < (size_t)arrlen(origin); i++) CHECK(origin[i] < strlen(text));
    out.n = 0;
    fti_buf_free(&out);
    arrfree(origin);
}

static void test_forms(void)
{
    check_form(FTI_NFC, "", "");
    check_form(FTI_NFC, "plain ASCII stays", "plain ASCII stays");
    check_form(FTI_NFC, "e\xCC\x81", "\xC3\xA9");
    check_form(FTI_NFD, "\xC3\xA9", "e\xCC\x81");
    check_form(FTI_NFC, "\xE2\x84\xAB", "\xC3\x85");                                  /* angstrom sign */
    check_form(FTI_NFC, "q\xCC\x87\xCC\xA3", "q\xCC\xA3\xCC\x87");                    /* marks change places */
    check_form(FTI_NFC, "\xE1\xB8\x8B\xCC\xA3", "\xE1\xB8\x8D\xCC\x87");              /* d-dot-above + dot below */
    check_form(FTI_NFC, "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81");      /* Hangul L V T */
    check_form(FTI_NFC, "\xEA\xB0\x80\xE1\x86\xA8", "\xEA\xB0\x81");                  /* Hangul LV T */
    check_form(FTI_NFD, "\xEA\xB0\x81", "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8");
    check_form(FTI_NFC, "\xE0\xA4\x95\xE0\xA4\xBC", "\xE0\xA4\x95\xE0\xA4\xBC");      /* composition exclusion */
    check_form(FTI_NFC, "\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC");
    check_form(FTI_NFC, "\xEF\xA4\x80", "\xE8\xB1\x88");                              /* CJK compatibility */
    check_form(FTI_NFD, "\xE1\xBE\x82", "\xCE\xB1\xCC\x93\xCC\x80\xCD\x85");          /* four parts */
    check_form(FTI_NFC, "\xCE\xB1\xCC\x93\xCC\x80\xCD\x85", "\xE1\xBE\x82");
    check_form(FTI_NFC, "\xF0\x96\x84\x9E\xF0\x96\x84\xA3", "\xF0\x96\x84\xA6");  /* Gurung Khema: joins across */
    check_form(FTI_NFKC, "\xEF\xAC\x81", "fi");                                      /* ligature */
    check_form(FTI_NFKC, "\xEF\xBD\xB6\xEF\xBE\x9E", "\xE3\x82\xAC");               /* half-width ka, voiced: one full-width ga */
    check_form(FTI_NFKC, "\xE1\xBA\x9B\xCC\xA3", "\xE1\xB9\xA9");                  /* long s, dots above and below */
    check_form(FTI_NFKD, "\xE1\xBA\x9B\xCC\xA3", "s\xCC\xA3\xCC\x87");
    check_form(FTI_NFKD, "\xE3\x88\x8E", "(\xE1\x84\x80\xE1\x85\xA1)");            /* (ga) in one character */
    check_form(FTI_NFKD, "\xEF\xB7\xBA", "\xD8\xB5\xD9\x84\xD9\x89 \xD8\xA7\xD9\x84\xD9\x84\xD9\x87 \xD8\xB9\xD9\x84\xD9\x8A\xD9\x87 "
               "\xD9\x88\xD8\xB3\xD9\x84\xD9\x85");                                 /* eighteen parts */
    check_form(FTI_NFC, "\xE2\x91\xA0", "\xE2\x91\xA0");
    check_form(FTI_NFKD | FTI_UNICODE_9, "\xE3\x8B\xBF", "\xE3\x8B\xBF");            /* Reiwa is younger; */
    check_form(FTI_NFKD, "\xE3\x8B\xBF", "\xE4\xBB\xA4\xE5\x92\x8C");
    check_form(FTI_NFD | FTI_UNICODE_9, "a\xCC\x81\xE1\xB7\xB9", "a\xCC\x81\xE1\xB7\xB9"); /* so is U+1DF9 */
    check_form(FTI_NFC, "a\xCC\x81" "b\xFF" "c\xCC\xA7", "\xC3\xA1" "b\xFF" "\xC3\xA7"); /* a stray byte stays */
    CHECK(fti_is_nfc("caf\xC3\xA9 \xE6\x9D\xAD\xE5\xB7\x9E", 12));
    CHECK(!fti_is_nfc("cafe\xCC\x81", 6));
    CHECK(fti_is_nfc("", 0));
}

/* One base with a million marks in falling order of class: sorting must not be quadratic. */
static void test_many_marks(void)
{
    enum { MARKS = 1000000 };
    char *text = (char *)malloc(1 + 2 * MARKS);
    fti_buf out = {0};
    text[0] = 'x';
    for (int i = 0; i < MARKS; i++) memcpy(text + 1 + 2 * i, i % 2 ? "\xCC\xA3" : "\xCC\x87", 2);
    double t = (double)clock() / CLOCKS_PER_SEC;
    CHECK(fti_normalize(FTI_NFC, text, 1 + 2 * MARKS, &out, NULL));
    t = (double)clock() / CLOCKS_PER_SEC - t;
    CHECK_MSG(t < 2, "a million marks took %.2f s", t);
    /* the dots below come first and do not keep the first dot above from joining x to U+1E8B */
    CHECK_INT(out.n, 1 + 2 * MARKS);
    CHECK(!memcmp(out.p, "\xE1\xBA\x8B\xCC\xA3\xCC\xA3", 7) && !memcmp(out.p + out.n - 4, "\xCC\x87\xCC\x87", 4));
    fti_buf_free(&out);
    free(text);
}

/* Characters drawn from a few blocks, as text has them, now and then from anywhere; with ASCII between. */
static uint32_t draw(uint32_t *random, uint32_t c)
{
    *random = *random * 1664525u + 1013904223u;
    if (*random >> 29 == 0) c = *random >> 8 & 0x7F;
    else if (*random >> 29 == 1) c = *random >> 8 & 0x1FFFF;
    else c = (c & ~127u) | (*random >> 8 & 127);
    return c - 0xD800 < 0x800 ? 'a' : c;
}

/* The classes of the characters of 64 bytes, looked up together, are those of each; and where NFC finds the first that
 * it may change is where one look after the other finds it. */
static void test_windows(void)
{
    uint32_t random = 5;
    int wrong = 0;
    for (uint32_t block = 0x80; block < 0x20000; block += 64)
        for (int again = 0; again < 8 && !wrong; again++) {
            char text[FTI_VIEW + 160];
            uint8_t expected[FTI_VIEW] = { 0 }, found[FTI_VIEW];
            uint64_t lead = 0;
            size_t n = 0, base = 0, stop = SIZE_MAX;
            uint32_t last_ccc = 0;
            fti_bytes64 v, c;
            while (n < FTI_VIEW + 100) {
                uint32_t cp = draw(&random, block), kind = fti_form_kind(FTI_NFC, cp), ccc = fti_ccc(kind);
                size_t len = (size_t)fti_utf8_encode(cp, text + n);
                if (len > 1 && n + len <= FTI_VIEW) {
                    lead |= UINT64_C(1) << n;
                    expected[n + len - 1] = (uint8_t)fti_cp_class(cp);
                }
                if (stop == SIZE_MAX && ((kind & FTI_CP_NOT_NFC) || (ccc && ccc < last_ccc))) stop = base;
                if (!ccc) base = n;
                last_ccc = ccc;
                n += len;
            }
            memcpy(&v, text, sizeof v);
            c = fti_classes64(&v, text, lead);
            memcpy(found, &c, sizeof found);
            wrong = memcmp(found, expected, sizeof found) != 0;
            CHECK_MSG(!wrong, "classes around U+%04X", (unsigned)block);
            if (stop == SIZE_MAX) stop = n;
            base = fti_stable_run(FTI_NFC, text, 0, n);
            CHECK_MSG(base == stop, "NFC around U+%04X: expected %d, found %d", (unsigned)block, (int)stop, (int)base);
            wrong |= base != stop;
            test_passed -= 2 * !wrong;
        }
}

static void test_lower(void)
{
    uint32_t x[2];
    CHECK_INT(fti_cp_lower('A', x), 'a');
    CHECK_INT(fti_cp_lower(0x130, x), 'i');
    CHECK_INT(x[0], 0x307);
    CHECK_INT(fti_cp_lower(0x3A3, x), 0x3C3);          /* never the final sigma: letter by letter */
    CHECK_INT(fti_cp_lower(0x10400, x), 0x10428);
    CHECK_INT(fti_cp_lower(0x1C89, x), 0x1C8A);        /* new in Unicode 16 */
}

int main(void)
{
    test_every_code_point();
    test_forms();
    test_many_marks();
    test_windows();
    test_lower();
    return test_end();
}
