/* test_01_regex.c - regular expressions, and every pre-tokenizer of tokenizer.json on small made files
 *
 * What is expected was taken from Hugging Face tokenizers; tests/parity/test_regex_parity.py compares many more.
 * Build:  cc -O2 -I. tests/test_01_regex.c -o build/test_01_regex -lm */
#include "test_alloc.h"
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
#include "test.h"

static ft_error err;

/* The matches, each followed by |; an empty one is empty. 0 or an error. */
static int matches(const char *pattern, size_t n, const char *text, size_t text_len, fti_buf *out)
{
    fti_regex *re = NULL;
    fti_search s;
    ft_span x;
    int found;
    out->n = 0;
    memset(&s, 0, sizeof s);
    if (fti_regex_new(&re, pattern, n, "expression", &err)) return (int)err.code;
    fti_search_begin(&s, re, text, text_len);
    while ((found = fti_search_next(&s, &x)) > 0) {
        if (x.begin > x.end || x.end > text_len) { found = -2; break; }
        fti_buf_add(out, text + x.begin, x.end - x.begin);
        fti_buf_add(out, "|", 1);
    }
    fti_search_free(&s);
    fti_regex_free(re);
    fti_buf_add(out, "", 1);
    return found || out->failed ? FTUNE_ERR_NO_MEMORY : 0;
}

static void test_matches(void)
{
    static const struct { const char *pattern, *text, *found; } c[] = {
        { "a|ab", "ab", "a|" }, { "(?:a|ab)$", "ab", "ab|" }, { "a+?b", "aab", "aab|" }, { "a*", "baac", "|aa||" }, { "", "ab", "|||" },
        { "x*?y", "xxy", "xxy|" }, { "a{2}", "aaaaa", "aa|aa|" }, { "a{,2}b", "aaab", "aab|" }, { "a{2,}?", "aaaa", "aa|aa|" }, { "a{,}", "a{,}", "a{,}|" },
        { "x{2}?y", "xxy y", "xxy|y|" }, { "a{2}+", "aaaaa", "aaaa|" }, { "a{0}b", "ab", "b|" }, { "a++a", "aaa", "" }, { "(?>a|ab)c", "abc ac", "ac|" },
        { "(?:ab){1,2}?b", "ababb abb", "ababb|abb|" }, { "(?:a*)?b", "aab", "aab|" }, { "a{1,3}+b", "aaaaab", "aaaaab|" }, { "{1}", "{1}", "{1}|" },
        { "[a-c&&[^b]]+", "abc", "a|c|" }, { "[^\\W\\d_]+", "a1b_c", "a|b|c|" }, { "[]a]+", "]a", "]a|" }, { "[a-]+", "a-b", "a-|" }, { "[\\w-]+", "a-b c", "a-b|c|" },
        { "[[^a]b]", "ab", "b|" }, { "\\p{Lu}\\p{Ll}*", "AbCdE", "Ab|Cd|E|" }, { "\\P{L}", "a1", "1|" }, { "\\p{^L}", "a1", "1|" }, { "\\P{^L}", "a1", "a|" },
        { "\\p{Han}+", "a\xE4\xB8\xAD\xE6\x96\x87", "\xE4\xB8\xAD\xE6\x96\x87|" }, { "\\p{Greek}", "a\xCE\xB1", "\xCE\xB1|" }, { "\\p{Sc}", "$a", "$|" },
        { "\\x{e9}|\\u4e2d", "\xC3\xA9\xE4\xB8\xAD", "\xC3\xA9|\xE4\xB8\xAD|" }, { ".", "\n\xC3\xA9", "\xC3\xA9|" }, { "(?m:.)", "\n", "\n|" },
        { "(?=b)", "abab", "||" }, { "a(?!b)", "abac", "a|" }, { "(?<=a)b", "abcb", "b|" }, { "(?<!a)b", "abcb", "b|" }, { "(?<=a(?=bc)b)c", "abc", "c|" },
        { "(?<=a+|xy)b", "aab xyb yb", "b|b|" }, { "(?<=(?:ab|c){2}d?)e", "abce cabde abe", "e|e|" }, { "\\bab\\b", "ab abc ab", "ab|ab|" }, { "\\Bb", "ab b", "b|" },
        { "^a", "a\na", "a|a|" }, { "a$", "a\nab", "a|" }, { "\\Aa|a\\z", "aaa", "a|a|" }, { "(?i)aB", "Ab", "Ab|" }, { "(?i:k)", "kK\xE2\x84\xAA", "k|K|\xE2\x84\xAA|" },
        { "(?i:\xC5\xBF)", "sS\xC5\xBF", "s|S|\xC5\xBF|" }, { "(?i:\xE2\x84\xAA)", "kK\xE2\x84\xAA", "k|K|\xE2\x84\xAA|" }, { "(?i:[a-z]+)", "S\xC5\xBF\xC3\x9F", "S\xC5\xBF|" },
        { "(?i:[^a-s])", "S\xC5\xBF\xC3\x9FT", "\xC3\x9F|T|" }, { "(?i:'s)", "'S'\xC5\xBF", "'S|'\xC5\xBF|" }, { "(?i:[\xE2\x80\x99']s)", "\xE2\x80\x99S", "\xE2\x80\x99S|" },
        { "(?i:(?<=ss)x)", "SSx \xC3\x9Fx", "x|" }, { "a(?i)b|c", "aBaC", "aB|aC|" }, { "(?i:)a", "Aa", "a|" },
        { "\\w", "\xC2\xB2", "\xC2\xB2|" }, { "[\\w]", "\xC2\xB2", "" }, { "\\W", "\xC2\xB2", "" }, { "\\s+(?!\\S)|\\s+", "a   b", "  | |" },
        { ".{1,512}", "ab", "ab|" } };
    fti_buf out = { 0 };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        int e = matches(c[i].pattern, strlen(c[i].pattern), c[i].text, strlen(c[i].text), &out);
        CHECK_MSG(!e, "%s: %s", c[i].pattern, err.message);
        if (!e) CHECK_STR(out.p, c[i].found);
    }
    fti_buf_free(&out);
}

