/* test_90_appendix.c - JSON, text, maps, files, number formats, random numbers
 * Build:  cc -O2 -I. tests/test_90_appendix.c -o build/test_90_appendix -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static ft_error err;

/* JSON ------------------------------------------------------------------------------------------------------------ */

/* Parse a copy that ends where the text ends, so that a sanitizer sees one byte too far. */
static int parse_status(const char *text, size_t n)
{
    char *copy = (char *)malloc(n ? n : 1);
    fti_json j;
    int e;
    memcpy(copy, text, n);
    e = fti_json_parse(&j, copy, n, "x.json", &err);
    if (!e) {                                         /* look at everything */
        fti_arena a = { NULL };
        for (int i = 0; i < j.n_nodes; i++) {
            ft_text t = fti_json_text(&j, i, &a), k = fti_json_key(&j, i, &a);
            if (fti_utf8_valid(t.p, t.n) != t.n || fti_utf8_valid(k.p, k.n) != k.n) e = 1000;
            if (!(fti_json_number(&j, i, 0) < INFINITY * 2) && fti_json_int(&j, i, 0) == 1) e = 1001;
            if (j.node[i].start + (size_t)j.node[i].len > n || (j.node[i].next && (int)j.node[i].next <= i)) e = 1002;
        }
        fti_arena_free(&a);
        fti_json_free(&j);
    }
    free(copy);
    return e;
}

static void check_refused(const char *text, int code, const char *message)
{
    int e = parse_status(text, strlen(text));
    CHECK_MSG(e == code && strstr(err.message, message), "%s: expected %d \"%s\", found %d \"%s\"", text, code,
            message, e, err.message);
}

static void test_json_grammar(void)
{
    static const char *const good[] = { "0", "-0", " [ ] ", "{}", "\"\"", "null", "[1,2.5,-3e2,1E+5,0.0e-1]",
            "{\"a\":{\"b\":[[],{}]}}",
        "\"\\u0000\\ud83d\\ude00\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\xEF\xBB\xBF[true,false]", "\"\xF4\x8F\xBF\xBF\x7F\"" };
    static const char *const bad[] = { "", " ", "[", "]", "{", "}", "[1,]", "[,1]", "[1 2]", "[1}", "{\"a\":1]",
            "{\"a\":1,}", "{,}", "{\"a\"}",
        "{\"a\":}", "{a:1}", "{1:1}", "01", "-", "+1", "1.", ".5", "1e", "1e+", "0x10", "NaN", "Infinity", "nul",
                "nulll", "tru", "True",
        "'a'", "\"", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"a\nb\"", "\"\x1f\"", "1 2", "[]]",
                "/* c */ 1", "[1,2,3", "\x00" };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK_MSG(!parse_status(good[i], strlen(good[i])),
            "%s: %s", good[i], err.message);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_MSG(parse_status(bad[i], strlen(bad[i])) == FTUNE_ERR_FORMAT, "%s: expected a refusal", bad[i]);
    check_refused("{\n \"a\": [1,\n  2 3]}", FTUNE_ERR_FORMAT, "x.json:3: expected ',' or ']', found '3'");
    check_refused("[1,]", FTUNE_ERR_FORMAT, "x.json: byte 3: expected a value, found ']'");
    check_refused("{\"a\":1,}", FTUNE_ERR_FORMAT, "a key in quotes, found '}'");
    check_refused("\"ab\xFFz\"", FTUNE_ERR_UTF8, "byte 0xff at byte offset 3");
    check_refused("\"\xC0\xAF\"", FTUNE_ERR_UTF8, "byte offset 1");          /* overlong */
    check_refused("\"\xED\xA0\x80\"", FTUNE_ERR_UTF8, "byte offset 1");      /* a surrogate */
    check_refused("\"\xE2\x82", FTUNE_ERR_UTF8, "byte offset 1");
}

