/* test_04_weights.c - safetensors, config.json, adapter_config.json
 * Build:  cc -O2 -I. tests/test_04_weights.c -o build/test_04_weights -lm       (run from the repository's root) */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

#define GOLDEN "tests/golden/weights/"     /* made by tests/golden/make_weights.py with the reference libraries */
static ft_error err;

/* Files into the scratch directory. */
static const char *scratch(const char *name)
{
    static char path[4][300];
    static int turn;
    char *p = path[turn++ & 3];
    snprintf(p, sizeof path[0], "%s/%s", test_tmp("weights"), name);
    return p;
}

static const char *put(const char *name, const void *data, size_t n)
{
    const char *p = scratch(name);
    if (!test_write(p, data, n)) CHECK_MSG(0, "cannot write %s", p);
    return p;
}

static void copy_file(const char *from, const char *to)
{
    size_t n = 0;
    char *p = test_read(from, &n);
    put(to, p, n);
    free(p);
}

/* 8 bytes of length, a header, n zero bytes of data. */
static const char *put_safetensors(const char *header, size_t data)
{
    char file[4096] = { 0 };
    size_t n = strlen(header);
    file[0] = (char)n;
    file[1] = (char)(n >> 8);
    memcpy(file + 8, header, n);
    return put("x.safetensors", file, 8 + n + data);
}

/* Open, and when that works, read every element: all must lie inside the file. */
static int open_status(const char *path)
{
    ft_weights *w;
    int e = ft_weights_open(&w, path, &err);
    if (e) { if (w) e = 1000; return e; }
    for (int i = 0; i < ft_weights_count(w); i++) {
        const ft_tensor *t = ft_weights_at(w, i);
        const char *p = (const char *)t->data;
        size_t bytes = ft_tensor_count(t) * ft_dtype_size(t->dtype);
        int inside = 0;
        for (int f = 0; f < (int)arrlen(w->file); f++)
            if (p >= w->file[f].data + 8 && p <= w->file[f].data + w->file[f].size
                    && bytes <= (size_t)(w->file[f].data + w->file[f].size - p)) inside = 1;
        if (!inside || ft_weights_find(w, t->name) != t) e = 1001;
    }
    ft_weights_close(w);
    return e;
}

/* safetensors: reading -------------------------------------------------------------------------------------------- */

static float expected(size_t i, ft_dtype t)
{
    int whole = (int)(3 * i % 7);
    return t == FTUNE_F32 || t == FTUNE_F16 || t == FTUNE_BF16
            || t == FTUNE_F64 ? (float)(whole - 3) / 2 : (float)whole;
}

static void check_numbers(const ft_tensor *t)
{
    float out[64];
    size_t n = ft_tensor_count(t);
    if (t->dtype == FTUNE_F32 || t->dtype == FTUNE_F16 || t->dtype == FTUNE_BF16) {
        CHECK_OK(ft_tensor_to_f32(t, out, &err), err);
        for (size_t i = 0; i < n; i++) CHECK_MSG(out[i] == expected(i, t->dtype), "%s[%d]: expected %g, found %g",
                t->name, (int)i, expected(i, t->dtype), out[i]);
    } else {
        CHECK_FAILS(ft_tensor_to_f32(t, out, &err), err, FTUNE_ERR_UNSUPPORTED, "expected F32, BF16 or F16");
        for (size_t i = 0; i < n; i++) {
            char v[8];
            double d;
            int64_t q;
            int32_t w;
            memcpy(v, (const char *)t->data + i * ft_dtype_size(t->dtype), ft_dtype_size(t->dtype));
            memcpy(&d, v, 8);
            memcpy(&q, v, 8);
            memcpy(&w, v, 4);
            if (t->dtype != FTUNE_F64) d = t->dtype == FTUNE_I64 ? (double)q : t->dtype == FTUNE_I32 ? w : v[0];
            CHECK_MSG(d == expected(i, t->dtype), "%s[%d]: expected %g, found %g", t->name, (int)i, expected(i,
                    t->dtype), d);
        }
    }
}

static void test_read_golden(void)
{
    ft_weights *w = NULL;
    const ft_tensor *t;
    CHECK_OK(ft_weights_open(&w, GOLDEN "every.safetensors", &err), err);
    CHECK_INT(ft_weights_count(w), 11);
    for (int i = 0; i < ft_weights_count(w); i++) check_numbers(ft_weights_at(w, i));
    t = ft_weights_find(w, "u8");
    CHECK(t && t->rank == 4 && t->shape[0] == 3 && t->shape[1] == 1 && t->shape[3] == 3 && t->dtype == FTUNE_U8);
    t = ft_weights_find(w, "scalar");
    CHECK(t && t->rank == 0 && ft_tensor_count(t) == 1);
    t = ft_weights_find(w, "empty");
    CHECK(t && t->rank == 2 && ft_tensor_count(t) == 0);
    CHECK(ft_weights_find(w, "odd \"name\"\n\t\xC3\xA9\\\x01") && !ft_weights_find(w, "f3") && !ft_weights_at(w, 11)
            && !ft_weights_at(w, -1));
    ft_weights_close(w);
    CHECK_OK(ft_weights_open(&w, GOLDEN "unaligned.safetensors", &err), err);
    CHECK((uintptr_t)ft_weights_find(w, "b")->data % 4 != 0);
    check_numbers(ft_weights_find(w, "a"));
    check_numbers(ft_weights_find(w, "b"));
    ft_weights_close(w);
    for (int k = 0; k < 2; k++) {
        CHECK_OK(ft_weights_open(&w, k ? GOLDEN "sharded/model.safetensors.index.json" : GOLDEN "sharded", &err), err);
        CHECK_INT(ft_weights_count(w), 3);
        for (int i = 0; i < 3; i++) check_numbers(ft_weights_at(w, i));
        CHECK(ft_weights_find(w, "c")->dtype == FTUNE_F16);
        ft_weights_close(w);
    }
    ft_weights_close(NULL);
}

