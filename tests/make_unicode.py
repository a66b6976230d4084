#!/usr/bin/env python3
"""make_unicode.py - the Unicode 16 tables of ftune.h

    build/venv/bin/python tests/make_unicode.py FILE      replace the tables between the two marker lines of FILE
    build/venv/bin/python tests/make_unicode.py --sums    the checksums that tests/test_91_unicode.c expects

Sources, all PyPI:
    unicodedata2 16.0.0   general categories, combining classes, decompositions: Unicode 16.0
    regex                 Script=Han and White_Space. Its tables are Unicode 17, so only code points that Unicode 16
                          assigns are taken; no older code point changed either property in 17.
    tokenizers            lower case, which is Rust's char::to_lowercase (the fast tokenizers' own), again cut to
                          the code points of Unicode 16; and where its BERT normaliser, whose tables are about
                          Unicode 8, disagrees with Unicode 16 about marks, punctuation and format characters
The checksums are computed from these packages, not from the tables, so they check the tables.
"""
import sys
import regex
import unicodedata2 as ud
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

assert ud.unidata_version == "16.0.0", ud.unidata_version
N, LIMIT, BLOCK = 0x110000, 0x20000, 64
BEGIN = "/* ---- Unicode tables, made by tests/make_unicode.py: do not edit by hand ---- */"
END = "/* ---- end of the Unicode tables ---- */"
UPPER, LOWER, MODIFIER, CASELESS, MARK, NUMBER, SPACE, HAN, PUNCT, CONTROL, FORMAT, UNASSIGNED, NONSPACING, \
    NOT_NFC, DECOMPOSES, LOWERS = (1 << i for i in range(16))
CLASS_BITS = 0x1FFF

chars = [chr(c) for c in range(N)]
cat = [ud.category(ch) for ch in chars]
surrogate = range(0xD800, 0xE000)
hangul = range(0xAC00, 0xD7A4)


def assigned(c):
    return cat[c] not in ("Cn", "Cs")


def class_of():
    han, white = regex.compile(r"\p{Script=Han}"), regex.compile(r"\p{White_Space}")
    by_category = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": MODIFIER, "Lo": CASELESS, "Mn": MARK | NONSPACING,
                   "Mc": MARK, "Me": MARK, "Cc": CONTROL, "Cf": FORMAT, "Cn": UNASSIGNED, "Co": UNASSIGNED,
                   "Cs": UNASSIGNED}
    by_letter = {"N": NUMBER, "P": PUNCT, "S": 0, "Z": 0}
    out = []
    for c in range(N):
        bits = by_category[cat[c]] if cat[c] in by_category else by_letter[cat[c][0]]
        if assigned(c):
            bits |= (HAN if han.match(chars[c]) else 0) | (SPACE if white.match(chars[c]) else 0)
        out.append(bits)
    return out


def decompositions():
    """canonical, one step: code point -> (first, second or 0); and the pairs that compose again"""
    single = {}
    for c in range(N):
        d = ud.decomposition(chars[c])
        if d and not d.startswith("<"):
            d = [int(x, 16) for x in d.split()]
            single[c] = (d[0], d[1] if len(d) > 1 else 0)
    pairs = {d: c for c, d in single.items() if d[1] and ud.normalize("NFC", chars[c]) == chars[c]}
    return single, pairs


def lower_cases():
    rust, out = Lowercase(), {}
    for c in range(N):
        if assigned(c):
            s = rust.normalize_str(chars[c])
            if s != chars[c]:
                out[c] = [ord(x) for x in s]
    return out


classes, lower = class_of(), lower_cases()
single, pairs = decompositions()


def bert_differences():
    """code points for which the original's answer is not the one of Unicode 16, as ranges"""
    def normalizer(clean, strip):
        return BertNormalizer(clean_text=clean, handle_chinese_chars=False, strip_accents=strip, lowercase=False)
    clean, strip, cut = normalizer(True, False), normalizer(False, True), BertPreTokenizer()
    tests = {
        "mark": lambda c, s: bool(classes[c] & NONSPACING) != (strip.normalize_str("a%sb" % s) == "ab"),
        "punct": lambda c, s: bool(classes[c] & PUNCT) != (len(cut.pre_tokenize_str("a%sb" % s)) == 3),
        "format": lambda c, s: bool(classes[c] & FORMAT) and clean.normalize_str("a%sb" % s) != "ab",
    }
    for name, test in tests.items():
        ranges = []
        for c in range(0x80, N):
            if assigned(c) and test(c, chars[c]):
                if ranges and ranges[-1][1] == c - 1:
                    ranges[-1][1] = c
                else:
                    ranges.append([c, c])
        yield name, ranges


def kinds():
    """class bits, the three bits of normalisation and case, combining class in bits 16..23"""
    seconds = {b for _, b in pairs} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    out = []
    for c in range(N):
        k = classes[c] | ud.combining(chars[c]) << 16
        if c not in surrogate:       # the parts of U+16123 begin with a letter that joins the one before: not certain
            parts = ud.normalize("NFD", chars[c])
            if ord(parts[0]) in seconds or ud.normalize("NFC", chars[c]) != chars[c]:
                k |= NOT_NFC
        if c in single or c in hangul:
            k |= DECOMPOSES
        if c in lower:
            k |= LOWERS
        out.append(k)
    return out


def rows(items, width=116):
    line, out = "   ", []
    for item in items:
        if len(line) + 1 + len(item) > width:
            out.append(line)
            line = "   "
        line += " " + item
    return "\n".join(out + [line])


def numbers(values, width=116):
    line, out = "    ", []
    for v in values:
        item = "%d," % v
        if len(line) + len(item) > width:
            out.append(line)
            line = "    "
        line += item
    return "\n".join(out + [line])