static void test_refused(void)
{
    static const struct { const char *pattern, *message; } c[] = {
        { "(a)\\1", "byte 3: expected no escapes but" }, { "(?~a)", "byte 0: expected (?:" }, { "a\\X", "byte 1: expected no escapes but" }, { "(a", "byte 0: expected a ) for each (" },
        { "a)", "byte 1: expected a ( for each )" }, { "*a", "byte 0: expected something to repeat" }, { "a|+", "something to repeat" }, { "[a", "a class that ends with ]" },
        { "[]", "a class that ends with ]" }, { "[z-a]", "a range that goes up" }, { "[a-[b]]", "no - in front of [" }, { "\\p{Klingon}", "byte 3: expected a category" },
        { "\\pL", "{..} behind \\p" }, { "[[:alpha:]]", "no [:name:]" }, { "^*", "byte 1: expected no repetition of what can match nothing" }, { "(?=a)+", "match nothing" },
        { "(a*)*", "match nothing" }, { "(?:a|)+", "match nothing" }, { "a**", "match nothing" }, { "(?:a?){2,3}", "match nothing" }, { "a{3,1}", "bounds that go up" },
        { "\\x{110000}", "\\x41 (ASCII), \\u00e9" }, { "\\u12", "\\x41 (ASCII), \\u00e9" }, { "\\xe9", "\\x41 (ASCII), \\u00e9" }, { "\\x{d800}", "\\x41 (ASCII), \\u00e9" },
        { "\\x{41", "\\x41 (ASCII), \\u00e9" }, { "(?:(?:a{1000}){1000}){1000}", "a smaller expression" }, { "a{9000}", "a smaller expression" },
        { "(?<=(?>a|ab))c", "no atomic group in a look-behind" }, { "(?<=a++)c", "no atomic group in a look-behind" }, { "\\Ka", "no escapes but" }, { "\\h", "no escapes but" },
        { "\\R", "no escapes but" }, { "\\Ga", "no escapes but" }, { "\\101", "no escapes but" }, { "(?x) a", "(?i:" }, { "(?#a)", "(?i:" },
        { "(?<n>a)", "(?i:" }, { "(?{x})", "(?i:" }, { "(*FAIL)", "something to repeat" }, { "\\", "a character" }, { "(?i:a", "a ) for each (" },
        { "(?i:ss)", "byte 6: expected no ss, st" }, { "(?i)of(?:fice)", "no ss, st" }, { "(?i:\xC3\x9F)", "ASCII" }, { "(?i:[\xC3\x9F])", "ASCII" },
        { "(?i:\xC3\xA9)", "ASCII" }, { "(?i:[a-\xC5\xBF])", "ASCII" }, { "(?i:[\\p{L}])", "a class where case" }, { "(?i:[a[b]])", "a class where case" }, { "(?i:[a&&b])", "a class where case" } };
    char deep[4000];
    fti_buf out = { 0 };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        CHECK_FAILS(matches(c[i].pattern, strlen(c[i].pattern), "a", 1, &out), err, FTUNE_ERR_UNSUPPORTED, c[i].message);
    for (int i = 0; i < 4; i++) {                             /* deep: ((((, [[[[, (?=(?=..; a++++ is only long */
        static const char *const part[] = { "(", "[a", "+", "(?=" };
        size_t n = 0;
        deep[n++] = 'a';
        while (n + 4 < sizeof deep) { memcpy(deep + n, part[i], strlen(part[i])); n += strlen(part[i]); }
        CHECK_INT(matches(deep, n, "aaaa", 4, &out), i == 2 ? 0 : FTUNE_ERR_UNSUPPORTED);
    }
    fti_buf_free(&out);
}