static void test_read_rules(void)
{
    static const struct { const char *header; int data, code; const char *message; } rule[] = {
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}   ", 8, 0, "" },
        { "{}", 0, 0, "" },
        { "{\"__metadata__\":{\"a\":\"b\"}}", 0, 0, "" },
        { "{\"__metadata__\":null,\"w\":{\"shape\":[],\"extra\":[1],\"data_offsets\":[0,1],\"dtype\":\"BOOL\"}}", 1,
          0, "" },
        { "{\"w\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[0,3]}}", 3, 0, "" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],"
          "\"data_offsets\":[0,1]}}", 1, 0, "" },
        { "{\"w\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, FTUNE_ERR_FORMAT, "and a part of" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, FTUNE_ERR_FORMAT,
          "expected 8 bytes of data" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, FTUNE_ERR_FORMAT, "cut off" },
        { "{}", 1, FTUNE_ERR_FORMAT, "found 1" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT,
          "w: expected 12 bytes for its shape and type, found 8" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, FTUNE_ERR_FORMAT,
          "expected its data to begin at 0, where the header ends" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
          "\"data_offsets\":[3,5]}}", 5, FTUNE_ERR_FORMAT,
          "b: expected its data to begin at 4, where a ends, found 3" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
          "\"data_offsets\":[0,4]}}", 4, FTUNE_ERR_FORMAT, "begin at 4" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],"
          "\"data_offsets\":[2,3]}}", 3, FTUNE_ERR_FORMAT, "found 2" },
        { "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"w\":{\"dtype\":\"U8\",\"shape\":[1],"
          "\"data_offsets\":[1,2]}}", 2, FTUNE_ERR_FORMAT, "duplicate name w" },
        { "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"\\u0077\":{\"dtype\":\"U8\","
          "\"shape\":[0],\"data_offsets\":[1,1]}}", 1, FTUNE_ERR_FORMAT, "duplicate" },
        { "{\"w\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT,
          "expected a dtype such as F32, F16 or BF16, found F33" },
        { "{\"w\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT,
          "a dtype such as F32, F16 or BF16, found nothing" },
        { "{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT, "a shape" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT,
          "whole dimensions" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT,
          "whole dimensions, found [-2]" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_FORMAT, "a shape" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, FTUNE_ERR_FORMAT,
          "data_offsets [begin, end], found [0,8,9]" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, FTUNE_ERR_FORMAT, "data_offsets" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, FTUNE_ERR_FORMAT, "data_offsets" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, FTUNE_ERR_FORMAT, "data_offsets" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,18446744073709551616]}}", 8, FTUNE_ERR_FORMAT,
          "data_offsets" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[18446744073709551608,18446744073709551615]}}",
          8, FTUNE_ERR_FORMAT, "expected 8 bytes" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2147483647,2147483647,8],\"data_offsets\":[0,8]}}", 8,
          FTUNE_ERR_FORMAT, "a smaller size" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_UNSUPPORTED,
          "dimensions below 2^31" },
        { "{\"w\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, FTUNE_ERR_UNSUPPORTED,
          "at most 4 dimensions" },
        { "{\"w\":[1,2]}", 0, FTUNE_ERR_FORMAT, "w: expected dtype, shape, data_offsets, found [1,2]" },
        { "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, FTUNE_ERR_FORMAT, "U+0000" },
        { "{\"__metadata__\":{\"a\":1}}", 0, FTUNE_ERR_FORMAT, "__metadata__: expected an object of strings" },
        { "{\"__metadata__\":[]}", 0, FTUNE_ERR_FORMAT, "__metadata__" },
        { "{\"w\":{\"dtype\":\"F32\",}}", 0, FTUNE_ERR_FORMAT, "a key in quotes" },
        { "{\"\xFF\":1}", 0, FTUNE_ERR_UTF8, "byte offset 2" },
        { "{} x", 0, FTUNE_ERR_FORMAT, "nothing after the value" },
        { "[]", 0, FTUNE_ERR_FORMAT, "begins with '{'" },
        { " {}", 0, FTUNE_ERR_FORMAT, "begins with '{'" },
        { "", 0, FTUNE_ERR_FORMAT, "begins with '{'" },
    };
    for (size_t i = 0; i < sizeof rule / sizeof *rule; i++) {
        int e;
        err.message[0] = 0;
        e = open_status(put_safetensors(rule[i].header, (size_t)rule[i].data));
        CHECK_MSG(e == rule[i].code && strstr(err.message, rule[i].message) && (!e || strstr(err.message,
                "x.safetensors")),
                  "%s: expected %d \"%s\", found %d \"%s\"", rule[i].header, rule[i].code, rule[i].message, e,
                          err.message);
    }
}