static void test_json_values(void)
{
    const char *text = "{\"a\\u0041\":[1,2.5,-3e2,{\"x\":1},[],null,true],"
            "\"s\":\"x\\ud83d\\ude00\\ud83dz\\udc00\\u0000\\n\",\n"
                       "\"big\":1000000000000000019884624838656,\"neg\":-1e400,\"a\":1,\"a\":2,\"t\":\"plain\","
                               "\"k\\n\":\"plai\\u006e\"}";
    static const char undone[] = "x\xF0\x9F\x98\x80\xEF\xBF\xBDz\xEF\xBF\xBD\0\n";
    fti_json j;
    fti_arena a = { NULL };
    ft_text t;
    int i, n = 0;
    CHECK_OK(fti_json_parse(&j, text, strlen(text), "v", &err), err);
    i = fti_json_get(&j, 0, "aA");
    CHECK(fti_json_is(&j, i, FTI_ARRAY) && j.node[i].count == 7);
    for (int k = fti_json_child(&j, i); k >= 0; k = fti_json_next(&j, k)) n++;
    CHECK_INT(n, 7);
    CHECK_NEAR(fti_json_number(&j, fti_json_next(&j, fti_json_child(&j, i)), 0), 2.5, 0, 0);
    t = fti_json_text(&j, fti_json_get(&j, 0, "s"), &a);
    CHECK(t.n == sizeof undone - 1 && memcmp(t.p, undone, t.n) == 0);
    CHECK(fti_json_int(&j, fti_json_get(&j, 0, "big"), 0) == INT64_MAX);
    CHECK(fti_json_int(&j, fti_json_get(&j, 0, "neg"), 0) == INT64_MIN);
    CHECK_INT(fti_json_int(&j, fti_json_get(&j, 0, "a"), 0), 2);             /* the last one counts */
    CHECK_INT(fti_json_int(&j, fti_json_get(&j, 0, "none"), 7), 7);
    CHECK_INT(fti_json_int(&j, fti_json_get(&j, 0, "t"), 7), 7);
    CHECK(fti_json_equals(&j, fti_json_get(&j, 0, "t"), "plain") && fti_json_equals(&j, fti_json_get(&j, 0, "k\n"),
            "plain"));
    CHECK(!fti_json_equals(&j, fti_json_get(&j, 0, "k\n"), "plainer") && !fti_json_equals(&j, fti_json_get(&j, 0,
            "k\n"), "plai"));
    CHECK(!fti_json_equals(&j, fti_json_get(&j, 0, "s"), "x") && fti_json_get(&j, i, "x") == -1 && fti_json_get(&j,
            -1, "x") == -1);
    CHECK_INT(fti_json_line(&j, fti_json_get(&j, 0, "big")), 2);
    t = fti_json_key(&j, i, &a);
    CHECK(t.n == 2 && memcmp(t.p, "aA", 2) == 0);
    CHECK(fti_json_bool(&j, -1, 5) == 5 && fti_json_child(&j, -1) == -1 && fti_json_next(&j, 0) == -1);
    fti_json_free(&j);
    fti_arena_free(&a);
}