/* Expressions on which matchers take for ever. */
static void test_hostile(void)
{
    static const char *const c[] = { "(a+)+b", "(a|a)*b", "(a+)*b", "(a|aa)+$b", "(?:a{1,200})a{200}b", "(a+a+)+b", ".*.*=.*.*b", "((a+)+)+b", "(?>(a+)+b|a)c",
        "(?=(a+)+b)", "(?<=(a+)+b)a", "(?!(a+)+b)c", "(?i:(aa|a)+)b", "a+{2}b", "(((((a+)+)+)+)+)+b", "(\\w+\\s?)*c", "(?:a?a?a?a?a?a?a?a?a)+b" };
    enum { N = 3000 };
    static char text[N];
    fti_buf out = { 0 };
    memset(text, 'a', N);
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        CHECK_OK(matches(c[i], strlen(c[i]), text, N, &out), err);
        CHECK_STR(out.p, "");
    }
    fti_buf_free(&out);
}

static const char published[] = "(?i:'s|'t|'re)|[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|(?<=[\\p{L}&&[^b]])\\d{1,3}+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|(?>a|b+?){2,3}\\x{41}(?i)[\xE2\x80\x99\\x{73}-t]";

static const char *const awkward[] = { "a", "b", "S", "K", "re", "LL", "'", "'s", "'ve", "'T", "'\xC5\xBF", "\xE2\x80\x99", "\xE4\xB8\xAD", "\xE6\x96\x87\xE5\xAD\x97", "\xE3\x81\x82", "\xE3\x83\xBC",
    "\xE3\x80\x85", "\xED\x95\x9C", "\xC3\xA9", "\xC3\x89", "\xC7\x85", "\xCA\xB0", "\xC5\xBF", "\xE2\x84\xAA", "\xCC\x81", "\xE0\xA4\xBF", "\xE2\x83\x9D", "1", "23", "\xC2\xB2", "\xE0\xA5\xA7",
    "\xE2\x85\xA3", " ", " ", "  ", "\n", "\r", "\r\n", "\t", "\xC2\xA0", "\xC2\x85", "\xE3\x80\x80", "\xE2\x80\xA8", ".", ",/", "!", "$", "\xE2\x82\xAC", "\xE3\x80\x82", "\xF0\x9F\x98\x80", "\xEF\xB8\x8F", "\xF0\xA0\x80\x80",
    "\xE3\x80\x87", "\xF0\x90\x90\x80", "\xE2\x80\x8D", "\xEE\x80\x80", "\xCD\xB8", "_" };

static size_t awkward_text(uint32_t *random, int parts, char *text)
{
    size_t n = 0;
    for (; parts >= 0; parts--) {
        *random = *random * 1664525u + 1013904223u;
        const char *p = awkward[(*random >> 8) % (sizeof awkward / sizeof *awkward)];
        for (int again = *random >> 30 ? 0 : (int)(*random >> 27 & 7); again >= 0; again--) {
            memcpy(text + n, p, strlen(p));
            n += strlen(p);
        }
    }
    return n;
}