static void test_read_impostors(void)
{
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 988097824\n";
    CHECK_FAILS(open_status(put("lfs.safetensors", lfs, sizeof lfs - 1)), err, FTUNE_ERR_FORMAT, "Git LFS pointer");
    CHECK_FAILS(open_status(put("p.bin", "PK\3\4aaaaaaaaaaaaaaa", 19)), err, FTUNE_ERR_UNSUPPORTED, "pickle");
    CHECK_FAILS(open_status(put("p.bin", "\x80\2}q\1.aaaaaaaaaaa", 17)), err, FTUNE_ERR_UNSUPPORTED, "pickle");
    CHECK_FAILS(open_status(put("s", "", 0)), err, FTUNE_ERR_FORMAT, "found 0 bytes");
    CHECK_FAILS(open_status(put("s", "\1\0\0\0\0\0\0", 7)), err, FTUNE_ERR_FORMAT, "found 7 bytes");
    CHECK_FAILS(open_status(put("s", "\3\0\0\0\0\0\0\0{}", 10)), err, FTUNE_ERR_FORMAT,
            "header of at most 2 bytes, found a length of 3");
    CHECK_FAILS(open_status(put("s", "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10)), err, FTUNE_ERR_FORMAT,
            "18446744073709551615");
    CHECK_FAILS(open_status("build/tmp/weights/none.safetensors"), err, FTUNE_ERR_IO, "cannot open");
    fti_make_directory(scratch("dir"), NULL);
    remove(scratch("dir/pytorch_model.bin"));
    CHECK_FAILS(open_status(scratch("dir")), err, FTUNE_ERR_IO, "expected model.safetensors or its .index.json");
    put("dir/pytorch_model.bin", "PK\3\4", 4);
    CHECK_FAILS(open_status(scratch("dir")), err, FTUNE_ERR_UNSUPPORTED,
            "found pytorch_model.bin: a pickle is a program");
}

static void check_index(const char *json, int code, const char *message)
{
    CHECK_FAILS(open_status(put("m.safetensors.index.json", json, strlen(json))), err, code, message);
}

static void test_read_index(void)
{
    static const char *const outside[] = { "/etc/passwd", "../x", "a/b", "..", ".", "", "a\\\\b", "C:x", "a\\u0000b",
            "\\u002fetc" };
    char json[200];
    put_safetensors("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
    put("y.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    check_index("{\"weight_map\":{\"w\":\"x.safetensors\",\"v\":\"x.safetensors\"}}", FTUNE_ERR_FORMAT,
            "expected tensor v in x.safetensors, found it nowhere");
    check_index("{\"weight_map\":{\"w\":\"y.safetensors\",\"v\":\"x.safetensors\"}}", FTUNE_ERR_FORMAT,
            "tensor w in y.safetensors, found it in another shard");
    check_index("{\"weight_map\":{\"w\":\"none.safetensors\"}}", FTUNE_ERR_IO, "weights/none.safetensors: cannot open");
    check_index("{\"weight_map\":{\"w\":1}}", FTUNE_ERR_FORMAT, "a file name without directories, found 1");
    check_index("{\"weight_map\":[]}", FTUNE_ERR_FORMAT, "weight_map: expected an object");
    check_index("{}", FTUNE_ERR_FORMAT, "weight_map: expected an object");
    check_index("[", FTUNE_ERR_FORMAT, "expected a value");
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        snprintf(json, sizeof json, "{\"weight_map\":{\"w\":\"%s\"}}", outside[i]);
        check_index(json, FTUNE_ERR_FORMAT, "a file name without directories");
    }
    put("z.safetensors", "\0\0\0\0\0\0\0\0{}", 10);
    check_index("{\"weight_map\":{\"w\":\"x.safetensors\",\"v\":\"z.safetensors\"}}", FTUNE_ERR_FORMAT,
            "z.safetensors");
    copy_file(scratch("x.safetensors"), "x2.safetensors");
    check_index("{\"weight_map\":{\"w\":\"x.safetensors\",\"v\":\"x2.safetensors\"}}", FTUNE_ERR_FORMAT,
            "x2.safetensors: expected each tensor once, found the duplicate name w");
}

/* Every byte of a file changed, and every prefix of it: refused by name or read inside its borders. The file is changed
 * in place, which is much faster than thousands of new ones. */
static void mutate(const char *golden, const char *name, int (*status)(const char *path), size_t most)
{
    static const unsigned char other[] = { 0, 0xFF, '"', '{', '}', '9', 0x80 };
    size_t n, failed = 0;
    char *text = test_read(golden, &n), path[300];
    int fd;
    if (!text) { CHECK_MSG(0, "%s is missing: run the tests from the repository's root", golden); return; }
    snprintf(path, sizeof path, "%s", put(name, text, n));
    CHECK_OK(status(path), err);
    fd = open(path, O_RDWR);
    for (size_t i = 0; fd >= 0 && i < n && i < most; i++) {
        for (size_t k = 0; k <= sizeof other; k++) {
            char c = k < sizeof other ? (char)other[k] : (char)(text[i] ^ 1);
            failed += pwrite(fd, &c, 1, (off_t)i) != 1;
            CHECK_MSG(status(path) < 1000, "%s: byte %d set to 0x%02x", golden, (int)i, (unsigned char)c);
        }
        failed += pwrite(fd, text + i, 1, (off_t)i) != 1;
    }
    for (size_t i = n; fd >= 0 && i-- > 0; ) {
        failed += ftruncate(fd, (off_t)i) != 0;
        CHECK_MSG(status(path) < 1000, "%s: prefix of %d bytes", golden, (int)i);
    }
    CHECK(fd >= 0 && failed == 0);
    if (fd >= 0) close(fd);
    free(text);
}

/* A header of many tiny tensors in the worst order, and one of nothing but brackets: cheap to read, cheap to refuse. */
static void test_read_large(void)
{
    int n = 20000;
    fti_buf b = { NULL, 0, 0, 0 };
    double start;
    ft_weights *w;
    fti_buf_add(&b, "\0\0\0\0\0\0\0\0{", 9);
    for (int i = n; i-- > 0; ) fti_buf_fmt(&b, "\"layer.%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,"
            "%d]}%s", i, i, i + 1, i ? "," : "}");
    for (int i = 0; i < 8; i++) b.p[i] = (char)((b.n - 8) >> 8 * i);
    for (int i = 0; i < n; i++) fti_buf_add(&b, "x", 1);
    start = fti_now();
    CHECK_OK(ft_weights_open(&w, put("many.safetensors", b.p, b.n), &err), err);
    CHECK_MSG(fti_now() - start < 1, "expected n log n, found %.2f s", fti_now() - start);
    CHECK(ft_weights_count(w) == n && ft_weights_find(w, "layer.12345") && *(char *)ft_weights_find(w,
            "layer.0")->data == 'x');
    ft_weights_close(w);
    for (size_t i = 9; i < b.n; i++) b.p[i] = "{\"a\":"[i % 5];
    CHECK(open_status(put("many.safetensors", b.p, b.n)) == FTUNE_ERR_FORMAT);
    fti_buf_free(&b);
}

/* safetensors: writing -------------------------------------------------------------------------------------------- */

static int save_again(const char *from, const char *to)
{
    ft_weights *w;
    int e = ft_weights_open(&w, from, &err);
    if (e) return e;
    e = ft_weights_save(to, ft_weights_at(w, 0), ft_weights_count(w), &err);
    ft_weights_close(w);
    return e;
}

static void check_same_bytes(const char *a, const char *b)
{
    size_t n = 0, m = 0;
    char *p = test_read(a, &n), *q = test_read(b, &m);
    CHECK_MSG(p && q && n == m && memcmp(p, q, n) == 0, "%s and %s: expected the same bytes", a, b);
    free(p);
    free(q);
}

static void test_save(void)
{
    static float two[2] = { 1, -2 };
    ft_tensor t[2] = { { "w", FTUNE_F32, 1, { 2, 0, 0, 0 }, NULL, NULL, NULL, 0 },
                       { "w", FTUNE_F32, 1, { 2, 0, 0, 0 }, NULL, NULL, NULL, 0 } };
    ft_weights *w;
    size_t n = 0;
    char *p;
    t[0].data = t[1].data = two;
    /* what we write is, byte for byte, what the reference library writes */
    CHECK_OK(save_again(GOLDEN "every.safetensors", scratch("one-again.safetensors")), err);
    check_same_bytes(GOLDEN "every.safetensors", scratch("one-again.safetensors"));
    CHECK_OK(save_again(GOLDEN "sharded/model-00001-of-00002.safetensors", scratch("again.safetensors")), err);
    check_same_bytes(GOLDEN "sharded/model-00001-of-00002.safetensors", scratch("again.safetensors"));
    CHECK_OK(ft_weights_save(scratch("w.safetensors"), t, 1, &err), err);
    /* over a file that is open: the reader keeps the old numbers */
    CHECK_OK(ft_weights_open(&w, scratch("w.safetensors"), &err), err);
    two[0] = 5;
    CHECK_OK(ft_weights_save(scratch("w.safetensors"), t, 1, &err), err);
    CHECK(memcmp(ft_weights_at(w, 0)->data, "\0\0\x80\x3f\0\0\0\xc0", 8) == 0);
    ft_weights_close(w);
    CHECK_OK(ft_weights_save(scratch("none.st"), t, 0, &err), err);
    CHECK_OK(open_status(scratch("none.st")), err);
    CHECK_FAILS(ft_weights_save(scratch("w2.st"), t, 2, &err), err, FTUNE_ERR_ARGUMENT, "a name of its own");
    t[1].name = "__metadata__";
    CHECK_FAILS(ft_weights_save(scratch("w2.st"), t, 2, &err), err, FTUNE_ERR_ARGUMENT, "__metadata__");
    t[1].name = "\xFF";
    CHECK_FAILS(ft_weights_save(scratch("w2.st"), t, 2, &err), err, FTUNE_ERR_ARGUMENT, "UTF-8");
    t[1].name = "n";
    t[1].dtype = FTUNE_NF4;
    CHECK_FAILS(ft_weights_save(scratch("w2.st"), t, 2, &err), err, FTUNE_ERR_ARGUMENT, "found NF4");
    CHECK(!fti_file_exists(scratch("w2.st")));
    /* the picture in the lecture of >>4 */
    p = test_read(scratch("w.safetensors"), &n);
    CHECK(p && strstr(p + 8, "\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"));
    free(p);
    CHECK_OK(open_status(put("pic.safetensors", "\x38\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[2],"
            "\"data_offsets\":[0,8]}}   "
                             "\0\0\x80\x3f\0\0\0\xc0", 72)), err);
    CHECK(ft_dtype_size(FTUNE_BF16) == 2 && ft_dtype_size(FTUNE_NF4) == 0 && ft_dtype_size(FTUNE_OTHER) == 0);
    CHECK_STR(ft_dtype_name(FTUNE_I64), "I64");
    CHECK_STR(ft_dtype_name(FTUNE_OTHER), "other");
}

/* config.json ----------------------------------------------------------------------------------------------------- */

static int config_status(const char *path) { ft_config c; return ft_config_load(&c, path, &err); }

static ft_config config_of(const char *json)
{
    ft_config c;
    CHECK_MSG(!ft_config_load(&c, put("config.json", json, strlen(json)), &err), "%s: %s", json, err.message);
    return c;
}

static const char qwen[] = "{\n  \"architectures\": [\"Qwen2ForCausalLM\"], \"attention_dropout\": 0.0, "
        "\"bos_token_id\": 151643,\n"
    "  \"eos_token_id\": 151645, \"hidden_act\": \"silu\", \"hidden_size\": 896, \"intermediate_size\": 4864,\n"
    "  \"max_position_embeddings\": 32768, \"max_window_layers\": 21, \"model_type\": \"qwen2\", "
            "\"num_attention_heads\": 14,\n"
    "  \"num_hidden_layers\": 24, \"num_key_value_heads\": 2, \"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0,\n"
    "  \"sliding_window\": 32768, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\", \"use_cache\": true,\n"
    "  \"use_sliding_window\": false, \"vocab_size\": 151936, \"model_max_length\": 1000000000000000019884624838656\n}";

static void test_config_families(void)
{
    ft_config c = config_of(qwen);
    CHECK(ft_config_parameters(&c) == 494032768);
    CHECK(c.head_dim == 64 && c.qkv_bias == 1 && c.o_bias == 0 && c.rope_theta == 1e6 && c.rms_norm_eps == 1e-6f
            && c.tie_word_embeddings == 1);
    CHECK(c.n_eos == 1 && c.eos_token_id[0] == 151645 && c.bos_token_id == 151643 && c.pad_token_id == -1
            && c.dtype == FTUNE_BF16);
    CHECK_STR(c.model_type, "qwen2");
    c = config_of("{\"model_type\":\"llama\",\"hidden_size\":576,\"intermediate_size\":1536,\"num_hidden_layers\":30,"
            "\"num_attention_heads\":9,"
                  "\"num_key_value_heads\":3,\"vocab_size\":49152,\"rope_theta\":100000,\"rms_norm_eps\":1e-5,"
                          "\"tie_word_embeddings\":true}");
    CHECK(ft_config_parameters(&c) == 134515008 && c.eos_token_id[0] == 2 && c.bos_token_id == 1
            && c.max_position_embeddings == 2048);
    c = config_of("{\"model_type\":\"llama\",\"hidden_size\":2048,\"intermediate_size\":8192,"
            "\"num_hidden_layers\":16,\"num_attention_heads\":32,"
                  "\"num_key_value_heads\":8,\"vocab_size\":128256,\"head_dim\":64,\"rope_theta\":500000.0,"
                          "\"tie_word_embeddings\":true,"
                  "\"eos_token_id\":[128001,128008,128009],\"max_position_embeddings\":131072,"
                          "\"rope_scaling\":{\"factor\":32.0,\"high_freq_factor\":4.0,"
                  "\"low_freq_factor\":1.0,\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}");
    CHECK(ft_config_parameters(&c) == 1235814400 && c.n_eos == 3 && c.eos_token_id[2] == 128009);
    CHECK(c.rope_type == FTUNE_ROPE_LLAMA3 && c.rope_factor == 32 && c.rope_high_freq_factor == 4
            && c.rope_original_max_position_embeddings == 8192);
    c = config_of("{\"model_type\":\"llama\",\"num_key_value_heads\":4,\"vocab_size\":64000,\"rope_theta\":5e6,"
            "\"rms_norm_eps\":1e-5}");
    CHECK(ft_config_parameters(&c) == 6061035520);                           /* Yi-6B; the rest are defaults */
    c = config_of("{\"model_type\":\"mistral\",\"sliding_window\":null}");
    CHECK(c.num_key_value_heads == 8 && c.intermediate_size == 14336 && ft_config_parameters(&c) == 7241732096);
    c = config_of("{\"model_type\":\"mistral\",\"sliding_window\":4096,\"max_position_embeddings\":4096,"
            "\"num_key_value_heads\":null}");
    CHECK_INT(c.num_key_value_heads, 32);
    c = config_of("{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":true,\"mlp_bias\":true,"
            "\"rope_parameters\":{\"rope_theta\":5000.0,"
                  "\"rope_type\":\"linear\",\"factor\":4},\"dtype\":\"float16\",\"head_dim\":32,\"vocab_size\":100,"
                          "\"bos_token_id\":null,\"eos_token_id\":151643}");
    CHECK(c.qkv_bias && c.o_bias && c.mlp_bias && c.rope_theta == 5000 && c.rope_type == FTUNE_ROPE_LINEAR
            && c.rope_factor == 4 && c.head_dim == 32);
    CHECK(c.bos_token_id == -1 && c.n_eos == 0 && c.dtype == FTUNE_F16);
    c = config_of("{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}}");
    CHECK(c.rope_type == FTUNE_ROPE_LINEAR && c.rope_factor == 2.5f);
    c = config_of("{\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"max_window_layers\":32}");
                   /* no layer slides */
    CHECK(c.num_hidden_layers == 32 && c.n_eos == 0);
    c = config_of("{\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]}");
    c = config_of("{\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"sliding_window\":32768}");
}

static void check_config(const char *keys, int code, const char *message)
{
    char json[600];
    snprintf(json, sizeof json, "{\"model_type\":\"llama\",\n%s}", keys);
    CHECK_FAILS(config_status(put("config.json", json, strlen(json))), err, code, message);
}

static void test_config_refusals(void)
{
    check_config("\"model_type\":\"mixtral\"", FTUNE_ERR_UNSUPPORTED,
            "config.json:2: model_type: expected llama, mistral or qwen2, found mixtral");
    check_config("\"model_type\":null", FTUNE_ERR_FORMAT, "model_type");
    check_config("\"hidden_size\":0", FTUNE_ERR_FORMAT, "hidden_size: expected a whole number from 1 to 1048576, "
            "found 0");
    check_config("\"hidden_size\":1e400", FTUNE_ERR_FORMAT, "hidden_size");
    check_config("\"hidden_size\":\"896\"", FTUNE_ERR_FORMAT, "hidden_size");
    check_config("\"vocab_size\":100.5", FTUNE_ERR_FORMAT, "vocab_size");
    check_config("\"num_hidden_layers\":-1", FTUNE_ERR_FORMAT, "num_hidden_layers");
    check_config("\"num_attention_heads\":33", FTUNE_ERR_FORMAT, "a multiple of num_attention_heads");
    check_config("\"num_key_value_heads\":5", FTUNE_ERR_FORMAT, "multiple of num_key_value_heads");
    check_config("\"head_dim\":63", FTUNE_ERR_FORMAT, "even head_dim");
    check_config("\"head_dim\":16384,\"num_attention_heads\":8192", FTUNE_ERR_FORMAT,
            "at most 2^24 numbers in all heads");
    check_config("\"rms_norm_eps\":0", FTUNE_ERR_FORMAT, "rms_norm_eps: expected a number above 0, at most 1, found 0");
    check_config("\"rope_theta\":-1", FTUNE_ERR_FORMAT, "rope_theta");
    check_config("\"rope_theta\":true", FTUNE_ERR_FORMAT, "rope_theta");
    check_config("\"tie_word_embeddings\":1", FTUNE_ERR_FORMAT, "tie_word_embeddings: expected true or false, found 1");
    check_config("\"hidden_act\":\"gelu\"", FTUNE_ERR_UNSUPPORTED, "hidden_act: expected silu, found gelu");
    check_config("\"attention_dropout\":0.1", FTUNE_ERR_UNSUPPORTED, "attention_dropout");
    check_config("\"quantization_config\":{\"quant_method\":\"gptq\"}", FTUNE_ERR_UNSUPPORTED, "quantization_config");
    check_config("\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", FTUNE_ERR_UNSUPPORTED,
            "rope_type: expected default, linear or llama3, found dynamic");
    check_config("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}", FTUNE_ERR_UNSUPPORTED, "found yarn");
    check_config("\"rope_scaling\":{\"rope_type\":\"linear\"}", FTUNE_ERR_FORMAT, "factor: expected a number above 0");
    check_config("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,"
                 "\"original_max_position_embeddings\":8192}", FTUNE_ERR_FORMAT,
                         "high_freq_factor above low_freq_factor");
    check_config("\"rope_scaling\":\"linear\"", FTUNE_ERR_FORMAT, "expected an object");
    check_config("\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}", FTUNE_ERR_UNSUPPORTED,
            "the same for all layers");
    check_config("\"partial_rotary_factor\":0.5", FTUNE_ERR_UNSUPPORTED, "partial_rotary_factor");
    check_config("\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", FTUNE_ERR_UNSUPPORTED, "at most 8");
    check_config("\"eos_token_id\":\"</s>\"", FTUNE_ERR_FORMAT, "a token id");
    check_config("\"model_type\":\"mistral\"", FTUNE_ERR_UNSUPPORTED, "sliding_window");
                  /* absent: 4096, of 131072 */
    check_config("\"model_type\":\"mistral\",\"sliding_window\":4096,\"max_position_embeddings\":32768",
            FTUNE_ERR_UNSUPPORTED, "sliding_window");
    check_config("\"model_type\":\"qwen2\",\"use_sliding_window\":true", FTUNE_ERR_UNSUPPORTED, "sliding_window");
    check_config("\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"layer_types\":[\"full_attention\","
            "\"sliding_attention\"]", FTUNE_ERR_UNSUPPORTED, "sliding_window");
    CHECK_FAILS(config_status(put("config.json", "[1]", 3)), err, FTUNE_ERR_FORMAT, "expected an object");
    CHECK_FAILS(config_status(put("config.json", "{", 1)), err, FTUNE_ERR_FORMAT, "a key in quotes");
    CHECK_FAILS(config_status("build/tmp/weights/none"), err, FTUNE_ERR_IO, "cannot open");
}

static int same_config(const ft_config *a, const ft_config *b)
{
    return a->vocab_size == b->vocab_size && a->hidden_size == b->hidden_size
            && a->intermediate_size == b->intermediate_size
        && a->num_hidden_layers == b->num_hidden_layers && a->num_attention_heads == b->num_attention_heads
                && a->head_dim == b->head_dim
        && a->num_key_value_heads == b->num_key_value_heads && a->max_position_embeddings == b->max_position_embeddings
        && a->rms_norm_eps == b->rms_norm_eps && a->rope_theta == b->rope_theta
                && a->tie_word_embeddings == b->tie_word_embeddings
        && a->qkv_bias == b->qkv_bias && a->o_bias == b->o_bias && a->mlp_bias == b->mlp_bias
                && a->rope_type == b->rope_type
        && a->rope_factor == b->rope_factor && a->rope_low_freq_factor == b->rope_low_freq_factor
                && a->n_eos == b->n_eos
        && a->rope_high_freq_factor == b->rope_high_freq_factor && a->dtype == b->dtype
                && a->bos_token_id == b->bos_token_id
        && a->rope_original_max_position_embeddings == b->rope_original_max_position_embeddings
                && a->pad_token_id == b->pad_token_id
        && memcmp(a->eos_token_id, b->eos_token_id, sizeof a->eos_token_id) == 0 && strcmp(a->model_type,
                b->model_type) == 0;
}

/* What is saved is what was loaded. tests/parity/weights.py asks Transformers for its opinion of the same files. */
static void test_config_save(void)
{
    static const char *const json[] = { qwen,
        "{\"model_type\":\"llama\",\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":32,\"vocab_size\":100,"
                "\"rope_theta\":12345.678,"
        "\"hidden_size\":64,\"num_attention_heads\":4,\"pad_token_id\":0,\"rms_norm_eps\":0.0000123,"
                "\"num_hidden_layers\":2}",
        "{\"model_type\":\"llama\",\"eos_token_id\":[3,5],\"rope_scaling\":{\"factor\":8,\"high_freq_factor\":4,"
                "\"low_freq_factor\":1,\"rope_type\":\"llama3\","
        "\"original_max_position_embeddings\":256},\"torch_dtype\":\"float16\"}",
        "{\"model_type\":\"llama\",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2},\"bos_token_id\":null,"
                "\"eos_token_id\":null}",
        "{\"model_type\":\"mistral\",\"sliding_window\":null,\"num_key_value_heads\":4}" };
    for (size_t i = 0; i < sizeof json / sizeof *json; i++) {
        ft_config c = config_of(json[i]), back;
        char dir[40];
        snprintf(dir, sizeof dir, "config-%d", (int)i);
        fti_make_directory(scratch(dir), NULL);
        CHECK_OK(ft_config_save(&c, scratch(dir), &err), err);
        CHECK_OK(ft_config_load(&back, scratch(dir), &err), err);
        CHECK_MSG(same_config(&c, &back), "config %d changed on its way through a file", (int)i);
        if (i == 0) { c.qkv_bias = 0; CHECK_FAILS(ft_config_save(&c, scratch(dir), &err), err, FTUNE_ERR_ARGUMENT,
                "biases of that family"); }
    }
}

/* tie_word_embeddings absent: the weights beside it decide. */
static void test_config_tie(void)
{
    static float one[1];
    ft_tensor t[2] = { { "lm_head.weight", FTUNE_F32, 1, { 1, 0, 0, 0 }, NULL, NULL, NULL, 0 }, { "model.embed_tokens.weight",
            FTUNE_F32, 1, { 1, 0, 0, 0 }, NULL, NULL, NULL, 0 } };
    ft_config c;
    t[0].data = t[1].data = one;
    fti_make_directory(scratch("tie"), NULL);
    remove(scratch("tie/model.safetensors"));
    put("tie/config.json", "{\"model_type\":\"llama\"}", 22);
    CHECK_OK(ft_config_load(&c, scratch("tie"), &err), err);
    CHECK_INT(c.tie_word_embeddings, 0);                                     /* no weights: Transformers' default */
    CHECK_OK(ft_weights_save(scratch("tie/model.safetensors"), t, 2, &err), err);
    CHECK_OK(ft_config_load(&c, scratch("tie"), &err), err);
    CHECK_INT(c.tie_word_embeddings, 0);
    CHECK_OK(ft_weights_save(scratch("tie/model.safetensors"), t + 1, 1, &err), err);
    CHECK_OK(ft_config_load(&c, scratch("tie"), &err), err);
    CHECK_INT(c.tie_word_embeddings, 1);
}

/* adapter_config.json --------------------------------------------------------------------------------------------- */

static int adapter_status(const char *path)
{
    ft_lora_config c;
    char dir[300];
    snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(path, '/') - path), path);
    return ft_lora_config_load(&c, dir, &err);
}

static ft_lora_config lora_of(const char *keys, int code, const char *message)
{
    ft_lora_config c;
    char json[2000];
    int e;
    snprintf(json, sizeof json, "{\"peft_type\":\"LORA\"%s%s}", *keys ? "," : "", keys);
    put("adapter_config.json", json, strlen(json));
    err.message[0] = 0;
    e = ft_lora_config_load(&c, test_tmp("weights"), &err);
    CHECK_MSG(e == code && strstr(err.message, message), "%s: expected %d \"%s\", found %d \"%s\"", keys, code,
            message, e, err.message);
    return c;
}

static void test_lora_matches(void)
{
    ft_lora_config c = ft_lora_config_default();
    CHECK(c.r == 8 && c.lora_alpha == 16 && c.lora_dropout == 0 && !c.use_rslora);
    CHECK(ft_lora_matches(&c, "model.layers.0.self_attn.q_proj") && ft_lora_matches(&c,
            "model.layers.0.mlp.down_proj"));
    CHECK(!ft_lora_matches(&c, "lm_head") && !ft_lora_matches(&c, "model.lm_head") && ft_lora_matches(&c, "lm_head.x"));
    strcpy(c.target_modules, "q_proj, v_proj ,,model.layers.1.mlp.up_proj");
    CHECK(ft_lora_matches(&c, "model.layers.0.self_attn.q_proj") && ft_lora_matches(&c, "q_proj")
            && ft_lora_matches(&c, "a.v_proj"));
    CHECK(!ft_lora_matches(&c, "model.layers.0.self_attn.k_proj") && !ft_lora_matches(&c, "xq_proj")
            && !ft_lora_matches(&c, "q_proj.x"));
    CHECK(ft_lora_matches(&c, "model.layers.1.mlp.up_proj") && !ft_lora_matches(&c, "model.layers.11.mlp.up_proj")
            && !ft_lora_matches(&c, ""));
    strcpy(c.target_modules, "lm_head");
    CHECK(ft_lora_matches(&c, "lm_head"));
    c.target_modules[0] = 0;
    CHECK(!ft_lora_matches(&c, "q_proj"));
}

static void test_lora_load(void)
{
    static const char *const refused[] = { "use_dora\":true", "bias\":\"all", "bias\":\"lora_only",
            "rank_pattern\":{\"a\":1}", "alpha_pattern\":{\"a\":1}",
        "modules_to_save\":[\"lm_head\"]", "fan_in_fan_out\":true", "layer_replication\":[[0,1]]",
                "lora_bias\":true", "layers_to_transform\":[1]",
        "layers_to_transform\":3", "exclude_modules\":\"x", "trainable_token_indices\":[1]",
                "target_parameters\":[\"x\"]", "use_qalora\":true",
        "alora_invocation_tokens\":[1]", "task_type\":\"SEQ_CLS", "init_lora_weights\":\"pissa",
                "init_lora_weights\":\"loftq" };
    static const struct { const char *regex, *list; } regex[] = {
        { "q_proj", "q_proj" }, { ".*q_proj", "q_proj" }, { ".*\\\\.(q_proj|v_proj)", "q_proj,v_proj" },
          { "^.*\\\\.(?:q_proj|v_proj)$", "q_proj,v_proj" },
        { "all-linear", "all-linear" }, { "(q_proj)", "q_proj" }, { ".*layers\\\\.[0-3].*proj", NULL },
          { "q_proj|v_proj", NULL }, { "", NULL },
        { ".*", NULL }, { "(a|)", NULL }, { "a.b", NULL }, { "(a|b)|c", NULL }, { "q_proj$|x", NULL }, { "(", NULL },
          { "(?:)", NULL }, { "\\\\.", NULL }, { "^$", NULL } };
    ft_lora_config c;
    char keys[2000];
    CHECK_OK(ft_lora_config_load(&c, GOLDEN "adapter", &err), err);          /* written by PEFT */
    CHECK(c.r == 4 && c.lora_alpha == 8 && c.lora_dropout == 0.05f && c.use_rslora == 1);
    CHECK_STR(c.target_modules, "q_proj");
    CHECK_STR(c.base_model_name_or_path, "Qwen/Qwen2.5-0.5B");
    c = lora_of("", 0, "");
    CHECK(c.r == 8 && c.lora_alpha == 8 && c.base_model_name_or_path[0] == 0);
    CHECK_STR(c.target_modules, "q_proj,v_proj");
    c = lora_of("\"use_dora\":false,\"bias\":\"none\",\"rank_pattern\":{},\"modules_to_save\":null,"
            "\"init_lora_weights\":\"gaussian\",\"new_key\":{\"x\":[1]},"
                "\"target_modules\":[\"k_proj\",\"mlp.up_proj\"]", 0, "");
    CHECK_STR(c.target_modules, "k_proj,mlp.up_proj");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char name[40];
        size_t n = strcspn(refused[i], "\"");
        snprintf(name, sizeof name, "%.*s: expected", (int)n, refused[i]);
        snprintf(keys, sizeof keys, "\"%s%s", refused[i], strchr("]}", refused[i][strlen(refused[i]) - 1])
                || strstr(refused[i], "true")
                 || strstr(refused[i], ":3") ? "" : "\"");
        lora_of(keys, FTUNE_ERR_UNSUPPORTED, name);
    }
    for (size_t i = 0; i < sizeof regex / sizeof *regex; i++) {
        snprintf(keys, sizeof keys, "\"target_modules\":\"%s\"", regex[i].regex);
        c = lora_of(keys, regex[i].list ? 0 : FTUNE_ERR_UNSUPPORTED, regex[i].list ? "" : "target_modules: expected");
        if (regex[i].list) CHECK_STR(c.target_modules, regex[i].list);
    }
    lora_of("\"peft_type\":\"IA3\"", FTUNE_ERR_UNSUPPORTED, "peft_type: expected \"LORA\", found IA3");
    lora_of("\"r\":0", FTUNE_ERR_FORMAT, "r: expected a whole number");
    lora_of("\"lora_alpha\":0", FTUNE_ERR_FORMAT, "lora_alpha");
    lora_of("\"lora_dropout\":1", FTUNE_ERR_FORMAT, "lora_dropout");
    lora_of("\"lora_dropout\":\"0\"", FTUNE_ERR_FORMAT, "lora_dropout");
    lora_of("\"use_rslora\":\"yes\"", FTUNE_ERR_FORMAT, "use_rslora");
    lora_of("\"target_modules\":[]", FTUNE_ERR_UNSUPPORTED, "target_modules");
    lora_of("\"target_modules\":[\"a,b\"]", FTUNE_ERR_UNSUPPORTED, "target_modules");
    lora_of("\"target_modules\":[1]", FTUNE_ERR_UNSUPPORTED, "target_modules");
    lora_of("\"target_modules\":{\"a\":1}", FTUNE_ERR_UNSUPPORTED, "target_modules");
    for (int length = 510; length <= 511; length++) {
        snprintf(keys, sizeof keys, "\"target_modules\":[\"%0*d\"]", length, 1);
        c = lora_of(keys, length > 510 ? FTUNE_ERR_UNSUPPORTED : 0, "");
    }
    CHECK_FAILS(ft_lora_config_load(&c, "build/tmp/weights/none", &err), err, FTUNE_ERR_IO,
            "adapter_config.json: cannot open");
}