def tables():
    kind = kinds()
    count = {}
    for k in kind:
        count[k] = count.get(k, 0) + 1
    # the alphabet of the block strings: printable, without what a C string reads differently; rare kinds are \2xx
    letters = [c for c in range(35, 127) if chr(c) not in '?\\'] + list(range(128, 256))
    order = sorted(count, key=lambda k: (-count[k], k))
    code = dict(zip(order, letters))
    text = lambda k: chr(code[k]) if code[k] < 128 else "\\%o" % code[k]

    blocks, index = {}, []
    for b in range(0, LIMIT, BLOCK):
        index.append(blocks.setdefault(tuple(kind[b:b + BLOCK]), len(blocks)))
    high = []
    for c in range(LIMIT, N):
        if high and high[-1][1] == kind[c]:
            high[-1][0] = c
        else:
            high.append([c, kind[c]])

    compat = [c for c in single if 0xF900 <= c <= 0xFAD9 or 0x2F800 <= c <= 0x2FA1D]
    rest = sorted(c for c in single if c not in set(compat))
    place = {c: i for i, c in enumerate(rest)}
    composed = [place[pairs[p]] for p in sorted(pairs)]

    ranges = []      # lower case: first, last, stride, how much to add
    for c in sorted(lower):
        if len(lower[c]) > 1:
            assert c == 0x130 and lower[c] == [0x69, 0x307]
            continue
        delta = lower[c][0] - c
        r = ranges[-1] if ranges else None
        if r and r[3] == delta and c - r[1] in (1, 2) and (r[0] == r[1] or r[2] == c - r[1]):
            r[2], r[1] = c - r[1], c
        else:
            ranges.append([c, c, 1, delta])

    table = [0] * (max(letters[:len(order)]) + 1 - 35)
    for k in order:
        table[code[k] - 35] = k
    out = [BEGIN]
    out.append("/* What a code point is: bits 0..12 its class, 13 not certainly NFC, 14 decomposes, 15 has a lower case,")
    out.append(" * 16..23 the canonical combining class. %d kinds; a block names them by the characters from '#'. */"
               % len(order))
    out.append("static const uint32_t fti_cp_kinds[%d] = {\n%s\n};" % (len(table), numbers(table)))
    out.append("/* The kinds of 64 code points a row, each different row once. */")
    out.append("static const unsigned char fti_cp_blocks[] =")
    for b in blocks:
        out.append('    "%s"' % "".join(text(k) for k in b))
    out[-1] += ";"
    out.append("/* Row of each block below U+20000; above it the few ranges that follow. */")
    out.append("static const uint16_t fti_cp_index[%d] = {\n%s\n};" % (len(index), numbers(index)))
    out.append("static const struct { uint32_t last, kind; } fti_cp_high[%d] = {\n%s\n};"
               % (len(high), rows("{0x%X,%d}," % tuple(h) for h in high)))
    out.append("/* Canonical decompositions, one step: code point, first, second (0: none), by code point. */")
    out.append("static const uint32_t fti_decompositions[%d][3] = {\n%s\n};"
               % (len(rest), rows("{%d,%d,%d}," % ((c,) + single[c]) for c in rest).replace("}, {", "},{")))
    out.append("/* Rows of the table above that compose again, by (first, second). */")
    out.append("static const uint16_t fti_compositions[%d] = {\n%s\n};" % (len(composed), numbers(composed)))
    for name, a, b in (("low", 0xF900, 0xFAD9), ("high", 0x2F800, 0x2FA1D)):
        out.append("/* CJK compatibility ideographs U+%04X..U+%04X: the unified one, 0: itself. */" % (a, b))
        out.append("static const %s fti_cjk_%s[%d] = {\n%s\n};" % ("uint32_t", name, b - a + 1, numbers(
            [single.get(c, (0, 0))[0] for c in range(a, b + 1)])))
    out.append("/* Lower case: first, last, stride, what to add. U+0130 is in the code. */")
    out.append("static const int32_t fti_lower_ranges[%d][4] = {\n%s\n};"
               % (len(ranges), rows("{%d,%d,%d,%d}," % tuple(r) for r in ranges).replace("}, {", "},{")))
    for name, differ in bert_differences():
        out.append("/* WordPiece: where the original's older tables say the opposite of ours about %s: first, last. */" % name)
        out.append("static const uint32_t fti_bert_%s[%d][2] = {\n%s\n};"
                   % (name, len(differ), rows("{%d,%d}," % tuple(r) for r in differ).replace("}, {", "},{")))
    out.append(END)
    return "\n".join(out)


def fnv(chunks):
    h = 0xCBF29CE484222325
    for chunk in chunks:
        for byte in chunk:
            h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def sums():
    yield "class", fnv(k.to_bytes(2, "little") for k in classes)
    for form in ("NFC", "NFD"):
        yield form, fnv(ud.normalize(form, chars[c]).encode() for c in range(N) if c not in surrogate)
    yield "lower", fnv("".join(map(chr, lower.get(c, [c]))).encode() for c in range(N) if c not in surrogate)


if __name__ == "__main__":
    if sys.argv[1:] == ["--sums"]:
        for name, value in sums():
            print("%-6s 0x%016xu" % (name, value))
    elif len(sys.argv) == 2:
        with open(sys.argv[1], encoding="utf-8", newline="\n") as f:
            text = f.read()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        made = tables()
        with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as f:
            f.write(before + made + after)
        print("%s: %d bytes of tables" % (sys.argv[1], len(made)))
    else:
        sys.exit(__doc__)