/* 64 bytes at a time the scanners cut where they do piece by piece. */
static void test_windows(void)
{
    for (int k = 0; k < FTI_N_SPLITTERS; k++) {
        const fti_splitter *f = &fti_splitters[k];
        uint32_t random = 7;
        int differ = 0, cuts = 0;
        for (int i = 0; f->cut && i < 100000 && !differ; i++) {
            char *text = (char *)malloc(4096), *end;
            random = random * 1664525u + 1013904223u;
            size_t n = awkward_text(&random, 30 + (int)(random >> 28), text);
            text = (char *)realloc(text, n);
            end = text + n;
            for (const char *p = text; end - p >= FTI_VIEW && !differ; p = f->split(p, end)) {
                const char *q = p, *to;
                for (uint64_t bits = f->cut(p, end); bits && !differ; bits &= bits - 1, q = to, cuts++) {
                    to = p + fti_lowest(bits);
                    differ = f->split(q, end) != to;
                    CHECK_MSG(!differ, "%s on \"%.*s\": from %d expected %d, found %d", f->name, (int)n, text, (int)(q - text), (int)(f->split(q, end) - text), (int)(to - text));
                    test_passed -= !differ;
                }
            }
            free(text);
        }
        if (f->cut) CHECK(cuts > 100000);
    }
}

/* The scanners of chapter 1 cut as this matcher does with the expressions they stand for. */
static void test_scanners(void)
{
    for (int k = 0; k < FTI_N_SPLITTERS; k++) {
        const fti_splitter *f = &fti_splitters[k];
        fti_regex *re = NULL;
        fti_search s;
        uint32_t random = 1;
        int differ = 0;
        if (!f->regex) continue;
        CHECK_OK(fti_regex_new(&re, f->regex, strlen(f->regex), f->name, &err), err);
        memset(&s, 0, sizeof s);
        for (int i = 0; re && i < 25000 && !differ; i++) {
            char text[1024];
            size_t n, at = 0;
            ft_span x;
            random = random * 1664525u + 1013904223u;
            n = awkward_text(&random, (int)(random >> 28), text);
            fti_search_begin(&s, re, text, n);
            while (at < n && !differ) {
                size_t end = (size_t)(f->split(text + at, text + n) - text);
                differ = fti_search_next(&s, &x) <= 0 || x.begin != at || x.end != end;
                CHECK_MSG(!differ, "%s on \"%.*s\": expected %d to %d, found %d to %d", f->name, (int)n, text, (int)x.begin, (int)x.end, (int)at, (int)end);
                test_passed -= !differ;
                at = end;
            }
        }
        test_passed += !differ;
        fti_search_free(&s);
        fti_regex_free(re);
    }
}

/* Cut off anywhere, or with any byte changed: an error or a match, and nothing read behind the end. */
static void test_mutations(void)
{
    static const char text[] = "It's 1234 caf\xC3\xA9, \xE4\xB8\xAD\xE6\x96\x87! \r\n  aA\xC5\xBF";
    fti_buf out = { 0 };
    for (size_t n = 0; n <= sizeof published - 1; n++)
        for (int how = 0; how < 8; how++) {
            static const char other[] = "\\([{*?|\xFF";
            size_t size = how ? sizeof published - 1 : n;
            char *copy = (char *)malloc(size + 1);
            memcpy(copy, published, size);
            if (how && n < size) copy[n] = other[how];
            int e = matches(copy, size, text, sizeof text - 1, &out);
            CHECK_MSG(!e || e == FTUNE_ERR_UNSUPPORTED, "byte %d, way %d: found error %d", (int)n, how, e);
            test_passed--;
            free(copy);
        }
    test_passed++;
    fti_buf_free(&out);
}

static int no_memory(const char *pattern, const char *text)
{
    fti_buf out = { 0 };
    int e = matches(pattern, strlen(pattern), text, strlen(text), &out);
    fti_buf_free(&out);
    return e;
}

/* ---- pre-tokenizers ---- */

static ft_tokenizer *tokenizer_of(const char *model, const char *normalizer, const char *pre, const char *decoder)
{
    const char *path = test_tmp("regex.json");
    fti_buf text = { 0 };
    ft_tokenizer *tok = NULL;
    fti_buf_fmt(&text, "{\"normalizer\":%s,\"pre_tokenizer\":%s,\"decoder\":%s,\"model\":%s}", normalizer, pre, decoder, model);
    CHECK(test_write(path, text.p, text.n));
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    fti_buf_free(&text);
    return tok;
}

#define WORDS "{\"type\":\"WordLevel\",\"unk_token\":\"?\",\"vocab\":{\"?\":0,\"a\":1,\"b\":2}}"
#define SPLIT(p, behavior, invert) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" p "\"},\"behavior\":\"" behavior "\",\"invert\":" invert "}"