static void test_json_numbers(void)
{
    static const char *const number[] = { "0.1", "1e-6", "1E22", "1e23", "123456789012345678",
            "3.4028234663852886e38", "4.9e-324", "1e-400",
        "2.2250738585072011e-308", "0.000001", "9007199254740993", "-7205759403792793200001e-5",
                "179769313486231570000e289", "100000000000000000000000",
        "0.30000000000000004", "1.7976931348623159e308", "-3.4563584327697754", "8.41e21", "0000", "5e-1",
        "2.00000000000000000000000000000000000000000000000000000000000000000000000001" };
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        fti_json j;
        if (fti_json_parse(&j, number[i], strlen(number[i]), "n", &err)) { CHECK(strcmp(number[i], "0000") == 0);
                continue; }
        CHECK_MSG(fti_json_number(&j, 0, -1) == strtod(number[i], NULL), "%s: found %.17g", number[i],
                fti_json_number(&j, 0, -1));
        fti_json_free(&j);
    }
    for (int digits = 9; digits <= 17; digits += 8) {
        ft_rng r;
        ft_rng_seed(&r, 1);
        for (int i = 0; i < 2000; i++) {
            fti_buf b = { NULL, 0, 0, 0 };
            fti_json j;
            uint64_t u = ft_rng_u64(&r);
            double x;
            float f;
            memcpy(&x, &u, 8);
            memcpy(&f, &u, 4);
            if (i % 2) x = f = (float)(int)(u >> 40) / (float)(1 << i % 20);
            if (digits == 9) x = f;
            fti_buf_number(&b, x, digits);
            if (!(x - x == 0)) CHECK_STR(b.p, "null");
            else if (!fti_json_parse(&j, b.p, b.n, "n", &err)) {
                double y = fti_json_number(&j, 0, NAN);
                CHECK_MSG(digits == 9 ? (float)y == f : y == x, "%.17g: written as %s", x, b.p);
                fti_json_free(&j);
            } else CHECK_MSG(0, "%.17g: written as %s", x, b.p);
            fti_buf_free(&b);
        }
    }
    {
        static const double x[] = { 1e-6f, 0.02f, 16, 1e6, 0, -0.5, 1e15, 1e16, 5e5, 12345.5, 1e-5 };
        static const char *const s[] = { "1e-06", "0.02", "16.0", "1000000.0", "0.0", "-0.5", "1000000000000000.0",
                "1e+16", "500000.0", "12345.5", "1e-05" };
        for (int i = 0; i < 11; i++) {
            fti_buf b = { NULL, 0, 0, 0 };
            fti_buf_number(&b, x[i], i < 2 ? 9 : 17);
            CHECK_STR(b.p, s[i]);
            fti_buf_free(&b);
        }
    }
}

/* Every beginning and every changed byte of a text with everything in it: refused or read, never a crash. */
static void test_json_mutations(void)
{
    static const char text[] = "\xEF\xBB\xBF{\"model\":{\"a\\u00e9\\n\":[0,-1.5e-3,{}, []],"
            "\"\xC3\xA9\xF0\x9F\x98\x80\":\"\\ud83d\\ude00\xE2\x82\xAC\"},\n"
                               "\t\"t\":true,\"f\":false,\"n\":null,\"long string of plain "
                                       "text\":\"0123456789abcdefghijkl\"}\n";
    static const unsigned char other[] = { 0, '"', '\\', '{', '}', '[', ']', ',', ':', '0', 'e', '-', 'u', 0x80,
            0xC3, 0xED, 0xF4, 0xFF, ' ', 'd' };
    size_t n = sizeof text - 1;
    char copy[sizeof text];
    CHECK_OK(parse_status(text, n), err);
    for (size_t i = 0; i <= n; i++) CHECK_MSG(parse_status(text, i) < 1000, "prefix of %d bytes", (int)i);
    memcpy(copy, text, sizeof text);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < sizeof other; k++) {
            copy[i] = (char)other[k];
            CHECK_MSG(parse_status(copy, n) < 1000, "byte %d set to 0x%02x", (int)i, other[k]);
        }
        copy[i] = text[i];
    }
}