static void test_lora_save(void)
{
    ft_lora_config c = ft_lora_config_default(), back;
    CHECK_OK(ft_lora_config_save(&c, scratch("adapter"), &err), err);
    CHECK_OK(ft_lora_config_load(&back, scratch("adapter"), &err), err);
    CHECK_STR(back.target_modules, "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj");
    CHECK(back.r == 8 && back.lora_alpha == 16 && back.lora_dropout == 0 && back.base_model_name_or_path[0] == 0);
    c.r = 3;
    c.lora_alpha = 0.1f;
    c.lora_dropout = 0.05f;
    c.use_rslora = 1;
    strcpy(c.target_modules, "q_proj, v_proj,");
    strcpy(c.base_model_name_or_path, "a \"path\"/\xC3\xA9");
    CHECK_OK(ft_lora_config_save(&c, scratch("adapter-2/deep"), &err), err);
    CHECK_OK(ft_lora_config_load(&back, scratch("adapter-2/deep"), &err), err);
    CHECK(back.r == 3 && back.lora_alpha == 0.1f && back.lora_dropout == 0.05f && back.use_rslora == 1);
    CHECK_STR(back.target_modules, "q_proj,v_proj");
    CHECK_STR(back.base_model_name_or_path, c.base_model_name_or_path);
}