/* The bytes that each token comes from, followed by |. */
static void check_pieces(const char *pre, const char *text, const char *expected)
{
    ft_tokenizer *tok = tokenizer_of(WORDS, "null", pre, "null");
    int32_t ids[64];
    ft_span at[64];
    size_t n = 0;
    char out[500] = "";
    if (!tok) return;
    CHECK_OK(ft_tokenizer_encode_spans(tok, text, strlen(text), 0, NULL, 0, ids, at, 64, &n, &err), err);
    for (size_t i = 0, k = 0; i < n; i++, k = strlen(out))
        snprintf(out + k, sizeof out - k, "%.*s|", (int)(at[i].end - at[i].begin), text + at[i].begin);
    CHECK_MSG(!strcmp(out, expected), "%s on \"%s\": expected %s, found %s", pre, text, expected, out);
    ft_tokenizer_free(tok);
}

static void test_pieces(void)
{
    check_pieces(SPLIT("\\\\d", "Isolated", "false"), "a12b", "a|1|2|b|");
    check_pieces(SPLIT("\\\\d", "Removed", "false"), "a12b", "a|b|");
    check_pieces(SPLIT("\\\\d", "Contiguous", "false"), "a12b", "a|12|b|");
    check_pieces(SPLIT("\\\\d", "MergedWithPrevious", "false"), "a12b", "a1|2|b|");
    check_pieces(SPLIT("\\\\d", "MergedWithNext", "false"), "a12b", "a|1|2b|");
    check_pieces(SPLIT("\\\\d", "Removed", "true"), "a12b", "1|2|");
    check_pieces(SPLIT("\\\\d", "MergedWithNext", "true"), "a12b", "a1|2|b|");
    check_pieces(SPLIT("(?=[A-Z])", "Isolated", "false"), "aBcDe", "a|Bc|De|");
    check_pieces(SPLIT("x*", "MergedWithPrevious", "false"), "axxb", "axx|b|");
    check_pieces(SPLIT("x", "Removed", "false"), "xx", "");
    check_pieces("{\"type\":\"Split\",\"pattern\":{\"String\":\"--\"},\"behavior\":\"Removed\",\"invert\":false}", "a---b", "a|-b|");
    check_pieces("{\"type\":\"Whitespace\"}", "it's \xC3\xA9" "a1 \xC2\xB2!", "it|'|s|\xC3\xA9" "a1|\xC2\xB2!|");
    check_pieces("{\"type\":\"WhitespaceSplit\"}", " a  b\n", "a|b|");
    check_pieces("{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"\xC3\xA9\"}", "a\xC3\xA9" "b", "a|b|");
    check_pieces("{\"type\":\"Digits\",\"individual_digits\":false}", "a12b", "a|12|b|");
    check_pieces("{\"type\":\"Punctuation\",\"behavior\":\"Removed\"}", "a,,b.", "a|b|");
    check_pieces("{\"type\":\"UnicodeScripts\"}", " a \xE4\xB8\xAD\xE3\x81\x82\xE3\x83\xBC" "1", "a |\xE4\xB8\xAD\xE3\x81\x82\xE3\x83\xBC|1|");
    check_pieces("{\"type\":\"UnicodeScripts\"}", "   ", "");
    check_pieces("{\"type\":\"FixedLength\",\"length\":2}", "a\xC3\xA9" "bcd", "a\xC3\xA9|bc|d|");
    check_pieces("{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"always\"}", "a\xC3\xA9 b", "a\xC3\xA9| b|");
    check_pieces(TEST_BYTE_LEVEL("true"), "a\xC3\xA9 12\xC3\xA9", "a\xC3\xA9| 12|\xC3\xA9|");
    check_pieces("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false},{\"type\":\"FixedLength\",\"length\":1}]}",
                 "a\xC3\xA9", "a|\xC3\xA9|\xC3\xA9|");
}