/* Large and hostile: bounded memory, linear time. */
static void test_json_hostile(void)
{
    static const char *const unit[] = { "[", ",", "{\"a\":", "[],", "1,", "\"", "{", "\\", "[1,1,1]," };
    size_t n = 2000000;
    char *text = (char *)malloc(n);
    double start = fti_now();
    fti_json j;
    for (size_t u = 0; u < sizeof unit / sizeof *unit; u++) {
        for (size_t i = 0; i < n; i++) text[i] = unit[u][i % strlen(unit[u])];
        text[0] = u == 5 ? '"' : u ? '[' : text[0];
        CHECK_MSG(fti_json_parse(&j, text, n, "hostile", &err), "%s repeated: expected a refusal", unit[u]);
    }
    CHECK_MSG(fti_now() - start < 2, "expected linear time, found %.1f s", fti_now() - start);
    memset(text, ' ', n);                             /* the depth limit is exact */
    for (int depth = 255; depth <= 257; depth++) {
        for (int i = 0; i < depth; i++) { text[i] = '['; text[2 * depth - 1 - i] = ']'; }
        CHECK_INT(fti_json_parse(&j, text, 2 * (size_t)depth, "deep", &err),
                depth > FTI_JSON_DEPTH ? FTUNE_ERR_UNSUPPORTED : FTUNE_OK);
        fti_json_free(&j);
    }
    for (size_t i = 0; i + 1 < 400000; i += 2) memcpy(text + i, "1,", 2);
                   /* more values than 4 n + 1 MiB can hold */
    text[0] = '[';
    text[399999] = ']';
    text[399998] = text[1] = '1';
    CHECK_FAILS(fti_json_parse(&j, text, 400000, "many", &err), err, FTUNE_ERR_UNSUPPORTED, "values");
    CHECK_OK(fti_json_parse(&j, "[[1,1],[1,1],[1,1]]", 19, "few", &err), err);
    fti_json_free(&j);
    free(text);
}

static void test_json_real(void)
{
    const char *path = test_shared("vocab/qwen2/tokenizer.qwen3.json");
    fti_file f;
    fti_json j;
    double start;
    if (!path) return;
    CHECK_OK(fti_file_open(&f, path, &err), err);
    start = fti_now();
    CHECK_OK(fti_json_parse(&j, f.data, f.size, path, &err), err);
    printf("tokenizer.json, %.1f MB: %.0f ms, %d values, %.1f MB\n", (double)f.size / 1e6, 1e3 * (fti_now() - start),
            j.n_nodes,
           (double)j.n_nodes * sizeof *j.node / 1e6);
    CHECK_INT(j.node[fti_json_get(&j, fti_json_get(&j, 0, "model"), "vocab")].count, 151643);
    fti_json_free(&j);
    fti_file_close(&f);
}

/* Text, arrays, maps ---------------------------------------------------------------------------------------------- */

static void test_text(void)
{
    char out[4], all[4];
    uint32_t cp;
    fti_buf b = { NULL, 0, 0, 0 };
    for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 7) {
        int n;
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        n = fti_utf8_encode(c, out);
        memcpy(all, out, 4);
        if (fti_utf8_decode(out, out + n, &cp) != n || cp != c) CHECK_MSG(0, "U+%04X does not come back", (unsigned)c);
        for (int k = 1; k < n; k++) if (fti_utf8_decode(all, all + k, &cp)) CHECK_MSG(0,
                "U+%04X cut to %d bytes is read", (unsigned)c, k);
    }
    CHECK(fti_utf8_decode("\xC0\x80", "\xC0\x80" + 2, &cp) == 0);
    CHECK(fti_utf8_valid("abcdefghijk\xE2\x82\xACxyz\xE2\x82", 19) == 17);
    CHECK(fti_utf8_valid("\xF4\x90\x80\x80", 4) == 0 && fti_utf8_valid("\xED\xBF\xBF", 3) == 0
            && fti_utf8_valid(NULL, 0) == 0);
    fti_buf_json(&b, "a\"\\\b\f\n\r\t\x01\x1f/\x7f\xC3\xA9\0z", 16);
    CHECK_STR(b.p, "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f/\x7f\xC3\xA9\\u0000z\"");
    for (int i = 0; i < 100; i++) fti_buf_fmt(&b, "%d%s", i, "-------------------------------------------------");
    CHECK(!b.failed && strlen(b.p) == b.n);
    fti_buf_free(&b);
    CHECK(ft_text_of(NULL).p == NULL && ft_text_of("").p && ft_text_of("abc").n == 3);
    fti_fail(&err, FTUNE_ERR_IO, "a\nb\x1b%s", "\xFFz");                      /* one line of UTF-8, whatever comes */
    CHECK_STR(err.message, "a b ?z");
    fti_fail(&err, FTUNE_ERR_IO, "in %s", err.message);
    CHECK_STR(err.message, "in a b ?z");
    for (int pad = 0; pad < 4; pad++) {
        char longer[800];
        for (size_t i = 0; i < sizeof longer; i++) longer[i] = "\xE2\x82\xAC"[i % 3];
        longer[798] = 0;
        fti_fail(&err, FTUNE_ERR_IO, "%.*s%s", pad, "xxxx", longer);
        CHECK(fti_utf8_valid(err.message, strlen(err.message)) == strlen(err.message) && strlen(err.message) > 495
                && !strchr(err.message, '?'));
    }
}