static int save_config_again(void)
{
    ft_config c;
    int e = ft_config_load(&c, scratch("config-2"), &err);
    return e ? e : (int)ft_config_save(&c, scratch("config-2"), &err);
}

static int save_adapter_again(void)
{
    ft_lora_config c;
    int e = ft_lora_config_load(&c, scratch("adapter-2/deep"), &err);
    return e ? e : (int)ft_lora_config_save(&c, scratch("adapter-3"), &err);
}

int main(void)
{
    fti_make_directory(test_tmp("weights"), NULL);
    test_read_golden();
    test_read_rules();
    test_read_impostors();
    test_read_index();
    test_read_large();
    test_save();
    test_config_families();
    test_config_refusals();
    test_config_save();
    test_config_tie();
    test_lora_matches();
    test_lora_load();
    test_lora_save();
    mutate(GOLDEN "every.safetensors", "m.safetensors", open_status, 8 + 728);
    copy_file(GOLDEN "sharded/model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors");
    copy_file(GOLDEN "sharded/model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors");
    mutate(GOLDEN "sharded/model.safetensors.index.json", "m.safetensors.index.json", open_status, SIZE_MAX);
    mutate(scratch("config-2/config.json"), "config.json", config_status, SIZE_MAX);
    mutate(GOLDEN "adapter/adapter_config.json", "adapter_config.json", adapter_status, SIZE_MAX);
    {
        const char *saved = scratch("again.safetensors");
        TEST_EVERY_FAILURE(save_again(GOLDEN "every.safetensors", saved), (void)0);
        TEST_EVERY_FAILURE(save_again(GOLDEN "sharded", saved), (void)0);
        TEST_EVERY_FAILURE(save_config_again(), (void)0);
        TEST_EVERY_FAILURE(save_adapter_again(), (void)0);
    }
    CHECK_INT(test_alive, 0);
    return test_end();
}