/* The same vocabulary of bytes with the scanner, with cuts in front of it, and as characters. */
static void test_bytes(void)
{
#define BPE "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\xC4\xA0\":2,\"\xC3\x83\":3,\"\xC2\xA9\":4,\"\xC4\xA0" "a\":5,\"ab\":6},\"merges\":[\"\xC4\xA0 a\",\"a b\"]}"
    static const char *const pre[] = { TEST_BYTE_LEVEL("true"),
        "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT("b", "MergedWithNext", "false") "," TEST_BYTE_LEVEL("true") "]}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[" TEST_BYTE_LEVEL("false") ",{\"type\":\"FixedLength\",\"length\":1}]}" };
    static const int32_t ids[3][8] = { { 5, 1, 2, 3, 4, 6 }, { 5, 2, 1, 2, 3, 4, 0 }, { 0, 1, 2, 3, 4, 0, 1 } };
    static const size_t n_ids[3] = { 6, 9, 7 };
    for (int i = 0; i < 3; i++) {
        ft_tokenizer *tok = tokenizer_of(BPE, "null", pre[i], TEST_BYTE_LEVEL("false"));
        int32_t found[32];
        ft_span at[32];
        char back[32];
        size_t n = 0, m = 0;
        if (!tok) continue;
        CHECK_OK(ft_tokenizer_encode_spans(tok, "ab \xC3\xA9" "ab", 7, 0, NULL, 0, found, at, 32, &n, &err), err);
        CHECK_INT(n, n_ids[i]);
        CHECK_MSG(n >= 6 && !memcmp(found, ids[i], 6 * sizeof *found), "way %d: other ids", i);
        CHECK_INT(at[0].begin, 0);
        for (size_t k = 1; k < n; k++) CHECK(at[k].begin >= at[k - 1].begin && at[k].end <= 7 && at[k].begin <= at[k].end);
        CHECK_INT(at[n - 1].end, 7);
        CHECK_OK(ft_tokenizer_decode(tok, found, n, 0, back, sizeof back, &m, &err), err);
        if (i == 2) CHECK(m == 7 && !memcmp(back, "ab \xC3\xA9" "ab", 7));
        if (i == 1) {                                         /* saved as it was read */
            ft_tokenizer *again = NULL;
            size_t k = 0;
            CHECK_OK(ft_tokenizer_save(tok, test_tmp("regex_saved"), &err), err);
            CHECK_OK(ft_tokenizer_load(&again, test_tmp("regex_saved"), NULL, &err), err);
            if (again) CHECK_OK(ft_tokenizer_encode(again, "ab \xC3\xA9" "ab", 7, 0, found, 32, &k, &err), err);
            CHECK_INT(k, n);
            ft_tokenizer_free(again);
        }
        ft_tokenizer_free(tok);
    }
}

static void test_replace(void)
{
    ft_tokenizer *tok = tokenizer_of(WORDS, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x+(?=b)\"},\"content\":\"a \"},"
        "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"$\"},\"content\":\" b\"}]}", "{\"type\":\"Whitespace\"}", "null");
    int32_t ids[8];
    ft_span at[8];
    size_t n = 0;
    if (!tok) return;
    CHECK_OK(ft_tokenizer_encode_spans(tok, "xxb", 3, 0, NULL, 0, ids, at, 8, &n, &err), err);
    CHECK(n == 3 && ids[0] == 1 && ids[1] == 2 && ids[2] == 2 && at[0].begin == 1 && at[0].end == 2 && at[2].end == 3);
    ft_tokenizer_free(tok);
}

static void test_no_memory(void)
{
    static const char text[] = "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"q+\"},\"content\":\"\"},{\"type\":\"ByteLevel\"}]},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT("(?i:sp|b)(?<=b)", "Isolated", "false") ",{\"type\":\"UnicodeScripts\"},{\"type\":\"FixedLength\",\"length\":3},"
        TEST_BYTE_LEVEL("true") ",{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\"}]},\"decoder\":null,\"model\":" WORDS "}";
    const char *path = test_tmp("regex_memory.json");
    ft_tokenizer *tok = NULL;
    int32_t ids[64];
    ft_span at[64];
    size_t n = 0;
    TEST_EVERY_FAILURE(no_memory(published, "It's a test of 123 things,\n  and more"), (void)0);
    TEST_EVERY_FAILURE(no_memory("(?:a|a|a)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), (void)0);
    CHECK(test_write(path, text, sizeof text - 1));
    TEST_EVERY_FAILURE(ft_tokenizer_load(&tok, path, NULL, &err), ft_tokenizer_free(tok));
    CHECK_OK(ft_tokenizer_load(&tok, path, NULL, &err), err);
    TEST_EVERY_FAILURE(ft_tokenizer_encode_spans(tok, "ab a bssb qqa", 13, 0, NULL, 0, ids, at, 64, &n, &err), (void)0);
    ft_tokenizer_free(tok);
}

int main(void)
{
    fti_make_directory("build/tmp", NULL);
    test_matches();
    test_refused();
    test_hostile();
    test_scanners();
    test_windows();
    test_mutations();
    test_pieces();
    test_bytes();
    test_replace();
    test_no_memory();
    CHECK_INT(test_alive, 0);
    return test_end();
}