static int fill_array(int **a, int n)
{
    for (int i = 0; i < n; i++) if (!fti_push(*a, i)) return FTUNE_ERR_NO_MEMORY;
    return 0;
}

static int arrays(void)
{
    int *a = NULL, e = fill_array(&a, 1000);
    if (!e) { CHECK_INT(arrlen(a), 1000); CHECK_INT(a[999], 999); CHECK_INT(arrpop(a), 999); }
    arrfree(a);
    return e;
}

static int maps(void)
{
    static char key[3000][12];
    fti_map m = { 0 };
    int e = 0;
    CHECK_INT(fti_map_get(&m, "x", 1), -1);
    for (int i = 0; i < 3000 && !e; i++) {
        snprintf(key[i], sizeof key[i], "%d", i * 7);
        if (!fti_map_put(&m, key[i], strlen(key[i]), i)) e = FTUNE_ERR_NO_MEMORY;
    }
    if (!e && (!fti_map_put(&m, key[5], strlen(key[5]), 99) || !fti_map_put(&m, "", 0, 77))) e = FTUNE_ERR_NO_MEMORY;
    for (int i = 0; i < 3000 && !e; i++) if (fti_map_get(&m, key[i], strlen(key[i])) != (i == 5 ? 99 : i))
            CHECK_MSG(0, "key %s is lost", key[i]);
    if (!e) CHECK(fti_map_get(&m, "nothing", 7) == -1 && fti_map_get(&m, "", 0) == 77 && m.n == 3001);
    fti_map_free(&m);
    return e;
}

static int arenas(void)
{
    fti_arena a = { NULL };
    char *p[40];
    int e = 0;
    for (int i = 0; i < 40 && !e; i++) {
        p[i] = (char *)fti_arena_alloc(&a, (size_t)i * i * 37);
        if (!p[i]) { e = FTUNE_ERR_NO_MEMORY; break; }
        if ((uintptr_t)p[i] % 16) CHECK_MSG(0, "block %d is not aligned", i);
        for (int k = 0; k < i * i * 37; k++) if (p[i][k]) CHECK_MSG(0, "block %d is not zero", i);
        memset(p[i], i, (size_t)i * i * 37);
    }
    for (int i = 1; i < 40 && !e; i++) if (p[i][0] != i || p[i][i * i * 37 - 1] != i) CHECK_MSG(0,
            "block %d was overwritten", i);
    CHECK(fti_arena_alloc(&a, SIZE_MAX - 3) == NULL);
    fti_arena_free(&a);
    return e;
}

static int parse_and_undo(void)
{
    const char *text = "{\"a\\n\":[\"b\\tc\",1,2,3]}";
    fti_json j;
    fti_arena a = { NULL };
    int e = fti_json_parse(&j, text, strlen(text), "x", &err);
    if (!e && !fti_json_text(&j, 2, &a).p) e = FTUNE_ERR_NO_MEMORY;
    fti_json_free(&j);
    fti_arena_free(&a);
    return e;
}

static int buffers(void)
{
    fti_buf b = { NULL, 0, 0, 0 };
    int e;
    for (int i = 0; i < 100; i++) { fti_buf_json(&b, "some \"text\"", 11); fti_buf_fmt(&b, "%d", i);
            fti_buf_number(&b, i, 9); }
    e = b.failed ? FTUNE_ERR_NO_MEMORY : 0;
    fti_buf_free(&b);
    return e;
}

/* Files ----------------------------------------------------------------------------------------------------------- */

static int write_and_read(const char *path)
{
    fti_file f;
    int e = fti_file_write(path, "hello", 5, &err);
    if (!e) e = fti_file_open(&f, path, &err);
    if (e) return e;
    CHECK(f.size == 5 && memcmp(f.data, "hello", 5) == 0);
    fti_file_close(&f);
    return 0;
}

static void test_files(void)
{
    char path[200], old[300];
    fti_file f;
    fti_arena a = { NULL };
    fti_writer w;
    size_t n;
    char *p;
    snprintf(path, sizeof path, "%s/deep/er", test_tmp("appendix"));
    CHECK_OK(fti_make_directory(path, &err), err);
    CHECK_OK(fti_make_directory(path, &err), err);
    CHECK(fti_is_directory(path) && !fti_file_exists(path));
    CHECK_FAILS(fti_file_open(&f, path, &err), err, FTUNE_ERR_IO, "found a directory");
    fti_file_close(&f);
    CHECK_FAILS(fti_file_open(&f, "build/tmp/appendix/none", &err), err, FTUNE_ERR_IO,
            "build/tmp/appendix/none: cannot open");
    CHECK_STR(fti_path_join(&a, "a/b", "c"), "a/b/c");
    CHECK_STR(fti_path_join(&a, "a/b/", "c"), "a/b/c");
    CHECK_STR(fti_path_join(&a, "", "c"), "c");
    snprintf(path, sizeof path, "%s/deep/file", test_tmp("appendix"));
    TEST_EVERY_FAILURE(write_and_read(path), (void)0);
    CHECK(fti_file_exists(path));
    CHECK_OK(fti_file_write(path, "", 0, &err), err);
    CHECK_OK(fti_file_open(&f, path, &err), err);
    CHECK(f.size == 0 && f.data);
    fti_file_close(&f);
    /* one that reads keeps the old bytes while another writes; a writer that gives up leaves nothing */
    CHECK_OK(fti_file_write(path, "old", 3, &err), err);
    CHECK_OK(fti_file_open(&f, path, &err), err);
    CHECK_OK(fti_writer_open(&w, path, &err), err);
    fti_writer_add(&w, "ne", 2);
    snprintf(old, sizeof old, "%s", w.temp);
    p = test_read(path, &n);
    CHECK_STR(p, "old");
    free(p);
    fti_writer_add(&w, "w", 1);
    CHECK_OK(fti_writer_commit(&w, &err), err);
    CHECK(f.size == 3 && memcmp(f.data, "old", 3) == 0 && !fti_file_exists(old));
    fti_file_close(&f);
    CHECK_OK(fti_writer_open(&w, path, &err), err);
    fti_writer_abandon(&w);
    CHECK(!fti_file_exists(old));
    p = test_read(path, &n);
    CHECK_STR(p, "new");
    free(p);
    CHECK_FAILS(fti_file_write("build/tmp/appendix/nowhere/x", "a", 1, &err), err, FTUNE_ERR_IO, "nowhere");
    snprintf(old, sizeof old, "%s/below", path);
    CHECK_FAILS(fti_make_directory(old, &err), err, FTUNE_ERR_IO, "cannot make the directory");
    if (fti_file_exists("/dev/full")) {
        w.file = fopen("/dev/full", "wb");            /* a full disk is noticed by commit */
        w.temp = NULL;
        w.path = "full";
        w.error = 0;
        for (int i = 0; i < 10000; i++) fti_writer_add(&w, "0123456789", 10);
        CHECK_FAILS(fti_writer_commit(&w, &err), err, FTUNE_ERR_IO, "full: cannot write");
    }
    fti_arena_free(&a);
}

/* Numbers --------------------------------------------------------------------------------------------------------- */

/* The nearest of all finite halves, ties to the even one: slow and obviously right. */
static uint16_t nearest(const float *value, int n, float x)
{
    int lo = 0, hi = n - 1;
    double down, up;
    while (hi - lo > 1) { int mid = (lo + hi) / 2; if (value[mid] <= x) lo = mid; else hi = mid; }
    down = (double)x - value[lo];
    up = (double)value[hi] - x;
    return (uint16_t)(down < up || (down == up && lo % 2 == 0) ? lo : hi);
}

static void test_halves(void)
{
    static float f16[0x7c01], bf16[0x7f81];
    long wrong = 0;
    ft_rng r;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = fti_f16_to_f32((uint16_t)h), b = fti_bf16_to_f32((uint16_t)h);
        double exact = ldexp((h & 0x7c00) ? 1024 + (h & 1023) : (h & 1023),
                (h & 0x7c00) ? (int)(h >> 10 & 31) - 25 : -24);
        if ((h & 0x7c00) != 0x7c00 && fabs(f) != exact) wrong++;
        if ((h & 0x7c00) == 0x7c00 && (h & 1023 ? f == f : !isinf(f))) wrong++;
        if (fti_f32_to_f16(f) != h && f == f) wrong++;
        if (f != f && (fti_f32_to_f16(f) & 0x7fff) <= 0x7c00) wrong++;
        if (fti_f32_to_bf16(b) != h && b == b) wrong++;
        if (b != b && (fti_f32_to_bf16(b) & 0x7fff) <= 0x7f80) wrong++;
        if (h <= 0x7c00) f16[h] = h == 0x7c00 ? 65536.0f : f;                /* where the next value would be */
        if (h <= 0x7f80) bf16[h] = b;
    }
    CHECK_INT(wrong, 0);
    ft_rng_seed(&r, 3);
    for (int i = 0; i < 200000; i++) {
        uint32_t u = (uint32_t)ft_rng_u64(&r) & 0x7fffffff;
        float x;
        if (i % 2) u = (u & 0x0fffffff) + 0x32000000;     /* the range of f16 */
        if (i % 3 == 0) u &= 0xfffff000;                  /* many ties */
        if (u >= 0x7f7f0000) continue;
        memcpy(&x, &u, 4);
        if (x < 65536 && fti_f32_to_f16(x) != nearest(f16, 0x7c01, x)) wrong++;
        if (x < 65536 && fti_f32_to_f16(-x) != (nearest(f16, 0x7c01, x) | 0x8000)) wrong++;
        if (fti_f32_to_bf16(x) != nearest(bf16, 0x7f80, x)) wrong++;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(fti_f32_to_bf16(3.4028235e38f), 0x7f80);
    CHECK_INT(fti_f32_to_f16(65519.996f), 0x7bff);
    CHECK_INT(fti_f32_to_f16(65520.0f), 0x7c00);
    CHECK_INT(fti_f32_to_f16(-0.0f), 0x8000);
    CHECK_INT(fti_le32("\x78\x56\x34\x12"), 0x12345678);
    CHECK(fti_le64("\x01\0\0\0\0\0\0\x80") == UINT64_C(0x8000000000000001) && fti_le16("\xff\xee") == 0xeeff);
}

static void test_hashes(void)
{
    static char text[1000];
    uint64_t whole, parts = 0;
    for (int i = 0; i < 1000; i++) text[i] = (char)(i * 31);
    CHECK(fti_crc64(0, "123456789", 9) == UINT64_C(0x995DC9BBDF1939FA));         /* the check value of CRC-64/XZ */
    whole = fti_crc64(0, text, 1000);
    for (size_t i = 0; i < 1000; i += 37) parts = fti_crc64(parts, text + i, 1000 - i < 37 ? 1000 - i : 37);
    CHECK(whole == parts && fti_crc64(5, text, 0) == 5);
    const uint64_t key[2] = { UINT64_C(0x0706050403020100), UINT64_C(0x0F0E0D0C0B0A0908) };
    char bytes[15];
    for (int i = 0; i < 15; i++) bytes[i] = (char)i;
    CHECK(fti_hash(key, "a", 1) != fti_hash(key, "a\0", 2) && fti_hash(key, "", 0) != fti_hash(key, "\0", 1));
    CHECK(fti_hash(key, bytes, 15) == UINT64_C(0xD320D86D2A519956) && fti_hash(key, bytes, 8) == UINT64_C(0x369095118D299A8E));
    CHECK(fti_now() > 0 && fti_now() <= fti_now());
}

static void test_random(void)
{
    static const uint64_t first[] = { UINT64_C(1546998764402558742), UINT64_C(6990951692964543102) };
               /* rand_xoshiro, seed_from_u64(42) */
    ft_rng r;
    double sum = 0, squares = 0, cubes = 0;
    int seen[7] = { 0 };
    ft_rng_seed(&r, 42);
    for (int i = 0; i < 2; i++) CHECK(ft_rng_u64(&r) == first[i]);
    for (int i = 0; i < 100000; i++) { double x = ft_rng_normal(&r); sum += x; squares += x * x; cubes += x * x * x; }
    CHECK_NEAR(sum / 1e5, 0, 0.013, 0);                   /* 4 standard errors */
    CHECK_NEAR(squares / 1e5, 1, 0.018, 0);
    CHECK_NEAR(cubes / 1e5, 0, 0.05, 0);
    for (int i = 0; i < 70000; i++) seen[ft_rng_below(&r, 7)]++;
    for (int i = 0; i < 7; i++) CHECK_MSG(abs(seen[i] - 10000) < 400, "%d drawn %d times of 70000", i, seen[i]);
    for (int i = 0; i < 10000; i++) { float u = ft_rng_uniform(&r); if (!(u >= 0 && u < 1)) CHECK_MSG(0, "found %g",
            u); }
    CHECK(ft_rng_below(&r, 1) == 0 && ft_rng_below(&r, UINT64_MAX) < UINT64_MAX);
}

/* Validity by blocks of 64 bytes against one character after the other, with a byte changed here and there. */
static void test_valid_blocks(void)
{
    ft_rng rng;
    char text[400];
    int round, wrong = 0;
    ft_rng_seed(&rng, 3);
    for (round = 0; round < 200000; round++) {
        size_t n = 0, i = 0, most = 1 + (size_t)ft_rng_below(&rng, sizeof text - 4);
        uint32_t kind = (uint32_t)ft_rng_below(&rng, 5), cp;
        int len;
        while (n < most) {
            static const uint32_t limit[] = { 0x80, 0x800, 0xD800, 0x10FFFF, 0x3000 };
            cp = (uint32_t)ft_rng_below(&rng, limit[kind]);
            if (cp >= 0xD800 && cp < 0xE000) continue;
            n += (size_t)fti_utf8_encode(cp, text + n);
        }
        if (round % 3) text[ft_rng_below(&rng, n)] = (char)ft_rng_below(&rng, 256);
        while (i < n && (len = fti_utf8_decode(text + i, text + n, &cp)) > 0) i += (size_t)len;
        wrong += fti_utf8_valid(text, n) != i;
    }
    CHECK_INT(wrong, 0);
}

int main(void)
{
    test_valid_blocks();
    fti_make_directory(test_tmp("appendix"), NULL);
    test_json_grammar();
    test_json_values();
    test_json_numbers();
    test_json_mutations();
    test_json_hostile();
    test_json_real();
    test_text();
    TEST_EVERY_FAILURE(arrays(), (void)0);
    TEST_EVERY_FAILURE(maps(), (void)0);
    TEST_EVERY_FAILURE(arenas(), (void)0);
    TEST_EVERY_FAILURE(buffers(), (void)0);
    TEST_EVERY_FAILURE(parse_and_undo(), (void)0);
    test_files();
    test_halves();
    test_hashes();
    test_random();
    CHECK_INT(test_alive, 0);
    return test_end();
}
